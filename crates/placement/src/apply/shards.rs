//! Shards: their owners, and more of them.
//!
//! A split makes a second set of shards beside the first. Every generation in it is above that of the shard it is a part of,
//! since layers keep their names when they are copied; whatever raises the one raises the other.

use lakebed_types::{Generation, NodeId, ShardCount, ShardIdentity, ShardIndex, TenantId};

use super::{Applied, raise_generation};
use crate::command::{Outcome, Rejection};
use crate::state::*;

impl State {
    pub(super) fn move_shard(&mut self, id: TenantId, index: ShardIndex, to: NodeId) -> Applied {
        self.all_registered([&to], NodeRole::Pageserver)?;
        let tenant = self.tenant_mut(id)?;
        let shard = tenant
            .shards
            .get_mut(usize::from(index))
            .ok_or(Rejection::NoShard(index))?;
        if shard.node == to {
            return Ok(Outcome::Unchanged);
        }
        shard.node = to;
        raise_generation(shard);
        keep_splits_above(tenant);
        Ok(Outcome::Applied)
    }

    pub(super) fn split_shards(&mut self, id: TenantId, nodes: &[NodeId]) -> Applied {
        self.all_registered(nodes, NodeRole::Pageserver)?;
        let tenant = self.tenant_mut(id)?;
        if tenant.state != TenantState::Active {
            return Err(Rejection::TenantIs {
                name: tenant.name.clone(),
                state: tenant.state,
            });
        }
        let (now, wanted) = (tenant.shards.len(), nodes.len());
        if now == wanted || tenant.split.len() == wanted {
            return Ok(Outcome::Unchanged);
        }
        if !tenant.split.is_empty() {
            return Err(Rejection::SplitUnderWay(tenant.split.len()));
        }
        let count = u8::try_from(wanted).ok().and_then(ShardCount::new);
        let count = count.filter(|_| wanted > now && wanted.is_multiple_of(now));
        let count = count.ok_or(Rejection::NoMultiple { now, wanted })?;
        if tenant.former.iter().any(|former| former.shard.count() == count) {
            return Err(Rejection::StillDropping(wanted));
        }
        let place = |node: &NodeId| ShardPlacement {
            node: *node,
            generation: tenant.split_generation,
        };
        tenant.split = nodes.iter().map(place).collect();
        keep_splits_above(tenant);
        Ok(Outcome::Applied)
    }

    /// Everything must be as it was when the new shards had taken over: an owner that began anew since may know less.
    pub(super) fn split_finished(
        &mut self,
        id: TenantId,
        retired: Generation,
        generations: &[Generation],
    ) -> Applied {
        let tenant = self.tenant_mut(id)?;
        let known: Vec<Generation> = tenant.split.iter().map(|shard| shard.generation).collect();
        let first = tenant.shards.first().map(|shard| shard.generation);
        if known.is_empty() || known != generations || first != Some(retired) {
            return Ok(Outcome::Unchanged);
        }
        let new = std::mem::take(&mut tenant.split);
        let old = std::mem::replace(&mut tenant.shards, new);
        give_up(tenant, old);
        Ok(Outcome::Applied)
    }

    pub(super) fn abort_split(&mut self, id: TenantId) -> Applied {
        let tenant = self.tenant_mut(id)?;
        if tenant.split.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        let split = std::mem::take(&mut tenant.split);
        let used = split.iter().map(|shard| shard.generation).max();
        tenant.split_generation = used.unwrap_or_default().max(tenant.split_generation);
        give_up(tenant, split);
        // It may have been told to take no files any more.
        tenant.shards.first_mut().into_iter().for_each(raise_generation);
        Ok(Outcome::Applied)
    }

    pub(super) fn shard_dropped(&mut self, id: TenantId, shard: ShardIdentity) -> Applied {
        let tenant = self.tenant_mut(id)?;
        let before = tenant.former.len();
        tenant.former.retain(|former| former.shard != shard);
        Ok(super::changed(tenant.former.len() < before))
    }
}

/// Makes every generation of a split higher than those of what is copied.
pub(super) fn keep_splits_above(tenant: &mut Tenant) {
    let parts = tenant.shards.len();
    for (index, part) in tenant.split.iter_mut().enumerate() {
        let whole = index.checked_rem(parts).and_then(|at| tenant.shards.get(at));
        let whole = whole.map_or(Generation(0), |whole| whole.generation);
        let above = Generation(whole.0.saturating_add(1));
        let unused = Generation(tenant.split_generation.0.saturating_add(1));
        part.generation = part.generation.max(above).max(unused);
    }
}

/// Shards that are to be deleted with all that they have.
pub(super) fn give_up(tenant: &mut Tenant, shards: Vec<ShardPlacement>) {
    let count = u8::try_from(shards.len()).ok().and_then(ShardCount::new);
    for (index, placement) in (0..).zip(shards) {
        let shard = count.and_then(|count| ShardIdentity::new(index, count));
        let former = shard.map(|shard| FormerShard { shard, placement });
        tenant.former.extend(former);
    }
}
