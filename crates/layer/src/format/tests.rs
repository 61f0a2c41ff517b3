use bytes::Bytes;
use lakebed_types::{ForkNumber, Generation, Lsn, PageKey, RelTag, SlruKind};

use super::*;
use crate::{Chain, LayerId, LayerKind, PageRange, Value, ValueKind};

const ID: LayerId = LayerId {
    generation: Generation(3),
    number: 0x2f,
};

fn key(block: u32) -> PageKey {
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 9,
        fork: ForkNumber::Main,
    };
    PageKey::Rel { rel, block }
}

fn delta(text: &str) -> Value {
    Value {
        kind: ValueKind::Delta,
        body: Bytes::copy_from_slice(text.as_bytes()),
    }
}

/// A page that compresses, but not to nothing.
fn image(seed: u32) -> Value {
    let byte = |at: u32| (seed.wrapping_add(at / 16).wrapping_mul(2_654_435_761) >> 24) as u8;
    Value {
        kind: ValueKind::Image,
        body: (0..8192).map(byte).collect::<Vec<u8>>().into(),
    }
}

type Content = Vec<(PageKey, Vec<(Lsn, Value)>)>;

fn write(codec: Codec, content: &Content, sections: &[Bytes]) -> Bytes {
    let mut writer = LayerWriter::new(Vec::new(), ID, LayerKind::Level0, codec).unwrap();
    for (key, values) in content {
        for (lsn, value) in values {
            writer.value(key, *lsn, value).unwrap();
        }
    }
    let (bytes, desc) = writer.finish(Lsn(5), Lsn(5000), sections).unwrap();
    assert_eq!(desc.bytes, bytes.len() as u64);
    bytes.into()
}

fn open(bytes: &Bytes) -> Result<LayerReader<Bytes>, ReadError> {
    LayerReader::open(bytes.clone(), ID, bytes.len() as u64)
}

/// Images with deltas, small chains, a page with more deltas than fit into a block, and pages that are not relations'.
fn sample() -> Content {
    let mut content: Content = (0..40)
        .map(|block| {
            let deltas = (0..block % 4).map(|n| (Lsn(20 + u64::from(n)), delta("a change")));
            let image = (Lsn(10), image(block));
            (key(2 * block), std::iter::once(image).chain(deltas).collect())
        })
        .collect();
    content.extend((50..650).map(|block| (key(2 * block), vec![(Lsn(30), delta("small"))])));
    let text = "x".repeat(100);
    let hot = (0..2000).map(|n| (Lsn(100 + n / 2), delta(&format!("{n} {text}"))));
    content.push((key(2000), hot.collect()));
    let slru = PageKey::Slru {
        kind: SlruKind::Clog,
        page: 7,
    };
    content.push((slru, vec![(Lsn(40), delta("commit"))]));
    content
}

fn read(
    reader: &LayerReader<Bytes>,
    key: &PageKey,
    lsn: Lsn,
) -> Result<(Vec<(Lsn, Value)>, ReadCount), ReadError> {
    let (mut chain, mut count) = (Chain::new(Lsn(0), lsn), ReadCount::default());
    reader.read(
        &Sought::new(key),
        &mut chain,
        &IndexCache::new(1 << 20),
        &mut count,
    )?;
    Ok((chain.into_values().collect(), count))
}

/// What a read of `values` at an LSN has to replay.
fn needed(values: &[(Lsn, Value)], lsn: Lsn) -> Vec<(Lsn, Value)> {
    let seen: Vec<_> = values.iter().filter(|(at, _)| *at <= lsn).cloned().collect();
    let base = seen.iter().rposition(|(_, value)| value.kind.stands_alone());
    seen[base.unwrap_or(0)..].to_vec()
}

#[test]
fn every_page_is_read_at_every_lsn() {
    let (content, sections) = (sample(), [Bytes::from_static(b"one"), Bytes::new()]);
    for codec in [Codec::Plain, Codec::Lz4, Codec::Zstd] {
        let file = write(codec, &content, &sections);
        let reader = open(&file).unwrap();
        reader.verify().unwrap();
        assert_eq!(reader.sections().unwrap(), sections);
        for (key, values) in &content {
            for lsn in [Lsn(9), Lsn(10), Lsn(21), Lsn(35), Lsn(600), Lsn(5000)] {
                assert_eq!(
                    read(&reader, key, lsn).unwrap().0,
                    needed(values, lsn),
                    "{key} at {lsn}"
                );
            }
        }
        let mut cursor = Cursor::new(&reader, PageKey::LOWEST);
        let mut all: Content = Vec::new();
        while let Some(piece) = cursor.next(&reader).unwrap() {
            match all.last_mut().filter(|(key, _)| *key == piece.key) {
                Some((_, values)) => values.extend(piece.values),
                None => all.push((piece.key, piece.values)),
            }
        }
        assert_eq!(all, content);
        let mut named = Vec::new();
        reader.for_each_page(|key| named.push(key)).unwrap();
        named.dedup();
        assert_eq!(named, content.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    }
}

#[test]
fn a_scan_begins_at_any_page() {
    let content = sample();
    let reader = open(&write(Codec::Lz4, &content, &[])).unwrap();
    for from in [0, 1, 39, 78, 79, 100, 101, 613, 1299, 2000, 2001] {
        let mut cursor = Cursor::new(&reader, key(from));
        let expected = content.iter().find(|(page, _)| *page >= key(from));
        let found = cursor.peek(&reader).unwrap();
        assert_eq!(found, expected.map(|(page, _)| *page), "from {from}");
        assert_eq!(cursor.next(&reader).unwrap().map(|piece| piece.key), found);
    }
}

#[test]
fn a_read_is_one_block_and_a_page_that_is_not_there_costs_none() {
    let content = sample();
    let reader = open(&write(Codec::Lz4, &content, &[])).unwrap();
    for block in 0..40 {
        let (_, count) = read(&reader, &key(2 * block), Lsn(5000)).unwrap();
        assert_eq!((count.layers, count.data_blocks), (1, 1));
    }
    let (mut data_blocks, mut filtered) = (0, 0);
    for block in 0..1000 {
        let (values, count) = read(&reader, &key(2 * block + 1), Lsn(5000)).unwrap();
        assert!(values.is_empty());
        data_blocks += count.data_blocks;
        filtered += count.filtered;
    }
    assert_eq!(data_blocks, 0);
    assert!(filtered > 980, "{filtered}");
    // Present, but not yet at this LSN: the index says so.
    assert_eq!(read(&reader, &key(0), Lsn(9)).unwrap().1.data_blocks, 0);
}

#[test]
fn index_blocks_are_read_once_while_they_fit() {
    let reader = open(&write(Codec::Lz4, &sample(), &[])).unwrap();
    let (cache, mut count) = (IndexCache::new(1 << 20), ReadCount::default());
    for _ in 0..2 {
        for block in 50..650 {
            let mut chain = Chain::new(Lsn(0), Lsn(5000));
            reader
                .read(&Sought::new(&key(2 * block)), &mut chain, &cache, &mut count)
                .unwrap();
        }
    }
    assert_eq!(count.index_blocks as usize, cache_blocks(&reader));
    assert!(cache.bytes() > 0 && cache.bytes() < 1 << 20);
    let small = IndexCache::new(16 * 15_000);
    for block in 50..650 {
        let mut chain = Chain::new(Lsn(0), Lsn(5000));
        reader
            .read(&Sought::new(&key(2 * block)), &mut chain, &small, &mut count)
            .unwrap();
        assert!(small.bytes() <= 16 * 15_000);
    }
}

fn cache_blocks(reader: &LayerReader<Bytes>) -> usize {
    let upto = |block: u32| reader.top().upto(Sought::new(&key(block)).upto(Lsn(30)));
    upto(1298) - upto(100).saturating_sub(1)
}

#[test]
fn every_flipped_byte_is_noticed_with_its_place() {
    let content: Content = sample().into_iter().step_by(9).take(60).collect();
    let good = write(Codec::Lz4, &content, &[Bytes::from_static(b"section")]);
    open(&good).unwrap().verify().unwrap();
    let mut named = 0;
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (at % 8);
        let error = open(&bad.into()).and_then(|reader| reader.verify());
        let Err(ReadError::Damaged(damage)) = error else {
            panic!("a flipped byte at {at} of {}: {error:?}", good.len());
        };
        assert_eq!(damage.layer, ID);
        assert!(damage.offset <= at as u64, "{damage}: byte {at}");
        if damage.part == "data block" {
            let (page, lsn) = damage.page.expect("a data block concerns pages");
            assert!(
                content
                    .iter()
                    .any(|(key, values)| *key == page && values[0].0 == lsn),
                "{damage}"
            );
            named += 1;
        }
    }
    assert!(
        named * 2 > good.len(),
        "most bytes are in data blocks: {named} of {}",
        good.len()
    );
}

#[test]
fn a_flipped_byte_of_a_page_that_is_read_names_page_and_lsn() {
    let content = sample();
    let good = write(Codec::Lz4, &content, &[]);
    let reader = open(&good).unwrap();
    let entries = reader.index(
        &reader.top().get(0).unwrap(),
        (key(0), Lsn(0)),
        &IndexCache::new(0),
        &mut ReadCount::default(),
    );
    let place = entries.unwrap().get(3).unwrap().place;
    let mut bad = good.to_vec();
    bad[place.offset as usize + 40] ^= 1;
    let error = read(&open(&bad.into()).unwrap(), &key(6), Lsn(0x77)).unwrap_err();
    let expected = format!(
        "layer 3-2f is damaged: the data block at byte {} (page 1663/5/9 block 6 at 0/77): its checksum is wrong",
        place.offset
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_cut_or_exchanged_file_is_refused() {
    let good = write(Codec::Lz4, &sample(), &[]);
    for length in [0, 31, 32, 175, 176, 5000, good.len() - 1] {
        assert!(open(&good.slice(..length)).is_err(), "{length} bytes");
    }
    let other = LayerId { number: 0x30, ..ID };
    let error = LayerReader::open(good.clone(), other, good.len() as u64).unwrap_err();
    assert!(error.to_string().contains("another layer"), "{error}");
    // A block in another place of the same file.
    let reader = open(&good).unwrap();
    let top = reader.top().get(0).unwrap();
    let index = block::decode(
        block::BlockKind::Index,
        (ID, top.place.offset + 1),
        &good[top.place.offset as usize..top.place.end() as usize],
    );
    assert_eq!(index.unwrap_err(), "its checksum is wrong");
}

#[test]
fn files_of_version_1_are_refused_by_name() {
    let mut old = write(Codec::Lz4, &Vec::new(), &[]).to_vec();
    old[8] = 1;
    let error = open(&old.into()).unwrap_err().to_string();
    assert!(error.contains("before version 2"), "{error}");
}

#[test]
fn values_out_of_order_or_too_long_are_refused() {
    let mut writer = LayerWriter::new(Vec::new(), ID, LayerKind::Level0, Codec::Lz4).unwrap();
    writer.value(&key(2), Lsn(10), &delta("a")).unwrap();
    assert!(matches!(
        writer.value(&key(2), Lsn(9), &delta("a")),
        Err(WriteError::Order { .. })
    ));
    assert!(matches!(
        writer.value(&key(1), Lsn(11), &delta("a")),
        Err(WriteError::Order { .. })
    ));
    let long = Value {
        kind: ValueKind::Delta,
        body: vec![0; MAX_VALUE_BYTES + 1].into(),
    };
    let error = writer.value(&key(3), Lsn(11), &long).unwrap_err();
    assert!(matches!(error, WriteError::TooLong { bytes, .. } if bytes == MAX_VALUE_BYTES + 1));
    writer.value(&key(2), Lsn(10), &delta("b")).unwrap();
}

#[test]
fn an_empty_layer_has_only_sections() {
    let bytes = write(Codec::Lz4, &Vec::new(), &[Bytes::from_static(b"x")]);
    let reader = open(&bytes).unwrap();
    reader.verify().unwrap();
    assert_eq!((reader.desc().pages, reader.desc().pages_span), (0, None));
    assert!(read(&reader, &key(1), Lsn(9)).unwrap().0.is_empty());
}

/// A file as version 2 was first written. A change of the format fails here; bump the version then, and keep this file.
const GOLDEN: &str = include_str!("../../tests/version-2.hex");

fn golden_content() -> Content {
    let state = Value {
        kind: ValueKind::State,
        body: Bytes::from_static(b"state"),
    };
    vec![
        (
            key(1),
            vec![
                (Lsn(10), image(1)),
                (Lsn(20), delta("first")),
                (Lsn(20), delta("second")),
            ],
        ),
        (key(2), vec![(Lsn(30), delta("alone"))]),
        (PageKey::Control, vec![(Lsn(40), state)]),
    ]
}

fn unhex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(60).map(|bytes| line(bytes) + "\n").collect()
}

#[test]
fn a_file_that_was_written_long_ago_is_read() {
    let golden = unhex(GOLDEN);
    let reader = open(&golden).unwrap();
    reader.verify().unwrap();
    for (key, values) in golden_content() {
        assert_eq!(read(&reader, &key, Lsn(5000)).unwrap().0, values);
    }
    assert_eq!(reader.sections().unwrap(), [Bytes::from_static(b"section")]);
    // Compressed bytes may change with the library; these must not.
    let plain = write(Codec::Plain, &golden_content(), &[Bytes::from_static(b"section")]);
    assert_eq!(format!("{:08x}", crc32c::crc32c(&plain)), GOLDEN_PLAIN);
    let fresh = write(Codec::Lz4, &golden_content(), &[Bytes::from_static(b"section")]);
    assert_eq!(fresh.len(), golden.len(), "a new file would be:\n{}", hex(&fresh));
}

const GOLDEN_PLAIN: &str = "4027033d";

#[test]
fn the_index_tells_how_many_bytes_pages_have() {
    // Each image is a block of its own.
    let content: Content = (0..500)
        .map(|block| (key(2 * block), vec![(Lsn(10), image(block))]))
        .collect();
    let bytes = write(Codec::Plain, &content, &[]);
    let (reader, cache) = (open(&bytes).unwrap(), IndexCache::new(1 << 20));
    let of = |from: u32, to: Option<u32>| {
        let pages = PageRange {
            from: key(from),
            to: to.map(key),
        };
        reader.bytes_of(&pages, &cache).unwrap()
    };
    let one = of(0, Some(1));
    assert!((8192..9000).contains(&one), "{one}");
    for (from, to, pages) in [
        (0, Some(0), 0),
        (1, Some(2), 0),
        (2, Some(3), 1),
        (3, Some(7), 2),
        (0, Some(1000), 500),
        (501, None, 249),
        (998, None, 1),
        (999, None, 0),
    ] {
        assert_eq!(of(from, to), pages * one, "{from}..{to:?}");
    }
    assert!(
        reader
            .bytes_of(
                &PageRange {
                    from: PageKey::LOWEST,
                    to: None
                },
                &cache
            )
            .unwrap()
            >= 500 * one
    );
}
