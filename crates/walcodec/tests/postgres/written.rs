//! WAL that a real Postgres wrote, in batches.

use std::fs;

use lakebed_pgtest::{Cluster, Installation};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;
use lakebed_walcodec::stream::{Decoder, Encoder, Method};

const SEGMENT: u64 = 1 << 24;

/// All WAL of a cluster that was stopped, from its first record on.
pub struct Written {
    pub format: WalFormat,
    pub start: Lsn,
    pub bytes: Vec<u8>,
    /// Ends of records, and whether each is a commit.
    pub ends: Vec<(Lsn, bool)>,
}

/// What a cluster wrote that was stopped; it must have kept all of it.
pub fn written(cluster: &Cluster, installation: &Installation) -> Written {
    let data = cluster.data_dir();
    let control = fs::read(data.join("global/pg_control")).unwrap();
    let format = WalFormat {
        version: PgVersion::try_from(u32::from(installation.major)).unwrap(),
        timeline: 1,
        system_identifier: u64::from_le_bytes(control[..8].try_into().unwrap()),
        segment_bytes: SEGMENT as u32,
    };
    let mut bytes = Vec::new();
    for number in 1.. {
        match fs::read(data.join("pg_wal").join(format.segment_file_name(number))) {
            Ok(segment) => bytes.extend(segment),
            Err(_) => break,
        }
    }
    let start = Lsn(SEGMENT + 40);
    bytes.drain(..40);
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    decoder.feed(&bytes);
    let mut ends = Vec::new();
    while let Ok(Some(record)) = decoder.next_raw() {
        let commit = record.bytes[17] == 1 && record.bytes[16] & 0x70 == 0;
        ends.push((record.end, commit));
    }
    bytes.truncate((decoder.position().0 - start.0) as usize);
    Written {
        format,
        start,
        bytes,
        ends,
    }
}

impl Written {
    /// Sends a range in batches that end with a commit or are long, and checks what comes out; bytes of WAL and of
    /// batches, and the number of commits.
    pub fn send(&self, from: Lsn, to: Lsn, method: Method) -> (usize, usize, usize) {
        let mut encoder = Encoder::new(self.format, 1).unwrap();
        let mut decoder = Decoder::new(self.format).unwrap();
        let (mut begin, mut raw, mut coded, mut commits) = (from, 0, 0, 0);
        for &(end, commit) in self.ends.iter().filter(|(end, _)| *end > from && *end <= to) {
            commits += usize::from(commit);
            if !commit && end.0 - begin.0 < 60_000 && end < to {
                continue;
            }
            let mut whole = &self.bytes[(begin.0 - self.start.0) as usize..(end.0 - self.start.0) as usize];
            // After a segment switch it may be longer than a batch.
            while !whole.is_empty() {
                let (piece, rest) = whole.split_at(whole.len().min(1 << 20));
                let batch = encoder.encode(begin, piece, method).unwrap();
                assert!(decoder.decode(begin, &batch).unwrap() == piece, "at {begin}");
                (raw, coded) = (raw + piece.len(), coded + batch.len());
                (begin, whole) = (Lsn(begin.0 + piece.len() as u64), rest);
            }
        }
        (raw, coded, commits)
    }
}
