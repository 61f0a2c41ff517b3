//! How fast values go into a memory table, and a table into a level-0 layer.
//!
//! ```text
//! cargo run --release -p lakebed-layer --example ingest -- [BYTES OF A DELTA] [PAGES]
//! ```
//!
//! Deltas of that many bytes (100) for pages at random (100,000) until a table of 64 MiB is full; then its flush into
//! memory. Times are of the processor, one thread.

#[path = "support/cpu.rs"]
mod cpu;

use lakebed_layer::format::{Codec, LayerWriter};
use lakebed_layer::{LayerId, LayerKind, Memtable, MemtableError, ValueKind};
use lakebed_types::{ForkNumber, Generation, Lsn, PageKey, RelTag};

const TABLE_BYTES: usize = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let bytes: usize = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let pages: u64 = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };
    let (mut body, mut random, mut lsn) = (vec![0; bytes.max(8)], 1_u64, Lsn(16));
    let mut table = Memtable::new(TABLE_BYTES);
    let start = cpu::seconds()?;
    let full = 'full: loop {
        // As a pageserver publishes.
        let keys = [(); 16].map(|()| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let block = ((random >> 33) % pages.max(1)) as u32;
            PageKey::Rel { rel, block }
        });
        table.fetch(keys.into_iter());
        for key in keys {
            lsn.0 += bytes as u64 + 24;
            // Records differ in a few of their bytes.
            body[..8].copy_from_slice(&(lsn.0 ^ random).to_le_bytes());
            match table.push(key, lsn, ValueKind::Delta, &body) {
                Ok(_) => {}
                Err(full @ MemtableError::Full { .. }) => break 'full full,
                Err(error) => return Err(error.into()),
            }
        }
    };
    let (seconds, values) = (cpu::seconds()? - start, table.len());
    let payload = (values * bytes) as f64 / 1e6;
    println!(
        "{values} values: {:.0} MB/s, {:.0} ns each; {full}",
        payload / seconds,
        seconds * 1e9 / values as f64
    );
    let id = LayerId {
        generation: Generation(1),
        number: 1,
    };
    let start = cpu::seconds()?;
    let mut writer = LayerWriter::new(Vec::new(), id, LayerKind::Level0, Codec::Lz4)?;
    table.write(&mut writer)?;
    let (_, desc) = writer.finish(Lsn(16), lsn, &[])?;
    let seconds = cpu::seconds()? - start;
    println!(
        "flushed at {:.0} MB/s into a layer of {} bytes",
        payload / seconds,
        desc.bytes
    );
    Ok(())
}
