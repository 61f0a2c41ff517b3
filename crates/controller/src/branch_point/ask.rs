//! The questions that nodes are asked on the way to a branch point.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use lakebed_placement::branch_point::{Head, Report, head};
use lakebed_placement::{State, Tenant};
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{convert, v1};
use lakebed_types::{Lsn, NodeId, TenantId, Term, TimelineId};
use tokio::time::{Instant, timeout_at};

use super::error::BranchPointError;
use super::get;
use crate::nodes::Nodes;

const SAFEKEEPER_PATIENCE: Duration = Duration::from_secs(3);
/// For the others, when a quorum has answered: without them it takes another look at worst.
const QUORUM_PATIENCE: Duration = Duration::from_millis(100);
const BOUNDARY_PATIENCE: Duration = Duration::from_secs(15);
/// More than a pageserver itself waits for WAL.
const PAGESERVER_PATIENCE: Duration = Duration::from_secs(20);

/// What safekeepers say of a timeline.
pub(super) type Reports = BTreeMap<NodeId, Report>;

/// Who is asked, about which tenant.
pub(super) struct Ask<'a> {
    pub nodes: &'a Nodes,
    pub state: &'a State,
    pub tenant_id: TenantId,
    pub tenant: &'a Tenant,
}

impl Ask<'_> {
    fn address(&self, node: NodeId) -> Option<&str> {
        self.state.nodes.get(&node).map(|node| node.address.as_str())
    }

    fn name(&self, timeline: TimelineId) -> v1::TimelineRef {
        convert::timeline_ref(self.tenant_id, timeline)
    }

    /// How far the timeline is committed. All its safekeepers are asked, and a quorum has to answer; the others are not waited for
    /// once they cannot change it, or for long.
    pub async fn head(&self, id: TimelineId) -> Result<(Head, Reports), BranchPointError> {
        let set = &get(self.tenant, id)?.safekeepers;
        let mut asked = set
            .members()
            .into_iter()
            .map(|node| async move { (node, self.report(node, id).await) })
            .collect::<futures::stream::FuturesUnordered<_>>();
        let (mut reports, mut reasons) = (Reports::new(), Vec::new());
        // Before a quorum has answered, each call ends by itself and says why.
        let mut enough = Instant::now() + 2 * SAFEKEEPER_PATIENCE;
        while let Ok(Some((node, report))) = timeout_at(enough, asked.next()).await {
            match report {
                Ok(report) => drop(reports.insert(node, report)),
                Err(reason) => reasons.push(format!("safekeeper {node}: {reason}")),
            }
            match head(set, &reports) {
                Some(head) if head.known >= head.possible => break,
                Some(_) => enough = enough.min(Instant::now() + QUORUM_PATIENCE),
                None => {}
            }
        }
        match head(set, &reports) {
            Some(head) => Ok((head, reports)),
            None => Err(BranchPointError::NoQuorum {
                timeline: id,
                reasons: reasons.join("; "),
            }),
        }
    }

    async fn report(&self, node: NodeId, timeline: TimelineId) -> Result<Report, String> {
        let address = self.address(node).ok_or("it is not registered")?;
        let request = self.name(timeline);
        let status = self.nodes.call(address, SAFEKEEPER_PATIENCE, async |channel| {
            SafekeeperClient::new(channel).get_timeline_status(request).await
        });
        let status = status.await.map_err(|error| error.to_string())?;
        if !status.stopped_reason.is_empty() {
            return Err(format!(
                "the timeline is stopped there: {}",
                status.stopped_reason
            ));
        }
        let last = status.history.last().ok_or("it told no term history")?;
        Ok(Report {
            last_term: (Term(last.term), Lsn(last.start_lsn)),
            flush: Lsn(status.flush_lsn),
            commit: Lsn(status.commit_lsn),
        })
    }

    /// The last boundary at or below `lsn` and the start of the record that ends there, from a safekeeper that told
    /// everything up to there as committed: another one may hold something else below.
    pub async fn boundary(
        &self,
        id: TimelineId,
        lsn: Lsn,
        reports: Reports,
    ) -> Result<(Lsn, Lsn), BranchPointError> {
        let known = reports.values().map(|report| report.commit).max();
        let end = known.unwrap_or(Lsn::INVALID);
        let mut last = BranchPointError::BeyondEnd { lsn, end };
        for (node, _) in reports.into_iter().filter(|(_, report)| report.commit >= lsn) {
            let Some(address) = self.address(node) else {
                continue;
            };
            let request = v1::FindBoundaryRequest {
                timeline: Some(self.name(id)),
                at_or_below: lsn.0,
            };
            let found = self.nodes.call(address, BOUNDARY_PATIENCE, async |channel| {
                SafekeeperClient::new(channel).find_boundary(request).await
            });
            match found.await {
                Ok(found) => return Ok((Lsn(found.boundary_lsn), Lsn(found.last_record_start))),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// The last boundary of what one safekeeper knows as committed, and the start of the record that ends there. So it need not be
    /// known before where to look.
    pub async fn last_committed(&self, node: NodeId, id: TimelineId) -> Option<(Lsn, Lsn)> {
        let request = v1::FindBoundaryRequest {
            timeline: Some(self.name(id)),
            at_or_below: 0,
        };
        let address = self.address(node)?;
        let found = self.nodes.call(address, BOUNDARY_PATIENCE, async |channel| {
            SafekeeperClient::new(channel).find_boundary(request).await
        });
        // Whatever is wrong there, the usual way comes upon it and says so.
        let found = found.await.ok()?;
        Some((Lsn(found.boundary_lsn), Lsn(found.last_record_start)))
    }

    fn catalogue_address(&self) -> Result<&str, BranchPointError> {
        let shard = self.tenant.shards.first();
        let address = shard.and_then(|shard| self.address(shard.node));
        address.ok_or(BranchPointError::NoCatalogue)
    }

    /// Waits until shard 0 has ingested up to `lsn`: a read that depends on it is answered then. Which relation is
    /// read does not matter.
    pub async fn ingested(&self, id: TimelineId, lsn: Lsn) -> Result<(), BranchPointError> {
        let request = v1::GetRelationRequest {
            timeline: Some(self.name(id)),
            at: Some(v1::ReadPoint {
                lsn: Lsn::MAX.0,
                not_modified_since: lsn.0,
            }),
            relation: Some(v1::Relation::default()),
        };
        let address = self.catalogue_address()?;
        let read = self.nodes.call(address, PAGESERVER_PATIENCE, async |channel| {
            PageserverClient::new(channel).get_relation(request).await
        });
        read.await?;
        Ok(())
    }

    /// End of the last commit at or before a time; `None` when this timeline's own history begins later.
    pub async fn lsn_by_time(&self, id: TimelineId, micros: i64) -> Result<Option<Lsn>, BranchPointError> {
        let request = v1::GetLsnByTimeRequest {
            timeline: Some(self.name(id)),
            unix_micros: micros,
        };
        let address = self.catalogue_address()?;
        let found = self.nodes.call(address, PAGESERVER_PATIENCE, async |channel| {
            PageserverClient::new(channel).get_lsn_by_time(request).await
        });
        let found = found.await?;
        Ok((!found.before_history).then_some(Lsn(found.lsn)))
    }
}
