//! The decisions about WAL in object storage, as functions of what was reported. No IO, no clock.
//!
//! * [`elect`]: who of a timeline's members uploads. Members may see different reports and elect different ones; then
//!   several upload the same WAL, under different names, and nothing is lost.
//! * [`next_upload`]: which stretch goes next.
//! * [`superfluous`] and [`expired`]: which objects may go.
//! * [`consumed`]: up to where every pageserver shard has the WAL in its own layers in object storage.
//! * [`removable`]: up to where a member may remove its own copy.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{Generation, Lsn, NodeId, TimelineId};

use super::objects::{WalObject, covered};

/// Parts of one segment that may lie side by side before one replaces them.
pub const MAX_PARTS: usize = 8;

/// What a member said about itself, or what this node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose.
    pub node: NodeId,
    /// The timeline works there, with a way to object storage.
    pub works: bool,
    /// Its commit position.
    pub commit: Lsn,
    /// Its backup position.
    pub backup: Lsn,
    /// Shards that it feeds.
    pub shards: Vec<ShardReport>,
}

/// How far a shard told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardReport {
    /// (number of shards, index).
    pub shard: (u8, u8),
    /// The owner that told it.
    pub generation: Generation,
    /// Everything below is in layers in object storage.
    pub remote_consistent: Lsn,
    /// This member feeds it now.
    pub fed: bool,
}

/// Who uploads: of the working members that are not more than `slack_bytes` behind, the one that this timeline's draw
/// favours, so that timelines spread over members. `None` when no member works.
pub fn elect(
    timeline: TimelineId,
    members: &BTreeSet<NodeId>,
    reports: &[Report],
    slack_bytes: u64,
) -> Option<NodeId> {
    let alive = || {
        reports
            .iter()
            .filter(|report| report.works && members.contains(&report.node))
    };
    let furthest = alive().map(|report| report.commit).max()?;
    alive()
        .filter(|report| report.commit.0.saturating_add(slack_bytes) >= furthest.0)
        .map(|report| report.node)
        .max_by_key(|node| (draw(timeline, *node), *node))
}

fn draw(timeline: TimelineId, node: NodeId) -> u32 {
    let mut bytes = timeline.0.to_vec();
    bytes.extend(node.0.to_le_bytes());
    // A checksum of so little is not spread well by itself.
    crc32c::crc32c(&bytes).wrapping_mul(0x9e37_79b1).rotate_left(15)
}

/// A stretch to upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// A record boundary.
    pub begin: Lsn,
    /// A record boundary.
    pub end: Lsn,
    /// A whole segment.
    pub whole: bool,
}

/// Record boundaries around the first byte that is in no whole object: of the segment that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment's first boundary.
    pub begin: Lsn,
    /// The first boundary of the next segment; `None` while commit has not reached it.
    pub end: Option<Lsn>,
}

/// What to upload next; `None` when object storage has everything that is committed. A segment that is complete goes as
/// a whole. A part continues the parts before it; when there are [`MAX_PARTS`] it replaces them instead.
pub fn next_upload(segment: Segment, objects: &[WalObject], commit: Lsn) -> Option<Stretch> {
    if let Some(end) = segment.end {
        return Some(Stretch {
            begin: segment.begin,
            end,
            whole: true,
        });
    }
    let there = covered(segment.begin, objects.iter());
    if there >= commit {
        return None;
    }
    let parts = objects
        .iter()
        .filter(|object| !object.whole && object.begin >= segment.begin);
    let begin = if parts.count() >= MAX_PARTS {
        segment.begin
    } else {
        there
    };
    Some(Stretch {
        begin,
        end: commit,
        whole: false,
    })
}

/// Parts that lie within another object.
pub fn superfluous(objects: &[WalObject]) -> Vec<WalObject> {
    let within = |part: &&WalObject| {
        objects.iter().any(|other| {
            // Of two equal parts one stays.
            let same = !other.whole && (other.begin, other.end) == (part.begin, part.end);
            part.is_within(other) && (!same || other < part)
        })
    };
    objects.iter().filter(within).copied().collect()
}

/// Whole objects that nobody needs: older than what is retained, in every shard's layers, and removed by this member too.
/// `objects` come with the time at which they were written.
pub fn expired(
    objects: &[(WalObject, i64)],
    (truncate, consumed): (Lsn, Lsn),
    written_until_unix_s: i64,
) -> Vec<WalObject> {
    let limit = truncate.min(consumed);
    let gone =
        |(object, written): &&(WalObject, i64)| object.end <= limit && *written <= written_until_unix_s;
    objects.iter().filter(gone).map(|(object, _)| *object).collect()
}

/// What every shard has in layers. `None` until every member has reported (one that is silent may know of a newer
/// owner of a shard), and every shard of every count that is being fed has told.
///
/// A tenant that is split has shards of two counts for a while, and then those of one are not there any more: which ones, is
/// known when all shards of the other are being fed, and none of them.
pub fn consumed(members: &BTreeSet<NodeId>, reports: &[Report]) -> Option<Lsn> {
    let silent = |member: &NodeId| !reports.iter().any(|report| report.node == *member);
    if members.iter().any(silent) {
        return None;
    }
    let mut newest: BTreeMap<(u8, u8), ShardReport> = BTreeMap::new();
    for told in reports.iter().flat_map(|report| &report.shards) {
        let entry = newest.entry(told.shard).or_insert(*told);
        let fed = entry.fed || told.fed;
        if (told.generation, told.remote_consistent) > (entry.generation, entry.remote_consistent) {
            *entry = *told;
        }
        entry.fed = fed;
    }
    let mut counts: BTreeMap<u8, Vec<ShardReport>> = BTreeMap::new();
    for ((count, _), shard) in newest {
        counts.entry(count).or_default().push(shard);
    }
    let complete = |count: u8, told: &[ShardReport]| told.len() == usize::from(count);
    let runs = |(count, told): (&u8, &Vec<ShardReport>)| {
        complete(*count, told) && told.iter().all(|shard| shard.fed)
    };
    if counts.iter().any(runs) {
        counts.retain(|_, told| told.iter().any(|shard| shard.fed));
    }
    if counts.iter().any(|(count, told)| !complete(*count, told)) {
        return None;
    }
    counts
        .values()
        .flatten()
        .map(|shard| shard.remote_consistent)
        .min()
}

/// The number of the segment file that a member keeps first: it keeps `keep` of them before the one that holds commit.
pub fn removable(consumed: Lsn, commit: Lsn, segment_bytes: u64, keep: u64) -> u64 {
    let kept = commit.segment_number(segment_bytes).saturating_sub(keep);
    consumed.segment_number(segment_bytes).min(kept)
}
