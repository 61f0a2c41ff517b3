//! Bytes that nobody wrote: whatever a record says, the answer is effects or an error, never a panic, and no part of
//! a record can be missing or too much.

use crate::testing::{REL, record, samples, with_blocks};
use crate::{ControlState, IngestError, interpret, route, testing};
use lakebed_types::{PAGE_SIZE, ShardCount};
use lakebed_wal::record::DecodedRecord;

/// Everything that reads a record.
fn swallow(record: &DecodedRecord) -> Result<(), IngestError> {
    let mut control = ControlState::from_checkpoint(&testing::checkpoint());
    let before = control;
    let changed = control.apply(record);
    if changed.is_err() {
        assert_eq!(control, before, "a refused record left traces");
    }
    let effects = interpret(record)?;
    assert!(changed.is_ok(), "effects without a control state: {record:?}");
    route(record, &effects, ShardCount::new(128).unwrap());
    for (_, delta) in effects.slru_changes(true) {
        assert_eq!(crate::SlruDelta::decode(&delta.encode()).as_ref(), Ok(delta));
        delta.apply(&mut [0; PAGE_SIZE]);
    }
    effects
        .vm_truncates
        .iter()
        .for_each(|cut| cut.apply(&mut [1; PAGE_SIZE]));
    Ok(())
}

#[test]
fn every_sample_is_understood_and_none_can_be_shorter_or_longer() {
    for sample in samples() {
        swallow(&sample).unwrap_or_else(|error| panic!("{error}"));
        for length in 0..sample.main_data.len() {
            let mut shorter = sample.clone();
            shorter.main_data.truncate(length);
            assert!(
                swallow(&shorter).is_err(),
                "{length} bytes suffice for {sample:?}"
            );
        }
        let mut longer = sample.main_data.to_vec();
        longer.extend([0; 8]);
        let longer = DecodedRecord {
            main_data: longer.into(),
            ..sample.clone()
        };
        assert!(swallow(&longer).is_err(), "a longer one passes: {sample:?}");
    }
}

#[test]
fn damaged_words_never_panic() {
    for sample in samples() {
        for at in 0..sample.main_data.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                for width in [1, 4] {
                    let mut bytes = sample.main_data.to_vec();
                    let end = (at + width).min(bytes.len());
                    bytes[at..end].fill(value);
                    let damaged = DecodedRecord {
                        main_data: bytes.into(),
                        ..sample.clone()
                    };
                    let _ = swallow(&damaged);
                }
            }
        }
    }
}

#[test]
fn any_manager_and_info_with_any_bytes_is_answered() {
    let fillings: [&[u8]; 5] = [&[], &[0; 3], &[0; 64], &[0xff; 64], &[1; 700]];
    for rmid in 0..=255 {
        for info in 0..=255 {
            for filling in fillings {
                let plain = record(rmid, info, filling);
                let _ = swallow(&plain);
                let _ = swallow(&with_blocks(plain, &[(REL, u32::MAX), (REL, 0)]));
            }
        }
    }
}
