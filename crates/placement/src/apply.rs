//! [`State::apply`]: the one place where the state changes.
//!
//! Each command is a method that checks everything first and changes last, so a rejection leaves no trace. Commands
//! that report progress (`CreatedOnSafekeeper`, `TimelineReady`, …) may arrive more than once or late: a repeat is
//! [`Outcome::Unchanged`].

mod branches;
mod history;
mod leases;
mod safekeepers;
mod shards;

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{Generation, Lsn, NodeId, ShardCount, TenantId, TimelineId};

use crate::command::{Command, Outcome, Rejection, Stamped};
use crate::name::Name;
use crate::retention::{Horizon, Retention};
use crate::state::*;

/// The most safekeepers of a timeline.
pub const MAX_SAFEKEEPERS: usize = 9;
/// The longest text that names a lease's holder or a node's address, in bytes.
pub const MAX_TEXT_BYTES: usize = 255;

type Applied = Result<Outcome, Rejection>;

impl State {
    /// Applies one command. Deterministic, and unchanged but for the clock when the command is rejected.
    pub fn apply(&mut self, stamped: &Stamped) -> Applied {
        self.clock_unix_micros = self.clock_unix_micros.max(stamped.at_unix_micros);
        match stamped.command.clone() {
            Command::RegisterNode {
                node,
                role,
                address,
                incarnation,
            } => self.register_node(
                node,
                Node {
                    role,
                    address,
                    incarnation,
                    draining: false,
                },
            ),
            Command::DrainSafekeeper { node, draining } => self.drain_safekeeper(node, draining),
            Command::CreateTenant {
                tenant,
                name,
                branch,
                timeline,
                shards,
                safekeepers,
                retention,
            } => self.create_tenant(
                tenant,
                (name, retention),
                (branch, timeline),
                &shards,
                safekeepers,
            ),
            Command::SetRetention { tenant, retention } => self.set_retention(tenant, retention),
            Command::RaiseHorizon {
                tenant,
                timeline,
                horizon,
            } => self.raise_horizon(tenant, timeline, horizon),
            Command::FinishImport {
                tenant,
                start_lsn,
                start_last_record,
                cluster,
                consistent_lsn,
            } => self.finish_import(tenant, (start_lsn, start_last_record, consistent_lsn), cluster),
            Command::CreateBranch {
                tenant,
                name,
                timeline,
                parent,
                lsn,
                last_record,
                safekeepers,
                expires_unix_micros,
            } => {
                let from = (parent, lsn, last_record);
                self.create_branch(tenant, name, timeline, from, (safekeepers, expires_unix_micros))
            }
            Command::RestoreBranch {
                tenant,
                name,
                of,
                keep_as,
                timeline,
                parent,
                lsn,
                last_record,
                safekeepers,
            } => {
                let from = (parent, lsn, last_record);
                self.restore_branch(tenant, (name, of, keep_as), timeline, from, safekeepers)
            }
            Command::ExpireBranch { tenant, timeline } => self.expire_branch(tenant, timeline),
            Command::LetJoin {
                tenant,
                timeline,
                generation,
                safekeepers,
                within_bytes,
                until_unix_micros,
            } => {
                let limits = (within_bytes, until_unix_micros);
                self.let_join(tenant, timeline, generation, safekeepers, limits)
            }
            Command::CaughtUp {
                tenant,
                timeline,
                attempt,
            } => self.caught_up(tenant, timeline, attempt),
            Command::JoinTimedOut {
                tenant,
                timeline,
                attempt,
            } => self.join_timed_out(tenant, timeline, attempt),
            Command::ChangeSafekeepers {
                tenant,
                timeline,
                generation,
                safekeepers,
            } => self.change_safekeepers(tenant, timeline, generation, safekeepers),
            Command::SafekeepersSettled {
                tenant,
                timeline,
                generation,
            } => self.safekeepers_settled(tenant, timeline, generation),
            Command::AbortSafekeeperChange {
                tenant,
                timeline,
                generation,
            } => self.abort_safekeeper_change(tenant, timeline, generation),
            Command::LeftSafekeeper {
                tenant,
                timeline,
                node,
            } => self.left_safekeeper(tenant, timeline, node),
            Command::CreatedOnSafekeeper {
                tenant,
                timeline,
                node,
            } => self.created_on(tenant, timeline, node),
            Command::TimelineReady { tenant, timeline } => self.timeline_ready(tenant, timeline),
            Command::DetachBranch { tenant, name } => self.detach_branch(tenant, &name),
            Command::BranchDetached { tenant, timeline } => self.branch_detached(tenant, timeline),
            Command::DeleteBranch { tenant, name } => self.delete_branch(tenant, &name),
            Command::TimelineDeleted { tenant, timeline } => self.timeline_deleted(tenant, timeline),
            Command::DeleteTenant { tenant } => self.delete_tenant(tenant),
            Command::TenantDeleted { tenant } => self.tenant_deleted(tenant),
            Command::MoveShard { tenant, shard, to } => self.move_shard(tenant, shard, to),
            Command::SplitShards { tenant, shards } => self.split_shards(tenant, &shards),
            Command::SplitFinished {
                tenant,
                retired,
                shards,
            } => self.split_finished(tenant, retired, &shards),
            Command::AbortSplit { tenant } => self.abort_split(tenant),
            Command::ShardDropped { tenant, shard } => self.shard_dropped(tenant, shard),
            Command::AcquireLease { name, holder, micros } => self.acquire_lease(name, holder, micros),
            Command::ReleaseLease { name, holder } => self.release_lease(name, holder),
        }
    }

    fn register_node(&mut self, id: NodeId, mut node: Node) -> Applied {
        if node.address.is_empty() || node.address.len() > MAX_TEXT_BYTES {
            return Err(Rejection::Invalid(
                "a node's address must have 1 to 255 characters",
            ));
        }
        let Some(known) = self.nodes.get(&id) else {
            self.nodes.insert(id, node);
            return Ok(Outcome::Applied);
        };
        // A daemon does not know of it.
        node.draining = known.draining;
        if *known == node {
            return Ok(Outcome::Unchanged);
        }
        if known.role != node.role {
            return Err(Rejection::NodeIdTaken {
                node: id,
                role: known.role,
                address: known.address.clone(),
            });
        }
        if known.incarnation != node.incarnation {
            match node.role {
                NodeRole::Safekeeper => return Err(Rejection::SafekeeperLostItsDisk(id)),
                // Whatever the former process still has under way is fenced by the next generation.
                NodeRole::Pageserver => self.raise_generations(id),
            }
        }
        self.nodes.insert(id, node);
        Ok(Outcome::Applied)
    }

    fn drain_safekeeper(&mut self, id: NodeId, draining: bool) -> Applied {
        let role = NodeRole::Safekeeper;
        let node = self.nodes.get_mut(&id).filter(|node| node.role == role);
        let node = node.ok_or(Rejection::NoNode { node: id, role })?;
        let before = std::mem::replace(&mut node.draining, draining);
        Ok(changed(before != draining))
    }

    /// Whether something new may be placed on these.
    fn none_draining<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeId>) -> Result<(), Rejection> {
        let draining = |node: &&NodeId| self.nodes.get(node).is_some_and(|known| known.draining);
        match nodes.into_iter().find(draining) {
            Some(&node) => Err(Rejection::Draining(node)),
            None => Ok(()),
        }
    }

    /// Every shard of a node gets its next generation.
    fn raise_generations(&mut self, node: NodeId) {
        for tenant in self.tenants.values_mut() {
            let former = tenant.former.iter_mut().map(|former| &mut former.placement);
            let all = tenant.shards.iter_mut().chain(&mut tenant.split).chain(former);
            all.filter(|shard| shard.node == node).for_each(raise_generation);
            shards::keep_splits_above(tenant);
        }
    }

    fn create_tenant(
        &mut self,
        id: TenantId,
        (name, retention): (Name, Retention),
        (branch, timeline): (Name, TimelineId),
        shards: &[NodeId],
        safekeepers: BTreeSet<NodeId>,
    ) -> Applied {
        if self.tenants.values().any(|tenant| tenant.name == name) {
            return Err(Rejection::TenantExists(name));
        }
        if self.tenants.contains_key(&id) || self.has_timeline(timeline) {
            return Err(Rejection::IdTaken);
        }
        if u8::try_from(shards.len())
            .ok()
            .and_then(ShardCount::new)
            .is_none()
        {
            return Err(Rejection::Invalid("a tenant needs 1 to 128 shards"));
        }
        if safekeepers.is_empty() || safekeepers.len() > MAX_SAFEKEEPERS {
            return Err(Rejection::Invalid("a timeline needs 1 to 9 safekeepers"));
        }
        self.all_registered(shards, NodeRole::Pageserver)?;
        self.all_registered(&safekeepers, NodeRole::Safekeeper)?;
        self.none_draining(&safekeepers)?;

        let generation = Generation(1);
        let root = Timeline {
            state: TimelineState::Importing,
            parent: None,
            detaching: false,
            start_lsn: Lsn::INVALID,
            start_last_record: Lsn::INVALID,
            consistent_lsn: Lsn::INVALID,
            safekeepers: SafekeeperSet {
                generation,
                current: safekeepers,
                next: None,
            },
            created_on: BTreeSet::new(),
            settled_generation: Generation::default(),
            leaving: BTreeSet::new(),
            joining: None,
            attempts: 0,
            timed_out: None,
            created_unix_micros: self.clock_unix_micros,
            horizon: Horizon::default(),
            expires_unix_micros: None,
        };
        let tenant = Tenant {
            name,
            state: TenantState::Importing,
            cluster: None,
            shards: shards
                .iter()
                .map(|&node| ShardPlacement { node, generation })
                .collect(),
            split: Vec::new(),
            former: Vec::new(),
            split_generation: Generation::default(),
            branches: BTreeMap::from([(branch, timeline)]),
            timelines: BTreeMap::from([(timeline, root)]),
            retention,
        };
        self.tenants.insert(id, tenant);
        Ok(Outcome::Applied)
    }

    fn has_timeline(&self, timeline: TimelineId) -> bool {
        self.tenants
            .values()
            .any(|tenant| tenant.timelines.contains_key(&timeline))
    }

    fn all_registered<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a NodeId>,
        role: NodeRole,
    ) -> Result<(), Rejection> {
        let registered = |node: &NodeId| self.nodes.get(node).is_some_and(|known| known.role == role);
        match nodes.into_iter().find(|node| !registered(node)) {
            Some(&node) => Err(Rejection::NoNode { node, role }),
            None => Ok(()),
        }
    }

    fn finish_import(
        &mut self,
        id: TenantId,
        (start_lsn, start_last_record, consistent_lsn): (Lsn, Lsn, Lsn),
        cluster: ClusterIdentity,
    ) -> Applied {
        let tenant = self.tenant_mut(id)?;
        if tenant.state == TenantState::Deleting {
            return Err(Rejection::TenantIs {
                name: tenant.name.clone(),
                state: tenant.state,
            });
        }
        if !start_lsn.is_valid() || !start_last_record.is_valid() || start_last_record >= start_lsn {
            return Err(Rejection::Invalid(
                "the last record must start before the start LSN, both above zero",
            ));
        }
        if consistent_lsn.is_valid() && consistent_lsn < start_lsn {
            return Err(Rejection::Invalid(
                "a timeline is not consistent before it starts",
            ));
        }
        let segment = cluster.wal_segment_bytes;
        if !segment.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment) {
            return Err(Rejection::Invalid(
                "the cluster must have WAL segments of 1 MiB to 1 GiB, a power of two",
            ));
        }
        // At most one is: the tenant's first one. Detached branches have no parent either, so that tells nothing.
        let importing = |timeline: &&mut Timeline| timeline.state == TimelineState::Importing;
        let Some(root) = tenant.timelines.values_mut().find(importing) else {
            // Over. A repeat says what made a timeline that is still there.
            let made = |root: &Timeline| {
                root.parent.is_none()
                    && root.state != TimelineState::Deleting
                    && root.start_lsn == start_lsn
                    && root.start_last_record == start_last_record
                    && root.consistent_lsn == consistent_lsn
            };
            let same = tenant.cluster == Some(cluster) && tenant.timelines.values().any(made);
            return if same {
                Ok(Outcome::Unchanged)
            } else {
                Err(Rejection::ImportDiffers(tenant.name.clone()))
            };
        };
        root.state = TimelineState::Creating;
        root.start_lsn = start_lsn;
        root.start_last_record = start_last_record;
        root.consistent_lsn = consistent_lsn;
        tenant.cluster = Some(cluster);
        Ok(Outcome::Applied)
    }

    fn delete_tenant(&mut self, id: TenantId) -> Applied {
        let tenant = self.tenant_mut(id)?;
        if tenant.state == TenantState::Deleting {
            return Ok(Outcome::Unchanged);
        }
        tenant.state = TenantState::Deleting;
        let split = std::mem::take(&mut tenant.split);
        shards::give_up(tenant, split);
        tenant.branches.clear();
        for timeline in tenant.timelines.values_mut() {
            timeline.state = TimelineState::Deleting;
        }
        Ok(Outcome::Applied)
    }

    fn tenant_deleted(&mut self, id: TenantId) -> Applied {
        let Some(tenant) = self.tenants.get(&id) else {
            return Ok(Outcome::Unchanged);
        };
        if tenant.state != TenantState::Deleting {
            return Err(Rejection::TenantIs {
                name: tenant.name.clone(),
                state: tenant.state,
            });
        }
        if !tenant.timelines.is_empty() || !tenant.former.is_empty() {
            return Err(Rejection::NotEmpty);
        }
        self.tenants.remove(&id);
        Ok(Outcome::Applied)
    }

    fn tenant_mut(&mut self, id: TenantId) -> Result<&mut Tenant, Rejection> {
        self.tenants
            .get_mut(&id)
            .ok_or_else(|| Rejection::NoTenant(id.to_string()))
    }

    fn timeline_mut(&mut self, id: TenantId, timeline: TimelineId) -> Result<&mut Timeline, Rejection> {
        let tenant = self.tenant_mut(id)?;
        tenant
            .timelines
            .get_mut(&timeline)
            .ok_or(Rejection::NoTimeline(timeline))
    }
}

fn raise_generation(shard: &mut ShardPlacement) {
    shard.generation = Generation(shard.generation.0.saturating_add(1));
}

fn changed(did: bool) -> Outcome {
    if did { Outcome::Applied } else { Outcome::Unchanged }
}

#[cfg(test)]
mod tests;
