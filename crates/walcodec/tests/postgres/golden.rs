//! Batches that were made by version 1 of the layout and must be understood for as long as that is spoken.
//!
//! `stream-1`: the system identifier, then one batch a line: where its WAL begins, its bytes, the CRC32C of its WAL, all in hexadecimal.
//! It is of a short run of pgbench with two clients, page images in it, on Postgres 15. Made anew, when there is a new
//! version, by `LAKEBED_WRITE_GOLDEN=1 cargo test -p lakebed-walcodec --test postgres golden`.

use std::fmt::Write;

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, run};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_walcodec::stream::{Decoder, Encoder, Method};

use crate::written::written;

const GOLDEN: &str = include_str!("stream-1");

#[test]
fn version_1_is_understood() {
    if std::env::var_os("LAKEBED_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres/stream-1");
        std::fs::write(path, made()).unwrap();
        return;
    }
    let (identifier, batches) = GOLDEN.split_once('\n').unwrap();
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: u64::from_str_radix(identifier, 16).unwrap(),
        segment_bytes: 1 << 24,
    };
    let mut decoder = Decoder::new(format).unwrap();
    let mut methods = Vec::new();
    for line in batches.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let begin = Lsn(u64::from_str_radix(parts[0], 16).unwrap());
        let byte = |at| u8::from_str_radix(&parts[1][at..at + 2], 16).unwrap();
        let batch: Vec<u8> = (0..parts[1].len()).step_by(2).map(byte).collect();
        let wal = decoder.decode(begin, &batch).unwrap();
        assert_eq!(format!("{:08x}", crc32c::crc32c(&wal)), parts[2], "{line}");
        methods.push(batch[0] & 7);
    }
    methods.sort_unstable();
    methods.dedup();
    assert_eq!(methods, [0, 1, 2, 3], "each method is there");
}

fn made() -> String {
    let installation = Installation::default_15();
    let mut cluster = Cluster::init_with(&installation, &InitOptions::default());
    cluster.start(&["wal_keep_size=2GB", "fsync=off", "autovacuum=off"]);
    run(cluster.client("pgbench").args(["-i", "-s", "1", "-q"]));
    cluster.sql("checkpoint");
    run(cluster.client("pgbench").args(["-c", "2", "-t", "100", "-n"]));
    cluster.stop(Stop::Crash);
    let wal = written(&cluster, &installation);
    let mut out = format!("{:x}\n", wal.format.system_identifier);
    let mut encoder = Encoder::new(wal.format, 1).unwrap();
    let commits: Vec<Lsn> = wal
        .ends
        .iter()
        .filter(|(_, commit)| *commit)
        .map(|(end, _)| *end)
        .collect();
    for (number, ends) in commits.windows(2).skip(commits.len() - 150).take(24).enumerate() {
        let place = |lsn: Lsn| (lsn.0 - wal.start.0) as usize;
        let piece = &wal.bytes[place(ends[0])..place(ends[1])];
        let method = match number % 10 {
            8 => Method::Zstd,
            9 if piece.len() < 2000 => Method::Plain,
            _ => Method::Records,
        };
        let batch = encoder.encode(ends[0], piece, method).unwrap();
        write!(out, "{:x} ", ends[0].0).unwrap();
        batch.iter().for_each(|byte| write!(out, "{byte:02x}").unwrap());
        writeln!(out, " {:08x}", crc32c::crc32c(piece)).unwrap();
    }
    out
}
