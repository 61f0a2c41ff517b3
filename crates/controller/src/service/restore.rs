//! A branch goes on from an earlier position, in place.
//!
//! The position becomes a branch point like any other; then, in one command, the branch's name moves to the new timeline and
//! the timeline until now gets another name. So nothing is lost, and restoring again undoes it.

use lakebed_placement::{Command, Name, Rejection, TimelineState, choose};
use lakebed_proto::v1;
use lakebed_proto::v1::restore_branch_request::At as WireAt;
use lakebed_types::{Lsn, TimelineId};
use tonic::Status;

use super::Service;
use crate::branch_point::{self, At};
use crate::in_use::Members;
use crate::raft_node::unix_micros;
use crate::{random, rfc3339, wire};

impl Service {
    pub(super) async fn restore_branch(
        &self,
        request: v1::RestoreBranchRequest,
    ) -> Result<v1::RestoreBranchResponse, Status> {
        // No default here: what is changed has to be named.
        let name = wire::name(&request.branch)?;
        let at = match request.at {
            Some(WireAt::AtLsn(lsn)) => At::Lsn(Lsn(lsn)),
            Some(WireAt::AtUnixMicros(micros)) => At::Time(micros),
            None => {
                return Err(Status::invalid_argument(
                    "a branch is restored to a time or to a position",
                ));
            }
        };
        let now = unix_micros();
        let keep_as = match request.keep_as.as_str() {
            "" => before(&name, now)?,
            told => wire::name(told)?,
        };
        self.in_charge().await?;
        let (state, id, of) = self
            .look(|state| {
                let (id, tenant) = wire::tenant(state, &request.tenant)?;
                let (of, timeline) = wire::branch(tenant, &name)?;
                if tenant.branches.contains_key(&keep_as) {
                    return Err(wire::rejected(&Rejection::BranchExists(keep_as.clone())));
                }
                if timeline.state != TimelineState::Active {
                    return Err(wire::rejected(&Rejection::TimelineIs {
                        timeline: of,
                        state: timeline.state,
                    }));
                }
                Ok((state.clone(), id, of))
            })
            .await?;
        let gone = || wire::rejected(&Rejection::NoTimeline(of));
        let tenant = state.tenants.get(&id).ok_or_else(gone)?;
        let timeline = tenant.timelines.get(&of).ok_or_else(gone)?;
        let members = Members::of(&state, id, (of, timeline));
        match members.have_proposer(&self.0.nodes).await {
            Ok(false) => {}
            Ok(true) => {
                return Err(Status::failed_precondition(format!(
                    "a compute or a wal-client runs on branch '{name}': stop it first"
                )));
            }
            Err(reasons) => {
                return Err(Status::unavailable(format!(
                    "too few safekeepers of branch '{name}' tell whether a compute runs on it: {reasons}; try again"
                )));
            }
        }
        let point = branch_point::find(&self.0.nodes, &state, (id, tenant), of, at, now).await?;
        let parent = tenant.timelines.get(&point.parent).ok_or_else(gone)?;
        let safekeepers = choose::branch_safekeepers(&state, parent, |node| self.0.was_there_lately(node));
        let safekeepers = safekeepers.map_err(wire::cannot_place)?;
        let timeline = random::id()
            .map_err(|error| Status::internal(format!("random numbers of the operating system: {error}")))?;
        let timeline = TimelineId(timeline);
        self.propose(Command::RestoreBranch {
            tenant: id,
            name: name.clone(),
            of,
            keep_as: keep_as.clone(),
            timeline,
            parent: point.parent,
            lsn: point.lsn,
            last_record: point.last_record,
            safekeepers,
        })
        .await?;
        tracing::info!(tenant = %id, branch = %name, %timeline, lsn = %point.lsn, %keep_as, "branch restored");
        let branch = self.active_branch((id, &tenant.name), (timeline, &name)).await?;
        let before = self
            .look(|state| {
                let tenant = wire::tenant(state, &request.tenant)?;
                let kept = wire::branch(tenant.1, &keep_as)?;
                Ok(wire::branch_info(state, tenant, kept))
            })
            .await?;
        Ok(v1::RestoreBranchResponse {
            branch: Some(branch),
            before: Some(before),
        })
    }
}

/// The name of what a branch was until now.
fn before(name: &Name, now_unix_micros: i64) -> Result<Name, Status> {
    let time: String = rfc3339::format(now_unix_micros)
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect();
    wire::name(&format!("{name}-before-{time}"))
}
