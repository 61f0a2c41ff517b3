//! WAL on its way in: cut at record boundaries, and refused when it is not WAL.
//!
//! The acceptor core takes whole records only, so that every position it ever names is a boundary. A proposer's
//! message may end inside a record; the rest waits here, in memory, until the record is complete.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use lakebed_types::Lsn;
use lakebed_wal::page::{WAL_PAGE_BYTES, WalFormat, header_bytes};
use lakebed_wal::stream::{StreamError, WalDecoder};

use crate::recovery::Boundary;

/// Record ends that are remembered to round a commit position down.
const MAX_ENDS: usize = 1 << 16;

/// Why bytes were not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// The decoder says so.
    #[error("this is not WAL that follows what is here: {0}")]
    Stream(#[from] StreamError),
    /// Nothing begins where a record should.
    #[error("zeros where a record should begin, at {0}")]
    Zeros(Lsn),
    /// More bytes came than the record at this position can have.
    #[error("the record at {0} is not complete after all of its bytes")]
    Endless(Lsn),
}

/// See the module header.
#[derive(Debug)]
pub struct Intake {
    format: WalFormat,
    decoder: WalDecoder,
    /// Bytes from the decoder's last boundary on.
    pending: BytesMut,
    /// Record ends, rising; the newest is exact, older ones are thinned out.
    ends: VecDeque<Lsn>,
}

impl Intake {
    /// WAL that is to continue at `at`.
    pub fn new(format: WalFormat, at: Boundary) -> Intake {
        Intake {
            format,
            decoder: WalDecoder::new(format, at.lsn, at.record_start),
            pending: BytesMut::new(),
            ends: VecDeque::from([at.lsn]),
        }
    }

    /// Where the next byte belongs.
    pub fn expected(&self) -> Lsn {
        self.decoder.fed_to()
    }

    /// The last record boundary.
    pub fn boundary(&self) -> Boundary {
        Boundary {
            lsn: self.decoder.position(),
            record_start: self.decoder.last_record_start(),
        }
    }

    /// Takes bytes that begin at [`Intake::expected`], and returns those of the records that are complete now, from
    /// the boundary before this call to the one after it. After an error it is as it was at that boundary.
    pub fn accept(&mut self, bytes: Bytes) -> Result<Bytes, IntakeError> {
        let before = self.boundary();
        self.decoder.feed(&bytes);
        let known = self.ends.len();
        let decoded = loop {
            match self.decoder.next_raw() {
                Ok(Some(record)) => self.ends.push_back(record.end),
                Ok(None) => break Ok(()),
                Err(error) => break Err(IntakeError::from(error)),
            }
        };
        let whole = (self.decoder.position().0 - before.lsn.0) as usize;
        let complete = if self.pending.is_empty() {
            let mut bytes = bytes;
            let complete = bytes.split_to(whole.min(bytes.len()));
            self.pending.extend_from_slice(&bytes);
            complete
        } else {
            self.pending.extend_from_slice(&bytes);
            self.pending.split_to(whole.min(self.pending.len())).freeze()
        };
        if let Err(error) = decoded.and_then(|()| self.check_pending()) {
            self.ends.truncate(known);
            self.restart(before);
            return Err(error);
        }
        if self.ends.len() > MAX_ENDS {
            let mut keep = false;
            self.ends.retain(|_| {
                keep = !keep;
                keep
            });
            self.ends.push_back(self.decoder.position());
        }
        Ok(complete)
    }

    /// Forgets all after `at`, which is the boundary of an earlier time, or where the WAL was cut.
    pub fn restart(&mut self, at: Boundary) {
        self.decoder = WalDecoder::new(self.format, at.lsn, at.record_start);
        self.pending.clear();
        while self.ends.back().is_some_and(|end| *end > at.lsn) {
            self.ends.pop_back();
        }
        self.ends.push_back(at.lsn);
    }

    /// The last boundary that is known here at or below a position that somebody claimed. It may lie further down
    /// than need be, never off a boundary.
    pub fn round_down(&self, claimed: Lsn) -> Lsn {
        let after = self.ends.partition_point(|end| *end <= claimed);
        after
            .checked_sub(1)
            .and_then(|at| self.ends.get(at))
            .copied()
            .unwrap_or(Lsn::INVALID)
    }

    /// Positions below `commit` will not be asked for again.
    pub fn forget_below(&mut self, commit: Lsn) {
        while self.ends.len() > 1 && self.ends.front().is_some_and(|end| *end < commit) {
            self.ends.pop_front();
        }
    }

    /// What is pending must be the beginning of a record. The decoder takes zeros for WAL that is still to be
    /// written; in a stream they would hold up everything behind them.
    fn check_pending(&self) -> Result<(), IntakeError> {
        let at = self.decoder.position();
        let header = if at.0.is_multiple_of(WAL_PAGE_BYTES) {
            header_bytes(at, self.format.segment_bytes)
        } else {
            0
        };
        let Some(length) = self.pending.get(header..header + 4) else {
            return Ok(());
        };
        let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
        if length == 0 {
            return Err(IntakeError::Zeros(at));
        }
        // With its page headers, padding, and the rest of the segment when it is a segment switch.
        let most = length + (length / 8_000 + 2) * 40 + 8 + u64::from(self.format.segment_bytes);
        if self.pending.len() as u64 > most {
            return Err(IntakeError::Endless(at));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lakebed_types::PgVersion;
    use lakebed_wal::boot::shutdown_checkpoint;
    use lakebed_wal::control::Checkpoint;

    const FORMAT: WalFormat = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: 5,
        segment_bytes: 1 << 20,
    };

    const CHECKPOINT: Checkpoint = Checkpoint {
        redo: Lsn(0),
        timeline: 1,
        previous_timeline: 1,
        full_page_writes: true,
        wal_level: 0,
        next_xid: 3,
        next_oid: 1,
        next_multi: 1,
        next_multi_offset: 0,
        oldest_xid: 3,
        oldest_xid_db: 1,
        oldest_multi: 1,
        oldest_multi_db: 1,
        time: 0,
        oldest_commit_ts_xid: 0,
        newest_commit_ts_xid: 0,
        oldest_active_xid: 0,
    };

    /// A chain of records from `start` on: their bytes and ends.
    fn chain(start: Lsn, count: usize) -> (Vec<u8>, Vec<Lsn>) {
        let (mut wal, mut ends, mut previous) = (Vec::new(), vec![start], Lsn::INVALID);
        for _ in 0..count {
            let at = ends[ends.len() - 1];
            let record = shutdown_checkpoint(FORMAT, at, previous, CHECKPOINT);
            wal.extend(record.bytes);
            ends.push(record.end);
            previous = record.record_start;
        }
        (wal, ends)
    }

    #[test]
    fn pieces_of_any_size_come_out_as_whole_records() {
        let start = Lsn((3 << 20) + 8 * 20);
        let (wal, ends) = chain(start, 300);
        for size in [1, 7, 100, 5_000, wal.len()] {
            let at = Boundary {
                lsn: start,
                record_start: Lsn::INVALID,
            };
            let mut intake = Intake::new(FORMAT, at);
            let mut out = Vec::new();
            for piece in wal.chunks(size) {
                out.extend(intake.accept(Bytes::copy_from_slice(piece)).unwrap());
                assert!(ends.contains(&Lsn(start.0 + out.len() as u64)));
                assert_eq!(intake.boundary().lsn.0, start.0 + out.len() as u64);
            }
            assert_eq!(out, wal);
            assert_eq!(intake.round_down(Lsn(ends[7].0 + 1)), ends[7]);
            intake.forget_below(ends[9]);
            assert_eq!(intake.round_down(ends[8]), Lsn::INVALID);
            assert_eq!(intake.round_down(Lsn::MAX), ends[300]);
        }
    }

    #[test]
    fn what_is_not_wal_leaves_no_trace() {
        let start = Lsn((3 << 20) + 8 * 20);
        let (wal, ends) = chain(start, 3);
        let cut = (ends[1].0 - start.0) as usize + 10;
        let at = Boundary {
            lsn: start,
            record_start: Lsn::INVALID,
        };
        let mut intake = Intake::new(FORMAT, at);
        intake.accept(Bytes::copy_from_slice(&wal[..cut])).unwrap();
        let boundary = intake.boundary();
        assert_eq!(boundary.lsn, ends[1]);
        let garbage = intake.accept(Bytes::from_static(&[0x5a; 4000])).unwrap_err();
        assert!(matches!(garbage, IntakeError::Stream(_)), "{garbage}");
        assert_eq!((intake.boundary(), intake.expected()), (boundary, ends[1]));
        let zeros = intake.accept(Bytes::from_static(&[0; 64])).unwrap_err();
        assert_eq!(zeros, IntakeError::Zeros(ends[1]));
        let rest = Bytes::copy_from_slice(&wal[(ends[1].0 - start.0) as usize..]);
        assert_eq!(intake.accept(rest.clone()).unwrap(), rest);
    }
}
