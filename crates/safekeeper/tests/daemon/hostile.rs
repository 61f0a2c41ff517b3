//! What nobody should send is refused by name, and the daemon goes on.

use std::time::Duration;

use bytes::Bytes;
use lakebed_proto::stream::PROPOSE;
use lakebed_proto::v1::acceptor_message::Message as Answer;
use lakebed_proto::v1::proposer_message::Message;
use lakebed_proto::v1::{self, RefusalKind, feed_shard_request};
use lakebed_types::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::node::{Nodes, create_request, soon, timeline_ref};
use crate::sample::sample;
use crate::stream::{Stream, append, elected, greeting, vote};

const MEMBERS: [u64; 1] = [1];

fn other_timeline() -> v1::TimelineRef {
    v1::TimelineRef {
        timeline: vec![9; 16].into(),
        ..timeline_ref()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proposers_are_refused_by_kind() {
    let nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().at_percent(1));
    let wal = sample().bytes(start, end);
    let mut stream = Stream::open(&nodes, 1).await;
    let changed = |change: fn(&mut v1::ProposerGreeting)| {
        let Message::Greeting(mut greeting) = greeting(&MEMBERS) else {
            unreachable!()
        };
        change(&mut greeting);
        Message::Greeting(greeting)
    };
    let other_cluster = changed(|g| g.cluster.as_mut().unwrap().system_identifier += 1);
    assert_eq!(stream.refused(other_cluster).await, (RefusalKind::Identity, 0));
    let other_set = changed(|g| g.membership.as_mut().unwrap().current = vec![1, 2]);
    assert_eq!(stream.refused(other_set).await, (RefusalKind::Generation, 1));
    let unelected = append(0, start, wal.clone(), start);
    assert_eq!(stream.refused(unelected).await, (RefusalKind::NotElected, 0));
    assert!(matches!(stream.ask(vote(3)).await, Ok(Answer::Vote(_))));
    assert_eq!(stream.refused(vote(3)).await, (RefusalKind::Term, 3));
    let foreign = elected(&[(1, start), (3, start)], start);
    assert_eq!(stream.refused(foreign).await, (RefusalKind::NoCommonHistory, 0));
    let history = elected(&[(0, start), (3, start)], start);
    assert!(matches!(stream.ask(history).await, Ok(Answer::Elected(_))));
    let gap = append(3, end, sample().bytes(end, sample().at_percent(2)), start);
    assert_eq!(stream.refused(gap).await, (RefusalKind::Gap, start.0));
    // The same stream is still good.
    let answer = stream.ask(append(3, start, wal, start)).await.unwrap();
    assert!(matches!(answer, Answer::Append(append) if append.flush_lsn == end.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_makes_no_sense_ends_and_the_next_one_works() {
    let nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().at_percent(1));
    let ends = async |message: Message| {
        let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
        stream.ask(message).await.unwrap_err()
    };
    let mut stream = Stream::open(&nodes, 1).await;
    assert_eq!(
        stream.ask(vote(1)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut stream = Stream::open(&nodes, 1).await;
    let Message::Greeting(mut unknown) = greeting(&MEMBERS) else {
        unreachable!()
    };
    unknown.timeline = Some(other_timeline());
    let status = stream.ask(Message::Greeting(unknown.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    // One stream, one timeline.
    assert_eq!(
        ends(Message::Greeting(unknown)).await.code(),
        Code::InvalidArgument
    );
    let disordered = elected(&[(2, start), (1, start)], start);
    assert_eq!(ends(disordered).await.code(), Code::InvalidArgument);
    let oversize = append(1, start, vec![0; (4 << 20) + 1].into(), start);
    assert_eq!(ends(oversize).await.code(), Code::InvalidArgument);
    // The head of a frame that is longer than any may be: what would follow is not waited for.
    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    stream.send_bytes(&[0xff, 0xff, 0xff, 1, 0, 0, 0, 0]).await;
    let status = stream.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let mut stream = Stream::connect(&nodes.address(1)).await;
    let [magic @ .., version] = *PROPOSE.bytes();
    stream
        .send_bytes(&[magic.as_slice(), &[version + 1]].concat())
        .await;
    let status = stream.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(
        status.message().contains(&format!("version {}", version + 1)),
        "{status}"
    );
    assert!(stream.is_closed().await);

    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    assert!(matches!(stream.ask(vote(1)).await, Ok(Answer::Vote(_))));
    let history = elected(&[(0, start), (1, start)], start);
    assert!(matches!(
        stream.ask(history.clone()).await,
        Ok(Answer::Elected(_))
    ));
    let garbage = append(1, start, Bytes::from_static(&[0x5a; 5000]), start);
    let status = stream.ask(garbage).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains(&start.to_string()), "{status}");

    // Bytes that are neither HTTP nor a proposer's.
    let mut socket = tokio::net::TcpStream::connect(nodes.address(1)).await.unwrap();
    socket.write_all(&[0x5a; 4096]).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut rest))
        .await
        .expect("the connection is closed");

    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    assert!(matches!(stream.ask(history).await, Ok(Answer::Elected(_))));
    let answer = stream
        .ask(append(1, start, sample().bytes(start, end), start))
        .await
        .unwrap();
    assert!(matches!(answer, Answer::Append(append) if append.flush_lsn == end.0));
    assert_eq!(nodes.status(1).await.stopped_reason, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_feeds_are_refused_by_position() {
    let nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().at_percent(1));
    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    stream.ask(vote(1)).await.unwrap();
    stream
        .ask(elected(&[(0, start), (1, start)], start))
        .await
        .unwrap();
    stream
        .ask(append(1, start, sample().bytes(start, end), start))
        .await
        .unwrap();
    let before = sample().records.iter().rfind(|record| record.end < end).unwrap();
    let committed = sample().records.iter().rfind(|record| record.end < before.start);
    let committed = committed.unwrap();
    stream
        .ask(append(1, end, Bytes::new(), committed.end))
        .await
        .unwrap();
    let boundary = async |at: Lsn| {
        let request = v1::FindBoundaryRequest {
            timeline: Some(timeline_ref()),
            at_or_below: at.0,
        };
        let found = nodes.client(1).await.find_boundary(request).await;
        let found = found.unwrap().into_inner();
        (Lsn(found.boundary_lsn), Lsn(found.last_record_start))
    };
    // 0: no more than is known as committed, whatever is here.
    assert_eq!(boundary(Lsn(0)).await, (committed.end, committed.start));
    stream.ask(append(1, end, Bytes::new(), end)).await.unwrap();

    let code = async |from: u64, to: u64| nodes.read(1, Lsn(from), Lsn(to), 1).await.unwrap_err().code();
    let wal = nodes.read(1, start, Lsn(end.0 + 80_000), 1).await.unwrap();
    assert!(wal == sample().bytes(start, end), "what is here and no more");
    assert_eq!(code(end.0 + 1, end.0 + 2).await, Code::OutOfRange);
    assert_eq!(code(start.0 - 8, end.0).await, Code::OutOfRange);
    assert_eq!(code(end.0, start.0).await, Code::InvalidArgument);
    let mut client = nodes.client(1).await;
    assert_eq!(
        client
            .get_timeline_status(other_timeline())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    assert_eq!(boundary(Lsn(end.0 - 1)).await, (before.end, before.start));

    // The same timeline again is fine, another one in its place is not.
    client.create_timeline(create_request(&MEMBERS)).await.unwrap();
    let mut moved = create_request(&MEMBERS);
    moved.start_lsn = end.0;
    let status = client.create_timeline(moved.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    moved.timeline = Some(other_timeline());
    moved.start_lsn = end.0 + 1;
    assert_eq!(
        client.create_timeline(moved).await.unwrap_err().code(),
        Code::InvalidArgument
    );

    let feed = async |index: u32, count: u32, from: u64| {
        let start = v1::FeedStart {
            timeline: Some(timeline_ref()),
            shard_index: index,
            shard_count: count,
            shard_generation: 1,
            from_lsn: from,
        };
        let request = v1::FeedShardRequest {
            message: Some(feed_shard_request::Message::Start(start)),
        };
        let mut client = nodes.client(1).await;
        let mut batches = client
            .feed_shard(tokio_stream::once(request))
            .await
            .unwrap()
            .into_inner();
        soon("an end of the feed", batches.message())
            .await
            .unwrap_err()
            .code()
    };
    assert_eq!(feed(2, 2, start.0).await, Code::InvalidArgument);
    assert_eq!(feed(0, 0, start.0).await, Code::InvalidArgument);
    assert_eq!(feed(0, 1, start.0 - 8).await, Code::OutOfRange);
    assert_eq!(feed(0, 1, end.0 - 8).await, Code::InvalidArgument);
    client.delete_timeline(timeline_ref()).await.unwrap();
    client.delete_timeline(timeline_ref()).await.unwrap();
    assert_eq!(
        client
            .get_timeline_status(timeline_ref())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}
