use crate::acceptor::{Acceptor, Command, Durable, Input, When};
use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request};
use bytes::Bytes;
use lakebed_types::{Generation, Lsn, NodeId, PgVersion, Term};

const G: Generation = Generation(1);

pub(crate) fn history(entries: &[(u64, u64)]) -> TermHistory {
    TermHistory::new(entries.iter().map(|e| (Term(e.0), Lsn(e.1))).collect()).unwrap()
}

fn members(ids: &[u64]) -> std::collections::BTreeSet<NodeId> {
    ids.iter().map(|n| NodeId(*n)).collect()
}

/// Promised term 3, WAL flushed to 200, of which 100 is committed.
pub(crate) fn acceptor() -> Acceptor {
    let state = Durable {
        term: Term(3),
        term_history: history(&[(0, 50), (2, 100), (3, 150)]),
        membership: Membership {
            generation: G,
            old: members(&[1, 2, 3]),
            new: None,
        },
        commit: Lsn(100),
        truncate: Lsn(50),
        backup: Lsn(50),
        timeline_start: Lsn(50),
        system_id: 7,
        pg_version: PgVersion::V15,
        segment_bytes: 1 << 24,
    };
    Acceptor::new(state, Lsn(200)).unwrap()
}

fn ask(a: &mut Acceptor, request: Request) -> Vec<Command> {
    a.handle(Input::Request {
        from: NodeId(9),
        request,
    })
}

fn answer(commands: &[Command]) -> (Body, When) {
    match commands.last() {
        Some(Command::Reply { msg, when, .. }) => (msg.body.clone(), *when),
        other => panic!("no reply last: {other:?}"),
    }
}

fn elected(term: u64, entries: &[(u64, u64)], common: u64) -> Request {
    Request::Elected {
        generation: G,
        term: Term(term),
        history: history(entries),
        common: Lsn(common),
    }
}

fn append(term: u64, begin: u64, bytes: &'static [u8], commit: u64) -> Request {
    let (term, begin, commit) = (Term(term), Lsn(begin), Lsn(commit));
    Request::Append {
        generation: G,
        term,
        begin,
        bytes: Bytes::from_static(bytes),
        commit,
        truncate: Lsn(0),
    }
}

#[test]
fn rule_1_generation_and_identity() {
    let greeted = Body::Greeted {
        history: acceptor().state().term_history.clone(),
        flush: Lsn(200),
        commit: Lsn(100),
        truncate: Lsn(50),
        timeline_start: Lsn(50),
    };
    let refused = |refusal| Body::Refused(refusal);
    for (generation, ids, system_id, want) in [
        (0, &[1, 2, 3][..], 7, refused(Refusal::Generation(G))),
        (1, &[1, 2, 3], 8, refused(Refusal::Identity)),
        (1, &[1, 2, 3], 7, greeted.clone()),
        (1, &[1, 2, 4], 7, refused(Refusal::Generation(G))),
        (2, &[1, 2, 4], 7, greeted.clone()),
    ] {
        let mut a = acceptor();
        let membership = Membership {
            generation: Generation(generation),
            old: members(ids),
            new: None,
        };
        let greeting = Request::Greeting {
            membership,
            system_id,
            pg_version: PgVersion::V15,
            segment_bytes: 1 << 24,
        };
        let commands = ask(&mut a, greeting);
        let (body, when) = answer(&commands);
        assert_eq!(body, want);
        // A higher generation is durable before anything is said under it.
        let adopted = matches!(commands[0], Command::PersistControl { .. });
        assert_eq!(adopted, generation == 2);
        assert_eq!(a.is_met(when), generation != 2);
    }
}

#[test]
fn rule_2_a_vote_waits_for_the_term_and_the_wal() {
    let mut a = acceptor();
    let old = ask(
        &mut a,
        Request::Vote {
            generation: G,
            term: Term(3),
        },
    );
    assert_eq!(answer(&old), (Body::Refused(Refusal::Term(Term(3))), When::Now));
    let new = ask(
        &mut a,
        Request::Vote {
            generation: G,
            term: Term(4),
        },
    );
    assert_eq!(new[0], Command::FlushWal);
    assert!(matches!(&new[1], Command::PersistControl { state, .. } if state.term == Term(4)));
    assert_eq!(answer(&new).1, When::AfterBoth(1, Lsn(200)));
}

#[test]
fn rule_4_truncates_before_the_history_and_never_below_commit() {
    for (entries, common, want) in [
        (&[(0, 50), (2, 100), (4, 140)][..], 140, Ok(140)),
        (&[(0, 50), (2, 100), (3, 150), (4, 200)], 200, Ok(200)),
        (&[(0, 50), (2, 100), (4, 140)], 150, Err(Refusal::History)),
        (&[(0, 50), (2, 100), (3, 150)], 200, Err(Refusal::History)),
        (&[(1, 50), (4, 140)], 50, Err(Refusal::NoCommonHistory)),
        (&[(0, 50), (4, 90)], 90, Err(Refusal::BelowCommit(Lsn(100)))),
    ] {
        let mut a = acceptor();
        let commands = ask(&mut a, elected(4, entries, common));
        match want {
            Err(refusal) => assert_eq!(commands.len(), 1, "{refusal}"),
            Ok(_) => assert!(matches!(
                commands[commands.len() - 2],
                Command::PersistControl { .. }
            )),
        }
        let want = want.map_or_else(Body::Refused, |flush| Body::Applied { flush: Lsn(flush) });
        assert_eq!(answer(&commands).0, want);
        if common == 140 && commands.len() > 1 {
            assert_eq!(commands[0], Command::TruncateWal { lsn: Lsn(140) });
        }
    }
}

#[test]
fn rule_6_appends_follow_a_durable_elected_without_a_gap() {
    let mut a = acceptor();
    ask(&mut a, elected(4, &[(0, 50), (2, 100), (3, 150), (4, 200)], 200));
    assert_eq!(
        answer(&ask(&mut a, append(4, 200, b"abcd", 0))).0,
        Body::Refused(Refusal::NotElected)
    );
    a.handle(Input::ControlPersisted { seq: 1 });
    assert_eq!(
        answer(&ask(&mut a, append(3, 200, b"abcd", 0))).0,
        Body::Refused(Refusal::Term(Term(4)))
    );
    assert_eq!(
        answer(&ask(&mut a, append(4, 204, b"abcd", 0))).0,
        Body::Refused(Refusal::Gap(Lsn(200)))
    );
    let (body, when) = answer(&ask(&mut a, append(4, 200, b"abcd", 204)));
    // Commit is clamped to what this node has flushed.
    assert_eq!(
        body,
        Body::Appended {
            flush: Lsn(204),
            commit: Lsn(200)
        }
    );
    assert_eq!(when, When::AfterFlush(Lsn(204)));
    assert_eq!(a.ends(), (Lsn(200), Lsn(204)));
}

#[test]
fn rule_4_a_flush_from_before_the_cut_does_not_count() {
    let mut a = acceptor();
    a.handle(Input::Request {
        from: NodeId(9),
        request: elected(4, &[(0, 50), (2, 100), (4, 140)], 140),
    });
    // Reported late: these 200 bytes are no more.
    a.handle(Input::FlushDone { lsn: Lsn(200) });
    assert_eq!(a.ends(), (Lsn(140), Lsn(140)));
    a.handle(Input::ControlPersisted { seq: 1 });
    ask(&mut a, append(4, 140, b"abcdefgh", 140));
    assert_eq!(a.ends(), (Lsn(140), Lsn(148)));
    a.handle(Input::FlushDone { lsn: Lsn(148) });
    assert_eq!(a.ends(), (Lsn(148), Lsn(148)));
}

#[test]
fn rule_4_repeated_after_a_reconnect_or_restart_it_cuts_nothing() {
    let entries = [(0, 50), (2, 100), (3, 150)];
    let mut a = acceptor();
    // The proposer of term 3 believes that this node stopped at 150.
    let commands = ask(&mut a, elected(3, &entries, 150));
    assert_eq!(answer(&commands).0, Body::Applied { flush: Lsn(200) });
    assert_eq!(commands.len(), 1);
    assert_eq!(a.ends(), (Lsn(200), Lsn(200)));
    assert_eq!(
        answer(&ask(&mut a, append(3, 200, b"abcd", 0))).1,
        When::AfterFlush(Lsn(204))
    );
    // Another winner of the same term cannot be.
    let other = ask(&mut a, elected(3, &[(0, 50), (2, 100), (3, 140)], 140));
    assert_eq!(answer(&other).0, Body::Refused(Refusal::History));
}

#[test]
fn rule_8_wal_goes_when_allowed_uploaded_and_consumed() {
    let mut a = acceptor();
    let truncated = |commands: &[Command]| match commands {
        [Command::PersistControl { state, .. }, ..] => (state.truncate, state.backup),
        other => panic!("{other:?}"),
    };
    // Another safekeeper uploaded up to 180; this one knows 100 to be committed.
    let uploaded = a.handle(Input::BackedUp { lsn: Lsn(180) });
    assert_eq!(truncated(&uploaded), (Lsn(50), Lsn(100)));
    assert!(a.handle(Input::Consumed { lsn: Lsn(80) }).is_empty());
    let allowed = Request::Append {
        generation: G,
        term: Term(3),
        begin: Lsn(200),
        bytes: Bytes::new(),
        commit: Lsn(0),
        truncate: Lsn(90),
    };
    assert_eq!(truncated(&ask(&mut a, allowed)), (Lsn(80), Lsn(100)));
    assert_eq!(
        truncated(&a.handle(Input::Consumed { lsn: Lsn(190) })),
        (Lsn(90), Lsn(100))
    );
    assert!(a.handle(Input::BackedUp { lsn: Lsn(70) }).is_empty());
}

#[test]
fn rule_10_only_a_higher_generation_is_adopted_and_answers_wait_for_it() {
    let mut a = acceptor();
    let joint = |generation| Membership {
        generation: Generation(generation),
        old: members(&[1, 2, 3]),
        new: Some(members(&[3, 4, 5])),
    };
    assert!(a.handle(Input::Reconfigure { membership: joint(1) }).is_empty());
    let commands = a.handle(Input::Reconfigure { membership: joint(2) });
    assert!(
        matches!(&commands[..], [Command::PersistControl { seq: 1, state }] if state.membership == joint(2))
    );
    let old = answer(&ask(&mut a, append(3, 200, b"", 0)));
    assert_eq!(
        old,
        (
            Body::Refused(Refusal::Generation(Generation(2))),
            When::AfterControl(1)
        )
    );
    let new = Request::Append {
        generation: Generation(2),
        term: Term(3),
        begin: Lsn(200),
        bytes: Bytes::from_static(b"abcd"),
        commit: Lsn(0),
        truncate: Lsn(0),
    };
    assert_eq!(answer(&ask(&mut a, new)).1, When::AfterBoth(1, Lsn(204)));
}

#[test]
fn rule_5_a_donor_serves_each_term_the_bytes_of_its_own_log_only() {
    // Term 3, commit 100, flush 200.
    let a = acceptor();
    let higher = Err(Refusal::Term(Term(3)));
    let table = [
        (3, 200, Ok(())),
        (3, 201, Err(Refusal::Gap(Lsn(200)))),
        // Committed here may be what a later term wrote, past the point where term 2 parts from it.
        (2, 101, higher),
        (2, 100, higher),
        (2, 50, higher),
        // Term 4 was never heard of: what is not committed may be a lower term's, which term 4 does not have.
        (4, 100, Ok(())),
        (4, 101, Err(Refusal::Gap(Lsn(100)))),
    ];
    for (term, end, expected) in table {
        assert_eq!(
            a.may_serve(Term(term), Lsn(end)),
            expected,
            "term {term} to {end}"
        );
    }
}

#[test]
fn a_failed_fsync_stops_for_good() {
    let mut a = acceptor();
    assert!(matches!(
        a.handle(Input::IoFailed)[..],
        [Command::StopTimeline { .. }]
    ));
    assert!(
        ask(
            &mut a,
            Request::Vote {
                generation: G,
                term: Term(9)
            }
        )
        .is_empty()
    );
}

#[test]
fn a_joint_configuration_needs_both_majorities() {
    let joint = Membership {
        generation: G,
        old: members(&[1, 2, 3]),
        new: Some(members(&[3, 4, 5])),
    };
    for (agree, want) in [
        (&[1, 2][..], false),
        (&[4, 5], false),
        (&[1, 3, 4], true),
        (&[2, 3], false),
    ] {
        assert_eq!(joint.is_quorum(|n| agree.contains(&n.0)), want, "{agree:?}");
    }
}
