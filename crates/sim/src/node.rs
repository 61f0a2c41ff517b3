//! An acceptor and its driver: what the safekeeper's daemon does, on a virtual disk.
//!
//! It follows the driver's contract in the header of `lakebed_quorum` to the letter, and checks invariants whenever
//! the disk or the acceptor changed.

use crate::disk::{CONTROL, Disk, Operation, WAL, position};
use crate::invariants::{
    Checked, Violation, histories, no_rejection, positions, promises, readable, removal,
};
use crate::world::{Event, World};
use lakebed_quorum::acceptor::{Acceptor, Command, Durable, Input, When};
use lakebed_quorum::message::{Body, Request, Response};
use lakebed_quorum::mutation::Mutation;
use lakebed_types::NodeId;

/// A safekeeper with one timeline.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Rises with every crash.
    pub(crate) life: u64,
    /// Absent while the node is down.
    pub(crate) acceptor: Option<Acceptor>,
    pub(crate) disk: Disk,
    /// The disk is gone for good, or the timeline was deleted here; the node may come back as a new member.
    pub(crate) gone: bool,
    /// The WAL of the disk that is gone.
    pub(crate) lost: Vec<u8>,
    /// Answers that wait, with the stream by which they will leave.
    waiting: Vec<(Option<usize>, Response, When)>,
}

impl Node {
    pub(crate) fn new(id: NodeId, control: Durable, mutation: Option<Mutation>) -> Node {
        let mut node = Node {
            id,
            life: 0,
            acceptor: None,
            disk: Disk::new(control),
            gone: false,
            lost: Vec::new(),
            waiting: Vec::new(),
        };
        node.open(mutation);
        node
    }

    fn open(&mut self, mutation: Option<Mutation>) {
        self.acceptor = Acceptor::new(self.disk.control.clone(), position(self.disk.wal.len()));
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.break_rule(mutation);
        }
    }
}

impl World {
    /// A request arrives; its answer goes to `stream`.
    pub(crate) fn request(
        &mut self,
        n: usize,
        from: NodeId,
        request: Request,
        stream: Option<usize>,
    ) -> Checked {
        self.node_input(n, Input::Request { from, request }, stream)
    }

    pub(crate) fn node_input(&mut self, n: usize, input: Input, stream: Option<usize>) -> Checked {
        let node = &mut self.nodes[n];
        let Some(acceptor) = &mut node.acceptor else {
            return Ok(());
        };
        for command in acceptor.handle(input) {
            match command {
                Command::PersistControl { seq, state } => {
                    node.disk.persist(seq, state);
                }
                Command::WriteWal { begin, bytes } => {
                    self.report.appends += 1;
                    node.disk.enqueue(Operation::Write(begin, bytes));
                }
                Command::FlushWal => node.disk.enqueue(Operation::Flush),
                Command::TruncateWal { lsn } => {
                    self.report.truncations += 1;
                    if self.mutation != Some(Mutation::KeepAnswersOverTruncation) {
                        node.waiting.retain(|(_, _, when)| !when.waits_for_wal());
                    }
                    node.disk.enqueue(Operation::Truncate(lsn));
                }
                Command::Reply { msg, when, .. } => node.waiting.push((stream, msg, when)),
                Command::StopTimeline { reason } => {
                    no_rejection::on_stop(node.id, reason)?;
                    return self.crash_node(n);
                }
            }
        }
        self.drive_disk(n)?;
        self.answer(n)?;
        positions::check(&self.nodes[n], &self.ledger)
    }

    /// Sends every answer whose condition holds.
    fn answer(&mut self, n: usize) -> Checked {
        let node = &mut self.nodes[n];
        let Some(acceptor) = &node.acceptor else {
            return Ok(());
        };
        let (due, waiting): (Vec<_>, _) = std::mem::take(&mut node.waiting)
            .into_iter()
            .partition(|(_, _, when)| acceptor.is_met(*when));
        node.waiting = waiting;
        for (stream, msg, _) in due {
            let node = &self.nodes[n];
            promises::on_answer(node, &self.ledger, &msg)?;
            if let Body::Voted { .. } = msg.body {
                let wal = node.disk.solid().to_vec();
                self.ledger.votes.insert((msg.term, node.id), wal);
            }
            if let Some(stream) = stream {
                self.send_to_proposer(stream, msg);
            }
        }
        Ok(())
    }

    /// Writes take effect at once; what must reach the disk takes its time.
    fn drive_disk(&mut self, n: usize) -> Checked {
        let node = &mut self.nodes[n];
        while !node.disk.busy[WAL]
            && let Some(Operation::Write(begin, bytes)) = node
                .disk
                .queue
                .pop_front_if(|head| matches!(head, Operation::Write(..)))
        {
            if self.now < node.disk.full_until {
                let room = self.rng.index(bytes.len());
                node.disk.write(begin, bytes.get(..room).unwrap_or_default());
                self.report.full_disks += 1;
                return self.node_input(n, Input::IoFailed, None);
            }
            if !node.disk.write(begin, &bytes) {
                return Err(Violation {
                    invariant: "positions",
                    detail: format!("node {} writes WAL at {begin}, its WAL ends elsewhere", node.id),
                });
            }
        }
        let life = node.life;
        let starts = [
            !node.disk.busy[WAL] && !node.disk.queue.is_empty(),
            node.disk.control_ready(),
        ];
        for (queue, start) in starts.into_iter().enumerate() {
            if start {
                self.nodes[n].disk.busy[queue] = true;
                let slow = self.now < self.nodes[n].disk.slow_until;
                let delay = if slow {
                    self.rng.range(20, 200)
                } else {
                    self.rng.range(0, 3)
                };
                self.after(delay, Event::DiskDone { node: n, life, queue });
            }
        }
        Ok(())
    }

    pub(crate) fn disk_done(&mut self, n: usize, life: u64, queue: usize) -> Checked {
        let node = &mut self.nodes[n];
        if node.life != life {
            return Ok(());
        }
        let truncate = node.disk.control.truncate;
        let input = if queue == CONTROL && self.now < node.disk.full_until {
            self.report.full_disks += 1;
            Some(Input::IoFailed)
        } else if queue == CONTROL {
            node.disk
                .control_done()
                .map(|seq| Input::ControlPersisted { seq })
        } else {
            node.disk.busy[WAL] = false;
            match node.disk.queue.pop_front() {
                Some(Operation::Flush) => match node.disk.flush() {
                    Some(lsn) => Some(Input::FlushDone { lsn }),
                    None => {
                        self.report.failed_flushes += 1;
                        Some(Input::IoFailed)
                    }
                },
                Some(Operation::Truncate(lsn)) => {
                    node.disk.truncate(lsn);
                    None
                }
                Some(Operation::Write(..)) | None => None,
            }
        };
        self.report.removals += u64::from(truncate < self.nodes[n].disk.control.truncate);
        self.check_disk(n)?;
        match input {
            Some(input) => self.node_input(n, input, None),
            None => self.drive_disk(n),
        }
    }

    pub(crate) fn check_disk(&self, n: usize) -> Checked {
        let node = &self.nodes[n];
        histories::check(node, &self.ledger)?;
        removal::check(node, &self.ledger)?;
        readable::check(&self.nodes, &self.ledger)
    }

    /// Power off; it comes back by itself.
    pub(crate) fn crash_node(&mut self, n: usize) -> Checked {
        self.report.crashes += 1;
        self.note(format_args!("node {} is down", n + 1));
        let node = &mut self.nodes[n];
        node.life += 1;
        node.acceptor = None;
        node.waiting.clear();
        node.disk.crash(&mut self.rng);
        let life = node.life;
        self.break_streams(|stream| stream.node == n);
        let delay = if self.faults.healed {
            100
        } else {
            self.rng.range(20, 2500)
        };
        self.after(delay, Event::RestartNode { node: n, life });
        self.check_disk(n)?;
        positions::check(&self.nodes[n], &self.ledger)
    }

    pub(crate) fn restart_node(&mut self, n: usize, life: u64) -> Checked {
        let node = &mut self.nodes[n];
        if node.life != life || node.acceptor.is_some() || node.gone {
            return Ok(());
        }
        if self.mutation == Some(Mutation::CutDamage) {
            self.nodes[n].disk.cut_damage();
        }
        if self.nodes[n].disk.rot.is_some() && !self.replace_damaged(n)? {
            let delay = self.rng.range(50, 300);
            self.after(delay, Event::RestartNode { node: n, life });
            return Ok(());
        }
        let node = &mut self.nodes[n];
        let trust_length = self.mutation == Some(Mutation::KeepTornTail);
        self.report.torn_tails += u64::from(node.disk.recover(trust_length));
        node.open(self.mutation);
        self.check_disk(n)?;
        let node = &self.nodes[n];
        if node.acceptor.is_none() {
            return no_rejection::on_stop(node.id, "positions out of order after a restart");
        }
        Ok(())
    }
}
