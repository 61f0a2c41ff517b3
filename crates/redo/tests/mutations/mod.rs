//! Damaged records and pages must give errors, never a panic: real records with real pages, with bytes changed.

use bytes::Bytes;
use lakebed_redo::{PageBytes, redo_block};
use lakebed_wal::record::DecodedRecord;

/// A record, the index of one of its block references, and the page before it.
pub struct Sample {
    pub record: DecodedRecord,
    pub index: usize,
    pub page: Box<PageBytes>,
}

/// xorshift64: the same damage in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    /// Flips a bit, writes an extreme value, or cuts the end off.
    fn damage(&mut self, bytes: &Bytes) -> Bytes {
        let mut damaged = bytes.to_vec();
        if damaged.is_empty() {
            return vec![self.below(256) as u8; self.below(20)].into();
        }
        let at = self.below(damaged.len().min(64));
        match self.below(4) {
            0 => damaged[at] ^= 1 << self.below(8),
            1 => damaged[at] = [0, 1, 0x7F, 0xFF][self.below(4)],
            2 => damaged.truncate(at),
            _ => damaged[at..]
                .iter_mut()
                .for_each(|byte| *byte = byte.wrapping_add(1)),
        }
        damaged.into()
    }
}

/// Replays each sample `rounds` times with damage; returns how many replays ended in an error.
pub fn survive(samples: &[Sample], rounds: usize) -> usize {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let mut errors = 0;
    for sample in samples {
        for _ in 0..rounds {
            let mut record = sample.record.clone();
            let mut page = sample.page.clone();
            for block in &mut record.blocks {
                block.image = None;
            }
            match random.below(6) {
                0 => record.main_data = random.damage(&record.main_data),
                1 => {
                    let data = record.blocks[sample.index].data.clone().unwrap_or_default();
                    record.blocks[sample.index].data = Some(random.damage(&data));
                }
                2 => record.blocks[sample.index].id = random.below(8) as u8,
                3 => record.info = random.below(16) as u8 * 16,
                // The header and the first line pointers, or the special area.
                4 => page[8 + random.below(56)] = random.below(256) as u8,
                _ => page[8192 - 16 + random.below(16)] ^= 1 << random.below(8),
            }
            if random.below(4) == 0 {
                page[8 + random.below(8184)] ^= 1 << random.below(8);
            }
            errors += usize::from(redo_block(&record, &record.blocks[sample.index], &mut page).is_err());
        }
    }
    errors
}
