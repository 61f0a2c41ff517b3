//! Committed WAL as records with their routes, decoded once for all shards that are at the same place.
//!
//! Feeds that keep up with commit ask for the same stretch at the same time: the first decodes it, the others get
//! the same batch. Feeds that start at different places meet at the next commit. A feed far behind decodes on its
//! own, because what it needs nobody else wants.

use std::collections::VecDeque;
use std::sync::Arc;

use lakebed_ingest::{IngestError, Route, ShardSet, interpret, reaches_every_shard, route};
use lakebed_types::{Lsn, ShardCount};
use lakebed_wal::page::WalFormat;
use lakebed_wal::parse::RecordError;
use lakebed_wal::stream::{RawRecord, StreamError, WalDecoder};
use tokio::sync::Mutex;

use crate::backup::BackupError;
use crate::backup::archive::{Archive, Reader};
use crate::metrics::Metrics;
use crate::recovery::Boundary;
use crate::wal_files::WalFiles;
use crate::wal_store::WalStoreError;

/// Bytes of records in one batch; a longer record is a batch of its own.
pub const BATCH_BYTES: usize = 1 << 20;
/// Records in one batch.
pub const BATCH_RECORDS: usize = 8192;
/// Bytes of records that are kept for shards that are a little behind.
const RECENT_BYTES: usize = 8 << 20;
/// Batches that are kept.
const RECENT_BATCHES: usize = 64;

/// A record, and which shards need it.
#[derive(Debug)]
pub struct RoutedRecord {
    /// The record.
    pub raw: RawRecord,
    /// Where it goes.
    pub route: Route,
    /// Its transaction id; 0 when it has none.
    pub xid: u32,
    /// Sizes of relations may be smaller after it than hints told before.
    pub forgets_sizes: bool,
}

/// Consecutive records.
#[derive(Debug)]
pub struct Decoded {
    /// Boundary that they begin at.
    pub from: Lsn,
    /// Boundary that they end at.
    pub end: Boundary,
    /// All records between.
    pub records: Vec<RoutedRecord>,
    /// Shards of the tenant that they were routed for.
    count: ShardCount,
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
    pub async fn after(
        &self,
        at: Boundary,
        commit: Lsn,
        count: ShardCount,
    ) -> Result<Arc<Decoded>, WalStoreError> {
        if commit.0.saturating_sub(at.lsn.0) > RECENT_BYTES as u64 {
            return self.decode(at, commit, count).await;
        }
        // Held while decoding, so that others wait for the result instead of decoding the same.
        let mut recent = self.recent.lock().await;
        let wanted = |decoded: &&Arc<Decoded>| decoded.from == at.lsn && decoded.count == count;
        if let Some(decoded) = recent.iter().find(wanted) {
            return Ok(decoded.clone());
        }
        let decoded = self.decode(at, commit, count).await?;
        recent.push_back(decoded.clone());
        let mut bytes: usize = recent.iter().map(|decoded| decoded.bytes).sum();
        while bytes > RECENT_BYTES || recent.len() > RECENT_BATCHES {
            let Some(oldest) = recent.pop_front() else { break };
            bytes -= oldest.bytes;
        }
        Ok(decoded)
    }

    async fn decode(
        &self,
        at: Boundary,
        commit: Lsn,
        count: ShardCount,
    ) -> Result<Arc<Decoded>, WalStoreError> {
        let files = self.files.clone();
        let job = tokio::task::spawn_blocking(move || decode(&files, at, commit, count));
        let decoded = job
            .await
            .unwrap_or_else(|error| Err(self.files.damaged(at.lsn, &error)))?;
        self.metrics.decoded_bytes.inc_by(decoded.bytes as u64);
        Ok(Arc::new(decoded))
    }
}

/// As [`DecodedWal::after`], of WAL that is not here any more, up to `limit`, which is a boundary: nobody else wants it
/// now, so nothing is kept.
///
/// # Errors
/// Object storage, or what it returned.
pub(crate) async fn from_archive(
    archive: &Archive,
    reader: &mut Reader,
    format: WalFormat,
    at: Boundary,
    (limit, count): (Lsn, ShardCount),
) -> Result<Decoded, BackupError> {
    let mut decoder = WalDecoder::new(format, at.lsn, at.record_start);
    let (mut records, mut bytes) = (Vec::new(), 0);
    // A frame at a time: it ends with a record, but for the pieces of one that is longer than a frame.
    while decoder.fed_to() < limit && (records.is_empty() || bytes < BATCH_BYTES) {
        let from = decoder.fed_to();
        let mut wal = archive.read(reader, from).await?;
        wal.truncate(usize::try_from(limit.0 - from.0).unwrap_or(usize::MAX));
        decoder.feed(&wal);
        let damaged = |error: StreamError| BackupError::NotWal(error.to_string());
        while let Some(record) = decoder.next_raw().map_err(damaged)? {
            bytes += record.bytes.len();
            records.push(routed(record, count));
        }
    }
    if records.is_empty() {
        return Err(BackupError::NotWal(format!(
            "no record ends between {} and {limit}",
            at.lsn
        )));
    }
    Ok(Decoded {
        from: at.lsn,
        end: Boundary {
            lsn: decoder.position(),
            record_start: decoder.last_record_start(),
        },
        records,
        count,
        bytes,
    })
}

fn decode(files: &WalFiles, at: Boundary, commit: Lsn, count: ShardCount) -> Result<Decoded, WalStoreError> {
    let mut decoder = WalDecoder::new(files.format(), at.lsn, at.record_start);
    let mut records = Vec::new();
    let mut bytes = 0;
    'fill: while decoder.fed_to() < commit {
        let from = decoder.fed_to();
        let length = (commit.0 - from.0).min(BATCH_BYTES as u64);
        decoder.feed(&files.read(from, length as usize)?);
        while let Some(record) = decoder.next_raw().map_err(|error| files.damaged(from, &error))? {
            bytes += record.bytes.len();
            records.push(routed(record, count));
            if bytes >= BATCH_BYTES || records.len() >= BATCH_RECORDS {
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
        count,
        bytes,
    })
}

/// Why it is not known what a record changes.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Effects(#[from] IngestError),
}

/// Finds out which of so many shards need a record.
pub fn routed(raw: RawRecord, count: ShardCount) -> RoutedRecord {
    match try_route(&raw, count) {
        Ok((route, xid, forgets_sizes)) => RoutedRecord {
            raw,
            route,
            xid,
            forgets_sizes,
        },
        Err(error) => {
            // No shard can go past it, and each says so itself.
            tracing::warn!(lsn = %raw.start, %error, "a record that cannot be replayed goes to every shard");
            let route = Route {
                shards: ShardSet::all(count),
                ..Route::default()
            };
            RoutedRecord {
                raw,
                route,
                xid: 0,
                forgets_sizes: true,
            }
        }
    }
}

fn try_route(raw: &RawRecord, count: ShardCount) -> Result<(Route, u32, bool), Unknown> {
    let record = raw.decode()?;
    let effects = interpret(&record)?;
    let forgets_sizes = effects.catalogue.iter().any(reaches_every_shard);
    Ok((route(&record, &effects, count), record.xid, forgets_sizes))
}
