//! A higher term ends an older one, for writers and for those who read on their behalf.

use lakebed_proto::v1::RefusalKind;
use lakebed_proto::v1::acceptor_message::Message as Answer;
use lakebed_types::Term;
use tonic::Code;

use crate::driver::Driver;
use crate::node::Nodes;
use crate::sample::sample;
use crate::stream::{Stream, append, elected, vote};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_proposer_fences_the_older_one() {
    let nodes = Nodes::start(3).await;
    let (first, second) = (sample().at_percent(1), sample().at_percent(2));
    let old = Driver::start(&nodes.addresses, 3, 0);
    old.commit(first).await;
    let new = Driver::start(&nodes.addresses, 3, 0);
    assert_eq!(new.won().await, (Term(2), first));
    let fenced = old
        .until("the older to be fenced", |progress| progress.fenced.is_some())
        .await;
    assert_eq!((fenced.fenced, fenced.commit), (Some(Term(2)), first));
    new.commit(second).await;
    let mut stream = Stream::greeted(&nodes, 1, &[1, 2, 3]).await;
    let late = append(1, second, sample().bytes(second, sample().at_percent(3)), first);
    assert_eq!(stream.refused(late).await, (RefusalKind::Term, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_replaces_what_was_not_committed_and_its_reader_is_told() {
    let nodes = Nodes::start(1).await;
    let members = [1];
    let start = sample().start;
    let (kept, end) = (sample().at_percent(1), sample().at_percent(2));
    let mut old = Stream::greeted(&nodes, 1, &members).await;
    assert!(matches!(old.ask(vote(1)).await.unwrap(), Answer::Vote(vote) if vote.granted));
    let history = [(0, start), (1, start)];
    let answer = old.ask(elected(&history, start)).await.unwrap();
    assert!(matches!(answer, Answer::Elected(elected) if elected.flush_lsn == start.0));
    let answer = old
        .ask(append(1, start, sample().bytes(start, end), start))
        .await
        .unwrap();
    assert!(matches!(answer, Answer::Append(append) if append.flush_lsn == end.0));

    // Nothing is committed, so it is read for a proposer that is not fenced, and for nobody else.
    let wal = nodes.read(1, start, end, 1).await.unwrap();
    assert!(wal == sample().bytes(start, end));
    assert_eq!(
        nodes.read(1, start, end, 0).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut new = Stream::greeted(&nodes, 1, &members).await;
    let answer = new.ask(vote(2)).await.unwrap();
    assert!(matches!(&answer, Answer::Vote(vote) if vote.flush_lsn == end.0 && vote.term == 2));
    let status = nodes.read(1, start, end, 1).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");

    // The older proposer's WAL ends earlier in the newer one's history.
    let newer = [(0, start), (1, start), (2, kept)];
    assert_eq!(new.refused(elected(&newer, end)).await, (RefusalKind::History, 0));
    let answer = new.ask(elected(&newer, kept)).await.unwrap();
    assert!(matches!(answer, Answer::Elected(elected) if elected.flush_lsn == kept.0));
    let wal = nodes.read(1, start, end, 2).await.unwrap();
    assert!(
        wal == sample().bytes(start, kept),
        "{} bytes after the cut",
        wal.len()
    );
    let late = append(1, end, sample().bytes(end, sample().at_percent(3)), start);
    assert_eq!(old.refused(late).await, (RefusalKind::Term, 2));
    let answer = new
        .ask(append(2, kept, sample().bytes(kept, end), kept))
        .await
        .unwrap();
    assert!(
        matches!(answer, Answer::Append(append) if append.flush_lsn == end.0 && append.commit_lsn == kept.0)
    );
    let wal = nodes.read(1, start, end, 2).await.unwrap();
    assert!(wal == sample().bytes(start, end));
    // Committed WAL is anybody's, but not in the name of a term that is over: its log may have been another one.
    let wal = nodes.read(1, start, kept, 0).await.unwrap();
    assert!(wal == sample().bytes(start, kept));
    let status = nodes.read(1, start, kept, 1).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
}
