use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request, Response};
use crate::proposer::{Command, Proposer};
use lakebed_types::{Generation, Lsn, NodeId, Term};

fn proposer() -> Proposer {
    let old = [1, 2, 3].map(NodeId).into();
    Proposer::new(
        Term(5),
        Membership {
            generation: Generation(1),
            old,
            new: None,
        },
        1000,
        0,
    )
    .0
}

fn says(p: &mut Proposer, node: u64, body: Body) -> Vec<Command> {
    p.receive(
        NodeId(node),
        Response {
            generation: Generation(1),
            term: Term(5),
            body,
        },
    )
}

fn vote(entries: &[(u64, u64)], flush: u64) -> Body {
    let history = TermHistory::new(entries.iter().map(|e| (Term(e.0), Lsn(e.1))).collect()).unwrap();
    Body::Voted {
        history,
        flush: Lsn(flush),
        truncate: Lsn(50),
        timeline_start: Lsn(50),
    }
}

#[test]
fn rules_3_and_4_the_later_log_term_beats_the_longer_log() {
    let mut p = proposer();
    assert!(says(&mut p, 1, vote(&[(0, 50), (2, 60)], 300)).is_empty());
    let commands = says(&mut p, 2, vote(&[(0, 50), (3, 100)], 200));
    let commons: Vec<_> = commands
        .iter()
        .map(|c| match c {
            Command::Send {
                msg: Request::Elected { history, common, .. },
                ..
            } => {
                assert_eq!(history.last(), (Term(5), Lsn(200)));
                common.0
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(commons, [60, 200]);
}

#[test]
fn rule_7_commit_needs_a_quorum_at_the_term_start() {
    let mut p = proposer();
    says(&mut p, 1, vote(&[(0, 50)], 100));
    says(&mut p, 2, vote(&[(0, 50)], 200));
    let at = |flush| Body::Applied { flush: Lsn(flush) };
    assert!(says(&mut p, 2, at(200)).is_empty());
    // A quorum has 100, but the term starts at 200.
    assert!(matches!(
        says(&mut p, 1, at(100))[..],
        [Command::CatchUp {
            begin: Lsn(100),
            end: Lsn(200),
            ..
        }]
    ));
    assert_eq!(p.commit(), Lsn(0));
    assert_eq!(says(&mut p, 1, at(200)), [Command::CommitAdvanced(Lsn(200))]);
    assert!(
        says(&mut p, 1, at(150))
            .iter()
            .all(|c| !matches!(c, Command::CommitAdvanced(_)))
    );
}

#[test]
fn rules_6_and_12_fenced_by_a_term_or_by_silence() {
    let mut p = proposer();
    let body = Body::Refused(Refusal::Term(Term(6)));
    let msg = Response {
        generation: Generation(1),
        term: Term(6),
        body,
    };
    assert_eq!(p.receive(NodeId(1), msg), [Command::Fenced(Term(6))]);
    let mut p = proposer();
    assert!(p.tick(999).is_empty());
    assert_eq!(p.tick(1000), [Command::LeaseExpired]);
}
