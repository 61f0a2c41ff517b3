//! Size and speed of layers of real pages, by codec.
//!
//! ```text
//! cargo run --release -p lakebed-layer --example codecs -- FILE...
//! ```
//!
//! The files are relations of a data directory. Their pages become images in one layer in memory, by each codec; then
//! pages are read in random order through [`LayerReader::read`]. Times are of the processor, one thread.

#[path = "support/cpu.rs"]
mod cpu;

use bytes::Bytes;
use lakebed_layer::format::{Codec, IndexCache, LayerReader, LayerWriter, ReadCount, Sought};
use lakebed_layer::{Chain, LayerId, LayerKind, Value, ValueKind};
use lakebed_types::{ForkNumber, Generation, Lsn, PAGE_SIZE, PageKey, RelTag};

const READS: usize = 200_000;
const LSN: Lsn = Lsn(16);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut pages: Vec<(PageKey, Value)> = Vec::new();
    for (relnode, path) in std::env::args().skip(1).enumerate() {
        let file = Bytes::from(std::fs::read(path)?);
        for block in 0..file.len() / PAGE_SIZE {
            let rel = RelTag {
                spcnode: 1663,
                dbnode: 5,
                relnode: relnode as u32,
                fork: ForkNumber::Main,
            };
            let key = PageKey::Rel {
                rel,
                block: block as u32,
            };
            let body = file.slice(block * PAGE_SIZE..(block + 1) * PAGE_SIZE);
            let kind = ValueKind::Image;
            pages.push((key, Value { kind, body }));
        }
    }
    println!("{} pages", pages.len());
    for codec in [Codec::Plain, Codec::Lz4, Codec::Zstd] {
        measure(codec, &pages)?;
    }
    Ok(())
}

fn measure(codec: Codec, pages: &[(PageKey, Value)]) -> Result<(), Box<dyn std::error::Error>> {
    let id = LayerId {
        generation: Generation(1),
        number: 1,
    };
    let start = cpu::seconds()?;
    let mut writer = LayerWriter::new(Vec::new(), id, LayerKind::Current, codec)?;
    for (key, value) in pages {
        writer.value(key, LSN, value)?;
    }
    let (file, desc) = writer.finish(LSN, LSN, &[])?;
    let written = cpu::seconds()? - start;
    let reader = LayerReader::open(Bytes::from(file), id, desc.bytes)?;
    let (cache, mut count) = (IndexCache::new(64 << 20), ReadCount::default());
    let start = cpu::seconds()?;
    let mut place = 1_usize;
    for _ in 0..READS {
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let Some((key, _)) = pages.get((place >> 33) % pages.len()) else {
            return Err("no pages".into());
        };
        let mut chain = Chain::new(Lsn(0), LSN);
        reader.read(&Sought::new(key), &mut chain, &cache, &mut count)?;
        assert!(chain.has_base());
    }
    println!(
        "{codec:?}: {:.1} % of the pages' bytes, written at {:.0} MB/s, read in {:.2} us a page, {} blocks for {READS} \
         reads, {} bytes resident",
        100.0 * desc.bytes as f64 / (pages.len() * PAGE_SIZE) as f64,
        (pages.len() * PAGE_SIZE) as f64 / 1e6 / written,
        (cpu::seconds()? - start) * 1e6 / READS as f64,
        count.data_blocks,
        reader.resident_bytes(),
    );
    Ok(())
}
