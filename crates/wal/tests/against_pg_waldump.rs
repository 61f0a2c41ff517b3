//! The decoder against Postgres's own: every record of real WAL, with its place, length, resource manager,
//! transaction and blocks as `pg_waldump` prints them.

use std::fs;
use std::path::Path;

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, run};
use lakebed_types::Lsn;
use lakebed_wal::control::ControlFile;
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::DecodedRecord;
use lakebed_wal::stream::WalDecoder;

const SEGMENT: u64 = 1 << 24;

/// `pg_waldump` prints names; these are their numbers (`access/rmgrlist.h`).
const RESOURCE_MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

fn control_file(data: &Path) -> ControlFile {
    ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap()
}

/// All WAL of the directory, from its first segment on.
fn read_wal(data: &Path) -> (Lsn, Vec<u8>) {
    let mut names: Vec<String> = fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24)
        .collect();
    names.sort();
    let number = |name: &str| {
        u64::from_str_radix(&name[8..16], 16).unwrap() * 256 + u64::from_str_radix(&name[16..], 16).unwrap()
    };
    let mut wal = Vec::new();
    for name in &names {
        wal.extend(fs::read(data.join("pg_wal").join(name)).unwrap());
    }
    (Lsn(number(&names[0]) * SEGMENT), wal)
}

fn decode(data: &Path, piece: usize) -> Vec<DecodedRecord> {
    let (start, wal) = read_wal(data);
    let control = control_file(data);
    let format = WalFormat {
        version: control.version(),
        timeline: 1,
        system_identifier: control.system_identifier(),
        segment_bytes: SEGMENT as u32,
    };
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let mut records = Vec::new();
    let mut pieces = wal.chunks(piece);
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => match pieces.next() {
                Some(bytes) => decoder.feed(bytes),
                None => return records,
            },
            // Recycled segments hold old WAL behind the last record.
            Err(_) => return records,
        }
    }
}

/// What is compared, in `pg_waldump`'s own words.
fn describe(record: &DecodedRecord) -> String {
    let manager = RESOURCE_MANAGERS[usize::from(record.rmid)];
    let mut line = format!(
        "{manager} tx {} lsn {} prev {}",
        record.xid, record.start, record.prev
    );
    for block in &record.blocks {
        line += &format!(" blk {}", block.block);
    }
    line
}

/// `rmgr: Heap        len (rec/tot):     54/   150, tx:        735, lsn: 0/01000028, prev 0/..., desc: ..., blkref #0:
/// rel 1663/5/1259 fork vm blk 3 FPW` to the same words.
fn waldump_line(line: &str) -> String {
    let after = |key: &str| line.split_once(key).unwrap().1.trim_start();
    let word = |key: &str| after(key).split([' ', ',']).next().unwrap();
    let lsn = |key: &str| word(key).parse::<Lsn>().unwrap();
    let mut out = format!(
        "{} tx {} lsn {} prev {}",
        word("rmgr:"),
        word("tx:"),
        lsn("lsn:"),
        lsn("prev ")
    );
    for block in line.split("blkref #").skip(1) {
        let number = block
            .split_once(" blk ")
            .unwrap()
            .1
            .split([' ', ','])
            .next()
            .unwrap();
        out += &format!(" blk {number}");
    }
    out
}

#[test]
fn every_record_of_a_loaded_cluster_is_decoded_as_pg_waldump_does() {
    Installation::each(decode_as_pg_waldump_does);
}

fn decode_as_pg_waldump_does(installation: &Installation) {
    let mut cluster = Cluster::init_with(installation, &InitOptions::default());
    // Long records, images of all kinds of pages, several segments, a segment switch in the middle.
    cluster.start(&[
        "wal_keep_size=1GB",
        "wal_compression=pglz",
        "max_prepared_transactions=4",
        "fsync=off",
    ]);
    run(cluster.client("pgbench").args(["-i", "-s", "2", "-q"]));
    run(cluster.client("pgbench").args(["-c", "2", "-t", "200", "-n"]));
    cluster.sql("select pg_switch_wal()");
    cluster.sql(
        "create table wide as select g, repeat(md5(g::text), 200) as pad from generate_series(1, 3000) g;
         create index on wide (g); alter table wide add primary key (g);
         create table moved (like wide); insert into moved select * from wide where g % 3 = 0;
         begin; savepoint a; delete from wide where g < 100; rollback to a; commit; vacuum full wide; checkpoint",
    );
    cluster.sql("select pg_logical_emit_message(false, 'test', repeat('x', 100000))");
    cluster.sql("select pg_switch_wal()");
    run(cluster.client("pgbench").args(["-c", "2", "-t", "100", "-n"]));
    cluster.stop(Stop::Crash);

    let data = cluster.data_dir();
    let records = decode(&data, 100_000);
    assert!(records.len() > 5_000, "only {} records", records.len());

    let last = records.last().unwrap().end;
    let mut pg_waldump = installation.program("pg_waldump");
    pg_waldump
        .arg("-p")
        .arg(data.join("pg_wal"))
        .args(["-s", &records[0].start.to_string()]);
    let printed = run(pg_waldump.args(["-e", &last.to_string()]));
    let expected: Vec<String> = printed
        .lines()
        .filter(|line| line.starts_with("rmgr:"))
        .map(waldump_line)
        .collect();
    let found: Vec<String> = records.iter().map(describe).collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    assert!(
        records.iter().any(|r| r.rmid == 0 && r.info & 0xf0 == 0x40),
        "no segment switch was seen"
    );

    // The size of the pieces that it is fed changes nothing.
    assert!(decode(&data, 777) == records);
}
