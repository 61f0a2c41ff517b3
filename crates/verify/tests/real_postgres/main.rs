//! `verify` on WAL of a real Postgres: right redo is found right, wrong redo is found wrong, and what cannot be verified
//! is an error that says why.

mod corpus_writer;
mod custom;
mod history;
mod releases;
mod sabotage;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use history::{History, SETTINGS, recover, request};
use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, run, temp_dir, workloads};
use lakebed_redo::Managers;
use lakebed_types::Lsn;
use lakebed_verify::compare::Allowed;
use lakebed_verify::report::{Mismatch, NotCheckable};
use lakebed_verify::{Native, Redo, Report, Request, VerifyError, verify};
use sabotage::{ForgottenMapClears, WrongEffects, WrongPages};

fn verified(request: &Request, redo: &dyn Redo) -> Result<Report, VerifyError> {
    verify(request, redo, Managers::none(), &mut |_| {})
}

/// Shows what is wrong before it fails.
fn assert_ok(report: &Report) {
    let differences = report
        .against
        .iter()
        .flat_map(|against| against.differences.iter().take(10));
    assert!(
        report.ok(),
        "{:#?}\n{:#?}\n{:#?}",
        report.summary(),
        report.mismatches.iter().take(10).collect::<Vec<_>>(),
        differences.collect::<Vec<_>>()
    );
}

/// Record types with images that ordinary SQL makes, all of which must have been compared.
const CHECKED: &[(&str, &[&str])] = &[
    (
        "Heap",
        &[
            "INSERT",
            "DELETE",
            "UPDATE",
            "HOT_UPDATE",
            "HEAP_CONFIRM",
            "LOCK",
            "INPLACE",
            "INSERT+INIT",
            "UPDATE+INIT",
        ],
    ),
    (
        "Heap2",
        &[
            "PRUNE",
            "VACUUM",
            "FREEZE_PAGE",
            "VISIBLE",
            "MULTI_INSERT",
            "MULTI_INSERT+INIT",
        ],
    ),
    (
        "Btree",
        &[
            "INSERT_LEAF",
            "INSERT_UPPER",
            "SPLIT_L",
            "SPLIT_R",
            "INSERT_POST",
            "DEDUP",
            "DELETE",
            "UNLINK_PAGE",
            "NEWROOT",
            "MARK_PAGE_HALFDEAD",
            "VACUUM",
        ],
    ),
    (
        "Hash",
        &[
            "INIT_META_PAGE",
            "INIT_BITMAP_PAGE",
            "INSERT",
            "ADD_OVFL_PAGE",
            "SPLIT_ALLOCATE_PAGE",
            "SPLIT_COMPLETE",
            "MOVE_PAGE_CONTENTS",
            "SQUEEZE_PAGE",
            "DELETE",
            "SPLIT_CLEANUP",
            "UPDATE_META_PAGE",
            "VACUUM_ONE_PAGE",
        ],
    ),
    (
        "Gin",
        &[
            "CREATE_PTREE",
            "INSERT",
            "DELETE_PAGE",
            "UPDATE_META_PAGE",
            "INSERT_LISTPAGE",
            "DELETE_LISTPAGE",
            "VACUUM_DATA_LEAF_PAGE",
        ],
    ),
    ("Gist", &["PAGE_UPDATE", "PAGE_SPLIT", "PAGE_DELETE"]),
    ("Sequence", &["LOG"]),
    (
        "SPGist",
        &[
            "ADD_LEAF",
            "MOVE_LEAFS",
            "ADD_NODE",
            "SPLIT_TUPLE",
            "PICKSPLIT",
            "VACUUM_LEAF",
            "VACUUM_ROOT",
            "VACUUM_REDIRECT",
        ],
    ),
    (
        "BRIN",
        &[
            "CREATE_INDEX",
            "INSERT",
            "UPDATE",
            "SAMEPAGE_UPDATE",
            "REVMAP_EXTEND",
            "DESUMMARIZE",
            "INSERT+INIT",
            "UPDATE+INIT",
        ],
    ),
    ("Generic", &["Generic"]),
];

#[test]
fn a_workload_of_everything_is_verified_and_every_wrong_redo_is_reported() {
    let history = History::of_everything();
    let recovered = history.recover();

    let mut request = history.request();
    request.against = Some(recovered.data_dir());
    let report = verified(&request, &Native).unwrap();
    println!("{:#?}", report.summary());
    assert_ok(&report);
    for (rmgr, operations) in CHECKED {
        for operation in *operations {
            let counts = report.of(rmgr, operation);
            assert!(counts.checked > 0, "{rmgr}/{operation}: {counts:?}");
        }
    }
    for (rmgr, operation) in [("Database", "CREATE_FILE_COPY"), ("MultiXact", "ZERO_OFF_PAGE")] {
        assert!(report.of(rmgr, operation).seen > 0, "no {rmgr}/{operation}");
    }
    // What carries images is checked, unless all of them are to be applied. Gist/DELETE has another test.
    for (name, counts) in &report.types {
        let reasons = [
            NotCheckable::ImageToApply,
            NotCheckable::NoPage,
            NotCheckable::HintOnly,
        ];
        let told = reasons
            .iter()
            .any(|reason| counts.not_checkable.contains_key(reason));
        let without_images = (name.0.as_str(), name.1.as_str()) == ("Gist", "DELETE");
        assert!(
            counts.checked > 0 || told || without_images,
            "{name:?}: {counts:?}"
        );
    }
    let against = report.against.as_ref().unwrap();
    for kind in [
        "main",
        "vm",
        "init",
        "pg_xact",
        "pg_commit_ts",
        "pg_multixact/offsets",
    ] {
        assert!(against.pages.contains_key(kind), "{kind}: {against:?}");
    }
    for kind in ["pg_filenode.map", "PG_VERSION", "pg_twophase", "pg_tblspc"] {
        assert!(against.files.contains_key(kind), "{kind}: {against:?}");
    }

    wrong_pages(&history);
    wrong_effects(&history, &recovered);
}

fn wrong_pages(history: &History) {
    let wrong = WrongPages::default();
    let mut request = history.request();
    request.shown = usize::MAX;
    let report = verified(&request, &wrong).unwrap();
    assert!(!report.ok());
    let done = wrong.0.into_inner().unwrap();
    assert_eq!(
        done.keys().copied().collect::<BTreeSet<_>>(),
        sabotage::mistakes().into_iter().collect(),
        "a mistake was never made"
    );
    for (rmgr, (lsn, field)) in done {
        // A page that an earlier mistake spoilt may be in the same record.
        let found = report.mismatches.iter().find(|mismatch| {
            let fields: Vec<&str> = mismatch.fields.iter().map(|field| field.field.as_str()).collect();
            mismatch.lsn == lsn && fields == [field.as_str()]
        });
        let found = found.unwrap_or_else(|| panic!("{rmgr}: {field} at {lsn} was not reported"));
        assert!(rmgr.starts_with(&found.rmgr), "{rmgr}: {found:?}");
    }
}

fn wrong_effects(history: &History, recovered: &Cluster) {
    let wrong = WrongEffects::default();
    // And one bit of a recovered file.
    let table = recovered.data_dir().join("base/1/1259");
    let mut bytes = fs::read(&table).unwrap();
    bytes[8192 - 20] ^= 1;
    fs::write(&table, bytes).unwrap();
    let mut request = history.request();
    request.shown = usize::MAX;
    request.against = Some(recovered.data_dir());
    let report = verified(&request, &wrong).unwrap();
    let mut done = wrong.0.into_inner().unwrap();
    let expected = [
        "CLOG",
        "CommitTs",
        "Database",
        "MultiXact",
        "RelMap",
        "Storage",
        "Tablespace",
        "Transaction",
        "Transaction (prepare)",
        "XLOG",
    ];
    assert_eq!(done.keys().copied().collect::<Vec<_>>(), expected);
    done.insert("a file", "1663/1/1259 block 0".to_owned());
    let against = report.against.unwrap();
    for (rmgr, what) in done {
        // A relation, one of its blocks, or the same block of some copy of its database.
        let named = |found: &str| {
            found == what || found.starts_with(&format!("{what} block")) || found.ends_with(&what)
        };
        assert!(
            against
                .differences
                .iter()
                .any(|difference| named(&difference.what)),
            "{rmgr}: {what} is not among {:#?}",
            against.differences
        );
    }
}

/// Record types that only special circumstances make.
const RARE: &[(&str, &[&str])] = &[
    ("CLOG", &["TRUNCATE"]),
    ("CommitTs", &["TRUNCATE"]),
    ("MultiXact", &["TRUNCATE_ID"]),
    ("Heap", &["TRUNCATE"]),
    ("Heap2", &["NEW_CID", "REWRITE"]),
    (
        "XLOG",
        &[
            "BACKUP_END",
            "FPI_FOR_HINT",
            "FPW_CHANGE",
            "RESTORE_POINT",
            "SWITCH",
        ],
    ),
];

#[test]
fn rare_records_are_verified() {
    for installation in [
        Installation::need(15, 0),
        Installation::need(17, 11),
        Installation::need(18, 6),
    ] {
        let mut primary = Cluster::init_with(&installation, &InitOptions::default());
        // Segments before these ids are never needed again once all is frozen.
        run(installation
            .program("pg_resetwal")
            .args(["-f", "-x", "1048576", "-m", "65536,1", "-O", "52352", "-D"])
            .arg(primary.data_dir()));
        // pg_resetwal leaves a control file that says wal_level=minimal, which recovery refuses.
        primary.start(&["fsync=off"]);
        primary.stop(Stop::Clean);
        let base = primary.copy();
        let mut settings = SETTINGS.to_vec();
        settings.extend(["wal_level=logical", "wal_log_hints=on"]);
        primary.start(&settings);
        primary.sql(workloads::RARE);
        primary.stop(Stop::Clean);
        let wal = primary.data_dir().join("pg_wal");
        let recovered = recover(&base, &wal);
        let mut request = request(&base.data_dir(), &wal);
        request.against = Some(recovered.data_dir());
        let report = verified(&request, &Native).unwrap();
        println!("{installation}: {:#?}", report.summary());
        assert_ok(&report);
        for (rmgr, operations) in RARE {
            for operation in *operations {
                assert!(
                    report.of(rmgr, operation).seen > 0,
                    "{installation}: no {rmgr}/{operation}"
                );
            }
        }
    }
}

/// A base backup of a running server, under load, with full page writes, and its WAL archive.
#[test]
fn a_base_backup_of_a_running_server_and_its_archive_are_verified() {
    let archive = temp_dir();
    let mut primary = Cluster::init();
    let archiving = format!("archive_command=cp %p {}/%f", archive.path().display());
    let mut settings = SETTINGS.to_vec();
    settings.extend(["full_page_writes=on", "archive_mode=on", &archiving]);
    primary.start(&settings);
    run(primary.client("pgbench").args(["-i", "-q", "-s", "2"]));
    let backup = temp_dir();
    let mut load = primary
        .client("pgbench")
        .args(["-n", "-c", "2", "-t", "1500"])
        .spawn()
        .unwrap();
    let target = backup.path().join("data");
    run(primary
        .client("pg_basebackup")
        .args(["--checkpoint=spread", "--max-rate=8M", "--wal-method=none", "-D"])
        .arg(&target));
    assert!(load.wait().unwrap().success());
    primary.sql(workloads::DDL);
    let end: Lsn = primary.sql("SELECT pg_switch_wal()").parse().unwrap();
    primary.stop(Stop::Clean);

    let whole = request(&target, archive.path());
    let report = verified(&whole, &Native).unwrap();
    println!("{:#?}", report.summary());
    assert_ok(&report);
    assert!(report.consistent && report.end > end);

    // The least memory: pages go to the scratch file and come back.
    let small = Request {
        memory_bytes: 0,
        ..whole.clone()
    };
    let small = verified(&small, &Native).unwrap();
    assert!(small.spilled_pages > 1000, "{}", small.spilled_pages);
    let unspilled = Report {
        spilled_pages: 0,
        ..small
    };
    assert_eq!(unspilled, report);
    assert!(report.summary().not_checkable[&NotCheckable::ImageToApply] > 0);

    // A range: what is in front is replayed, what is behind is not.
    let half = Lsn(report.start.0 / 2 + end.0 / 2);
    let part = Request {
        from: Some(half),
        to: Some(end),
        ..whole.clone()
    };
    let part = verified(&part, &Native).unwrap();
    assert_ok(&part);
    assert!(part.end <= end && part.checked() < report.checked());
    assert!(part.summary().not_checkable[&NotCheckable::BeforeRange] > 0);

    // A server may clear a bit ahead of its record; a record that never comes is another matter.
    let forgotten = verified(&whole, &ForgottenMapClears).unwrap();
    let map_page = |mismatch: &Mismatch| mismatch.fork == "vm" && mismatch.operation == "VISIBLE";
    assert!(!forgotten.mismatches.is_empty() && forgotten.mismatches.iter().all(map_page));

    refusals(&whole, archive.path(), end);
    // In front of the backup's end nothing can be said.
    let early = Request {
        to: Some(Lsn(report.start.0 + 4096)),
        ..whole
    };
    let early = verified(&early, &Native).unwrap();
    assert!(!early.ok() && !early.consistent, "{:?}", early.summary());
}

fn refusals(whole: &Request, archive: &Path, end: Lsn) {
    let error = |request: &Request| verified(request, &Native).unwrap_err().to_string();
    let beyond = Request {
        to: Some(Lsn(end.0 + (1 << 30))),
        ..whole.clone()
    };
    assert!(error(&beyond).contains("the WAL ends at"), "{}", error(&beyond));

    let mut names: Vec<_> = fs::read_dir(archive)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.retain(|path| path.file_name().unwrap().len() == 24);
    names.sort();
    let removed = &names[names.len() - 2];
    let name = removed.file_name().unwrap().to_str().unwrap().to_owned();
    let bytes = fs::read(removed).unwrap();
    // As the last one of a server that went away, it may be there as a part.
    let partial = removed.with_extension("partial");
    fs::rename(removed, &partial).unwrap();
    assert_ok(&verified(whole, &Native).unwrap());
    fs::remove_file(&partial).unwrap();
    assert!(error(whole).contains(&name), "{}", error(whole));
    // Damage in the middle is not taken for the end.
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 4;
    damaged[middle..middle + 64]
        .iter_mut()
        .for_each(|byte| *byte ^= 0x55);
    fs::write(removed, &damaged).unwrap();
    assert!(error(whole).contains("damaged"), "{}", error(whole));
    fs::write(removed, &bytes[..8192]).unwrap();
    assert!(error(whole).contains("8192 bytes"), "{}", error(whole));
    fs::write(removed, bytes).unwrap();

    let empty = temp_dir();
    let nothing = Request {
        wal: empty.path().to_owned(),
        ..whole.clone()
    };
    assert!(error(&nothing).contains("is missing"), "{}", error(&nothing));
    let other = Cluster::init();
    let foreign = Request {
        against: Some(other.data_dir()),
        ..whole.clone()
    };
    assert!(error(&foreign).contains("another cluster"), "{}", error(&foreign));
    let unrecovered = Request {
        against: Some(whole.base.clone()),
        ..whole.clone()
    };
    assert!(
        error(&unrecovered).contains("backup_label"),
        "{}",
        error(&unrecovered)
    );
}

/// GiST's redo of DELETE sets a flag that the server does not set: stock recovery fails its own check of these images.
#[test]
fn a_difference_that_stock_recovery_has_too_is_counted_and_not_a_mismatch() {
    Installation::each(|installation| {
        let mut primary = Cluster::init_with(installation, &InitOptions::default());
        let base = primary.copy();
        primary.start(&[
            "wal_consistency_checking=all",
            "full_page_writes=off",
            "fsync=off",
            "wal_keep_size=1GB",
        ]);
        primary.sql(workloads::GIST_DEAD);
        primary.stop(Stop::Clean);
        let request = request(&base.data_dir(), &primary.data_dir().join("pg_wal"));
        let report = verified(&request, &Native).unwrap();
        assert_ok(&report);
        let deletions = report.of("Gist", "DELETE");
        assert!(deletions.checked > 0, "{installation}: {deletions:?}");
        assert_eq!(
            deletions.allowed.get(&Allowed::GistTuplesDeletedFlag),
            Some(&deletions.checked)
        );
    });
}

/// WAL without images: only a recovered cluster can tell.
#[test]
fn wal_without_images_needs_a_recovered_cluster() {
    let mut primary = Cluster::init();
    let base = primary.copy();
    primary.start(&["wal_keep_size=1GB", "fsync=off", "full_page_writes=off"]);
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i; DELETE FROM t WHERE i < 9");
    primary.stop(Stop::Clean);
    let pg_wal = primary.data_dir().join("pg_wal");
    let mut request = request(&base.data_dir(), &pg_wal);
    let report = verified(&request, &Native).unwrap();
    assert!(!report.ok() && report.mismatched() == 0);
    assert_eq!(report.skipped().len(), 2, "{:?}", report.skipped());
    let recovered = recover(&base, &pg_wal);
    request.against = Some(recovered.data_dir());
    assert_ok(&verified(&request, &Native).unwrap());
}
