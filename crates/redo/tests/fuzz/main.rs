//! Fuzz targets of redo: real stored records and real pages, damaged. No panic, no access outside of a page, whatever
//! they are. A plain `cargo test` runs a bounded number; `tests/fuzz-campaign` as long as one wants.
//!
//! The corpus is one file, made by `tests/fuzz-corpus`: two pages of every role in every type of record that
//! Postgres 15 writes.

use std::sync::LazyLock;

use lakebed_pgtest::fuzz::{Choices, Tally, entries, u64_of};
use lakebed_redo::{ImageView, Managers, PageBytes, PageRecord, StoredPlace, mask, rmgr};
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::ImageCompression;

const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: ForkNumber::Main,
};

/// A record in stored form and the page before it.
struct Sample {
    end: Lsn,
    block: u32,
    stored: Vec<u8>,
    page: Box<PageBytes>,
}

impl Sample {
    fn rmid(&self) -> u8 {
        self.stored[1]
    }
}

static CORPUS: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let file = zstd::stream::decode_all(&include_bytes!("corpus/pages.zst")[..]).unwrap();
    let samples = entries(&file, 16, 8192)
        .into_iter()
        .map(|(head, stored, page)| Sample {
            end: Lsn(u64_of(head)),
            block: u32::from_le_bytes(head[8..12].try_into().unwrap()),
            stored: stored.to_vec(),
            page: Box::new(page.try_into().unwrap()),
        });
    samples.collect()
});

fn place(version: PgVersion, end: Lsn, block: u32) -> StoredPlace {
    StoredPlace {
        version,
        end,
        rel: REL,
        block,
    }
}

/// Damages the page's header and line pointers, its special area, or anything.
fn damage_page(choices: &mut Choices<'_>, page: &mut PageBytes) {
    // Not the LSN: a page from the future is left alone.
    match choices.below(6) {
        0 => choices.overwrite(page, 8, 24),
        1 => choices.overwrite(page, 8, 100),
        2 | 3 => choices.overwrite(page, 8192 - 16, 8192),
        _ => choices.overwrite(page, 8, 8192),
    }
}

fn damaged_records(area: &'static str, rmids: &[u8]) {
    let samples: Vec<&Sample> = CORPUS
        .iter()
        .filter(|sample| rmids.contains(&sample.rmid()))
        .collect();
    assert!(!samples.is_empty(), "no sample of {area}");
    // As they are, all of them replay.
    for sample in &samples {
        let mut page = sample.page.clone();
        let place = place(PgVersion::V15, sample.end, sample.block);
        PageRecord::decode(&sample.stored, place)
            .unwrap()
            .redo(&mut page, Managers::none())
            .unwrap();
    }
    let tally = Tally::new(area);
    bolero::check!().with_max_len(256).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let sample = choices.of(&samples);
        // Now and then another page of the same resource manager.
        let from = if choices.below(8) == 0 {
            choices.of(&samples)
        } else {
            sample
        };
        let (mut stored, mut page, mut block) = (sample.stored.clone(), from.page.clone(), sample.block);
        page[..8].fill(0);
        for _ in 0..choices.of(&[1, 1, 1, 2, 4]) {
            match choices.below(8) {
                0..=3 => choices.damage(&mut stored),
                // The operation, the page's role, or what else the front of the stored form tells.
                4 => choices.overwrite(&mut stored, 2, 10),
                5 => block = choices.of(&[0, 1, 2, 0xFFFF, 0x1_0000, u32::MAX]),
                _ => damage_page(&mut choices, &mut page),
            }
        }
        let version = choices.of(&PgVersion::ALL);
        let record = PageRecord::decode(&stored, place(version, sample.end, block));
        let refused = record.map_or(true, |record| record.redo(&mut page, Managers::none()).is_err());
        tally.count(refused);
        // Whatever redo left behind can be looked at.
        mask::for_record(sample.rmid(), &mut page, block);
        mask::by_layout(&mut page, block);
    });
}

macro_rules! resource_managers {
    ($($name:ident: $rmid:ident,)*) => { $(
        #[test]
        fn $name() {
            damaged_records(concat!("redo::", stringify!($name)), &[rmgr::$rmid]);
        }
    )* };
}

resource_managers! {
    xlog: XLOG,
    heap2: HEAP2,
    heap: HEAP,
    btree: BTREE,
    hash: HASH,
    gin: GIN,
    gist: GIST,
    sequence: SEQUENCE,
    spgist: SPGIST,
    brin: BRIN,
    generic: GENERIC,
}

/// Any resource manager with data and pages of any other.
#[test]
fn mixed() {
    let tally = Tally::new("redo::mixed");
    bolero::check!().with_max_len(256).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let all: Vec<&Sample> = CORPUS.iter().collect();
        let (sample, other) = (choices.of(&all), choices.of(&all));
        let (mut stored, mut page) = (sample.stored.clone(), other.page.clone());
        page[..8].fill(0);
        stored[1] = choices.below(24) as u8;
        stored[2] = choices.byte();
        while !choices.is_empty() && choices.below(3) != 0 {
            choices.damage(&mut stored);
        }
        let record = PageRecord::decode(&stored, place(PgVersion::V15, sample.end, sample.block));
        tally.count(record.map_or(true, |record| record.redo(&mut page, Managers::none()).is_err()));
    });
}

/// Bytes from nowhere as a stored record.
#[test]
fn stored() {
    let tally = Tally::new("redo::stored");
    bolero::check!().with_max_len(600).for_each(|input: &[u8]| {
        // Without the right first byte nothing else is looked at.
        let stored = [&[2], input].concat();
        let mut page = [0; 8192];
        let record = PageRecord::decode(&stored, place(PgVersion::V15, Lsn(8), 1));
        tally.count(record.is_err());
        if let Ok(record) = record {
            let mut again = Vec::new();
            record.encode(&mut again);
            assert!(again.len() <= stored.len());
            let _ = record.redo(&mut page, Managers::none());
        }
    });
}

/// Page images: damaged streams of all compressions, with all holes.
#[test]
fn images() {
    let plain: Vec<u8> = CORPUS
        .iter()
        .flat_map(|sample| &sample.page[24..])
        .copied()
        .collect();
    let pages: Vec<&[u8]> = plain.chunks_exact(8192 - 400).take(40).collect();
    let tally = Tally::new("redo::images");
    bolero::check!().with_max_len(2048).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let compression = choices.of(&[
            ImageCompression::None,
            ImageCompression::Pglz,
            ImageCompression::Lz4,
            ImageCompression::Zstd,
        ]);
        let page = choices.of(&pages);
        let mut bytes = match compression {
            ImageCompression::None => page.to_vec(),
            // Any bytes are nearly a pglz stream.
            ImageCompression::Pglz => input.to_vec(),
            ImageCompression::Lz4 => lz4_flex::block::compress(page),
            ImageCompression::Zstd => zstd::bulk::compress(page, 1).unwrap(),
        };
        let (mut hole_offset, mut hole_length) = (40, 400);
        for _ in 0..choices.below(4) {
            match choices.below(4) {
                0 => hole_offset = choices.of(&[0, 1, 8191, 8192, u16::MAX]),
                1 => hole_length = choices.of(&[0, 1, 8191, 8192, u16::MAX]),
                _ => choices.damage(&mut bytes),
            }
        }
        let image = ImageView {
            bytes: &bytes,
            compression,
            hole_offset,
            hole_length,
        };
        tally.count(image.restore(&mut [0xAA; 8192]).is_err());
    });
}
