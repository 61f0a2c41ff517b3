//! From what the walsender sends to whole records: pure, so that any split of the stream can be tested.

use bytes::{Bytes, BytesMut};
use lakebed_compute::local_wal::Chunk;
use lakebed_types::Lsn;
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::{StreamError, WalDecoder};

/// Why the server's WAL does not go on from where the quorum is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// A position that was not asked for.
    #[error("the server sent WAL at {found} where {expected} was due")]
    Gap {
        /// What came.
        found: Lsn,
        /// What had to come.
        expected: Lsn,
    },
    /// The bytes in front of the quorum's end differ: somebody else has written there.
    #[error(
        "the branch has WAL at {0} that this server has not: a compute has run on it, or the server was set back. Make a new \
         tenant of this server; the branch itself keeps what it has"
    )]
    Diverged(Lsn),
    /// Not WAL of this cluster, or not the successor of the last record.
    #[error("the server's WAL does not go on from {position}: {source}")]
    Decode {
        /// End of the last good record.
        position: Lsn,
        /// What is wrong.
        source: StreamError,
    },
}

/// See the module header.
#[derive(Debug)]
pub struct Follower {
    decoder: WalDecoder,
    /// Bytes from the decoder's position on.
    pending: BytesMut,
    /// Bytes in front of the start that the server must send first, as the quorum has them.
    check: Bytes,
    next: Lsn,
}

impl Follower {
    /// Goes on from `start`, where a record ends that starts at `previous`. The server is asked from as many bytes before
    /// `start` as `check` has; they must come first.
    pub fn new(format: WalFormat, start: Lsn, previous: Lsn, check: Bytes) -> Follower {
        Follower {
            decoder: WalDecoder::new(format, start, previous),
            pending: BytesMut::new(),
            next: Lsn(start.0 - check.len() as u64),
            check,
        }
    }

    /// What the server has to be asked from.
    pub fn from(&self) -> Lsn {
        self.next
    }

    /// Whether the server has shown that it has what the quorum has.
    pub fn is_checked(&self) -> bool {
        self.check.is_empty()
    }

    /// Bytes of a record that is not complete.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes the next bytes; the records that are complete now.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub fn take(&mut self, begin: Lsn, mut bytes: Bytes) -> Result<Option<Chunk>, FollowError> {
        if begin != self.next {
            return Err(FollowError::Gap {
                found: begin,
                expected: self.next,
            });
        }
        self.next = Lsn(self.next.0 + bytes.len() as u64);
        let checked = bytes.split_to(self.check.len().min(bytes.len()));
        if checked != self.check.split_to(checked.len()) {
            return Err(FollowError::Diverged(self.decoder.position()));
        }
        let begin = self.decoder.position();
        self.pending.extend_from_slice(&bytes);
        self.decoder.feed(&bytes);
        let mut ends = Vec::new();
        loop {
            match self.decoder.next_raw() {
                Ok(Some(record)) => ends.push(record.end),
                Ok(None) => break,
                Err(StreamError::Previous { .. }) if ends.is_empty() => {
                    return Err(FollowError::Diverged(begin));
                }
                Err(source) => {
                    let position = self.decoder.position();
                    return Err(FollowError::Decode { position, source });
                }
            }
        }
        let Some(end) = ends.last() else { return Ok(None) };
        let bytes = self.pending.split_to((end.0 - begin.0) as usize).freeze();
        Ok(Some(Chunk { begin, bytes, ends }))
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
        system_identifier: 7,
        segment_bytes: 1 << 24,
    };
    const START: Lsn = Lsn(0x100_1F00);

    /// Ten records, one after the other over a page's end, and their ends.
    fn wal() -> (Bytes, Vec<Lsn>) {
        let state = Checkpoint::decode(&[0; 88], PgVersion::V15);
        let (mut bytes, mut ends, mut at, mut previous) = (Vec::new(), Vec::new(), START, Lsn(0x100_1E00));
        for _ in 0..10 {
            let record = shutdown_checkpoint(FORMAT, at, previous, state);
            bytes.extend_from_slice(&record.bytes);
            previous = record.record_start;
            at = Lsn(at.0 + record.bytes.len() as u64);
            ends.push(at);
        }
        (bytes.into(), ends)
    }

    fn follower(check: &'static [u8]) -> Follower {
        Follower::new(FORMAT, START, Lsn(0x100_1E00), Bytes::from_static(check))
    }

    #[test]
    fn records_are_the_same_however_the_stream_is_cut() {
        let (bytes, ends) = wal();
        for size in [1, 3, 8, 24, 119, 120, 121, 1000, 5000] {
            let mut follower = follower(b"");
            let (mut all, mut found) = (Vec::new(), Vec::new());
            for (number, piece) in bytes.chunks(size).enumerate() {
                let begin = Lsn(START.0 + (number * size) as u64);
                if let Some(chunk) = follower.take(begin, Bytes::copy_from_slice(piece)).unwrap() {
                    assert_eq!(chunk.begin.0, START.0 + all.len() as u64);
                    all.extend_from_slice(&chunk.bytes);
                    found.extend(chunk.ends);
                }
            }
            assert!(all == bytes && found == ends, "pieces of {size}");
            assert_eq!(follower.pending(), 0);
        }
    }

    #[test]
    fn what_the_quorum_has_must_come_first() {
        let (bytes, _) = wal();
        let sent = [b"tail", &bytes[..]].concat();
        let begin = Lsn(START.0 - 4);
        let mut good = follower(b"tail");
        assert_eq!((good.from(), good.is_checked()), (begin, false));
        let none = good.take(begin, Bytes::copy_from_slice(&sent[..2]));
        assert!(matches!(none, Ok(None)), "{none:?}");
        assert!(!good.is_checked());
        assert!(
            good.take(Lsn(begin.0 + 2), Bytes::copy_from_slice(&sent[2..]))
                .unwrap()
                .is_some()
        );
        assert!(good.is_checked());
        let other = follower(b"tool").take(begin, sent.clone().into());
        assert!(matches!(other, Err(FollowError::Diverged(START))), "{other:?}");
        let gap = follower(b"").take(Lsn(START.0 + 8), bytes.clone());
        assert!(matches!(gap, Err(FollowError::Gap { .. })));
    }

    #[test]
    fn another_history_and_damage_are_refused() {
        let (bytes, _) = wal();
        let mut elsewhere = Follower::new(FORMAT, START, Lsn(0x100_1D00), Bytes::new());
        let diverged = elsewhere.take(START, bytes.clone());
        assert!(
            matches!(diverged, Err(FollowError::Diverged(START))),
            "{diverged:?}"
        );
        let mut damaged = bytes.to_vec();
        damaged[150] ^= 1;
        let refused = follower(b"").take(START, damaged.into());
        assert!(matches!(refused, Err(FollowError::Decode { .. })), "{refused:?}");
    }
}
