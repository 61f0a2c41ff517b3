//! A proposer that ships the sample's WAL: the core of `lakebed-quorum`, driven over real streams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_proto::frame::{Frame, Inbound};
use lakebed_proto::quorum::{request_to_wire, response};
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, stream, v1};
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::Response;
use lakebed_quorum::proposer::{Command, Config, Input, Proposer, Source};
use lakebed_types::{Generation, Lsn, NodeId, PgVersion, Term};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::node::{Addresses, TENANT, TIMELINE, read_wal, soon};
use crate::sample::{SEGMENT, sample};
use crate::stream::framed;

/// Small pieces, and many of them on their way.
const CHUNK_BYTES: u64 = 20_000;
const IN_FLIGHT_BYTES: u64 = 1 << 20;

/// What a proposer achieved.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub won: Option<(Term, Lsn)>,
    pub commit: Lsn,
    pub fenced: Option<Term>,
    /// Bytes that an acceptor got from another one.
    pub donated: usize,
}

enum Event {
    Connected(NodeId, mpsc::Sender<v1::ProposerMessage>),
    Disconnected(NodeId),
    Received(NodeId, Response),
    Donated(NodeId, Lsn, Option<Bytes>),
}

/// A running proposer; it ends when this is dropped.
pub struct Driver {
    target: watch::Sender<Lsn>,
    progress: watch::Receiver<Progress>,
    _tasks: JoinSet<()>,
}

impl Driver {
    /// Starts a proposer for safekeepers 1 to `members`, in a term above `floor`.
    pub fn start(addresses: &Addresses, members: u64, floor: u64) -> Driver {
        let membership = Membership {
            generation: Generation(1),
            old: (1..=members).map(NodeId).collect(),
            new: None,
        };
        Driver::start_as(addresses, membership, floor)
    }

    /// Starts a proposer for these members.
    pub fn start_as(addresses: &Addresses, membership: Membership, floor: u64) -> Driver {
        let (target, targets) = watch::channel(Lsn::INVALID);
        let (told, progress) = watch::channel(Progress::default());
        let (events, inbox) = mpsc::channel(4096);
        let mut tasks = JoinSet::new();
        let members: BTreeSet<_> = membership
            .old
            .iter()
            .chain(membership.new.iter().flatten())
            .collect();
        for id in members {
            tasks.spawn(link(*id, addresses.clone(), events.clone()));
        }
        let config = Config {
            membership,
            system_id: sample().system_id,
            pg_version: PgVersion::V15,
            segment_bytes: SEGMENT.into(),
            lease_ms: 60_000,
            heartbeat_ms: 50,
            election_ms: 60_000,
            chunk_bytes: CHUNK_BYTES,
            in_flight_bytes: IN_FLIGHT_BYTES,
        };
        let proposing = Proposing {
            core: Proposer::new(config, Term(floor), 0),
            addresses: addresses.clone(),
            streams: BTreeMap::new(),
            events,
            told,
            donations: JoinSet::new(),
        };
        tasks.spawn(proposing.run(inbox, targets));
        Driver {
            target,
            progress,
            _tasks: tasks,
        }
    }

    /// Postgres, as it were, wrote WAL up to here.
    pub fn write(&self, to: Lsn) {
        self.target.send_replace(to);
    }

    pub async fn until(&self, what: &str, holds: impl FnMut(&Progress) -> bool) -> Progress {
        let mut progress = self.progress.clone();
        let found = soon(what, progress.wait_for(holds)).await;
        found.unwrap().clone()
    }

    pub async fn won(&self) -> (Term, Lsn) {
        let progress = self.until("an election to be won", |p| p.won.is_some()).await;
        progress.won.unwrap()
    }

    /// Writes WAL and waits until it is committed.
    pub async fn commit(&self, to: Lsn) {
        self.write(to);
        self.until(&format!("commit of {to}"), |p| p.commit >= to).await;
    }
}

/// Keeps a stream to one safekeeper open.
async fn link(id: NodeId, addresses: Addresses, events: mpsc::Sender<Event>) {
    loop {
        let address = addresses.lock().unwrap().get(&id.0).cloned();
        if let Some(address) = address
            && let Ok(socket) = stream::connect(&address).await
        {
            let (mut read, mut write) = socket.into_split();
            let (messages, mut outbound) = mpsc::channel(1024);
            let send = async move {
                write.write_all(stream::PROPOSE.bytes()).await?;
                while let Some(message) = outbound.recv().await {
                    write.write_all(&framed(&message)).await?;
                }
                std::io::Result::Ok(())
            };
            let receive = async {
                let mut inbound = Inbound::default();
                loop {
                    match inbound.next().expect("a frame") {
                        Some(Frame::Message(answer)) => {
                            let answer = response(answer).expect("a valid answer");
                            events.send(Event::Received(id, answer)).await.unwrap();
                        }
                        Some(Frame::End(_)) => return,
                        None if !matches!(read.read_buf(inbound.room()).await, Ok(1..)) => return,
                        None => {}
                    }
                }
            };
            events.send(Event::Connected(id, messages)).await.unwrap();
            tokio::select! {
                () = receive => {}
                _ = send => {}
            }
            events.send(Event::Disconnected(id)).await.unwrap();
        }
        // Pause before the next attempt.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Proposing {
    core: Proposer,
    addresses: Addresses,
    streams: BTreeMap<NodeId, mpsc::Sender<v1::ProposerMessage>>,
    events: mpsc::Sender<Event>,
    told: watch::Sender<Progress>,
    donations: JoinSet<()>,
}

impl Proposing {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>, mut targets: watch::Receiver<Lsn>) {
        let begin = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            let input = tokio::select! {
                Some(event) = inbox.recv() => self.input(event),
                _ = ticks.tick() => Input::Tick { now_ms: begin.elapsed().as_millis() as u64 },
                Ok(()) = targets.changed() => Input::LocalWal { end: *targets.borrow_and_update() },
            };
            let mut inputs = VecDeque::from([input]);
            while let Some(input) = inputs.pop_front() {
                for command in self.core.handle(input) {
                    self.execute(command, &targets, &mut inputs).await;
                }
            }
        }
    }

    fn input(&mut self, event: Event) -> Input {
        match event {
            Event::Connected(id, stream) => {
                self.streams.insert(id, stream);
                Input::Connected(id)
            }
            Event::Disconnected(id) => {
                self.streams.remove(&id);
                Input::Disconnected(id)
            }
            Event::Received(from, msg) => Input::Received { from, msg },
            Event::Donated(acceptor, begin, Some(bytes)) => {
                self.told.send_modify(|progress| progress.donated += bytes.len());
                Input::WalRead {
                    acceptor,
                    begin,
                    bytes,
                }
            }
            Event::Donated(acceptor, begin, None) => Input::WalReadFailed { acceptor, begin },
        }
    }

    async fn execute(
        &mut self,
        command: Command,
        targets: &watch::Receiver<Lsn>,
        inputs: &mut VecDeque<Input>,
    ) {
        match command {
            Command::Send { to, msg } => {
                if let Some(stream) = self.streams.get(&to) {
                    // A stream that broke is told of by its task.
                    let _ = stream.send(request_to_wire(msg, TENANT, TIMELINE)).await;
                }
            }
            Command::ReadWal {
                acceptor,
                source: Source::Local,
                begin,
                end,
                ..
            } => inputs.push_back(Input::WalRead {
                acceptor,
                begin,
                bytes: sample().whole_records(begin, end),
            }),
            Command::ReadWal {
                acceptor,
                source: Source::Acceptor(donor),
                term,
                begin,
                end,
            } => {
                let address = self.addresses.lock().unwrap().get(&donor.0).cloned();
                let events = self.events.clone();
                self.donations.spawn(async move {
                    let bytes = donated(address, term, begin, end).await;
                    let _ = events.send(Event::Donated(acceptor, begin, bytes)).await;
                });
            }
            Command::ElectionWon { term, start, .. } => {
                self.told
                    .send_modify(|progress| progress.won = Some((term, start)));
                inputs.push_back(Input::LocalWal {
                    end: *targets.borrow(),
                });
            }
            Command::CommitAdvanced(lsn) => self.told.send_modify(|progress| progress.commit = lsn),
            Command::Fenced(term) => self.told.send_modify(|progress| progress.fenced = Some(term)),
            Command::Settled(_) => {}
            other => panic!("the proposer says {other:?}"),
        }
    }
}

/// Whole records from a donor.
async fn donated(address: Option<String>, term: Term, begin: Lsn, end: Lsn) -> Option<Bytes> {
    let end = Lsn(begin.0 + sample().whole_records(begin, end).len() as u64);
    let mut client = SafekeeperClient::new(connect(&address?).await.ok()?);
    read_wal(&mut client, begin, end, term.0).await.ok()
}
