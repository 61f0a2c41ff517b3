use lakebed_types::Generation;

use super::*;
use crate::format::{Codec, LayerReader};
use crate::{LayerId, LayerKind};

fn key(page: u64) -> PageKey {
    PageKey::Slru {
        kind: lakebed_types::SlruKind::Clog,
        page,
    }
}

fn read(table: &Memtable, page: u64, lsn: u64) -> Vec<(u64, String)> {
    let mut chain = Chain::new(Lsn(0), Lsn(lsn));
    table.read(&key(page), &mut chain);
    let text = |value: &Value| String::from_utf8_lossy(&value.body).into_owned();
    chain.values().map(|(lsn, value)| (lsn.0, text(value))).collect()
}

#[test]
fn reads_begin_at_the_newest_value_that_stands_alone() {
    let mut table = Memtable::new(8 << 20);
    let mut push =
        |page, lsn, kind, body: &str| table.push(key(page), Lsn(lsn), kind, body.as_bytes()).unwrap();
    push(1, 10, ValueKind::Base, "a");
    assert_eq!(push(1, 20, ValueKind::Delta, "b").deltas, 1);
    assert_eq!(push(2, 20, ValueKind::Delta, "other").bytes, 5);
    assert_eq!(
        push(1, 20, ValueKind::VmClear, "c"),
        SinceImage { deltas: 2, bytes: 2 }
    );
    assert_eq!(push(1, 30, ValueKind::Image, "d").deltas, 0);
    assert_eq!(push(1, 40, ValueKind::Delta, "e").deltas, 1);
    let expect = |lsn, expected: &[(u64, &str)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(lsn, text)| (*lsn, (*text).to_owned()))
            .collect();
        assert_eq!(read(&table, 1, lsn), expected);
    };
    expect(9, &[]);
    expect(29, &[(10, "a"), (20, "b"), (20, "c")]);
    expect(50, &[(30, "d"), (40, "e")]);
    let older = table.push(key(1), Lsn(39), ValueKind::Delta, b"");
    assert!(matches!(older, Err(MemtableError::Order { newest: Lsn(40), .. })));
}

#[test]
fn an_image_takes_its_place_among_values_that_came_since() {
    let mut table = Memtable::new(8 << 20);
    for lsn in [10, 20, 30] {
        table.push(key(1), Lsn(lsn), ValueKind::Delta, b"d").unwrap();
    }
    table.insert_image(&key(1), Lsn(25), b"image").unwrap();
    let found = |lsn| {
        read(&table, 1, lsn)
            .into_iter()
            .map(|(lsn, _)| lsn)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (found(20), found(25), found(99)),
        (vec![10, 20], vec![25], vec![25, 30])
    );
    assert_eq!(
        table.since_image(&key(1)),
        Some(SinceImage { deltas: 1, bytes: 1 })
    );
    assert_eq!(
        table
            .push(key(1), Lsn(40), ValueKind::Delta, b"d")
            .unwrap()
            .deltas,
        2
    );
    table.insert_image(&key(1), Lsn(40), b"newest").unwrap();
    assert_eq!(read(&table, 1, 99), [(40, "newest".to_owned())]);
    table.insert_image(&key(1), Lsn(9), b"older than all").unwrap();
    assert_eq!(
        read(&table, 1, 10),
        [(9, "older than all".to_owned()), (10, "d".to_owned())]
    );
    // Its deltas are elsewhere.
    table.insert_image(&key(2), Lsn(9), b"alone").unwrap();
    table.push(key(2), Lsn(12), ValueKind::Delta, b"d").unwrap();
    assert_eq!(read(&table, 2, 9), [(9, "alone".to_owned())]);
    assert_eq!(read(&table, 2, 8), []);
    assert_eq!(
        table.since_image(&key(2)),
        Some(SinceImage { deltas: 1, bytes: 1 })
    );
}

#[test]
fn memory_is_counted_and_bounded() {
    let limit = 4 << 20;
    let mut table = Memtable::new(limit);
    let mut bodies = 0;
    let full = loop {
        let body = vec![1; table.len() % 5000];
        match table.push(
            key(table.len() as u64 % 1000),
            Lsn(8 + table.len() as u64),
            ValueKind::Delta,
            &body,
        ) {
            Ok(_) => bodies += body.len(),
            Err(full) => break full,
        }
        assert!(table.bytes() <= limit);
    };
    assert!(
        matches!(full, MemtableError::Full { bytes, .. } if bytes <= limit),
        "{full}"
    );
    assert!(
        bodies > limit / 2,
        "{bodies} bytes of values in a table of {limit}"
    );
    // A value that is longer than a chunk is counted too.
    let mut table = Memtable::new(limit);
    table
        .push(key(1), Lsn(8), ValueKind::Delta, &vec![0; 3 << 20])
        .unwrap();
    assert!(
        table
            .push(key(1), Lsn(9), ValueKind::Delta, &vec![0; 3 << 20])
            .is_err()
    );
}

#[test]
fn a_flush_is_in_order() {
    let mut table = Memtable::new(8 << 20);
    for n in 0..3000_u64 {
        let page = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
        table
            .push(key(page), Lsn(10 + n), ValueKind::Delta, &n.to_le_bytes())
            .unwrap();
    }
    let id = LayerId {
        generation: Generation(1),
        number: 1,
    };
    let mut writer = LayerWriter::new(Vec::new(), id, LayerKind::Level0, Codec::Lz4).unwrap();
    table.write(&mut writer).unwrap();
    let (bytes, desc) = writer.finish(Lsn(9), Lsn(3010), &[]).unwrap();
    assert_eq!((desc.values, desc.pages), (3000, table.pages.len() as u64));
    let reader = LayerReader::open(Bytes::from(bytes), id, desc.bytes).unwrap();
    reader.verify().unwrap();
}

/// Segments of all lengths, and chunks of both kinds.
#[test]
fn every_value_of_a_large_table_is_found_again() {
    let body = |n: u64| vec![n as u8; (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize];
    let mut table = Memtable::new(64 << 20);
    for n in 0..40_000 {
        let kind = if n % 1000 == 999 {
            ValueKind::Image
        } else {
            ValueKind::Delta
        };
        // Some pages have many values, some one.
        let page = if n % 100 == 0 { n } else { n % 7 * 1_000_000 };
        table.push(key(page), Lsn(10 + n), kind, &body(n)).unwrap();
    }
    assert!(table.bytes() > 16 << 20, "{}", table.bytes());
    let (mut last, mut count, mut longest) = (None, 0, 0);
    table
        .for_each_page(|key, values| {
            assert!(last.is_none_or(|last| last < *key));
            assert!(values.is_sorted_by_key(|value| value.lsn));
            assert!(values.iter().all(|value| value.body == body(value.lsn.0 - 10)));
            (last, count, longest) = (Some(*key), count + values.len(), longest.max(values.len()));
            Ok::<(), ()>(())
        })
        .unwrap();
    assert_eq!((count, table.len()), (40_000, 40_000));
    assert!(longest > 5000);
    let mut chain = Chain::new(Lsn(0), Lsn(30_000));
    table.read(&key(0), &mut chain);
    assert!(chain.has_base() && chain.values().all(|(lsn, value)| value.body == body(lsn.0 - 10)));
}
