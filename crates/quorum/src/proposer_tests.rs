use std::collections::BTreeSet;

use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request, Response};
use crate::proposer::{Command, Config, Input, Phase, Proposer, Source};
use bytes::Bytes;
use lakebed_types::{Generation, Lsn, NodeId, PgVersion, Term};

fn members(generation: u64, old: &[u64], new: Option<&[u64]>) -> Membership {
    let set = |ids: &[u64]| ids.iter().map(|n| NodeId(*n)).collect();
    Membership {
        generation: Generation(generation),
        old: set(old),
        new: new.map(set),
    }
}

fn history(entries: &[(u64, u64)]) -> TermHistory {
    TermHistory::new(entries.iter().map(|e| (Term(e.0), Lsn(e.1))).collect()).unwrap()
}

struct Bench {
    core: Proposer,
    generation: u64,
}

impl Bench {
    fn new() -> Bench {
        let config = Config {
            membership: members(1, &[1, 2, 3], None),
            system_id: 7,
            pg_version: PgVersion::V15,
            segment_bytes: 1 << 24,
            lease_ms: 1000,
            heartbeat_ms: 100,
            election_ms: 3000,
            chunk_bytes: 40,
            in_flight_bytes: 60,
        };
        Bench {
            core: Proposer::new(config, Term(0), 0),
            generation: 1,
        }
    }

    fn says(&mut self, node: u64, term: u64, body: Body) -> Vec<Command> {
        let msg = Response {
            generation: Generation(self.generation),
            term: Term(term),
            body,
        };
        self.core.handle(Input::Received {
            from: NodeId(node),
            msg,
        })
    }

    fn greets(&mut self, node: u64, term: u64, entries: &[(u64, u64)], flush: u64) -> Vec<Command> {
        let body = Body::Greeted {
            history: history(entries),
            flush: Lsn(flush),
            commit: Lsn(50),
            truncate: Lsn(50),
            timeline_start: Lsn(50),
        };
        self.says(node, term, body)
    }

    fn joins(&mut self, node: u64, term: u64, entries: &[(u64, u64)], flush: u64) -> Vec<Command> {
        let greeting = self.core.handle(Input::Connected(NodeId(node)));
        assert!(matches!(sent(&greeting)[..], [(_, Request::Greeting { .. })]));
        self.greets(node, term, entries, flush)
    }

    fn votes(&mut self, node: u64, term: u64, entries: &[(u64, u64)], flush: u64) -> Vec<Command> {
        let body = Body::Voted {
            history: history(entries),
            flush: Lsn(flush),
            truncate: Lsn(50),
            timeline_start: Lsn(50),
        };
        self.says(node, term, body)
    }

    fn applies(&mut self, node: u64, flush: u64) -> Vec<Command> {
        self.says(node, 5, Body::Applied { flush: Lsn(flush) })
    }

    fn appends(&mut self, node: u64, flush: u64) -> Vec<Command> {
        let (flush, commit) = (Lsn(flush), Lsn(50));
        self.says(node, 5, Body::Appended { flush, commit })
    }

    fn read(&mut self, node: u64, begin: u64, length: usize) -> Vec<Command> {
        self.core.handle(Input::WalRead {
            acceptor: NodeId(node),
            begin: Lsn(begin),
            bytes: Bytes::from(vec![0; length]),
        })
    }

    /// Term 5 won by the votes of 1 and 2; it starts at 200.
    fn won() -> Bench {
        let mut b = Bench::new();
        let log = [(0, 50)];
        b.joins(1, 2, &log, 100);
        b.joins(2, 4, &log, 200);
        b.votes(1, 5, &log, 100);
        let commands = b.votes(2, 5, &log, 200);
        let won = Command::ElectionWon {
            term: Term(5),
            start: Lsn(200),
            donor: NodeId(2),
        };
        assert_eq!(commands[0], won);
        b
    }
}

fn sent(commands: &[Command]) -> Vec<(u64, Request)> {
    let sends = commands.iter().filter_map(|c| match c {
        Command::Send { to, msg } => Some((to.0, msg.clone())),
        _ => None,
    });
    sends.collect()
}

/// Begin, length and commit of the appends.
fn appended(commands: &[Command]) -> Vec<(u64, u64, usize, u64)> {
    let appends = sent(commands).into_iter().filter_map(|(to, msg)| match msg {
        Request::Append {
            begin, bytes, commit, ..
        } => Some((to, begin.0, bytes.len(), commit.0)),
        _ => None,
    });
    appends.collect()
}

/// For whom, from whom (0: local), begin, end.
fn reads(commands: &[Command]) -> Vec<(u64, u64, u64, u64)> {
    let reads = commands.iter().filter_map(|c| match c {
        Command::ReadWal {
            acceptor,
            source,
            begin,
            end,
            ..
        } => {
            let from = match source {
                Source::Local => 0,
                Source::Acceptor(id) => id.0,
            };
            Some((acceptor.0, from, begin.0, end.0))
        }
        _ => None,
    });
    reads.collect()
}

#[test]
fn rule_1_the_term_is_one_above_what_a_quorum_names() {
    let mut b = Bench::new();
    assert!(b.joins(1, 2, &[(0, 50)], 100).is_empty());
    let asked = sent(&b.joins(3, 4, &[(0, 50)], 100));
    let vote = Request::Vote {
        generation: Generation(1),
        term: Term(5),
    };
    assert_eq!(asked, [(1, vote.clone()), (3, vote.clone())]);
    // One that comes later is asked too; one that is ahead ends the attempt.
    assert_eq!(sent(&b.joins(2, 4, &[(0, 50)], 100)), [(2, vote)]);
    b.core.handle(Input::Disconnected(NodeId(2)));
    assert_eq!(b.joins(2, 6, &[(0, 50)], 100), [Command::ElectionLost(Term(6))]);
}

#[test]
fn rules_3_and_4_the_later_log_term_beats_the_longer_log() {
    let mut b = Bench::new();
    let (old, new) = ([(0, 50), (2, 60)], [(0, 50), (3, 100)]);
    b.joins(1, 4, &old, 300);
    b.joins(2, 4, &new, 200);
    assert!(b.votes(1, 5, &old, 300).is_empty());
    let commands = b.votes(2, 5, &new, 200);
    let commons: Vec<_> = sent(&commands)
        .into_iter()
        .map(|(to, msg)| match msg {
            Request::Elected { history, common, .. } => {
                assert_eq!(history.last(), (Term(5), Lsn(200)));
                (to, common.0)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(commons, [(1, 60), (2, 200)]);
    // Another timeline's WAL is named, not passed over.
    b.core.handle(Input::Connected(NodeId(3)));
    let commands = b.greets(3, 1, &[(1, 50)], 100);
    let rejected = Command::Rejected {
        acceptor: NodeId(3),
        refusal: Refusal::NoCommonHistory,
    };
    assert_eq!(commands, [rejected]);
    assert_eq!(b.core.progress(NodeId(3)), Some((Phase::Refused, None)));
}

#[test]
fn rules_5_and_7_commit_needs_a_quorum_at_the_term_start() {
    let mut b = Bench::won();
    assert!(b.applies(2, 200).is_empty());
    // A quorum has 100, but the term starts at 200: the donor lends the rest.
    assert_eq!(reads(&b.applies(1, 100)), [(1, 2, 100, 140)]);
    assert_eq!(b.core.commit(), Lsn(0));
    let next = b.read(1, 100, 40);
    assert_eq!(appended(&next), [(1, 100, 40, 0)]);
    assert_eq!(reads(&next), [(1, 2, 140, 180)]);
    // Two chunks are on their way: no third before an answer.
    let next = b.read(1, 140, 40);
    assert_eq!((appended(&next).len(), reads(&next).len()), (1, 0));
    assert_eq!(reads(&b.appends(1, 140)), [(1, 2, 180, 200)]);
    b.read(1, 180, 20);
    let commands = b.appends(1, 200);
    assert_eq!(
        commands[..2],
        [Command::CommitAdvanced(Lsn(200)), Command::Settled(Generation(1))]
    );
    // Who waits for nothing else is told at once.
    assert_eq!(appended(&commands), [(1, 200, 0, 200), (2, 200, 0, 200)]);
    b.appends(1, 150);
    assert_eq!(b.core.commit(), Lsn(200));
}

#[test]
fn rule_6_appends_are_contiguous_and_resume_after_a_reconnect() {
    let mut b = Bench::won();
    b.applies(2, 200);
    let commands = b.core.handle(Input::LocalWal { end: Lsn(230) });
    assert_eq!(reads(&commands), [(2, 0, 200, 230)]);
    // Bytes for another place are not what was asked for.
    assert!(b.read(2, 210, 20).is_empty());
    assert_eq!(appended(&b.read(2, 200, 30)), [(2, 200, 30, 0)]);
    b.core.handle(Input::Disconnected(NodeId(2)));
    let again = sent(&b.joins(2, 5, &[(0, 50), (5, 200)], 220));
    assert!(
        matches!(&again[..], [(2, Request::Elected { common: Lsn(220), .. })]),
        "{again:?}"
    );
    assert_eq!(reads(&b.applies(2, 220)), [(2, 0, 220, 230)]);
    // A gap: what was sent last did not arrive in order.
    let greeted = b.says(2, 5, Body::Refused(Refusal::Gap(Lsn(220))));
    assert!(matches!(sent(&greeted)[..], [(2, Request::Greeting { .. })]));
    // Someone who was away for the election is told the history without a vote.
    let late = sent(&b.joins(3, 1, &[(0, 50)], 90));
    assert!(matches!(
        &late[..],
        [(3, Request::Elected { common: Lsn(90), .. })]
    ));
}

#[test]
fn an_answer_that_was_dropped_is_asked_for_again() {
    type Step = fn(&mut Bench);
    let connect: Step = |b| {
        b.core.handle(Input::Connected(NodeId(3)));
    };
    let join: Step = |b| {
        b.joins(3, 1, &[(0, 50)], 90);
    };
    let nothing: Step = |_| {};
    // What 3 is asked before and after the election; it never answers that.
    let table = [
        ("greeting", nothing, connect, Phase::Greeting),
        ("vote", join, nothing, Phase::Voting),
        ("elected", nothing, join, Phase::Elected),
    ];
    for (name, before, after, phase) in table {
        let mut b = Bench::new();
        let log = [(0, 50)];
        b.joins(1, 4, &log, 200);
        b.joins(2, 4, &log, 200);
        before(&mut b);
        b.votes(1, 5, &log, 200);
        b.votes(2, 5, &log, 200);
        b.applies(1, 200);
        b.applies(2, 200);
        after(&mut b);
        assert_eq!(b.core.progress(NodeId(3)), Some((phase, None)), "{name}");
        let mut greeted = Vec::new();
        for now_ms in (100..=3000).step_by(100) {
            let commands = b.core.handle(Input::Tick { now_ms });
            greeted.extend(sent(&commands).into_iter().filter_map(|(to, msg)| {
                let greeting = matches!(msg, Request::Greeting { .. });
                greeting.then_some((to, now_ms))
            }));
            b.appends(1, 200);
            b.appends(2, 200);
        }
        assert_eq!(greeted, [(3, 3000)], "{name}");
        let elected = sent(&b.greets(3, 1, &log, 90));
        assert!(matches!(elected[..], [(3, Request::Elected { .. })]), "{name}");
    }
}

#[test]
fn rule_13_more_wal_than_was_written_is_not_believed() {
    let mut b = Bench::won();
    let rejected = Command::Rejected {
        acceptor: NodeId(2),
        refusal: Refusal::Gap(Lsn(200)),
    };
    assert_eq!(b.applies(2, 300), [rejected]);
    assert_eq!(b.core.progress(NodeId(2)), Some((Phase::Refused, None)));
}

#[test]
fn rules_10_and_12_who_joins_is_given_the_length_of_a_lease_to_be_heard_of() {
    let mut b = Bench::won();
    for now_ms in [900, 1800, 2700] {
        b.core.handle(Input::Tick { now_ms });
        b.applies(1, 100);
        b.applies(2, 200);
    }
    let membership = members(2, &[1, 2, 3], Some(&[4, 5]));
    b.core.handle(Input::Reconfigure { membership });
    b.generation = 2;
    let silent = b.core.handle(Input::Tick { now_ms: 3600 });
    assert!(!silent.contains(&Command::LeaseExpired), "{silent:?}");
    b.greets(1, 5, &[(0, 50), (5, 100)], 200);
    b.greets(2, 5, &[(0, 50), (5, 100)], 200);
    let over = b.core.handle(Input::Tick { now_ms: 3700 });
    assert_eq!(over, [Command::LeaseExpired]);
}

#[test]
fn rules_6_and_12_fenced_by_a_term_or_by_silence() {
    let mut b = Bench::won();
    let refusal = Body::Refused(Refusal::Term(Term(6)));
    assert_eq!(b.says(1, 6, refusal), [Command::Fenced(Term(6))]);
    assert!(b.applies(1, 200).is_empty());
    let mut b = Bench::won();
    b.core.handle(Input::Tick { now_ms: 500 });
    b.applies(1, 100);
    b.applies(2, 200);
    let beats = b.core.handle(Input::Tick { now_ms: 1499 });
    assert_eq!(appended(&beats), [(1, 100, 0, 0), (2, 200, 0, 0)]);
    assert_eq!(
        b.core.handle(Input::Tick { now_ms: 1500 }),
        [Command::LeaseExpired]
    );
    let mut b = Bench::new();
    assert!(b.core.handle(Input::Tick { now_ms: 2999 }).is_empty());
    assert_eq!(
        b.core.handle(Input::Tick { now_ms: 3000 }),
        [Command::ElectionLost(Term(0))]
    );
}

#[test]
fn rule_10_flushes_count_again_under_a_new_generation() {
    let mut b = Bench::won();
    b.applies(2, 200);
    b.read(1, 100, 40);
    b.applies(1, 200);
    assert_eq!(b.core.commit(), Lsn(200));
    b.core.handle(Input::LocalWal { end: Lsn(230) });
    let membership = members(2, &[1, 2, 3], Some(&[3, 4, 5]));
    let commands = b.core.handle(Input::Reconfigure { membership });
    assert_eq!(sent(&commands).len(), 2);
    let log = [(0, 50), (5, 200)];
    b.generation = 2;
    b.greets(1, 5, &log, 230);
    b.greets(2, 5, &log, 230);
    b.applies(1, 230);
    b.applies(2, 230);
    // The old set's majority is not enough.
    assert_eq!(b.core.commit(), Lsn(200));
    b.joins(4, 0, &[(0, 50)], 50);
    b.applies(4, 50);
    b.joins(5, 0, &[(0, 50)], 50);
    b.applies(5, 50);
    b.appends(4, 230);
    let commands = b.appends(5, 230);
    assert_eq!(
        commands[..2],
        [Command::CommitAdvanced(Lsn(230)), Command::Settled(Generation(2))]
    );
    // An acceptor that is further along: the membership is old.
    let refusal = Body::Refused(Refusal::Generation(Generation(3)));
    assert_eq!(b.says(1, 5, refusal), [Command::StaleMembership(Generation(3))]);
}

#[test]
fn rule_10_a_learner_gets_wal_and_nothing_counts_on_it_or_waits_for_it() {
    let mut b = Bench::new();
    let (log, now) = ([(0, 50)], [(0, 50), (5, 200)]);
    let learners = [NodeId(4)].into();
    b.core.handle(Input::Learners { attempt: 1, learners });
    // Its log would be the longest; it is not asked for a vote.
    b.joins(4, 0, &log, 300);
    b.joins(1, 4, &log, 200);
    let asked = sent(&b.joins(2, 4, &log, 200));
    assert_eq!(asked.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [1, 2]);
    b.votes(1, 5, &log, 200);
    let told = sent(&b.votes(2, 5, &log, 200));
    assert!(
        told.iter()
            .any(|(to, msg)| *to == 4 && matches!(msg, Request::Elected { common: Lsn(200), .. }))
    );
    b.applies(1, 200);
    // Of three members one has it; the learner does not make two of them.
    b.applies(4, 200);
    assert!(!b.core.commit().is_valid() && b.core.caught_up(u64::MAX).is_none());
    b.applies(2, 200);
    b.core.handle(Input::LocalWal { end: Lsn(230) });
    assert_eq!(appended(&b.read(4, 200, 30)), [(4, 200, 30, 200)]);
    b.appends(1, 230);
    b.appends(2, 230);
    assert_eq!(b.core.commit(), Lsn(230), "nobody waits for the learner");
    assert_eq!((b.core.caught_up(29), b.core.caught_up(30)), (None, Some(1)));
    b.appends(4, 230);
    assert_eq!(b.core.caught_up(0), Some(1));
    // In another attempt it may have another disk: what it said is forgotten.
    let learners = [NodeId(4)].into();
    let greeted = sent(&b.core.handle(Input::Learners { attempt: 2, learners }));
    assert!(matches!(greeted[..], [(4, Request::Greeting { .. })]));
    b.appends(4, 230);
    assert_eq!(b.core.caught_up(u64::MAX), None);
    b.greets(4, 5, &now, 230);
    b.applies(4, 230);
    assert_eq!(b.core.caught_up(0), Some(2));
    // It becomes a member on the stream that it has.
    let membership = members(2, &[1, 2, 3], Some(&[1, 2, 4]));
    let greeted = sent(&b.core.handle(Input::Reconfigure { membership }));
    assert!(greeted.iter().any(|(to, _)| *to == 4), "{greeted:?}");
    b.generation = 2;
    b.greets(4, 5, &now, 230);
    b.applies(4, 230);
    b.greets(1, 5, &now, 230);
    b.applies(1, 230);
    b.core.handle(Input::LocalWal { end: Lsn(240) });
    b.greets(2, 5, &now, 230);
    assert!(b.applies(2, 230).contains(&Command::Settled(Generation(2))));
    // One that is neither is forgotten.
    let learners = [NodeId(6)].into();
    b.core.handle(Input::Learners { attempt: 3, learners });
    assert!(b.core.progress(NodeId(6)).is_some());
    let learners = [].into();
    b.core.handle(Input::Learners { attempt: 3, learners });
    assert_eq!(b.core.progress(NodeId(6)), None);
    assert_eq!(b.core.caught_up(u64::MAX), None, "there is none");
}

#[test]
fn rule_10_who_leaves_and_comes_back_as_a_learner_is_greeted_on_the_stream_that_it_has() {
    let mut b = Bench::new();
    let log = [(0, 50)];
    b.joins(3, 0, &log, 50);
    let membership = members(2, &[1, 2, 4], None);
    b.core.handle(Input::Reconfigure { membership });
    assert_eq!(b.core.progress(NodeId(3)), None);
    let learners: BTreeSet<NodeId> = [NodeId(3)].into();
    let greeted = sent(&b.core.handle(Input::Learners {
        attempt: 1,
        learners: learners.clone(),
    }));
    assert!(
        matches!(greeted[..], [(3, Request::Greeting { .. })]),
        "{greeted:?}"
    );
    // Not on one that ended meanwhile.
    b.core.handle(Input::Learners {
        attempt: 1,
        learners: BTreeSet::new(),
    });
    b.core.handle(Input::Disconnected(NodeId(3)));
    let greeted = sent(&b.core.handle(Input::Learners { attempt: 2, learners }));
    assert!(greeted.is_empty(), "{greeted:?}");
    assert!(!sent(&b.core.handle(Input::Connected(NodeId(3)))).is_empty());
}
