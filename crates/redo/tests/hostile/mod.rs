//! Damaged copies of real records and pages: redo may answer with an error or with nonsense, but must not panic.

use lakebed_redo::{PageBytes, mask, redo_block};
use lakebed_wal::record::DecodedRecord;

/// Mutations of each record and page.
const ROUNDS: u64 = 4;

/// How replays of damaged input ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub replayed: u32,
    pub refused: u32,
}

/// A small generator (xorshift), seeded from the record's place so that a failure repeats on the same WAL.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    /// Changes a few bytes, more often near the start, where lengths and numbers are; sometimes cuts the end off.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let near = self.below(2) == 0;
            let at = self.below(if near { bytes.len().min(40) } else { bytes.len() });
            let value = [0, 0xFF, 0x7F, 1, self.below(256) as u8][self.below(5)];
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if self.below(4) == 0 {
            bytes.truncate(self.below(bytes.len() + 1));
        }
    }
}

/// Replays damaged copies of `record` on damaged copies of `page`; only a panic fails.
pub fn survive_mutations(record: &DecodedRecord, index: usize, page: &PageBytes, outcome: &mut Outcome) {
    let mut random = Random(record.start.0 ^ index as u64 ^ 0x9E37_79B9_7F4A_7C15);
    for round in 0..ROUNDS {
        let mut record = record.clone();
        let mut page = page.to_vec();
        if round % 2 == 0 {
            let mut main = record.main_data.to_vec();
            random.damage(&mut main);
            record.main_data = main.into();
            if let Some(data) = record.blocks[index].data.take() {
                let mut data = data.to_vec();
                random.damage(&mut data);
                record.blocks[index].data = Some(data.into());
            }
        }
        if round >= 2 {
            // Header and line pointers, the special area, or any byte.
            for _ in 0..=random.below(4) {
                let at = [8 + random.below(64), 8176 + random.below(16), random.below(8192)][random.below(3)];
                page[at] = random.below(256) as u8;
            }
        }
        if random.below(8) == 0 {
            record.info = (random.below(16) as u8) << 4;
        }
        if random.below(8) == 0 {
            record.blocks[index].id = random.below(5) as u8;
        }
        record.blocks[index].image = None;
        // Not ahead of the record, so that redo runs.
        page[..8].fill(0);
        let block = record.blocks[index].clone();
        let mut page = PageBytes::try_from(&page[..]).unwrap();
        match redo_block(&record, &block, &mut page) {
            Ok(()) => outcome.replayed += 1,
            Err(_) => outcome.refused += 1,
        }
        mask::for_record(record.rmid, &mut page, block.block);
        mask::by_layout(&mut page, block.block);
    }
}
