//! WAL of a real cluster through the store: taken up in the middle of a segment, torn by a crash, recovered, and
//! read from first to last record by `pg_waldump`.

use std::fs;
use std::os::unix::fs::FileExt;

use lakebed_pgtest::{Cluster, Stop, program, run, temp_dir};
use lakebed_safekeeper::boundary::at_or_below;
use lakebed_safekeeper::recovery::{Boundary, create, find_end};
use lakebed_safekeeper::wal_files::WalFiles;
use lakebed_safekeeper::wal_store::WalStore;
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;

const SEGMENT: u64 = 1 << 24;

#[test]
fn pg_waldump_reads_what_a_crash_left_from_first_to_last_record() {
    let mut cluster = Cluster::init();
    cluster.start(&["wal_keep_size=1GB", "fsync=off"]);
    run(cluster.client("pgbench").args(["-i", "-s", "2", "-q"]));
    cluster.sql("select pg_switch_wal()");
    run(cluster.client("pgbench").args(["-c", "2", "-t", "100", "-n"]));
    cluster.stop(Stop::Crash);

    let data = cluster.data_dir();
    let control = fs::read(data.join("global/pg_control")).unwrap();
    let system_identifier = u64::from_le_bytes(control[..8].try_into().unwrap());
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier,
        segment_bytes: SEGMENT as u32,
    };
    let mut wal = Vec::new();
    for number in 1.. {
        match fs::read(data.join(format!("pg_wal/{:024X}", (1u128 << 64) + number))) {
            Ok(bytes) => wal.extend(bytes),
            Err(_) => break,
        }
    }
    let mut decoder = WalDecoder::new(format, Lsn(SEGMENT), Lsn::INVALID);
    decoder.feed(&wal);
    let mut records = Vec::new();
    while let Ok(Some(record)) = decoder.next_raw() {
        records.push(record);
    }
    let slice = |from: Lsn, to: Lsn| &wal[(from.0 - SEGMENT) as usize..(to.0 - SEGMENT) as usize];

    // A timeline that starts in the middle, as one made by an import does.
    let start = records[40].end;
    let known = Boundary {
        lsn: start,
        record_start: records[40].start,
    };
    let flushed = &records[records.len() - 30];
    let whole = &records[records.len() - 20];
    let home = temp_dir();
    let directory = home.path().join("timeline");
    let mut store = create(&directory, format, start).unwrap();
    for piece in records[41..records.len() - 29].chunks(100) {
        let (from, to) = (store.write_lsn(), piece.last().unwrap().end);
        store.append(from, slice(from, to)).unwrap();
    }
    assert_eq!(store.flush().unwrap(), flushed.end);
    // Appended and never flushed: whole records, then one that a crash tears.
    store.append(flushed.end, slice(flushed.end, whole.end)).unwrap();
    let torn = Lsn(records[records.len() - 19].start.0 + 16);
    store.append(whole.end, slice(whole.end, torn)).unwrap();
    drop(store);
    let junk_at = Lsn(torn.0 + 40);
    let name = directory.join(format!(
        "{:024X}",
        (1u128 << 64) + u128::from(junk_at.0 / SEGMENT)
    ));
    let file = fs::File::options().write(true).open(name).unwrap();
    file.write_all_at(b"left by the crash", junk_at.0 % SEGMENT)
        .unwrap();

    let end = find_end(&directory, format, known).unwrap();
    assert_eq!(
        end,
        Boundary {
            lsn: whole.end,
            record_start: whole.start
        }
    );
    // The same from a boundary in the middle, as the control file would tell it.
    let middle = Boundary {
        lsn: records[3_000].end,
        record_start: records[3_000].start,
    };
    assert_eq!(find_end(&directory, format, middle).unwrap(), end);

    // Backwards from any position, on a boundary or inside a record.
    let files = WalFiles::new(&directory, format, start);
    for pair in records[41..records.len() - 29].windows(2).step_by(37) {
        let expected = Boundary {
            lsn: pair[0].end,
            record_start: pair[0].start,
        };
        for at in [pair[0].end, Lsn(pair[1].start.0 + 3), Lsn(pair[1].end.0 - 1)] {
            assert_eq!(at_or_below(&files, at).unwrap(), expected, "{at}");
        }
    }
    let nothing = Boundary {
        lsn: start,
        record_start: Lsn::INVALID,
    };
    assert_eq!(at_or_below(&files, Lsn(records[41].end.0 - 1)).unwrap(), nothing);

    let mut store = WalStore::open(&directory, SEGMENT, start, end.lsn).unwrap();
    let last = records.last().unwrap().end;
    store.append(end.lsn, slice(end.lsn, last)).unwrap();
    store.flush().unwrap();

    run(std::process::Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(&directory));
    let mut pg_waldump = program("pg_waldump");
    pg_waldump
        .arg("-p")
        .arg(&directory)
        .args(["-s", &start.to_string(), "-e", &last.to_string()]);
    let printed = run(&mut pg_waldump);
    assert_eq!(printed.lines().count(), records.len() - 41);
}
