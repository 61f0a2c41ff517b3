//! scratch
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;
use lakebed_walcodec::stream::*;
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (dir, from, to) = (
        &args[1],
        u64::from_str_radix(&args[2], 16).unwrap(),
        u64::from_str_radix(&args[3], 16).unwrap(),
    );
    let per: usize = args[4].parse().unwrap();
    let control = std::fs::read(format!("{dir}/global/pg_control")).unwrap();
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: u64::from_le_bytes(control[..8].try_into().unwrap()),
        segment_bytes: 1 << 24,
    };
    let mut wal = Vec::new();
    for n in from >> 24..=(to - 1) >> 24 {
        wal.extend(std::fs::read(format!("{dir}/pg_wal/{}", format.segment_file_name(n))).unwrap());
    }
    let start = from & !0xffffff;
    let wal = &wal[(from - start) as usize..(to - start) as usize];
    let mut d = WalDecoder::new(format, Lsn(from), Lsn::INVALID);
    d.feed(wal);
    let mut cuts = vec![from];
    let (mut commits, mut in_batch, mut total_commits) = (0usize, 0usize, 0usize);
    while let Ok(Some(r)) = d.next_raw() {
        in_batch += 1;
        let switch = r.bytes[17] == 0 && r.bytes[16] & 0xf0 == 0x40;
        if r.bytes[17] == 1 && r.bytes[16] & 0x70 == 0 {
            commits += 1;
            total_commits += 1;
        }
        if switch {
            continue;
        }
        if commits >= per || r.end.0 - cuts.last().unwrap() > 100_000 {
            cuts.push(r.end.0);
            commits = 0;
            in_batch = 0;
        }
    }
    let _ = in_batch;
    for method in [Method::Zstd, Method::Records] {
        let mut e = Encoder::new(format, 1).unwrap();
        let mut de = Decoder::new(format).unwrap();
        let (mut raw, mut coded) = (0, 0);
        let (mut te, mut td) = (0.0, 0.0);
        for w in cuts.windows(2) {
            let piece = &wal[(w[0] - from) as usize..(w[1] - from) as usize];
            if piece.len() > 1 << 20 {
                println!("skip {}", piece.len());
                continue;
            }
            let t = Instant::now();
            let b = e.encode(Lsn(w[0]), piece, method).unwrap();
            te += t.elapsed().as_secs_f64();
            let t = Instant::now();
            let back = de.decode(Lsn(w[0]), &b).unwrap();
            td += t.elapsed().as_secs_f64();
            assert!(back == piece);
            raw += piece.len();
            coded += b.len();
        }
        println!(
            "{method:?}: {} batches, {total_commits} commits, raw {:.1}/tx coded {:.1}/tx ({coded}), encode {:.1} MB/s decode {:.1} MB/s",
            cuts.len() - 1,
            raw as f64 / total_commits as f64,
            coded as f64 / total_commits as f64,
            raw as f64 / 1e6 / te,
            raw as f64 / 1e6 / td
        );
    }
}
