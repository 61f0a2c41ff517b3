//! Making an object.

use std::ops::Range;

use lakebed_types::Lsn;

use crate::object::{Header, footer, index_entry};
use crate::{MAX_FRAME_BYTES, MAX_FRAMES, MAX_STATE_BYTES, frame};

/// Where one frame begins and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its WAL.
    pub range: Range<Lsn>,
    /// It begins inside a record.
    pub inside_record: bool,
}

/// Cuts the WAL from `begin` at the record ends in `ends`, which rise and lie above `begin`: a frame is closed by the
/// first record that makes it `target` bytes or more. A record that does not fit into a frame with what comes before it
/// begins a frame of its own, in pieces when it fits into none.
pub fn cuts(begin: Lsn, ends: &[Lsn], target: usize) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let (target, most) = (target.clamp(1, MAX_FRAME_BYTES) as u64, MAX_FRAME_BYTES as u64);
    let (mut from, mut last) = (begin, begin);
    let mut close = |from: &mut Lsn, to: Lsn| {
        let mut inside_record = false;
        while *from < to {
            let end = Lsn((from.0 + most).min(to.0));
            cuts.push(Cut {
                range: *from..end,
                inside_record,
            });
            (*from, inside_record) = (end, true);
        }
    };
    for &end in ends {
        if end.0.saturating_sub(from.0) > most {
            close(&mut from, last);
        }
        if end.0.saturating_sub(from.0) >= target {
            close(&mut from, end);
        }
        last = end;
    }
    close(&mut from, last);
    cuts
}

/// Collects frames into an object.
#[derive(Debug)]
pub struct ObjectBuilder {
    header: Header,
    bytes: Vec<u8>,
    index: Vec<u8>,
    frames: usize,
    at: Lsn,
}

impl ObjectBuilder {
    /// An object of the WAL that the header describes.
    pub fn new(header: Header) -> ObjectBuilder {
        ObjectBuilder {
            bytes: header.encode(),
            at: header.begin,
            header,
            index: Vec::new(),
            frames: 0,
        }
    }

    /// Adds the frame that follows.
    ///
    /// # Panics
    /// When it does not follow the one before, or is too large: a bug of the caller.
    pub fn frame(&mut self, cut: &Cut, wal: &[u8]) {
        assert_eq!(cut.range.start, self.at, "frames follow each other");
        assert_eq!(
            cut.range.end.0 - cut.range.start.0,
            wal.len() as u64,
            "a frame's WAL"
        );
        assert!(self.frames < MAX_FRAMES, "too many frames");
        let encoded = frame::encode(self.at, wal, cut.inside_record);
        self.index.extend(index_entry(
            self.at,
            self.bytes.len() as u64,
            encoded.len() as u32,
        ));
        self.bytes.extend(encoded);
        self.frames += 1;
        self.at = cut.range.end;
    }

    /// The object.
    ///
    /// # Panics
    /// When frames are missing, or the state is longer than [`MAX_STATE_BYTES`]: a bug of the caller.
    pub fn finish(mut self, state: &[u8]) -> Vec<u8> {
        assert_eq!(self.at, self.header.end, "frames up to the end");
        assert!(state.len() <= MAX_STATE_BYTES, "a state of {} bytes", state.len());
        let footer = footer(&self.header, self.bytes.len() as u64, &self.index, state);
        self.bytes.extend(&self.index);
        self.bytes.extend(state);
        self.bytes.extend(footer);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of records, and the frames: begin, end, whether inside a record.
    type Row = (&'static [u64], &'static [(u64, u64, bool)]);

    fn plain(cuts: &[Cut]) -> Vec<(u64, u64, bool)> {
        let plain = cuts.iter();
        plain
            .map(|cut| (cut.range.start.0, cut.range.end.0, cut.inside_record))
            .collect()
    }

    #[test]
    fn frames_end_with_records() {
        const M: u64 = MAX_FRAME_BYTES as u64;
        let rows: [Row; 6] = [
            (&[], &[]),
            (&[50], &[(8, 50, false)]),
            // 100 bytes make a frame.
            (&[50, 108, 120], &[(8, 108, false), (108, 120, false)]),
            (&[50, 400, 420], &[(8, 400, false), (400, 420, false)]),
            // A record that fits into a frame, but not with what comes before it.
            (&[50, 40 + M], &[(8, 50, false), (50, 40 + M, false)]),
            // One that fits into none.
            (
                &[50, 60 + 2 * M, 70 + 2 * M],
                &[
                    (8, 50, false),
                    (50, 50 + M, false),
                    (50 + M, 50 + 2 * M, true),
                    (50 + 2 * M, 60 + 2 * M, true),
                    (60 + 2 * M, 70 + 2 * M, false),
                ],
            ),
        ];
        for (ends, expected) in rows {
            let ends: Vec<Lsn> = ends.iter().copied().map(Lsn).collect();
            assert_eq!(plain(&cuts(Lsn(8), &ends, 100)), expected, "{ends:?}");
        }
    }
}
