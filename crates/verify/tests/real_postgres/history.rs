//! A cluster's first state and the WAL that a workload made on it.

use std::fs;
use std::path::{Path, PathBuf};

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, temp_dir, workloads};
use lakebed_verify::Request;
use tempfile::TempDir;

pub struct History {
    /// The first state; a copy of it can be recovered.
    pub base: Cluster,
    /// Stopped at the end.
    pub primary: Cluster,
    /// Directory of the tablespace `ts` as the primary left it, empty for a recovery.
    tablespace: TempDir,
}

pub const SETTINGS: [&str; 7] = [
    "wal_consistency_checking=all",
    "wal_keep_size=16GB",
    "wal_recycle=off",
    "fsync=off",
    "max_prepared_transactions=10",
    "autovacuum_naptime=1",
    "track_commit_timestamp=on",
];

impl History {
    /// Runs every workload on Postgres 15.
    pub fn of_everything() -> History {
        History::of(&Installation::default_15(), |primary, tablespace| {
            primary.sql(workloads::EVERYTHING);
            primary.sql(&format!("{WITHOUT_GIST_IMAGES}{}", workloads::GIST_DEAD));
            primary.sql(MULTIXACTS);
            primary.sql(&format!(
                "CREATE TABLESPACE ts LOCATION '{}'",
                tablespace.display()
            ));
            primary.sql(workloads::DATABASES);
        })
    }

    /// Runs `load`, without full page writes: images of theirs would take the place of redo.
    pub fn of(installation: &Installation, load: impl FnOnce(&Cluster, &Path)) -> History {
        let mut primary = Cluster::init_with(installation, &InitOptions::default());
        let base = primary.copy();
        let tablespace = temp_dir();
        let mut settings = SETTINGS.to_vec();
        settings.push("full_page_writes=off");
        primary.start(&settings);
        // There are gigabytes of images.
        primary.sql(
            r"SELECT CASE WHEN 'lz4' = ANY (enumvals) THEN 'lz4' ELSE 'pglz' END AS method
              FROM pg_settings WHERE name = 'wal_compression' \gset
              ALTER SYSTEM SET wal_compression = :'method';
              SELECT pg_reload_conf()",
        );
        load(&primary, tablespace.path());
        primary.stop(Stop::Clean);
        History {
            base,
            primary,
            tablespace,
        }
    }

    pub fn wal(&self) -> PathBuf {
        self.primary.data_dir().join("pg_wal")
    }

    /// Stock recovery of a copy of the base to the end of the WAL.
    pub fn recover(&self) -> Cluster {
        // The tablespace's directory is the primary's; recovery makes its own in the same place.
        for entry in fs::read_dir(self.tablespace.path()).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        recover(&self.base, &self.wal())
    }

    pub fn request(&self) -> Request {
        request(&self.base.data_dir(), &self.wal())
    }
}

pub fn request(base: &Path, wal: &Path) -> Request {
    Request {
        base: base.to_owned(),
        wal: wal.to_owned(),
        from: None,
        to: None,
        against: None,
        memory_bytes: 1 << 30,
        shown: 1000,
    }
}

/// Recovers a copy of a data directory that is no running server's with stock Postgres, to the end of the WAL.
pub fn recover(base: &Cluster, wal: &Path) -> Cluster {
    let mut copy = base.copy();
    let pg_wal = copy.data_dir().join("pg_wal");
    for entry in fs::read_dir(wal).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let target = pg_wal.join(path.file_name().unwrap());
            let _ = fs::remove_file(&target);
            // A link: recovery only reads it, since segments are not recycled.
            fs::hard_link(&path, &target).unwrap();
        }
    }
    fs::write(copy.data_dir().join("recovery.signal"), "").unwrap();
    copy.recover(&[
        "restore_command=false",
        "wal_recycle=off",
        "recovery_target_action=promote",
        "hot_standby=off",
        "max_prepared_transactions=10",
        "track_commit_timestamp=on",
    ]);
    copy
}

/// Stock recovery would end at the first Gist/DELETE with an image.
pub const WITHOUT_GIST_IMAGES: &str =
    "SET wal_consistency_checking = 'heap,heap2,btree,hash,gin,sequence,spgist,brin,generic';\n";

/// Rows that several transactions lock, in subtransactions, so that multixacts and their members fill pages; and
/// transaction ids for more than a page of `pg_xact`.
const MULTIXACTS: &str = "
CREATE TABLE locked (a int PRIMARY KEY, b int);
INSERT INTO locked SELECT i, 0 FROM generate_series(1, 3000) i;
BEGIN;
DO $$ BEGIN FOR i IN 1..3000 LOOP
  BEGIN PERFORM FROM locked WHERE a = i FOR KEY SHARE; EXCEPTION WHEN division_by_zero THEN NULL; END;
  BEGIN UPDATE locked SET b = i WHERE a = i; EXCEPTION WHEN division_by_zero THEN NULL; END;
END LOOP; END $$;
COMMIT;
DO $$ BEGIN FOR i IN 1..40000 LOOP
  BEGIN PERFORM pg_logical_emit_message(true, '', ''); EXCEPTION WHEN division_by_zero THEN NULL; END;
END LOOP; END $$;
";
