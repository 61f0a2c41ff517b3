//! What frames make of WAL: `cargo run --release -p lakebed-walframe --example pack -- SEGMENT…`.
//!
//! Each file is cut every 128 KiB, as if records ended there, encoded and decoded. Prints bytes before and after, and the
//! speed of both ways on one core.

use std::time::{Duration, Instant};

use lakebed_types::Lsn;
use lakebed_walframe::{TARGET_FRAME_BYTES, frame};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut before, mut after) = (0, 0);
    let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
    for path in std::env::args().skip(1) {
        for wal in std::fs::read(&path)?.chunks(TARGET_FRAME_BYTES) {
            let begin = Instant::now();
            let encoded = frame::encode(Lsn(0), wal, false);
            encoding += begin.elapsed();
            let begin = Instant::now();
            let (decoded, _) = frame::decode(&encoded)?;
            decoding += begin.elapsed();
            assert_eq!(decoded.wal, wal);
            (before, after) = (before + wal.len(), after + encoded.len());
        }
    }
    let speed = |time: Duration| before as f64 / 1e6 / time.as_secs_f64();
    println!(
        "{before} bytes of WAL, {after} in frames ({:.2} times less); MB/s: {:.0} in, {:.0} out",
        before as f64 / after as f64,
        speed(encoding),
        speed(decoding)
    );
    Ok(())
}
