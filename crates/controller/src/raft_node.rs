//! One member of the raft group: the driver around raft-rs, and the handle that the rest of the daemon holds.
//!
//! ```text
//!  RaftNode::propose ─► bounded queue ─► driver thread: RawNode ─► log file, fsync ─► messages, apply ─► answer
//! ```
//!
//! * [`driver`]: the thread that owns raft. Nothing is sent or applied before it is durable.
//! * [`storage`], [`log_file`], [`snapshot_file`]: what survives a crash, and the checks when it is read.
//!
//! Proposals on a member that does not lead are forwarded by raft itself. Members exchange [`Message`]s through
//! [`Outgoing`] and [`RaftNode::step`]; the daemon has one member so far, so the wire for them is still absent. It
//! must not carry raft-rs's own encoding: protobuf 2 can be crashed by bytes from the network.

pub mod disk;
mod driver;
pub mod log_file;
mod slog_bridge;
pub mod snapshot_file;
pub mod storage;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lakebed_placement::{Command, Outcome, Rejection, Stamped, State};
use raft::eraftpb::Message;
use tokio::sync::{oneshot, watch};

use disk::DiskError;
use driver::{Driver, Input};

/// Inputs that wait for the driver; when it is full, callers are told so.
const MAX_QUEUED_INPUTS: usize = 1024;
/// The largest encoded command.
const MAX_COMMAND_BYTES: usize = 256 << 10;

/// How a member takes part.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This member, not zero.
    pub node_id: u64,
    /// The members of a group that starts for the first time; the same on each.
    pub voters: Vec<u64>,
    /// Where log and snapshot lie.
    pub directory: PathBuf,
    /// raft's unit of time.
    pub tick: Duration,
    /// Applied entries after which the log is replaced by a snapshot.
    pub snapshot_every_entries: u64,
}

/// Where messages to other members go. It must not block; a lost message is repeated by raft.
pub type Outgoing = Box<dyn Fn(Message) + Send>;

/// Where the member stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// The leader it knows of; 0 for none.
    pub leader: u64,
    /// Whether it leads and has applied everything that earlier leaders committed.
    pub in_charge: bool,
    /// raft's term.
    pub term: u64,
    /// The last entry that it applied.
    pub applied: u64,
    /// Why the driver stopped, if it did.
    pub failed: Option<String>,
}

/// Why a member stopped or did not start.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// Its files cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Stored data that this version does not read.
    #[error("entry {index} of the controller's log: {source}")]
    Decode {
        /// Which entry; for a snapshot, its last one.
        index: u64,
        /// Why.
        source: lakebed_placement::state::DecodeError,
    },
    /// A membership change, which this version does not do.
    #[error(
        "entry {0} changes the members of the controllers, which this version does not do; run a newer version"
    )]
    MembershipChange(u64),
    /// raft-rs refused.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// The state cannot be encoded.
    #[error("encoding the state: {0}")]
    Encode(#[from] serde_json::Error),
    /// The operating system gave no random numbers.
    #[error("random numbers of the operating system: {0}")]
    Random(std::io::Error),
    /// No thread could be started.
    #[error("starting the raft thread: {0}")]
    Thread(std::io::Error),
}

/// What became of a proposal or a read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Applied, and refused by the state machine.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Certainly not done: there is no leader.
    #[error("the controllers have no leader at the moment; try again")]
    NoLeader,
    /// Certainly not done: too much is under way.
    #[error("the controller has too many requests under way; try again")]
    Busy,
    /// It may or may not be done, now or later.
    #[error("no answer from the controllers within {0:?}; whether it was done is unknown")]
    Unknown(Duration),
    /// The member stopped; what was under way may or may not be done.
    #[error("this controller is stopping; whether it was done is unknown")]
    Stopped,
    /// Certainly not done: the command is too large or cannot be encoded.
    #[error("the command cannot be stored: {0}")]
    Unstorable(String),
}

/// A running member.
pub struct RaftNode {
    inputs: SyncSender<Input>,
    state: Arc<RwLock<State>>,
    status: watch::Receiver<RaftStatus>,
    thread: Option<JoinHandle<()>>,
}

impl RaftNode {
    /// Opens the member's directory and starts its driver.
    pub fn start(config: RaftConfig, outgoing: Outgoing) -> Result<RaftNode, RaftError> {
        let (inputs, received) = sync_channel(MAX_QUEUED_INPUTS);
        let state = Arc::new(RwLock::new(State::default()));
        let (publish, status) = watch::channel(RaftStatus::default());
        let mut driver = Driver::open(config, received, outgoing, state.clone(), publish)?;
        let thread = std::thread::Builder::new()
            .name("raft".to_owned())
            .spawn(move || driver.run_and_report())
            .map_err(RaftError::Thread)?;
        Ok(RaftNode {
            inputs,
            state,
            status,
            thread: Some(thread),
        })
    }

    /// Proposes a command and waits until it is applied.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        let stamped = Stamped {
            at_unix_micros: unix_micros(),
            command,
        };
        let data = stamped
            .encode()
            .map_err(|error| ProposeError::Unstorable(error.to_string()))?;
        if data.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::Unstorable(format!(
                "{} bytes are too many",
                data.len()
            )));
        }
        self.ask(|answer| Input::Propose { data, answer }, timeout).await
    }

    /// Waits until this member has applied everything that was committed before the call. A read of [`state`]
    /// after it is as new as any answer that was given before.
    ///
    /// [`state`]: Self::state
    pub async fn read_barrier(&self, timeout: Duration) -> Result<(), ProposeError> {
        self.ask(|answer| Input::Read { answer }, timeout).await
    }

    async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<T, ProposeError>>) -> Input,
        timeout: Duration,
    ) -> Result<T, ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.inputs.try_send(input(answer)).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Disconnected(_) => ProposeError::Stopped,
        })?;
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ProposeError::Stopped),
            Err(_) => Err(ProposeError::Unknown(timeout)),
        }
    }

    /// Hands in a message from another member; dropped when too much is under way.
    pub fn step(&self, message: Message) {
        // raft repeats what is lost.
        let _ = self.inputs.try_send(Input::Step(Box::new(message)));
    }

    /// The state that this member has applied. To be held briefly: the driver waits for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        // The state machine does not panic; were it to, the driver stops and nothing new is applied.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows where the member stands; changes whenever something was applied.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }
}

impl Drop for RaftNode {
    /// Stops the driver and waits for it: the directory is free afterwards.
    fn drop(&mut self) {
        // Full is impossible to wait out here without blocking; the driver empties the queue within a tick.
        let _ = self.inputs.send(Input::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The clock by which commands are stamped, in microseconds since 1970.
pub(crate) fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
