//! How many bytes WAL that is in files would be on the wire, and what coding it costs.
//!
//! ```text
//! cargo run --release -p lakebed-walcodec --example volume -- DATA_DIRECTORY FROM TO [COMMITS…]
//! ```
//!
//! The data directory is of a Postgres that is stopped and kept its WAL (`wal_keep_size`); FROM and TO are positions
//! (`pg_current_wal_lsn()`), FROM a record boundary. WAL is cut into batches behind every so many commits (default: 1 and 4, which
//! is what one client and what eight make of pgbench), or when 100 kB have come together. Every batch is decoded again and
//! compared. Times are those of the processor, not of the clock.

use std::path::{Path, PathBuf};

use lakebed_types::Lsn;
use lakebed_wal::control::ControlFile;
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;
use lakebed_walcodec::stream::{Decoder, Encoder, Method};
use rustix::time::{ClockId, clock_gettime};

const LONG_BYTES: u64 = 100_000;
const PIECE_BYTES: usize = 1 << 20;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn processor_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn position(text: &str) -> Outcome<Lsn> {
    let (high, low) = text.split_once('/').ok_or("a position is like 0/1A2B3C4D")?;
    Ok(Lsn(
        u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)?
    ))
}

fn read(data: &Path, from: Lsn, to: Lsn) -> Outcome<(WalFormat, Vec<u8>)> {
    let control = ControlFile::decode(&std::fs::read(data.join("global/pg_control"))?)?;
    let format = WalFormat {
        version: control.version(),
        timeline: 1,
        system_identifier: control.system_identifier(),
        segment_bytes: control.segment_bytes(),
    };
    let size = u64::from(format.segment_bytes);
    let mut wal = Vec::new();
    for number in from.0 / size..=(to.0 - 1) / size {
        wal.extend(std::fs::read(
            data.join("pg_wal").join(format.segment_file_name(number)),
        )?);
    }
    let first = from.0 / size * size;
    let wal = wal
        .get((from.0 - first) as usize..(to.0 - first) as usize)
        .ok_or("the WAL is too short")?;
    Ok((format, wal.to_vec()))
}

/// Ends of batches, and the number of commits.
fn cuts(format: WalFormat, from: Lsn, wal: &[u8], commits: usize) -> Outcome<(Vec<Lsn>, usize)> {
    let mut decoder = WalDecoder::new(format, from, Lsn::INVALID);
    decoder.feed(wal);
    let (mut cuts, mut since, mut all) = (vec![from], 0, 0);
    while let Some(record) = decoder.next_raw()? {
        let is_commit =
            record.bytes.get(17) == Some(&1) && record.bytes.get(16).is_some_and(|info| info & 0x70 == 0);
        (since, all) = (since + usize::from(is_commit), all + usize::from(is_commit));
        let begin = cuts.last().copied().unwrap_or(from);
        if since >= commits || record.end.0 - begin.0 > LONG_BYTES {
            cuts.push(record.end);
            since = 0;
        }
    }
    Ok((cuts, all))
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .ok_or("usage: volume DATA_DIRECTORY FROM TO [COMMITS…]")
    };
    let (data, from, to) = (PathBuf::from(next()?), position(&next()?)?, position(&next()?)?);
    let told = arguments
        .map(|number| number.parse())
        .collect::<Result<Vec<usize>, _>>()?;
    let (format, wal) = read(&data, from, to)?;
    for commits in if told.is_empty() { vec![1, 4] } else { told } {
        let (cuts, all) = cuts(format, from, &wal, commits)?;
        for method in [Method::Plain, Method::Zstd, Method::Records] {
            let (mut encoder, mut decoder) = (Encoder::new(format, 1)?, Decoder::new(format)?);
            let (mut raw, mut coded, mut encoding, mut decoding) = (0, 0, 0.0, 0.0);
            for ends in cuts.windows(2) {
                let [begin, end] = ends else { continue };
                let batch = wal
                    .get((begin.0 - from.0) as usize..(end.0 - from.0) as usize)
                    .ok_or("a cut")?;
                // The rest of a segment after a switch is longer than a message.
                for (number, piece) in batch.chunks(PIECE_BYTES).enumerate() {
                    let at = Lsn(begin.0 + (number * PIECE_BYTES) as u64);
                    let began = processor_seconds();
                    let sent = encoder.encode(at, piece, method)?;
                    let encoded = processor_seconds();
                    let back = decoder.decode(at, &sent)?;
                    decoding += processor_seconds() - encoded;
                    encoding += encoded - began;
                    if back != piece {
                        return Err(format!("the batch at {at} comes out otherwise").into());
                    }
                    (raw, coded) = (raw + piece.len(), coded + sent.len());
                }
            }
            let per = |bytes: usize| bytes as f64 / all.max(1) as f64;
            let speed = |seconds: f64| raw as f64 / 1e6 / seconds;
            println!(
                "{{\"commits_per_batch\": {commits}, \"method\": \"{method:?}\", \"commits\": {all}, \"wal_bytes\": {raw}, \
                 \"batch_bytes\": {coded}, \"wal_bytes_per_commit\": {:.1}, \"batch_bytes_per_commit\": {:.1}, \
                 \"encode_mb_per_s\": {:.0}, \"decode_mb_per_s\": {:.0}}}",
                per(raw),
                per(coded),
                speed(encoding),
                speed(decoding)
            );
        }
    }
    Ok(())
}
