//! Committed WAL as records, decoded once for all shards that are at the same place.
//!
//! Feeds that keep up with commit ask for the same stretch at the same time: the first decodes it, the others get
//! the same batch. Feeds that start at different places meet at the next commit. A feed far behind decodes on its
//! own, because what it needs nobody else wants.

use std::collections::VecDeque;
use std::sync::Arc;

use lakebed_types::Lsn;
use lakebed_wal::stream::{RawRecord, WalDecoder};
use tokio::sync::Mutex;

use crate::metrics::Metrics;
use crate::recovery::Boundary;
use crate::wal_files::WalFiles;
use crate::wal_store::WalStoreError;

/// Bytes of records in one batch; a longer record is a batch of its own.
pub const BATCH_BYTES: usize = 1 << 20;
/// Bytes of records that are kept for shards that are a little behind.
const RECENT_BYTES: usize = 8 << 20;

/// Consecutive records.
#[derive(Debug)]
pub struct Decoded {
    /// Boundary that they begin at.
    pub from: Lsn,
    /// Boundary that they end at.
    pub end: Boundary,
    /// All records between.
    pub records: Vec<RawRecord>,
    bytes: usize,
}

/// See the module header.
#[derive(Debug)]
pub struct DecodedWal {
    files: WalFiles,
    recent: Mutex<VecDeque<Arc<Decoded>>>,
    metrics: Metrics,
}

impl DecodedWal {
    /// The records of these files.
    pub fn new(files: WalFiles, metrics: Metrics) -> DecodedWal {
        DecodedWal {
            files,
            recent: Mutex::default(),
            metrics,
        }
    }

    /// At least one record from boundary `at` on, none beyond `commit`, which is a boundary behind `at`.
    pub async fn after(&self, at: Boundary, commit: Lsn) -> Result<Arc<Decoded>, WalStoreError> {
        if commit.0 - at.lsn.0 > RECENT_BYTES as u64 {
            return self.decode(at, commit).await;
        }
        // Held while decoding, so that others wait for the result instead of decoding the same.
        let mut recent = self.recent.lock().await;
        if let Some(decoded) = recent.iter().find(|decoded| decoded.from == at.lsn) {
            return Ok(decoded.clone());
        }
        let decoded = self.decode(at, commit).await?;
        recent.push_back(decoded.clone());
        let mut bytes: usize = recent.iter().map(|decoded| decoded.bytes).sum();
        while bytes > RECENT_BYTES || recent.len() > 64 {
            let Some(oldest) = recent.pop_front() else { break };
            bytes -= oldest.bytes;
        }
        Ok(decoded)
    }

    async fn decode(&self, at: Boundary, commit: Lsn) -> Result<Arc<Decoded>, WalStoreError> {
        let files = self.files.clone();
        let job = tokio::task::spawn_blocking(move || decode(&files, at, commit));
        let decoded = job
            .await
            .unwrap_or_else(|error| Err(self.files.damaged(at.lsn, &error)))?;
        self.metrics.decoded_bytes.inc_by(decoded.bytes as u64);
        Ok(Arc::new(decoded))
    }
}

fn decode(files: &WalFiles, at: Boundary, commit: Lsn) -> Result<Decoded, WalStoreError> {
    let mut decoder = WalDecoder::new(files.format(), at.lsn, at.record_start);
    let mut records = Vec::new();
    let mut bytes = 0;
    'fill: while decoder.fed_to() < commit {
        let from = decoder.fed_to();
        let length = (commit.0 - from.0).min(BATCH_BYTES as u64);
        decoder.feed(&files.read(from, length as usize)?);
        while let Some(record) = decoder.next_raw().map_err(|error| files.damaged(from, &error))? {
            bytes += record.bytes.len();
            records.push(record);
            if bytes >= BATCH_BYTES {
                break 'fill;
            }
        }
    }
    if records.is_empty() {
        return Err(files.damaged(at.lsn, &"committed WAL holds no whole record here"));
    }
    let end = Boundary {
        lsn: decoder.position(),
        record_start: decoder.last_record_start(),
    };
    Ok(Decoded {
        from: at.lsn,
        end,
        records,
        bytes,
    })
}
