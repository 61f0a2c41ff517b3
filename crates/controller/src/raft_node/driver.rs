//! The thread that owns raft.
//!
//! One turn: take the inputs that are there, let time pass, then handle what raft has ready, in raft's own order:
//! messages that need no disk, snapshot, entries and hard state made durable, messages that needed the disk, commands
//! applied, proposers answered. Proposals that arrive during one fsync share the next.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lakebed_placement::{Outcome, Stamped, State};
use raft::eraftpb::{Entry, EntryType, Message};
use raft::{Config, RawNode, StateRole, Storage};
use tokio::sync::{oneshot, watch};

use super::storage::DurableLog;
use super::{Outgoing, ProposeError, RaftConfig, RaftError, RaftStatus, slog_bridge};

/// Proposals and reads that wait for their answer.
const MAX_WAITING: usize = 4096;
/// Inputs taken in one turn.
const MAX_INPUTS_A_TURN: usize = 256;
/// Entries of one message to a follower, in bytes.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

pub(super) enum Input {
    Propose {
        data: Vec<u8>,
        answer: oneshot::Sender<Result<Outcome, ProposeError>>,
    },
    Read {
        answer: oneshot::Sender<Result<(), ProposeError>>,
    },
    Step(Box<Message>),
    Stop,
}

struct WaitingRead {
    answer: oneshot::Sender<Result<(), ProposeError>>,
    /// Known once the leader confirmed that it leads.
    index: Option<u64>,
}

pub(super) struct Driver {
    raw: RawNode<DurableLog>,
    inputs: Receiver<Input>,
    outgoing: Outgoing,
    state: Arc<RwLock<State>>,
    publish: watch::Sender<RaftStatus>,
    tick: Duration,
    snapshot_every_entries: u64,
    applied: u64,
    /// Tells this process's proposals and reads from those of former ones.
    session: u64,
    sequence: u64,
    proposals: BTreeMap<u64, oneshot::Sender<Result<Outcome, ProposeError>>>,
    reads: BTreeMap<u64, WaitingRead>,
}

impl Driver {
    pub(super) fn open(
        config: RaftConfig,
        inputs: Receiver<Input>,
        outgoing: Outgoing,
        state: Arc<RwLock<State>>,
        publish: watch::Sender<RaftStatus>,
    ) -> Result<Driver, RaftError> {
        let storage = DurableLog::open(&config.directory, &config.voters)?;
        let snapshot = storage.last_snapshot();
        let applied = snapshot.get_metadata().index;
        let restored = State::decode(&snapshot.data).map_err(|source| RaftError::Decode {
            index: applied,
            source,
        })?;
        *state.write().unwrap_or_else(PoisonError::into_inner) = restored;
        let alone = snapshot.get_metadata().get_conf_state().voters == [config.node_id];
        let raft_config = Config {
            id: config.node_id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            applied,
            ..Config::default()
        };
        raft_config.validate()?;
        let mut raw = RawNode::new(&raft_config, storage, &slog_bridge::logger())?;
        if alone {
            raw.campaign()?;
        }
        Ok(Driver {
            raw,
            inputs,
            outgoing,
            state,
            publish,
            tick: config.tick,
            snapshot_every_entries: config.snapshot_every_entries,
            applied,
            session: crate::random::number().map_err(RaftError::Random)?,
            sequence: 0,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
        })
    }

    /// Runs until it is told to stop. A failure is logged and published: after a failed write this process cannot
    /// know what is durable.
    pub(super) fn run_and_report(&mut self) {
        if let Err(error) = self.run() {
            tracing::error!(%error, "the raft member stopped");
            self.publish.send_modify(|status| {
                status.in_charge = false;
                status.failed = Some(error.to_string());
            });
        }
    }

    fn run(&mut self) -> Result<(), RaftError> {
        let mut next_tick = Instant::now() + self.tick;
        loop {
            // What is ready may be there before the first input: a member alone elects itself at once.
            while self.raw.has_ready() {
                self.handle_ready()?;
            }
            self.answer_reads();
            self.snapshot_when_due()?;
            self.publish_status();

            let mut input = match self
                .inputs
                .recv_timeout(next_tick.saturating_duration_since(Instant::now()))
            {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            for _ in 0..MAX_INPUTS_A_TURN {
                match input.take() {
                    Some(Input::Stop) => return Ok(()),
                    Some(input) => self.take(input),
                    None => break,
                }
                input = self.inputs.try_recv().ok();
            }
            if let Some(Input::Stop) = input {
                return Ok(());
            }
            if let Some(input) = input {
                self.take(input);
            }
            if Instant::now() >= next_tick {
                self.raw.tick();
                self.retry_reads();
                // After a pause of the machine, time goes on from now: ticks are not made up for.
                next_tick = Instant::now() + self.tick;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Propose { data, answer } => {
                if self.proposals.len() >= MAX_WAITING {
                    let _ = answer.send(Err(ProposeError::Busy));
                    return;
                }
                let (sequence, context) = self.next_context();
                match self.raw.propose(context, data) {
                    Ok(()) => drop(self.proposals.insert(sequence, answer)),
                    Err(error) => {
                        tracing::debug!(%error, "proposal dropped");
                        let _ = answer.send(Err(ProposeError::NoLeader));
                    }
                }
            }
            Input::Read { answer } => {
                if self.reads.len() >= MAX_WAITING {
                    let _ = answer.send(Err(ProposeError::Busy));
                    return;
                }
                let (sequence, context) = self.next_context();
                self.reads.insert(sequence, WaitingRead { answer, index: None });
                self.raw.read_index(context);
            }
            Input::Step(message) => {
                if let Err(error) = self.raw.step(*message) {
                    tracing::debug!(%error, "message from another member refused");
                }
            }
            Input::Stop => {}
        }
    }

    fn next_context(&mut self) -> (u64, Vec<u8>) {
        self.sequence += 1;
        (self.sequence, self.context_of(self.sequence))
    }

    fn context_of(&self, sequence: u64) -> Vec<u8> {
        [self.session.to_le_bytes(), sequence.to_le_bytes()].concat()
    }

    /// The sequence number of a proposal or read of this process.
    fn own_sequence(&self, context: &[u8]) -> Option<u64> {
        let (session, sequence) = context.split_first_chunk::<8>()?;
        let own = u64::from_le_bytes(*session) == self.session;
        own.then_some(u64::from_le_bytes(sequence.try_into().ok()?))
    }

    /// A leader without a committed entry of its own term drops reads silently, so they are asked for again.
    fn retry_reads(&mut self) {
        self.reads.retain(|_, read| !read.answer.is_closed());
        self.proposals.retain(|_, answer| !answer.is_closed());
        let waiting: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, r)| r.index.is_none())
            .map(|(n, _)| *n)
            .collect();
        for sequence in waiting {
            self.raw.read_index(self.context_of(sequence));
        }
    }

    fn handle_ready(&mut self) -> Result<(), RaftError> {
        let mut ready = self.raw.ready();
        ready.take_messages().into_iter().for_each(&self.outgoing);
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot().clone())?;
        }
        if !ready.entries().is_empty() || ready.hs().is_some_and(|_| ready.must_sync()) {
            let hard_state = ready.hs().cloned();
            self.raw
                .mut_store()
                .append(hard_state.as_ref(), ready.entries())?;
        } else if let Some(hard_state) = ready.hs() {
            let commit = hard_state.commit;
            self.raw.mut_store().note_commit(commit);
        }
        for read in ready.take_read_states() {
            let sequence = self.own_sequence(&read.request_ctx);
            if let Some(waiting) = sequence.and_then(|sequence| self.reads.get_mut(&sequence)) {
                waiting.index = Some(read.index);
            }
        }
        ready
            .take_persisted_messages()
            .into_iter()
            .for_each(&self.outgoing);
        self.apply(ready.take_committed_entries())?;

        let mut light = self.raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().note_commit(commit);
        }
        light.take_messages().into_iter().for_each(&self.outgoing);
        self.apply(light.take_committed_entries())?;
        self.raw.advance_apply();
        Ok(())
    }

    fn install(&mut self, snapshot: raft::eraftpb::Snapshot) -> Result<(), RaftError> {
        let index = snapshot.get_metadata().index;
        let state = State::decode(&snapshot.data).map_err(|source| RaftError::Decode { index, source })?;
        self.raw.mut_store().install(snapshot)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.applied = index;
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), RaftError> {
        for entry in entries {
            let index = entry.index;
            if entry.get_entry_type() != EntryType::EntryNormal {
                return Err(RaftError::MembershipChange(index));
            }
            // A new leader's first entry is empty.
            if !entry.data.is_empty() {
                let stamped =
                    Stamped::decode(&entry.data).map_err(|source| RaftError::Decode { index, source })?;
                let result = self
                    .state
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .apply(&stamped);
                if let Err(rejection) = &result {
                    tracing::debug!(index, %rejection, "command rejected");
                }
                let sequence = self.own_sequence(&entry.context);
                if let Some(answer) = sequence.and_then(|sequence| self.proposals.remove(&sequence)) {
                    let _ = answer.send(result.map_err(ProposeError::Rejected));
                }
            }
            self.applied = index;
        }
        Ok(())
    }

    fn answer_reads(&mut self) {
        let applied = self.applied;
        let reached = |_: &u64, read: &mut WaitingRead| read.index.is_some_and(|index| index <= applied);
        for (_, read) in self.reads.extract_if(.., reached) {
            let _ = read.answer.send(Ok(()));
        }
    }

    fn snapshot_when_due(&mut self) -> Result<(), RaftError> {
        let first = self.raw.store().first_index()?;
        if self.applied + 1 < first + self.snapshot_every_entries {
            return Ok(());
        }
        let data = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .encode()?;
        let conf = self.raw.raft.prs().conf().to_conf_state();
        let snapshot = self.raw.store().make_snapshot(self.applied, conf, data)?;
        let bytes = self.raw.store().log_bytes();
        self.raw.mut_store().install(snapshot)?;
        tracing::info!(
            index = self.applied,
            log_bytes = bytes,
            "snapshot written, log replaced"
        );
        Ok(())
    }

    fn publish_status(&self) {
        let raft = &self.raw.raft;
        let status = RaftStatus {
            leader: raft.leader_id,
            // Everything of earlier leaders lies before this one's first entry.
            in_charge: raft.state == StateRole::Leader
                && raft
                    .raft_log
                    .term(self.applied)
                    .is_ok_and(|term| term == raft.term),
            term: raft.term,
            applied: self.applied,
            failed: None,
        };
        self.publish.send_if_modified(|known| {
            let modified = *known != status;
            *known = status;
            modified
        });
    }
}
