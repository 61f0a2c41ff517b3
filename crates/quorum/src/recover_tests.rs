use crate::acceptor::{Acceptor, Command, Input, Lack, Offer};
use crate::acceptor_tests::{acceptor, history};
use crate::message::Refusal;
use bytes::Bytes;
use lakebed_types::{Lsn, Term};

fn offer(entries: &[(u64, u64)], commit: u64) -> Offer {
    Offer {
        history: history(entries),
        start: Lsn(50),
        commit: Lsn(commit),
    }
}

fn recover(a: &mut Acceptor, offer: &Offer, begin: u64, length: usize) -> Vec<Command> {
    a.handle(Input::Recover {
        offer: offer.clone(),
        begin: Lsn(begin),
        bytes: Bytes::from(vec![7; length]),
    })
}

#[test]
fn an_offer_names_only_terms_that_wrote_committed_wal() {
    // Its history is (0, 50), (2, 100), (3, 150), committed to 100.
    assert_eq!(acceptor().offer(), offer(&[(0, 50)], 100));
    assert_eq!(history(&[(0, 50), (1, 50)]).below(Lsn(50)), history(&[(0, 50)]));
}

#[test]
fn what_is_lacking_is_told_from_both_histories() {
    type Row = (&'static [(u64, u64)], u64, Result<Lack, Refusal>);
    let table: [Row; 10] = [
        (&[(0, 50)], 100, Ok(Lack::Nothing)),
        (&[(0, 50), (2, 100)], 140, Ok(Lack::Commit(Lsn(140)))),
        (&[(0, 50), (2, 100), (3, 150)], 200, Ok(Lack::Commit(Lsn(200)))),
        (
            &[(0, 50), (2, 100), (3, 150)],
            240,
            Ok(Lack::Wal {
                begin: Lsn(200),
                end: Lsn(240),
            }),
        ),
        // A later term went on where ours ends, or before.
        (
            &[(0, 50), (2, 100), (3, 150), (6, 200)],
            240,
            Ok(Lack::History(Lsn(200))),
        ),
        (&[(0, 50), (2, 100), (5, 120)], 240, Ok(Lack::History(Lsn(120)))),
        // Our term 3 began at 150 and may have been given up: only an offer with a term after it tells.
        (&[(0, 50), (2, 100)], 160, Ok(Lack::Nothing)),
        // The same last term cannot have begun in two places.
        (&[(0, 50), (3, 100)], 240, Err(Refusal::History)),
        (&[(0, 50), (5, 80)], 240, Err(Refusal::BelowCommit(Lsn(100)))),
        (&[(1, 50)], 240, Err(Refusal::NoCommonHistory)),
    ];
    for (entries, commit, lack) in table {
        assert_eq!(
            acceptor().lack(&offer(entries, commit)),
            lack,
            "{entries:?} to {commit}"
        );
    }
}

#[test]
fn wal_that_parts_is_cut_before_the_history_is_durable_and_nothing_is_added_until_then() {
    let mut a = acceptor();
    let peer = offer(&[(0, 50), (2, 100), (5, 120)], 160);
    let commands = recover(&mut a, &peer, 120, 0);
    let [
        Command::TruncateWal { lsn: Lsn(120) },
        Command::FlushWal,
        Command::PersistControl { seq, state },
    ] = &commands[..]
    else {
        panic!("{commands:?}");
    };
    // The promise rises with the history: nobody may be elected below a term whose WAL is here.
    assert_eq!((state.term, &state.term_history), (Term(5), &peer.history));
    assert_eq!(recover(&mut a, &peer, 120, 40), [], "the history is not durable");
    a.handle(Input::ControlPersisted { seq: *seq });
    assert_eq!(recover(&mut a, &peer, 120, 48), [], "more than what is committed");
    assert_eq!(recover(&mut a, &peer, 112, 40), [], "not where the WAL ends");
    let commands = recover(&mut a, &peer, 120, 40);
    assert!(matches!(
        &commands[..],
        [Command::WriteWal { begin: Lsn(120), .. }, Command::FlushWal]
    ));
    assert_eq!(a.state().commit, Lsn(100));
    assert_eq!(
        a.lack(&peer),
        Ok(Lack::Commit(Lsn(120))),
        "the rest is not flushed yet"
    );
    a.handle(Input::FlushDone { lsn: Lsn(160) });
    let commands = recover(&mut a, &peer, 160, 0);
    assert!(matches!(&commands[..], [Command::PersistControl { .. }]));
    assert_eq!(a.state().commit, Lsn(160));
    assert_eq!(a.offer(), peer);
}

#[test]
fn a_higher_promise_outlives_what_is_taken() {
    let mut a = acceptor();
    let vote = crate::message::Request::Vote {
        generation: lakebed_types::Generation(1),
        term: Term(9),
    };
    a.handle(Input::Request {
        from: lakebed_types::NodeId(9),
        request: vote,
    });
    recover(&mut a, &offer(&[(0, 50), (2, 100), (5, 120)], 160), 120, 0);
    assert_eq!(a.state().term, Term(9));
}
