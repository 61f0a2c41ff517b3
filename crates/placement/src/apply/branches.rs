//! Branches and their timelines: creation, progress, deletion.

use std::collections::BTreeSet;

use lakebed_types::{Generation, Lsn, NodeId, TenantId, TimelineId};

use super::{Applied, MAX_SAFEKEEPERS, changed};
use crate::command::{Outcome, Rejection};
use crate::name::Name;
use crate::retention::Horizon;
use crate::state::*;

impl State {
    pub(super) fn create_branch(
        &mut self,
        id: TenantId,
        name: Name,
        timeline: TimelineId,
        from: (TimelineId, Lsn, Lsn),
        (safekeepers, expires_unix_micros): (Option<BTreeSet<NodeId>>, Option<i64>),
    ) -> Applied {
        if self.tenant_mut(id)?.branches.contains_key(&name) {
            return Err(Rejection::BranchExists(name));
        }
        let mut child = self.new_child(id, timeline, from, safekeepers)?;
        child.expires_unix_micros = expires_unix_micros;
        let tenant = self.tenant_mut(id)?;
        tenant.timelines.insert(timeline, child);
        tenant.branches.insert(name, timeline);
        Ok(Outcome::Applied)
    }

    pub(super) fn restore_branch(
        &mut self,
        id: TenantId,
        (name, of, keep_as): (Name, TimelineId, Name),
        timeline: TimelineId,
        from: (TimelineId, Lsn, Lsn),
        safekeepers: Option<BTreeSet<NodeId>>,
    ) -> Applied {
        let tenant = self.tenant_mut(id)?;
        if named(tenant, &name)? != of {
            return Err(Rejection::OtherTimeline(name));
        }
        if tenant.branches.contains_key(&keep_as) {
            return Err(Rejection::BranchExists(keep_as));
        }
        let child = self.new_child(id, timeline, from, safekeepers)?;
        let tenant = self.tenant_mut(id)?;
        tenant.timelines.insert(timeline, child);
        tenant.branches.insert(name, timeline);
        tenant.branches.insert(keep_as, of);
        Ok(Outcome::Applied)
    }

    /// A timeline that branches from another, which is checked to be possible.
    fn new_child(
        &mut self,
        id: TenantId,
        timeline: TimelineId,
        (parent_id, lsn, last_record): (TimelineId, Lsn, Lsn),
        safekeepers: Option<BTreeSet<NodeId>>,
    ) -> Result<Timeline, Rejection> {
        let taken = self.has_timeline(timeline);
        if let Some(safekeepers) = &safekeepers {
            if safekeepers.is_empty() || safekeepers.len() > MAX_SAFEKEEPERS {
                return Err(Rejection::Invalid("a timeline needs 1 to 9 safekeepers"));
            }
            self.all_registered(safekeepers, NodeRole::Safekeeper)?;
            self.none_draining(safekeepers)?;
        }
        let now = self.clock_unix_micros;
        let tenant = self.tenant_mut(id)?;
        if tenant.state != TenantState::Active {
            return Err(Rejection::TenantIs {
                name: tenant.name.clone(),
                state: tenant.state,
            });
        }
        if taken {
            return Err(Rejection::IdTaken);
        }
        let parent = tenant
            .timelines
            .get(&parent_id)
            .ok_or(Rejection::NoTimeline(parent_id))?;
        if parent.state != TimelineState::Active {
            return Err(Rejection::TimelineIs {
                timeline: parent_id,
                state: parent.state,
            });
        }
        if lsn < parent.start_lsn {
            return Err(Rejection::BeforeParent {
                lsn,
                start: parent.start_lsn,
            });
        }
        if lsn < parent.consistent_lsn {
            return Err(Rejection::NotConsistent {
                lsn,
                consistent: parent.consistent_lsn,
            });
        }
        if lsn < parent.horizon.lsn {
            return Err(Rejection::NotKept {
                lsn,
                horizon: parent.horizon.lsn,
            });
        }
        if !last_record.is_valid() || last_record >= lsn {
            return Err(Rejection::Invalid(
                "the last record must start before the branch point",
            ));
        }
        Ok(Timeline {
            state: TimelineState::Creating,
            parent: Some(parent_id),
            detaching: false,
            start_lsn: lsn,
            start_last_record: last_record,
            consistent_lsn: Lsn::INVALID,
            safekeepers: SafekeeperSet {
                generation: Generation(1),
                current: safekeepers.unwrap_or_else(|| parent.safekeepers.to_stay().clone()),
                next: None,
            },
            created_on: BTreeSet::new(),
            settled_generation: Generation::default(),
            leaving: BTreeSet::new(),
            joining: None,
            attempts: 0,
            timed_out: None,
            created_unix_micros: now,
            horizon: Horizon::default(),
            expires_unix_micros: None,
        })
    }

    pub(super) fn created_on(&mut self, id: TenantId, timeline: TimelineId, node: NodeId) -> Applied {
        let timeline = self.timeline_mut(id, timeline)?;
        if !timeline.keepers().contains(&node) {
            return Err(Rejection::NoNode {
                node,
                role: NodeRole::Safekeeper,
            });
        }
        Ok(changed(timeline.created_on.insert(node)))
    }

    pub(super) fn timeline_ready(&mut self, id: TenantId, timeline_id: TimelineId) -> Applied {
        let timeline = self.timeline_mut(id, timeline_id)?;
        match timeline.state {
            TimelineState::Active => return Ok(Outcome::Unchanged),
            TimelineState::Creating => {}
            state => {
                return Err(Rejection::TimelineIs {
                    timeline: timeline_id,
                    state,
                });
            }
        }
        if !timeline
            .safekeepers
            .is_quorum(|node| timeline.created_on.contains(&node))
        {
            return Err(Rejection::Invalid(
                "the timeline is not on a quorum of its safekeepers",
            ));
        }
        timeline.state = TimelineState::Active;
        let tenant = self.tenant_mut(id)?;
        if tenant.state == TenantState::Importing {
            tenant.state = TenantState::Active;
        }
        Ok(Outcome::Applied)
    }

    pub(super) fn detach_branch(&mut self, id: TenantId, name: &Name) -> Applied {
        let tenant = self.tenant_mut(id)?;
        let timeline_id = named(tenant, name)?;
        let timeline = self.timeline_mut(id, timeline_id)?;
        if timeline.state != TimelineState::Active {
            return Err(Rejection::TimelineIs {
                timeline: timeline_id,
                state: timeline.state,
            });
        }
        if timeline.parent.is_none() {
            return Ok(Outcome::Unchanged);
        }
        let before = std::mem::replace(&mut timeline.detaching, true);
        Ok(changed(!before))
    }

    pub(super) fn branch_detached(&mut self, id: TenantId, timeline_id: TimelineId) -> Applied {
        let timeline = self.timeline_mut(id, timeline_id)?;
        // Its parent waits for it to be deleted, which happens at the nodes in that order.
        if timeline.state == TimelineState::Deleting {
            return Err(Rejection::TimelineIs {
                timeline: timeline_id,
                state: timeline.state,
            });
        }
        if timeline.parent.is_none() {
            return Ok(Outcome::Unchanged);
        }
        if !timeline.detaching {
            return Err(Rejection::NotDetaching(timeline_id));
        }
        timeline.parent = None;
        timeline.detaching = false;
        Ok(Outcome::Applied)
    }

    pub(super) fn delete_branch(&mut self, id: TenantId, name: &Name) -> Applied {
        let tenant = self.tenant_mut(id)?;
        let timeline_id = named(tenant, name)?;
        // A child that is itself being deleted does not stand in the way: nodes are told children first.
        let live = tenant
            .children(timeline_id)
            .filter(|(_, child)| child.state != TimelineState::Deleting);
        let mut children: Vec<String> = live
            .map(|(child, _)| {
                tenant
                    .name_of(child)
                    .map_or_else(|| child.to_string(), Name::to_string)
            })
            .collect();
        if !children.is_empty() {
            children.sort();
            return Err(Rejection::HasChildren {
                branch: name.clone(),
                children,
            });
        }
        // Nothing could be made in a tenant without any.
        if tenant.branches.len() <= 1 {
            return Err(Rejection::LastBranch(name.clone()));
        }
        let timeline = tenant
            .timelines
            .get_mut(&timeline_id)
            .ok_or(Rejection::NoTimeline(timeline_id))?;
        timeline.state = TimelineState::Deleting;
        tenant.branches.remove(name);
        Ok(Outcome::Applied)
    }

    pub(super) fn timeline_deleted(&mut self, id: TenantId, timeline_id: TimelineId) -> Applied {
        let tenant = self.tenant_mut(id)?;
        let Some(timeline) = tenant.timelines.get(&timeline_id) else {
            return Ok(Outcome::Unchanged);
        };
        if timeline.state != TimelineState::Deleting {
            return Err(Rejection::TimelineIs {
                timeline: timeline_id,
                state: timeline.state,
            });
        }
        if tenant.children(timeline_id).next().is_some() {
            return Err(Rejection::NotEmpty);
        }
        tenant.timelines.remove(&timeline_id);
        Ok(Outcome::Applied)
    }
}

/// The timeline of a branch.
fn named(tenant: &Tenant, name: &Name) -> Result<TimelineId, Rejection> {
    let found = tenant.branches.get(name).copied();
    found.ok_or_else(|| Rejection::NoBranch {
        tenant: tenant.name.clone(),
        branch: name.to_string(),
    })
}
