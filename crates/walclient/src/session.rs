//! One stretch of streaming: server, term, check, and records from one to the other until something ends it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use bytes::Bytes;
use lakebed_compute::Branch;
use lakebed_compute::config::ProposerConfig;
use lakebed_compute::control_plane::{self, Named};
use lakebed_compute::local_wal::LocalWal;
use lakebed_compute::quorum::read_wal::read_range;
use lakebed_compute::quorum::{Committed, Driver, Lost, Standing, Won, Written, written};
use lakebed_compute::sidecar::{last_record_start, start_driver, win};
use lakebed_pgwire::replication::{self, Walsender};
use lakebed_pgwire::{Backend, Target};
use lakebed_proto::connect;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_types::Lsn;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, ConnectionError};
use crate::follow::{FollowError, Follower};
use crate::progress::{Phase, Progress};
use crate::server::{Server, WrongServer, has_slot, is_named};

/// WAL in memory that no quorum has; beyond it the server is not read.
const LOCAL_WAL_BYTES: usize = 64 << 20;
/// A status update goes to the server at least this often.
const STATUS: Duration = Duration::from_secs(1);
/// After this long without a word the server is asked for one, …
const ASK: Duration = Duration::from_secs(10);
/// … and given up after this long.
const SILENCE: Duration = Duration::from_secs(30);
/// How long safekeepers may take to hear of the last commit.
const TELL_PATIENCE: Duration = Duration::from_secs(1);
/// How long one safekeeper may take for the bytes that are compared.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes at the quorum's end that are compared with the server's: records, with their CRCs.
const COMPARED_BYTES: u64 = 4096;
/// SQLSTATE of WAL that was removed (`undefined_file`).
const UNDEFINED_FILE: &str = "58P01";

/// What ends the client: trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum Final {
    /// Another proposer has the branch.
    #[error(
        "fenced: another wal-client, or a compute, has the branch in term {0}. A branch has one writer: use a branch of it for a compute"
    )]
    Fenced(u64),
    /// Another cluster.
    #[error(
        "the server has the system identifier {found}, the branch is of {expected}: it is another cluster"
    )]
    OtherCluster {
        /// The server's.
        found: u64,
        /// The branch's.
        expected: u64,
    },
    /// It lost WAL.
    #[error(
        "the server ends at {found}, and the quorum has its WAL up to {expected}: the server was set back (then what it lost is on the branch: start a compute on a branch of it), or a compute has written to the branch"
    )]
    SetBack {
        /// The server's.
        found: Lsn,
        /// The quorum's.
        expected: Lsn,
    },
    /// The slot is gone, and with it WAL.
    #[error(
        "the server has removed WAL that the quorum lacks (from {0} on): the slot was dropped, or max_slot_wal_keep_size exceeded. Create the tenant anew, with a new base backup"
    )]
    Removed(Lsn),
    /// A promotion.
    #[error("the server's WAL timeline has ended: it was promoted. Create a tenant of the new primary")]
    TimelineEnded,
    /// Its WAL is not the branch's.
    #[error(transparent)]
    Follow(#[from] FollowError),
}

/// What a session works with.
#[derive(Debug)]
pub struct Session<'a> {
    /// The server.
    pub target: &'a Target,
    /// What this client calls itself.
    pub name: &'a str,
    /// Its slot.
    pub slot: &'a str,
    /// The branch that it feeds.
    pub branch: Branch,
    /// Its name, and who is asked for changes of its safekeepers.
    pub named: Named,
    /// Lease and heartbeat.
    pub proposer: ProposerConfig,
    /// Where it is told.
    pub progress: Arc<Progress>,
    /// Ends it in order.
    pub stop: CancellationToken,
}

/// Tells the task that answers the server.
#[derive(Debug)]
struct Commits(watch::Sender<Lsn>);

impl Committed for Commits {
    fn committed(&self, lsn: Lsn) {
        self.0.send_replace(lsn);
    }
}

/// The quorum's side of a session.
struct Quorum {
    local: Arc<LocalWal>,
    written: Written,
    commits: watch::Receiver<Lsn>,
    standing: watch::Receiver<Standing>,
    won: Won,
}

impl Session<'_> {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// What ended it; [`Final`] and [`WrongServer`] among the causes mean that there is no use in another one.
    pub async fn run(&self) -> anyhow::Result<()> {
        let (mut connection, server) = Server::connect(self.target, self.name).await?;
        self.check_identity(&server)?;
        let synchronous = is_named(&connection.show("synchronous_standby_names").await?, self.name);
        self.progress.set_synchronous(synchronous);
        let proposing = CancellationToken::new();
        let _end = proposing.clone().drop_guard();
        let mut quorum = self.win(&proposing).await?;
        let follower = self.follower(&mut quorum, &server).await?;
        let follower = self.begin(&mut connection, &quorum, follower).await?;
        self.progress.enter(Phase::Streaming);
        let result = self.stream(&mut connection, &mut quorum, follower).await;
        if result.is_ok() {
            connection.close().await;
        }
        // Nobody else will tell the safekeepers: if the server is gone for good, a branch has to reach the end of its WAL.
        let mut standing = quorum.standing.clone();
        let told = async {
            let (mut commits, written) = (quorum.commits.clone(), quorum.written.end());
            let _ = commits.wait_for(|commit| *commit >= written).await;
            let _ = quorum.standing.wait_for(Standing::all_told).await;
        };
        tokio::select! {
            () = told => {}
            _ = loss(&mut standing) => {}
            () = tokio::time::sleep(TELL_PATIENCE) => {
                tracing::warn!("not every safekeeper answered to be told what is committed");
            }
        }
        result
    }

    fn check_identity(&self, server: &Server) -> anyhow::Result<()> {
        let (found, expected) = (server.format, self.branch.format());
        if found.system_identifier != expected.system_identifier {
            bail!(Final::OtherCluster {
                found: found.system_identifier,
                expected: expected.system_identifier
            });
        }
        if found != expected {
            bail!(WrongServer(format!(
                "the server's WAL is {found:?}, the branch's {expected:?}"
            )));
        }
        Ok(())
    }

    /// Wins a term, as a compute does.
    async fn win(&self, stop: &CancellationToken) -> anyhow::Result<Quorum> {
        let local = Arc::new(LocalWal::new(LOCAL_WAL_BYTES));
        let (written, written_to) = written();
        let (tell, mut standing) = watch::channel(Standing::default());
        let (commit, commits) = watch::channel(Lsn::INVALID);
        let (changes, _, members) = control_plane::Follower::new(self.named.clone(), &self.branch);
        tokio::spawn(changes.run(stop.clone()));
        start_driver(Driver {
            branch: self.branch.clone(),
            config: self.proposer,
            local: local.clone(),
            acks: Arc::new(Commits(commit)),
            written: written_to,
            spans: Arc::default(),
            standing: tell,
            members,
            stop: stop.clone(),
        })?;
        let won = win(&mut standing).await?;
        Ok(Quorum {
            local,
            written,
            commits,
            standing,
            won,
        })
    }

    /// Where to go on, with the bytes in front of it to compare.
    async fn follower(&self, quorum: &mut Quorum, server: &Server) -> anyhow::Result<Follower> {
        let start = quorum.won.start;
        if server.flush < start {
            bail!(Final::SetBack {
                found: server.flush,
                expected: start
            });
        }
        let previous = last_record_start(&self.branch, &mut quorum.standing, start).await?;
        // Not in an earlier segment, which the slot need not keep.
        let segment = start.0 - start.segment_offset(u64::from(self.branch.segment_bytes));
        let from = Lsn(start
            .0
            .saturating_sub(COMPARED_BYTES)
            .max(segment)
            .max(self.branch.start.0));
        let check = match from == start {
            // The first record names the one before.
            true => Bytes::new(),
            false => self.last_bytes(quorum, from).await?,
        };
        Ok(Follower::new(self.branch.format(), start, previous, check))
    }

    /// The quorum's bytes from `from` to the term's start.
    async fn last_bytes(&self, quorum: &Quorum, from: Lsn) -> anyhow::Result<Bytes> {
        let Won { term, start } = quorum.won;
        let peers = quorum.standing.borrow().peers.clone();
        let mut trouble = Vec::new();
        for peer in peers.values().filter(|peer| peer.flush >= Some(start)) {
            let read = async {
                let client = SafekeeperClient::new(connect(&peer.address).await?);
                read_range(client, &self.branch, term, from, start).await
            };
            match tokio::time::timeout(READ_PATIENCE, read).await {
                Ok(Ok(bytes)) if bytes.len() as u64 == start.0 - from.0 => return Ok(bytes),
                Ok(Ok(bytes)) => trouble.push(format!("{} has {} bytes", peer.address, bytes.len())),
                Ok(Err(error)) => trouble.push(format!("{}: {error:#}", peer.address)),
                Err(_) => trouble.push(format!("{} does not answer", peer.address)),
            }
        }
        bail!(
            "no safekeeper gives the WAL in front of {start}: {}",
            trouble.join("; ")
        )
    }

    /// Begins to stream.
    async fn begin(
        &self,
        connection: &mut Connection,
        quorum: &Quorum,
        follower: Follower,
    ) -> anyhow::Result<Follower> {
        let start = quorum.won.start;
        if !has_slot(connection, self.slot).await? {
            tracing::warn!(slot = self.slot, "the replication slot is gone, and made again");
            crate::server::make_slot(connection, self.slot).await?;
        }
        let command = |from: Lsn| {
            let timeline = self.branch.format().timeline;
            format!(
                "START_REPLICATION SLOT \"{}\" PHYSICAL {from} TIMELINE {timeline}",
                self.slot
            )
        };
        match connection.stream(&command(follower.from())).await {
            Ok(()) => Ok(follower),
            Err(error) if error.code() == Some(UNDEFINED_FILE) => bail!(Final::Removed(start)),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves records until told to stop.
    async fn stream(
        &self,
        connection: &mut Connection,
        quorum: &mut Quorum,
        mut follower: Follower,
    ) -> anyhow::Result<()> {
        let mut status = tokio::time::interval(STATUS);
        status.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut heard, mut told) = (Instant::now(), Lsn::INVALID);
        loop {
            let has_room =
                quorum.local.bytes() + follower.pending() < LOCAL_WAL_BYTES || follower.pending() > 0;
            let mut answer = false;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                lost = loss(&mut quorum.standing) => return Err(lost_error(lost)),
                changed = quorum.commits.changed() => changed.context("the quorum's driver ended")?,
                _ = status.tick() => {
                    answer = true;
                    // While it is not read, its silence means nothing.
                    if has_room && heard.elapsed() > SILENCE {
                        bail!("no word from the server for {SILENCE:?}");
                    }
                }
                message = connection.receive(), if has_room => {
                    heard = Instant::now();
                    answer = self.message(message, quorum, &mut follower)?;
                }
            }
            let committed = *quorum.commits.borrow_and_update();
            self.progress.positions(Lsn::INVALID, committed);
            // Nothing is confirmed before the server has shown that it has what the quorum has.
            if follower.is_checked() && committed.is_valid() && (answer || committed > told) {
                told = committed;
                let ask = heard.elapsed() > ASK;
                connection
                    .send_data(&replication::status_update(committed, unix_micros(), ask))
                    .await?;
            }
        }
    }

    /// Takes one message; true if the server wants an answer.
    fn message(
        &self,
        message: Result<Backend, ConnectionError>,
        quorum: &Quorum,
        follower: &mut Follower,
    ) -> anyhow::Result<bool> {
        let data = match message {
            Ok(Backend::CopyData(data)) => data,
            Ok(Backend::CopyDone) => bail!(Final::TimelineEnded),
            Ok(Backend::CommandComplete) => bail!("the server is shutting down"),
            Ok(_) => return Err(ConnectionError::Unexpected("in a stream of WAL").into()),
            Err(error) if error.code() == Some(UNDEFINED_FILE) => bail!(Final::Removed(quorum.won.start)),
            Err(error) => return Err(error.into()),
        };
        let committed = *quorum.commits.borrow();
        match replication::parse(data)? {
            Walsender::Keepalive {
                server_end, reply, ..
            } => {
                self.progress.positions(server_end, committed);
                Ok(reply)
            }
            Walsender::Wal {
                begin,
                server_end,
                bytes,
                ..
            } => {
                self.progress
                    .received_bytes
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if let Some(chunk) = follower.take(begin, bytes).map_err(Final::Follow)? {
                    let end = chunk.ends.last().copied();
                    quorum.local.push(chunk);
                    if let Some(end) = end {
                        quorum.written.advance(end);
                    }
                }
                self.progress.positions(server_end, committed);
                Ok(false)
            }
        }
    }
}

async fn loss(standing: &mut watch::Receiver<Standing>) -> Option<Lost> {
    let lost = standing.wait_for(|standing| standing.lost.is_some()).await;
    lost.ok().and_then(|standing| standing.lost.clone())
}

fn lost_error(lost: Option<Lost>) -> anyhow::Error {
    match lost {
        Some(Lost::Fenced(term)) => Final::Fenced(term.0).into(),
        Some(Lost::LeaseExpired) => anyhow::anyhow!("no quorum of safekeepers for the length of the lease"),
        Some(Lost::Stopped) | None => anyhow::anyhow!("the quorum's driver ended"),
    }
}

fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
