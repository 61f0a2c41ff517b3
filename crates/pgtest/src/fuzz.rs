//! What the fuzz targets share: turning a fuzzer's bytes into damage of real samples, and counting.
//!
//! Bytes at random are refused at the first check, so the targets start from real records and pages and let the
//! fuzzer's bytes choose what to change. The same bytes choose the same, so a failure repeats with its seed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Decisions, from the bytes that the fuzzer made; zeros when they are used up.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// From the fuzzer's bytes.
    pub fn new(bytes: &'a [u8]) -> Choices<'a> {
        Choices(bytes)
    }

    /// Whether there are decisions left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        byte
    }

    /// A number below `end`, and 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = u32::from_le_bytes([self.byte(), self.byte(), self.byte(), 0]) as usize;
        number.checked_rem(end).unwrap_or(0)
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Changes bytes between `from` and `to`, without a change of length.
    pub fn overwrite(&mut self, bytes: &mut [u8], from: usize, to: usize) {
        let to = to.min(bytes.len());
        let Some(room) = to.checked_sub(from).filter(|room| *room > 0) else {
            return;
        };
        let at = from + self.below(room);
        match self.below(5) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.byte(),
            2 => bytes[at] = self.of(&[0, 1, 0x7F, 0x80, 0xFF]),
            // A field of 16 or 32 bits that is extreme, or nearly what it was.
            3 => {
                let value = self.of(&[
                    [0, 0, 0, 0],
                    [0xFF; 4],
                    [1, 0, 0, 0],
                    [0, 0x20, 0, 0],
                    [0, 0, 0, 0x80],
                ]);
                let width = self.of(&[2, 4]).min(to - at);
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            _ => bytes[at] = bytes[at].wrapping_add(self.of(&[1, 2, 4, 8, 0xFF, 0xFE, 0xFC])),
        }
    }

    /// Changes bytes, their number, or both.
    pub fn damage(&mut self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match self.below(8) {
            0 => bytes.truncate(self.below(length + 1)),
            1 => {
                let more = 1 + self.below(40);
                let value = self.byte();
                bytes.resize(length + more, value);
            }
            2 if length > 0 => {
                let from = self.below(length);
                let to = (from + 1 + self.below(16)).min(length);
                bytes.drain(from..to);
            }
            3 if length > 0 => {
                let from = self.below(length);
                let to = (from + 1 + self.below(64)).min(length);
                let again = bytes[from..to].to_vec();
                bytes.splice(from..from, again);
            }
            // Most fields are near the start.
            4 | 5 => self.overwrite(bytes, 0, 48),
            _ => self.overwrite(bytes, 0, length),
        }
    }
}

/// Counts what a target did, and tells when it ends.
#[derive(Debug)]
pub struct Tally {
    area: &'static str,
    began: Instant,
    executions: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    /// For one area.
    pub fn new(area: &'static str) -> Tally {
        Tally {
            area,
            began: Instant::now(),
            executions: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Counts an execution, and whether it ended in an error.
    pub fn count(&self, refused: bool) {
        self.executions.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(u64::from(refused), Ordering::Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        println!(
            "fuzz {}: {} executions, {} refused, {:.0} s",
            self.area,
            self.executions.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
            self.began.elapsed().as_secs_f64(),
        );
    }
}

/// Cuts a corpus file into its entries: `head` bytes whose last four tell a length, as many bytes, then `tail` bytes.
pub fn entries(mut file: &[u8], head: usize, tail: usize) -> Vec<(&[u8], &[u8], &[u8])> {
    let mut entries = Vec::new();
    while !file.is_empty() {
        let (front, rest) = file.split_at(head);
        let length = u32::from_le_bytes(front[head - 4..].try_into().expect("four bytes")) as usize;
        let (body, rest) = rest.split_at(length);
        let (back, rest) = rest.split_at(tail);
        entries.push((front, body, back));
        file = rest;
    }
    entries
}

/// A little-endian number at the start of some bytes.
pub fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"))
}
