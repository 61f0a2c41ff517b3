//! Fuzz target of ingest: what damaged real records of every resource manager do outside of relation pages. No panic,
//! whatever they say. The corpus is that of the crate `wal`, made by `tests/fuzz-corpus`.

use bytes::Bytes;
use lakebed_ingest::{ControlState, SlruDelta, interpret, route};
use lakebed_pgtest::fuzz::{Choices, Tally, entries, u64_of};
use lakebed_types::{Lsn, PAGE_SIZE, PgVersion, ShardCount};
use lakebed_wal::control::ControlFile;
use lakebed_wal::parse::parse_record;
use lakebed_wal::record::DecodedRecord;

const RECORDS: &[u8] = include_bytes!("../../wal/tests/corpus/records");
const CONTROL: &[u8] = include_bytes!("../../wal/tests/corpus/control");

/// Everything that reads a record; whether it was refused.
fn swallow(record: &DecodedRecord, control: &ControlState, shards: ShardCount) -> bool {
    let mut control = *control;
    let before = control;
    if control.apply(record).is_err() {
        assert_eq!(control, before, "a refused record left traces");
    }
    let Ok(effects) = interpret(record) else {
        return true;
    };
    route(record, &effects, shards);
    for (_, delta) in effects.slru_changes(true) {
        assert_eq!(SlruDelta::decode(&delta.encode()).as_ref(), Ok(delta));
        delta.apply(&mut [0; PAGE_SIZE]);
    }
    let cuts = effects.vm_truncates.iter();
    cuts.for_each(|cut| cut.apply(&mut [1; PAGE_SIZE]));
    false
}

#[test]
fn records() {
    let samples: Vec<DecodedRecord> = entries(RECORDS, 20, 0)
        .into_iter()
        .map(|(head, record, _)| {
            let (start, end) = (Lsn(u64_of(head)), Lsn(u64_of(&head[8..])));
            parse_record(PgVersion::V15, start, end, Bytes::copy_from_slice(record)).unwrap()
        })
        .collect();
    let control = ControlState::from_checkpoint(&ControlFile::decode(CONTROL).unwrap().checkpoint());
    for sample in &samples {
        assert!(
            !swallow(sample, &control, ShardCount::new(3).unwrap()),
            "{sample:?}"
        );
    }
    let tally = Tally::new("ingest::records");
    bolero::check!().with_max_len(256).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let mut record = samples[choices.below(samples.len())].clone();
        for _ in 0..1 + choices.below(4) {
            match choices.below(8) {
                0..=3 => {
                    let mut main = record.main_data.to_vec();
                    choices.damage(&mut main);
                    record.main_data = main.into();
                }
                4 => record.info = choices.byte(),
                5 => record.rmid = choices.below(24) as u8,
                6 => record.xid = choices.of(&[0, 1, 2, 3, 700, 0x7FFF_FFFF, u32::MAX]),
                _ => {
                    let index = choices.below(record.blocks.len());
                    let other = samples[choices.below(samples.len())].blocks.first().cloned();
                    match (record.blocks.get_mut(index), other) {
                        (Some(block), _) if choices.below(3) == 0 => {
                            block.block = choices.of(&[0, 1, 32671, 32672, u32::MAX]);
                        }
                        (Some(block), _) if choices.below(3) == 0 => block.id = choices.byte() & 31,
                        (Some(_), _) if choices.below(2) == 0 => {
                            record.blocks.remove(index);
                        }
                        (_, Some(other)) => record.blocks.push(other),
                        _ => {}
                    }
                }
            }
        }
        let shards = ShardCount::new(choices.of(&[1, 2, 128])).unwrap();
        tally.count(swallow(&record, &control, shards));
    });
}
