//! Changing the safekeepers of a branch, and what is known of them.
//!
//! A call records what is wanted and answers; the reconciler and the branch's proposer do the rest. Every call may be
//! repeated: what is already so is answered, not refused.

use std::collections::BTreeSet;

use futures::future::join_all;
use lakebed_placement::{Command, State, Tenant, Timeline, choose};
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{convert, v1};
use lakebed_types::{Generation, NodeId, TenantId, TimelineId};
use tonic::{Code, Status};

use super::Service;
use crate::raft_node::unix_micros;
use crate::reconciler::PEER_PATIENCE;
use crate::wire;

/// So far behind who joins may be: what a safekeeper takes in a few flushes.
const JOIN_WITHIN_BYTES: u64 = 1 << 20;
/// So long who joins may need.
const JOIN_DEADLINE_SECONDS: u32 = 3600;

impl Service {
    /// Looks at a branch that somebody names.
    async fn look_at_branch<T>(
        &self,
        (tenant, branch): (&str, &str),
        look: impl FnOnce(&State, (TenantId, &Tenant), (TimelineId, &Timeline)) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let branch = wire::branch_name(branch)?;
        self.look(|state| {
            let tenant = wire::tenant(state, tenant)?;
            look(state, tenant, wire::branch(tenant.1, &branch)?)
        })
        .await
    }

    pub(super) async fn change_safekeepers(
        &self,
        request: v1::ChangeSafekeepersRequest,
    ) -> Result<v1::SafekeepersInfo, Status> {
        let names = (request.tenant.as_str(), request.branch.as_str());
        let wanted = wanted(&request)?;
        let limits = limits(&request);
        let command = self.look_at_branch(names, |state, (tenant, _), (timeline, found)| {
            let set = &found.safekeepers;
            let joining = found.joining.as_ref().map(|joining| &joining.safekeepers);
            let to_follow = set.next.as_ref().or(joining);
            let safekeepers = match wanted {
                Wanted::Set(wanted) => wanted,
                Wanted::Without(node) => match to_follow {
                    // A repeat, while the first one is under way.
                    Some(next) if !next.contains(&node) => next.clone(),
                    _ => {
                        let there = |node| self.0.was_there_lately(node);
                        choose::replacement(state, found, node, there).map_err(wire::cannot_place)?
                    }
                },
            };
            let done = to_follow.is_none() && set.current == safekeepers;
            if done || to_follow == Some(&safekeepers) {
                return Ok(None);
            }
            let generation = set.generation;
            Ok(Some(if safekeepers.is_subset(&set.current) {
                Command::ChangeSafekeepers {
                    tenant,
                    timeline,
                    generation,
                    safekeepers,
                }
            } else {
                let (within_bytes, until_unix_micros) = limits;
                Command::LetJoin {
                    tenant,
                    timeline,
                    generation,
                    safekeepers,
                    within_bytes,
                    until_unix_micros,
                }
            }))
        });
        if let Some(command) = command.await? {
            tracing::info!(tenant = names.0, branch = names.1, ?command, "safekeepers change");
            self.propose(command).await?;
        }
        self.safekeepers(names).await
    }

    pub(super) async fn abort_safekeeper_change(
        &self,
        request: v1::AbortSafekeeperChangeRequest,
    ) -> Result<v1::SafekeepersInfo, Status> {
        let names = (request.tenant.as_str(), request.branch.as_str());
        let command = self.look_at_branch(names, |_, (tenant, _), (timeline, found)| {
            let set = &found.safekeepers;
            let under_way = set.next.is_some() || found.joining.is_some();
            Ok(under_way.then_some(Command::AbortSafekeeperChange {
                tenant,
                timeline,
                generation: set.generation,
            }))
        });
        if let Some(command) = command.await? {
            self.propose(command).await?;
            tracing::info!(
                tenant = names.0,
                branch = names.1,
                "change of safekeepers given up"
            );
        }
        self.safekeepers(names).await
    }

    pub(super) async fn report_settled(&self, request: v1::ReportSettledRequest) -> Result<(), Status> {
        let named = convert::timeline(request.timeline.as_ref());
        let (tenant, timeline) = named.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let generation = Generation(request.generation);
        let news = self.look(|state| {
            let found = state
                .tenants
                .get(&tenant)
                .and_then(|tenant| tenant.timelines.get(&timeline));
            // Repeated by every compute: not worth an entry in the log.
            Ok(found.is_some_and(|found| found.safekeepers.generation == generation && !found.has_settled()))
        });
        if news.await? {
            self.propose(Command::SafekeepersSettled {
                tenant,
                timeline,
                generation,
            })
            .await?;
            tracing::info!(%tenant, %timeline, %generation, "generation of safekeepers has settled");
            self.0.metrics.safekeepers_settled.inc();
        }
        Ok(())
    }

    pub(super) async fn report_caught_up(&self, request: v1::ReportCaughtUpRequest) -> Result<(), Status> {
        let named = convert::timeline(request.timeline.as_ref());
        let (tenant, timeline) = named.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let attempt = request.attempt;
        let news = self.look(|state| {
            let found = state
                .tenants
                .get(&tenant)
                .and_then(|tenant| tenant.timelines.get(&timeline));
            let joining = found.and_then(|found| found.joining.as_ref());
            Ok(joining.is_some_and(|joining| joining.attempt == attempt))
        });
        if news.await? {
            self.propose(Command::CaughtUp {
                tenant,
                timeline,
                attempt,
            })
            .await?;
            tracing::info!(%tenant, %timeline, attempt, "safekeepers that join have caught up");
        }
        Ok(())
    }

    /// What is recorded about a branch's safekeepers, and what they say themselves.
    pub(super) async fn safekeepers(&self, names: (&str, &str)) -> Result<v1::SafekeepersInfo, Status> {
        let mut info = self
            .look_at_branch(names, |state, tenant, (id, timeline)| {
                let info = wire::branch_info(state, tenant, (id, timeline));
                let nodes = timeline.keepers();
                let timed_out = timeline.timed_out.as_ref();
                let known = |node: &NodeId| v1::SafekeeperInfo {
                    node: Some(wire::location(state, *node)),
                    created: timeline.created_on.contains(node),
                    leaving: !nodes.contains(node),
                    ..v1::SafekeeperInfo::default()
                };
                Ok(v1::SafekeepersInfo {
                    timeline: info.timeline,
                    tenant_name: info.tenant_name,
                    name: info.name,
                    membership: info.membership,
                    settled: timeline.safekeepers.next.is_none() && timeline.has_settled(),
                    joining: info.joining,
                    timed_out: timed_out.map(|joining| wire::joining_to_wire(state, timeline, joining)),
                    safekeepers: (&nodes | &timeline.leaving).iter().map(known).collect(),
                })
            })
            .await?;
        let timeline = info.timeline.clone().unwrap_or_default();
        let asked = info
            .safekeepers
            .into_iter()
            .map(|known| self.ask(known, &timeline));
        info.safekeepers = join_all(asked).await;
        Ok(info)
    }

    async fn ask(&self, known: v1::SafekeeperInfo, timeline: &v1::TimelineRef) -> v1::SafekeeperInfo {
        let address = known.node.clone().unwrap_or_default().address;
        let request = timeline.clone();
        let said = self.0.nodes.call(&address, PEER_PATIENCE, async |channel| {
            SafekeeperClient::new(channel).get_timeline_status(request).await
        });
        match said.await {
            Ok(status) => v1::SafekeeperInfo {
                error: status.stopped_reason,
                generation: status.membership.map_or(0, |members| members.generation),
                term: status.term,
                commit_lsn: status.commit_lsn,
                flush_lsn: status.flush_lsn,
                proposers: status.proposers,
                ..known
            },
            // Not created there yet, or deleted already.
            Err(error) if error.code() == Some(Code::NotFound) => known,
            Err(error) => v1::SafekeeperInfo {
                error: error.to_string(),
                away: true,
                ..known
            },
        }
    }
}

/// How far behind who joins may be, and until when it is to have caught up.
fn limits(request: &v1::ChangeSafekeepersRequest) -> (u64, i64) {
    let within = match request.within_bytes {
        0 => JOIN_WITHIN_BYTES,
        within => within,
    };
    let seconds = match request.deadline_seconds {
        0 => JOIN_DEADLINE_SECONDS,
        seconds => seconds,
    };
    let deadline = i64::from(seconds).saturating_mul(1_000_000);
    (within, unix_micros().saturating_add(deadline))
}

/// What a request asks for.
enum Wanted {
    Set(BTreeSet<NodeId>),
    Without(NodeId),
}

fn wanted(request: &v1::ChangeSafekeepersRequest) -> Result<Wanted, Status> {
    let set: BTreeSet<NodeId> = request.safekeepers.iter().copied().map(NodeId).collect();
    match (set.is_empty(), request.replace) {
        (false, 0) if set.len() < request.safekeepers.len() => {
            Err(Status::invalid_argument("a safekeeper is named twice"))
        }
        (false, 0) => Ok(Wanted::Set(set)),
        (true, node) if node != 0 => Ok(Wanted::Without(NodeId(node))),
        _ => Err(Status::invalid_argument(
            "either the safekeepers that are to follow are named, or the one to replace",
        )),
    }
}
