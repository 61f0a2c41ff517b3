//! What the controllers say of a branch: where it is at the start, and what changes while its proposer runs, a compute's
//! sidecar or a WAL client. Neither needs them while nothing changes.

use std::sync::Arc;
use std::time::Duration;

use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::Generation;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::branch::{Branch, ShardAddress};
use crate::pages::Placement;
use crate::quorum::{Members, Safekeepers, replace};

/// How long controllers may take at the start.
const RESOLVE: Duration = Duration::from_secs(60);
/// How long one controller may take.
const ONE_CONTROLLER: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(200);
/// Pause between two looks for changes of a branch's nodes, besides those that have a reason.
const FOLLOW: Duration = Duration::from_secs(1);

/// A branch by name.
#[derive(Clone, Debug)]
pub struct Named {
    /// Controllers, `host:port`.
    pub controllers: Vec<String>,
    /// Name of the tenant.
    pub tenant: String,
    /// Name of the branch.
    pub name: String,
}

impl Named {
    /// The branch, when controllers may just be starting.
    ///
    /// # Errors
    /// There is none of this name, or no controller answers for a minute.
    pub async fn first_answer(&self) -> anyhow::Result<Branch> {
        let deadline = tokio::time::Instant::now() + RESOLVE;
        loop {
            match self.resolve().await {
                Ok(branch) => return Ok(branch),
                Err((error, hopeless)) if hopeless || tokio::time::Instant::now() > deadline => {
                    return Err(error);
                }
                Err((error, _)) => tracing::info!(error = format!("{error:#}"), "branch not resolved yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks the controllers; the flag says that asking again cannot help.
    async fn resolve(&self) -> Result<Branch, (anyhow::Error, bool)> {
        let mut last = (anyhow::anyhow!("no controller"), true);
        for controller in &self.controllers {
            let ask = async {
                let channel = connect(controller).await.map_err(|error| (error.into(), false))?;
                let request = v1::ResolveBranchRequest {
                    tenant: self.tenant.clone(),
                    branch: self.name.clone(),
                };
                let answer = ControllerClient::new(channel).resolve_branch(request).await;
                let answer = answer.map_err(|status| {
                    let hopeless = matches!(
                        status.code(),
                        tonic::Code::NotFound | tonic::Code::InvalidArgument
                    );
                    (anyhow::anyhow!("{}", status.message()), hopeless)
                })?;
                Branch::from_wire(answer.get_ref()).map_err(|error| (error.into(), false))
            };
            last = match tokio::time::timeout(ONE_CONTROLLER, ask).await {
                Ok(Ok(branch)) => return Ok(branch),
                Ok(Err((error, hopeless))) => (error.context(format!("controller {controller}")), hopeless),
                Err(_) => (anyhow::anyhow!("controller {controller} does not answer"), false),
            };
        }
        Err(last)
    }
}

/// What a proposer tells the controllers.
#[derive(Clone, Copy, Debug)]
enum News {
    /// This generation of safekeepers is in force.
    Settled(Generation),
    /// The learners of this attempt have caught up.
    CaughtUp(u64),
}

/// Follows what the controllers decide about a branch while its proposer runs, and tells them what came of it.
#[derive(Debug)]
pub struct Follower {
    named: Named,
    timeline: v1::TimelineRef,
    shards: watch::Sender<Vec<ShardAddress>>,
    safekeepers: watch::Sender<Safekeepers>,
    /// Something is not where it was.
    stale: Arc<Notify>,
    /// Generation of safekeepers that is in force.
    settled: watch::Receiver<Generation>,
    /// Attempt whose learners have caught up.
    caught_up: watch::Receiver<Option<u64>>,
}

impl Follower {
    /// Begins with what is known of the branch; what it follows comes out of the other two.
    pub fn new(named: Named, branch: &Branch) -> (Follower, Placement, Members) {
        let (tell, shards) = watch::channel(branch.shards.clone());
        let stale = Arc::new(Notify::new());
        let placement = Placement {
            shards,
            stale: stale.clone(),
        };
        let (tell_members, told) = watch::channel(Safekeepers::from(branch));
        let (settle, settled) = watch::channel(Generation::default());
        let (tell_caught_up, caught_up) = watch::channel(None);
        let members = Members::new(told, stale.clone(), settle, tell_caught_up);
        let follower = Follower {
            named,
            shards: tell,
            safekeepers: tell_members,
            stale,
            settled,
            caught_up,
            timeline: convert::timeline_ref(branch.tenant, branch.timeline),
        };
        (follower, placement, members)
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut reported, mut trouble) = (Generation::default(), false);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.stale.notified() => {}
                Ok(()) = self.settled.changed() => {}
                Ok(()) = self.caught_up.changed() => {}
                () = tokio::time::sleep(FOLLOW) => {}
            }
            let settled = *self.settled.borrow_and_update();
            self.caught_up.mark_unchanged();
            match self.look(settled, &mut reported).await {
                Ok(()) => trouble = false,
                // Nobody needs the controllers while nothing changes: said once.
                Err(error) if !trouble => {
                    tracing::info!(
                        error = format!("{error:#}"),
                        "the controllers do not tell of changes"
                    );
                    trouble = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn look(&self, settled: Generation, reported: &mut Generation) -> anyhow::Result<()> {
        if settled != *reported {
            self.tell(News::Settled(settled)).await?;
            *reported = settled;
        }
        // Each time: it is so now, and says nothing of later.
        let caught_up = *self.caught_up.borrow();
        if let Some(attempt) = caught_up {
            self.tell(News::CaughtUp(attempt)).await?;
        }
        let branch = self.named.resolve().await.map_err(|(error, _)| error)?;
        if convert::timeline_ref(branch.tenant, branch.timeline) != self.timeline {
            anyhow::bail!(
                "the name is another timeline's now: the branch was restored, or deleted and made anew"
            );
        }
        let safekeepers = Safekeepers::from(&branch);
        replace(&self.shards, branch.shards);
        replace(&self.safekeepers, safekeepers);
        Ok(())
    }

    /// Tells the first controller that takes it.
    async fn tell(&self, news: News) -> anyhow::Result<()> {
        let mut last = anyhow::anyhow!("no controller");
        for controller in &self.named.controllers {
            last = match tokio::time::timeout(ONE_CONTROLLER, self.tell_one(controller, news)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.context(format!("controller {controller}")),
                Err(_) => anyhow::anyhow!("controller {controller} does not answer"),
            };
        }
        Err(last)
    }

    async fn tell_one(&self, controller: &str, news: News) -> anyhow::Result<()> {
        let mut client = ControllerClient::new(connect(controller).await?);
        let timeline = Some(self.timeline.clone());
        let told = match news {
            News::Settled(Generation(generation)) => {
                let request = v1::ReportSettledRequest { timeline, generation };
                client.report_settled(request).await.map(drop)
            }
            News::CaughtUp(attempt) => {
                let request = v1::ReportCaughtUpRequest { timeline, attempt };
                client.report_caught_up(request).await.map(drop)
            }
        };
        told.map_err(|status| anyhow::anyhow!("{}", status.message()))
    }
}
