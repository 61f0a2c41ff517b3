//! Creating a branch.

use lakebed_placement::{Command, Name, Rejection, TenantState, TimelineState, choose};
use lakebed_proto::v1;
use lakebed_proto::v1::create_branch_request::At as WireAt;
use lakebed_types::{Lsn, TenantId, TimelineId};
use tonic::Status;

use super::Service;
use crate::branch_point::{self, At};
use crate::raft_node::unix_micros;
use crate::{random, wire};

impl Service {
    pub(super) async fn create_branch(
        &self,
        request: v1::CreateBranchRequest,
    ) -> Result<v1::BranchInfo, Status> {
        let (name, from) = (wire::name(&request.name)?, wire::branch_name(&request.from)?);
        let at = match request.at {
            None | Some(WireAt::AtHead(_)) => At::Head,
            Some(WireAt::AtLsn(lsn)) => At::Lsn(Lsn(lsn)),
            Some(WireAt::AtUnixMicros(micros)) => At::Time(micros),
        };
        let expires_unix_micros = expires(request.ttl_seconds);
        self.in_charge().await?;
        // Asked of a copy, so that the log goes on while nodes answer; what changes meanwhile is checked when the
        // command is applied.
        let (state, id, parent) = self
            .look(|state| {
                let (id, tenant) = wire::tenant(state, &request.tenant)?;
                if tenant.branches.contains_key(&name) {
                    return Err(wire::rejected(&Rejection::BranchExists(name.clone())));
                }
                let (parent, timeline) = match wire::branch(tenant, &from) {
                    Ok(found) => found,
                    Err(_) if tenant.state == TenantState::Deleting => {
                        return Err(wire::rejected(&Rejection::TenantIs {
                            name: tenant.name.clone(),
                            state: tenant.state,
                        }));
                    }
                    Err(error) => return Err(error),
                };
                if timeline.state != TimelineState::Active {
                    return Err(wire::rejected(&Rejection::TimelineIs {
                        timeline: parent,
                        state: timeline.state,
                    }));
                }
                Ok((state.clone(), id, parent))
            })
            .await?;
        let tenant = state
            .tenants
            .get(&id)
            .ok_or_else(|| wire::rejected(&Rejection::NoTenant(id.to_string())))?;
        let point =
            branch_point::find(&self.0.nodes, &state, (id, tenant), parent, at, unix_micros()).await?;

        let safekeepers = match tenant.timelines.get(&point.parent) {
            Some(parent) => choose::branch_safekeepers(&state, parent, |node| self.0.was_there_lately(node)),
            None => return Err(wire::rejected(&Rejection::NoTimeline(point.parent))),
        };
        let safekeepers = safekeepers.map_err(wire::cannot_place)?;
        let timeline = random::id()
            .map_err(|error| Status::internal(format!("random numbers of the operating system: {error}")))?;
        let timeline = TimelineId(timeline);
        self.propose(Command::CreateBranch {
            tenant: id,
            name: name.clone(),
            timeline,
            parent: point.parent,
            lsn: point.lsn,
            last_record: point.last_record,
            safekeepers,
            expires_unix_micros,
        })
        .await?;
        tracing::info!(tenant = %id, branch = %name, %timeline, parent = %point.parent, lsn = %point.lsn, "branch recorded");
        self.active_branch((id, &tenant.name), (timeline, &name)).await
    }

    /// Waits until a timeline that was just recorded can be used.
    pub(super) async fn active_branch(
        &self,
        (id, tenant_name): (TenantId, &Name),
        (timeline, name): (TimelineId, &Name),
    ) -> Result<v1::BranchInfo, Status> {
        let what = format!("branch '{name}'");
        let wait = self.0.wait_until(&what, |state, _| {
            let gone = || {
                let (tenant, branch) = (tenant_name.clone(), name.to_string());
                wire::rejected(&Rejection::NoBranch { tenant, branch })
            };
            let tenant = state.tenants.get(&id).ok_or_else(gone)?;
            let found = tenant.timelines.get(&timeline).ok_or_else(gone)?;
            match found.state {
                TimelineState::Importing | TimelineState::Creating => Ok(None),
                TimelineState::Active => Ok(Some(wire::branch_info(state, (id, tenant), (timeline, found)))),
                // Somebody else gave it up meanwhile.
                TimelineState::Deleting => Err(gone()),
            }
        });
        wait.await
    }
}

/// When a branch of this many seconds may be deleted; 0 is for ever.
fn expires(ttl_seconds: u64) -> Option<i64> {
    let micros = i64::try_from(ttl_seconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000);
    (ttl_seconds != 0).then(|| unix_micros().saturating_add(micros))
}
