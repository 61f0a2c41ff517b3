use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag};

use crate::file::{FOOTER_BYTES, Footer, Index, LayerBuilder, check_header};
use crate::{Chain, MemoryLayer, Value, ValueKind};

fn key(block: u32) -> PageKey {
    PageKey::Rel {
        rel: RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 9,
            fork: ForkNumber::Main,
        },
        block,
    }
}

fn delta(text: &'static str) -> Value {
    Value {
        kind: ValueKind::Delta,
        body: Bytes::from_static(text.as_bytes()),
    }
}

fn image(fill: u8) -> Value {
    Value {
        kind: ValueKind::Image,
        body: vec![fill; 8192].into(),
    }
}

fn open(file: &Bytes) -> (Footer, Index) {
    let footer = Footer::decode(&file[file.len() - FOOTER_BYTES..], file.len() as u64).unwrap();
    let start = footer.index_offset as usize;
    let index = footer
        .index(file.slice(start..start + footer.index_bytes() as usize))
        .unwrap();
    (footer, index)
}

fn sample() -> (MemoryLayer, Bytes) {
    let mut memory = MemoryLayer::default();
    for block in (0..100).rev() {
        memory.push(key(block), Lsn(10), image(block as u8));
        memory.push(key(block), Lsn(20 + u64::from(block)), delta("change"));
    }
    let mut builder = LayerBuilder::new();
    memory
        .sorted()
        .into_iter()
        .for_each(|(key, values)| builder.add(key, values));
    (memory, builder.finish(Lsn(5), Lsn(200), b"catalogue").into())
}

#[test]
fn a_file_gives_back_what_memory_held() {
    let (memory, file) = sample();
    check_header(&file).unwrap();
    let (footer, index) = open(&file);
    assert_eq!((footer.first, footer.last, index.len()), (Lsn(5), Lsn(200), 100));
    assert!(file.len() < 100 * 300, "images are compressed");
    let start = footer.catalogue_offset as usize;
    assert_eq!(
        &footer.catalogue(file.slice(start..start + 9)).unwrap()[..],
        b"catalogue"
    );
    for block in 0..100 {
        let place = index.find(&key(block)).unwrap();
        let chain = file.slice(place.offset as usize..place.offset as usize + place.length as usize);
        assert_eq!(place.decode(chain).unwrap(), memory.get(&key(block)));
    }
    assert!(index.find(&key(100)).is_none());
    assert!(index.find(&PageKey::Control).is_none());
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (_, good) = sample();
    for at in (HEADER..good.len()).step_by(7) {
        let mut bad = good.to_vec();
        bad[at] ^= 0x40;
        let bad = Bytes::from(bad);
        let Ok(footer) = Footer::decode(&bad[bad.len() - FOOTER_BYTES..], bad.len() as u64) else {
            continue;
        };
        let start = footer.index_offset as usize;
        let Ok(index) = footer.index(bad.slice(start..start + footer.index_bytes() as usize)) else {
            continue;
        };
        let catalogue = footer.catalogue_offset as usize;
        if footer
            .catalogue(bad.slice(catalogue..catalogue + footer.catalogue_bytes as usize))
            .is_err()
        {
            continue;
        }
        let damaged = (0..100).any(|block| {
            let place = index.find(&key(block)).unwrap();
            place
                .decode(bad.slice(place.offset as usize..(place.offset + u64::from(place.length)) as usize))
                .is_err()
        });
        // The footer's four reserved bytes mean nothing.
        let reserved = bad.len() - 12 - 8..bad.len() - 8;
        assert!(
            damaged || reserved.contains(&at),
            "a flipped byte at {at} of {} went unnoticed",
            bad.len()
        );
    }
}

const HEADER: usize = crate::file::HEADER_BYTES;

#[test]
fn a_chain_ends_at_the_newest_value_that_stands_alone() {
    let older = [(Lsn(10), image(1)), (Lsn(20), delta("a"))];
    let newer = [
        (Lsn(30), delta("b")),
        (Lsn(40), image(2)),
        (Lsn(50), delta("c")),
        (Lsn(60), delta("d")),
    ];
    let collect = |floor, upto| {
        let mut chain = Chain::new(Lsn(floor), Lsn(upto));
        chain.offer(&newer);
        if !chain.is_complete() {
            chain.offer(&older);
        }
        (
            chain.has_base(),
            chain.into_values().map(|(lsn, _)| lsn.0).collect::<Vec<_>>(),
        )
    };
    assert_eq!(collect(0, 55), (true, vec![40, 50]));
    assert_eq!(collect(0, 100), (true, vec![40, 50, 60]));
    assert_eq!(collect(0, 39), (true, vec![10, 20, 30]));
    assert_eq!(collect(20, 39), (false, vec![30]));
    assert_eq!(collect(45, 100), (false, vec![50, 60]));
    assert_eq!(collect(0, 9), (false, vec![]));
    assert_eq!(collect(50, 50), (false, vec![]));
}
