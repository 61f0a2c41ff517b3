//! The lease of the LSN at which this compute reads its pages.
//!
//! A compute reads at the LSN at which it booted, for as long as it runs, which may be longer than history is kept. So before
//! it reads anything it takes a lease of that LSN from every shard, and renews it while it runs. Controllers have no part in
//! that. A shard that was out of reach for longer than the lease may have given up what was kept for it: it refuses, and the
//! compute ends; it could read no page any more, and a new one boots at the branch's end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::{join_all, try_join_all};
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::{Lsn, Term};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::branch::{Branch, ShardAddress};
use crate::config::ComputeConfig;
use crate::pages::Placement;

/// How long all shards may take to grant it at the start.
const START: Duration = Duration::from_secs(120);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a shard that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// How long it may take to give it back.
const RELEASE: Duration = Duration::from_secs(2);
/// It is renewed so often in its time.
const RENEWALS: u32 = 3;

/// Leases on all shards; see the module header.
#[derive(Clone, Debug)]
pub struct HistoryLease {
    branch: Arc<Branch>,
    at: Lsn,
    holder: String,
    shards: watch::Receiver<Vec<ShardAddress>>,
    stale: Arc<Notify>,
    lost: Arc<watch::Sender<Option<String>>>,
}

impl HistoryLease {
    /// Takes the lease of `at` from every shard, and renews it until `stop`.
    ///
    /// # Errors
    /// A shard refuses, or one does not answer for two minutes.
    pub async fn take(
        branch: &Branch,
        (term, at): (Term, Lsn),
        config: &ComputeConfig,
        placement: &Placement,
        stop: &CancellationToken,
    ) -> anyhow::Result<HistoryLease> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let lease = HistoryLease {
            branch: Arc::new(branch.clone()),
            at,
            holder: format!(
                "compute of term {} on {}, port {}",
                term.0,
                host.trim(),
                config.pg_port
            ),
            shards: placement.shards.clone(),
            stale: placement.stale.clone(),
            lost: Arc::new(watch::Sender::new(None)),
        };
        let indices = 0..branch.shards.len();
        let granted = try_join_all(indices.clone().map(|index| lease.first(index)));
        let granted = tokio::time::timeout(START, granted).await;
        let granted = granted.with_context(|| format!("not every shard granted a lease of {at}"))??;
        for (index, time) in indices.zip(granted) {
            lease.spawn_renewal(index, (time, time / RENEWALS), stop);
        }
        let (more, stopped) = (lease.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            more.take_of_more(&stopped).await;
        }));
        Ok(lease)
    }

    fn spawn_renewal(&self, index: usize, (time, pause): (Duration, Duration), stop: &CancellationToken) {
        let lease = self.clone();
        let renew = async move { lease.renew(index, (time, pause)).await };
        tokio::spawn(stop.clone().run_until_cancelled_owned(renew));
    }

    /// When the tenant gets more shards, they are asked too. They give nothing up before a whole lease's time is over, since
    /// they begin with what the ones have that they are a part of.
    async fn take_of_more(&self, stop: &CancellationToken) {
        let (mut shards, mut known) = (self.shards.clone(), self.branch.shards.len());
        while let Ok(now) = shards
            .wait_for(|shards| shards.len() > known)
            .await
            .map(|now| now.len())
        {
            for index in known..now {
                self.spawn_renewal(index, (START, Duration::ZERO), stop);
            }
            known = now;
        }
    }

    /// Returns when a shard has given up what was leased: why.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let found = lost.wait_for(Option::is_some).await;
        found.ok().and_then(|lost| lost.clone()).unwrap_or_default()
    }

    /// Gives it back, as far as shards answer. Otherwise it ends with its time.
    pub async fn release(&self) {
        let shards = self.shards.borrow().len();
        let all = (0..shards).map(|index| self.ask(index, true));
        if tokio::time::timeout(RELEASE, join_all(all)).await.is_err() {
            tracing::info!("not every shard answered to take back the lease of history; it ends by itself");
        }
    }

    /// What is leased, by whom, and whether it is lost, for status.
    pub fn status_json(&self) -> serde_json::Value {
        serde_json::json!({
            "lsn": self.at.to_string(),
            "holder": self.holder,
            "lost": *self.lost.borrow(),
        })
    }

    /// The first grant of a shard.
    async fn first(&self, index: usize) -> anyhow::Result<Duration> {
        let mut complained = false;
        loop {
            match self.ask(index, false).await {
                Ok(time) => return Ok(time),
                Err(status) if is_final(&status) => bail!("shard {index}: {}", status.message()),
                Err(status) if !complained => {
                    let error = status.message();
                    tracing::warn!(shard = index, error, "no lease of history yet; asking again");
                    complained = true;
                }
                Err(_) => {}
            }
            self.stale.notify_one();
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn renew(&self, index: usize, (mut time, mut pause): (Duration, Duration)) {
        let mut shards = self.shards.clone();
        loop {
            let before = shards.borrow_and_update().get(index).cloned();
            // A new owner is asked at once.
            let moved = shards.wait_for(|shards| shards.get(index) != before.as_ref());
            tokio::select! {
                moved = moved => if moved.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
            match self.ask(index, false).await {
                Ok(granted) => (time, pause) = (granted, granted / RENEWALS),
                Err(status) if is_final(&status) => {
                    let reason = format!("shard {index}: {}", status.message());
                    self.lost.send_replace(Some(reason));
                    return;
                }
                Err(status) => {
                    let error = status.message();
                    tracing::info!(
                        shard = index,
                        error,
                        "the lease of history is not renewed; asking again"
                    );
                    self.stale.notify_one();
                    pause = (time / (RENEWALS * 4)).clamp(RETRY, PATIENCE);
                }
            }
        }
    }

    /// Asks a shard for the lease, or gives it back.
    async fn ask(&self, index: usize, release: bool) -> Result<Duration, Status> {
        let shard = self.shards.borrow().get(index).cloned();
        let ShardAddress { shard, address } = shard.ok_or_else(|| Status::internal("no such shard"))?;
        let request = v1::LeaseHistoryRequest {
            shard: Some(convert::shard_ref(self.branch.tenant, shard)),
            timeline: self.branch.timeline.0.to_vec().into(),
            lsn: self.at.0,
            holder: self.holder.clone(),
            release,
        };
        let asked = async {
            let channel = connect(&address).await;
            let channel =
                channel.map_err(|error| Status::unavailable(format!("pageserver {address}: {error:?}")))?;
            PageserverClient::new(channel).lease_history(request).await
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??;
        Ok(Duration::from_millis(u64::from(answer.into_inner().duration_ms)))
    }
}

/// Whether asking again cannot help.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::OutOfRange | Code::InvalidArgument | Code::ResourceExhausted | Code::Unimplemented
    )
}
