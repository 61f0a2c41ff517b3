//! Checked conversions from the wire, and plain ones to it.

use lakebed_types::{ForkNumber, PageKey, RelTag, ShardCount, ShardIdentity, TenantId, TimelineId};

use crate::v1;

/// A message that the schema allows and Lakebed does not. The sender is at fault and a repeat will not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A field that must be present is not.
    #[error("the message lacks its field '{0}'")]
    Missing(&'static str),
    /// A field has a value outside its range.
    #[error("field '{field}' is not valid: {reason}")]
    Field {
        /// Name in the schema.
        field: &'static str,
        /// What was wrong with it.
        reason: String,
    },
}

fn invalid(field: &'static str, reason: impl ToString) -> InvalidMessage {
    InvalidMessage::Field {
        field,
        reason: reason.to_string(),
    }
}

/// The timeline that an optional message field names.
pub fn timeline(wire: Option<&v1::TimelineRef>) -> Result<(TenantId, TimelineId), InvalidMessage> {
    let wire = wire.ok_or(InvalidMessage::Missing("timeline"))?;
    let tenant = TenantId::from_slice(&wire.tenant).map_err(|e| invalid("timeline.tenant", e))?;
    let timeline = TimelineId::from_slice(&wire.timeline).map_err(|e| invalid("timeline.timeline", e))?;
    Ok((tenant, timeline))
}

/// The wire form of a timeline's name.
pub fn timeline_ref(tenant: TenantId, timeline: TimelineId) -> v1::TimelineRef {
    v1::TimelineRef {
        tenant: tenant.0.to_vec().into(),
        timeline: timeline.0.to_vec().into(),
    }
}

/// The shard that an optional message field names, and its tenant.
pub fn shard(wire: Option<&v1::ShardRef>) -> Result<(TenantId, ShardIdentity), InvalidMessage> {
    let wire = wire.ok_or(InvalidMessage::Missing("shard"))?;
    let tenant = TenantId::from_slice(&wire.tenant).map_err(|e| invalid("shard.tenant", e))?;
    let count = u8::try_from(wire.count)
        .ok()
        .and_then(ShardCount::new)
        .ok_or_else(|| invalid("shard.count", format!("{} is not between 1 and 128", wire.count)))?;
    let identity = u8::try_from(wire.index)
        .ok()
        .and_then(|index| ShardIdentity::new(index, count))
        .ok_or_else(|| {
            invalid(
                "shard.index",
                format!("{} is not below the count {}", wire.index, count.get()),
            )
        })?;
    Ok((tenant, identity))
}

/// The wire form of a shard's name.
pub fn shard_ref(tenant: TenantId, shard: ShardIdentity) -> v1::ShardRef {
    v1::ShardRef {
        tenant: tenant.0.to_vec().into(),
        index: u32::from(shard.index()),
        count: u32::from(shard.count().get()),
    }
}

/// The relation fork that an optional message field names.
pub fn relation(wire: Option<&v1::Relation>) -> Result<RelTag, InvalidMessage> {
    let wire = wire.ok_or(InvalidMessage::Missing("relation"))?;
    let fork = u8::try_from(wire.fork)
        .ok()
        .and_then(ForkNumber::from_number)
        .ok_or_else(|| invalid("relation.fork", format!("{} is not between 0 and 3", wire.fork)))?;
    Ok(RelTag {
        spcnode: wire.tablespace,
        dbnode: wire.database,
        relnode: wire.relfilenode,
        fork,
    })
}

/// The wire form of a relation fork.
pub fn relation_to_wire(rel: RelTag) -> v1::Relation {
    v1::Relation {
        tablespace: rel.spcnode,
        database: rel.dbnode,
        relfilenode: rel.relnode,
        fork: rel.fork as u32,
    }
}

/// A page key of a page request.
pub fn page_key(wire: &[u8]) -> Result<PageKey, InvalidMessage> {
    PageKey::decode(wire).ok_or_else(|| invalid("keys", format!("{} bytes that are no page key", wire.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_round_trip() {
        let (tenant, line) = (TenantId([7; 16]), TimelineId([8; 16]));
        assert_eq!(timeline(Some(&timeline_ref(tenant, line))), Ok((tenant, line)));

        let id = ShardIdentity::new(127, ShardCount::new(128).unwrap()).unwrap();
        assert_eq!(shard(Some(&shard_ref(tenant, id))), Ok((tenant, id)));

        let rel = RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Init,
        };
        assert_eq!(relation(Some(&relation_to_wire(rel))), Ok(rel));
    }

    #[test]
    fn what_the_schema_cannot_forbid_is_refused_by_field() {
        let good = shard_ref(
            TenantId([7; 16]),
            ShardIdentity::new(0, ShardCount::new(2).unwrap()).unwrap(),
        );
        let bad_shards = [
            (
                v1::ShardRef {
                    count: 0,
                    ..good.clone()
                },
                "shard.count",
            ),
            (
                v1::ShardRef {
                    count: 129,
                    ..good.clone()
                },
                "shard.count",
            ),
            (
                v1::ShardRef {
                    count: 258,
                    ..good.clone()
                },
                "shard.count",
            ),
            (
                v1::ShardRef {
                    index: 2,
                    ..good.clone()
                },
                "shard.index",
            ),
            (
                v1::ShardRef {
                    index: 256,
                    ..good.clone()
                },
                "shard.index",
            ),
            (
                v1::ShardRef {
                    tenant: vec![0; 15].into(),
                    ..good.clone()
                },
                "shard.tenant",
            ),
        ];
        for (wire, expected) in bad_shards {
            match shard(Some(&wire)) {
                Err(InvalidMessage::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{wire:?} gave {other:?}"),
            }
        }
        assert_eq!(shard(None), Err(InvalidMessage::Missing("shard")));
        assert_eq!(timeline(None), Err(InvalidMessage::Missing("timeline")));
        assert!(
            relation(Some(&v1::Relation {
                fork: 4,
                ..Default::default()
            }))
            .is_err()
        );
        assert!(
            relation(Some(&v1::Relation {
                fork: 256,
                ..Default::default()
            }))
            .is_err()
        );
        assert!(page_key(&[]).is_err());
        assert!(page_key(&[9; 18]).is_err());
    }
}
