//! What is stored where.
//!
//! ```text
//! tenants/<tenant>/shards/<index>-<count>/timelines/<timeline>/layers/<generation>-<number>
//! tenants/<tenant>/shards/<index>-<count>/timelines/<timeline>/manifests/<generation>-<sequence>
//! tenants/<tenant>/shards/<index>-<count>/timelines/<timeline>/recent       advice: which layers were read lately
//! tenants/<tenant>/wal/<timeline>/…                                         what safekeepers upload
//! safekeepers/<id>/incarnation                                              numbers of their data directories
//! ```
//!
//! Numbers of manifests are 16 hex digits, so that names sort by them. A layer's name carries its writer's generation: a stale owner
//! never overwrites what a newer one wrote. The highest manifest (by generation, then sequence) is the current one.

use lakebed_types::{Generation, ShardIdentity, TenantId, TimelineId};

/// Of layers, inside a timeline's directory.
pub const LAYERS: &str = "layers";
/// Of manifests.
pub const MANIFESTS: &str = "manifests";
/// The object with the names of layers that were read lately.
pub const RECENT: &str = "recent";

/// Directory of one shard.
pub fn shard(tenant: TenantId, shard: ShardIdentity) -> String {
    let (index, count) = (shard.index(), shard.count().get());
    format!("tenants/{tenant}/shards/{index}-{count}")
}

/// Directory of one shard's timeline.
pub fn timeline(tenant: TenantId, of: ShardIdentity, timeline: TimelineId) -> String {
    format!("{}/timelines/{timeline}", shard(tenant, of))
}

/// The timeline in whose directory an object of a shard is, if it is in one.
pub fn timeline_in(path: &str) -> Option<TimelineId> {
    let (_, rest) = path.split_once("/timelines/")?;
    rest.split('/').next()?.parse().ok()
}

/// Name of a manifest inside its timeline's `manifests/`.
pub fn manifest_name(generation: Generation, sequence: u64) -> String {
    format!("{:016x}-{sequence:016x}", generation.0)
}

/// Generation and sequence of a manifest's path, if it is one.
pub fn parse_manifest(path: &str) -> Option<(Generation, u64)> {
    let name = path.rsplit('/').next()?;
    let (generation, sequence) = name.split_once('-')?;
    if generation.len() != 16 || sequence.len() != 16 {
        return None;
    }
    let generation = u64::from_str_radix(generation, 16).ok()?;
    Some((Generation(generation), u64::from_str_radix(sequence, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_names_sort_and_parse() {
        let low = manifest_name(Generation(2), 255);
        let high = manifest_name(Generation(16), 1);
        assert!(low < high);
        assert_eq!(
            parse_manifest(&format!("x/manifests/{high}")),
            Some((Generation(16), 1))
        );
        assert_eq!(parse_manifest("x/manifests/tmp#1"), None);
    }
}
