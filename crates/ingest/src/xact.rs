//! Commit and abort records (`access/transam/xact.c`, `access/rmgrdesc/xactdesc.c`).
//!
//! A record is a time and then, if a flag in `xl_info` says so, a word of flags that tells which of the following
//! parts are there, in this order: database, subtransactions, relations to drop, statistics to drop, invalidations
//! (commit only), the prepared transaction's id, its name, the replication origin. Effects: `pg_xact` and
//! `pg_commit_ts` of the transaction and its subtransactions, dropped relations, the two-phase file, the origin.

use std::collections::BTreeMap;

use lakebed_types::{Lsn, PageKey, PgVersion, RelTag, SlruKind};
use lakebed_wal::commit_time::unix_micros;
use lakebed_wal::record::DecodedRecord;
use smallvec::SmallVec;

use crate::delta::{CLOG_ABORTED, CLOG_COMMITTED, SlruDelta};
use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;
use crate::slru::locate;

pub(crate) const COMMIT: u8 = 0x00;
pub(crate) const PREPARE: u8 = 0x10;
pub(crate) const ABORT: u8 = 0x20;
pub(crate) const COMMIT_PREPARED: u8 = 0x30;
pub(crate) const ABORT_PREPARED: u8 = 0x40;
pub(crate) const ASSIGNMENT: u8 = 0x50;

const INFO_HAS_XINFO: u8 = 0x80;

const HAS_DBINFO: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;
/// Locks to release (bit 6) and what else a standby does at the end of a transaction: no data, nothing that the tier
/// does.
const FOR_STANDBYS: u32 = 1 << 6 | 7 << 29;
const ALL_FLAGS: u32 = HAS_DBINFO
    | HAS_SUBXACTS
    | HAS_RELATIONS
    | HAS_INVALIDATIONS
    | HAS_TWOPHASE
    | HAS_ORIGIN
    | HAS_GID
    | HAS_DROPPED_STATS
    | FOR_STANDBYS;

const RELATION_BYTES: usize = 12;
const INVALIDATION_BYTES: usize = 16;

/// `DoNotReplicateId`: progress is not tracked for it.
const ORIGIN_NOT_TRACKED: u16 = u16::MAX;
const FIRST_NORMAL_XID: u32 = 3;

/// Bytes of the identity of a statistics entry to drop (`xl_xact_stats_item`): kind, database and object, whose id has
/// 64 bits since Postgres 18.
pub(crate) fn stats_item_bytes(version: PgVersion) -> usize {
    match version {
        PgVersion::V15 | PgVersion::V16 | PgVersion::V17 => 12,
        PgVersion::V18 => 16,
    }
}

/// A commit or abort record, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransactionRecord {
    /// Commit, else abort.
    pub(crate) committed: bool,
    /// The transaction that ended: the record's own, or the prepared one.
    pub(crate) xid: u32,
    /// Its subtransactions that end with it.
    pub(crate) subxids: Vec<u32>,
    /// Time of the server, microseconds since 2000.
    pg_time: i64,
    /// Relations to drop, all forks.
    dropped: Vec<RelTag>,
    /// The prepared transaction ended by this record, if it is a `… PREPARED` one.
    prepared_xid: Option<u32>,
    /// Replication origin, position there, and commit time there in microseconds since 2000.
    origin: Option<(u16, Lsn, i64)>,
}

/// Takes apart a commit, abort, commit-prepared or abort-prepared record.
pub(crate) fn parse(record: &DecodedRecord, record_type: u8) -> Result<TransactionRecord, Rule> {
    let mut data = Reader::new(&record.main_data);
    let committed = matches!(record_type, COMMIT | COMMIT_PREPARED);
    let pg_time = data.i64()?;
    let flags = if record.info & INFO_HAS_XINFO != 0 {
        data.u32()?
    } else {
        0
    };
    if flags & !ALL_FLAGS != 0 {
        return Err("it has a flag that Postgres does not know");
    }
    let has = |flag: u32| flags & flag != 0;
    let mut parsed = TransactionRecord {
        committed,
        xid: record.xid,
        subxids: Vec::new(),
        pg_time,
        dropped: Vec::new(),
        prepared_xid: None,
        origin: None,
    };
    if has(HAS_DBINFO) {
        data.skip(8)?;
    }
    if has(HAS_SUBXACTS) {
        let count = data.count(4)?;
        parsed.subxids = data.u32s(count)?;
    }
    if has(HAS_RELATIONS) {
        let count = data.count(RELATION_BYTES)?;
        parsed.dropped = (0..count).map(|_| data.relation()).collect::<Result<_, _>>()?;
    }
    if has(HAS_DROPPED_STATS) {
        let item = stats_item_bytes(record.version);
        let count = data.count(item)?;
        data.skip(count * item)?;
    }
    if has(HAS_INVALIDATIONS) {
        if !committed {
            return Err("an abort carries invalidations");
        }
        let count = data.count(INVALIDATION_BYTES)?;
        data.skip(count * INVALIDATION_BYTES)?;
    }
    if has(HAS_TWOPHASE) {
        parsed.prepared_xid = Some(data.u32()?);
        if has(HAS_GID) {
            data.c_string()?;
        }
    }
    if has(HAS_ORIGIN) {
        let origin = record.origin.filter(|&origin| origin != 0);
        let origin = origin.ok_or("it has a replication origin's position and no origin")?;
        parsed.origin = Some((origin, Lsn(data.u64()?), data.i64()?));
    }
    data.end()?;

    match (
        matches!(record_type, COMMIT_PREPARED | ABORT_PREPARED),
        parsed.prepared_xid,
    ) {
        (true, Some(xid)) => parsed.xid = xid,
        (true, None) => return Err("it does not name its prepared transaction"),
        (false, _) => {}
    }
    if parsed.xid == 0 || parsed.subxids.contains(&0) {
        return Err("a transaction id is zero");
    }
    Ok(parsed)
}

/// Effects of a commit or abort.
pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    let ended = parse(record, record_type)?;
    let status = if ended.committed {
        CLOG_COMMITTED
    } else {
        CLOG_ABORTED
    };
    for (key, slots) in by_page(SlruKind::Clog, ended.xid, &ended.subxids) {
        effects
            .slru
            .push((key, SlruDelta::ClogSetStatus { status, slots }));
    }
    if ended.committed && ended.xid >= FIRST_NORMAL_XID {
        let pg_time = ended.origin.map_or(ended.pg_time, |(_, _, time)| time);
        let origin = record.origin.unwrap_or(0);
        for (key, slots) in by_page(SlruKind::CommitTs, ended.xid, &ended.subxids) {
            let delta = SlruDelta::CommitTsSet {
                pg_time,
                origin,
                slots,
            };
            effects.commit_ts.push((key, delta));
        }
    }
    let catalogue = &mut effects.catalogue;
    if let Some((origin, remote, _)) = ended.origin {
        advance_origin(catalogue, origin, remote, record.end);
    }
    catalogue.extend(
        ended
            .dropped
            .iter()
            .map(|&rel| CatalogueChange::RelationDropped { rel }),
    );
    if matches!(record_type, COMMIT_PREPARED | ABORT_PREPARED) {
        catalogue.push(CatalogueChange::TwoPhaseFinished { xid: ended.xid });
    }
    catalogue.push(CatalogueChange::TransactionEnd {
        xid: ended.xid,
        time_micros: unix_micros(ended.pg_time),
        committed: ended.committed,
    });
    Ok(())
}

/// What a commit, abort or prepare with an origin tells of its progress.
pub(crate) fn advance_origin(catalogue: &mut Vec<CatalogueChange>, origin: u16, remote: Lsn, local: Lsn) {
    if origin != ORIGIN_NOT_TRACKED {
        catalogue.push(CatalogueChange::OriginAdvanced {
            origin,
            remote,
            local,
            force: false,
        });
    }
}

/// Sub-transactions that an assignment record names, after their top-level transaction.
pub(crate) fn assigned(record: &DecodedRecord) -> Result<Vec<u32>, Rule> {
    let mut data = Reader::new(&record.main_data);
    let top = data.u32()?;
    let count = data.count(4)?;
    let mut xids = vec![top];
    xids.extend(data.u32s(count)?);
    data.end()?;
    Ok(xids)
}

/// The slots of a tree of transactions, by SLRU page.
fn by_page(kind: SlruKind, xid: u32, subxids: &[u32]) -> SmallVec<[(PageKey, Vec<u16>); 1]> {
    let (key, slot) = locate(kind, xid);
    let mut pages = SmallVec::from_buf([(key, vec![slot])]);
    if !subxids.is_empty() {
        // Mostly one page, or two, but that they are near each other is not said anywhere.
        let mut others: BTreeMap<PageKey, Vec<u16>> = pages.drain(..).collect();
        for &xid in subxids {
            let (key, slot) = locate(kind, xid);
            others.entry(key).or_default().push(slot);
        }
        pages.extend(others);
    }
    pages
}

#[cfg(test)]
#[path = "xact_tests.rs"]
mod tests;
