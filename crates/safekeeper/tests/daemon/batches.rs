//! Batches of WAL and short answers, and proposers that know nothing of them.

use bytes::Bytes;
use lakebed_proto::differences::{Answers, AppendHead, Appends};
use lakebed_proto::v1;
use lakebed_proto::v1::acceptor_message::Message as Answer;
use lakebed_proto::v1::proposer_message::Message;
use lakebed_quorum::message::Body;
use lakebed_types::{Generation, Lsn, PgVersion, Term};
use lakebed_wal::page::WalFormat;
use lakebed_walcodec::stream::{Encoder, Method, VERSION};
use tonic::Code;

use crate::node::{Nodes, timeline_ref};
use crate::sample::{SEGMENT, sample};
use crate::stream::{Stream, append, elected, greeting, vote};

const MEMBERS: [u64; 1] = [1];

fn encoder() -> Encoder {
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: sample().system_id,
        segment_bytes: SEGMENT,
    };
    Encoder::new(format, 1).unwrap()
}

fn head(begin: Lsn, commit: Lsn) -> AppendHead {
    AppendHead {
        generation: Generation(1),
        term: Term(3),
        begin,
        commit,
        truncate: Lsn(0),
    }
}

/// A stream whose proposer knows batches, ready for appends of term 3.
async fn ready(nodes: &Nodes) -> Stream {
    let mut stream = Stream::open(nodes, 1).await;
    let Message::Greeting(mut greeting) = greeting(&MEMBERS) else {
        unreachable!()
    };
    greeting.codec = VERSION.into();
    match stream.ask(Message::Greeting(greeting)).await.unwrap() {
        Answer::Greeting(answer) => assert_eq!(answer.codec, u32::from(VERSION)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(stream.ask(vote(3)).await, Ok(Answer::Vote(_))));
    let start = sample().start;
    let history = elected(&[(0, start), (3, start)], start);
    assert!(matches!(stream.ask(history).await, Ok(Answer::Elected(_))));
    stream
}

/// What the safekeeper has on disk.
async fn stored(nodes: &Nodes, begin: Lsn, end: Lsn) -> Vec<u8> {
    let request = v1::ReadWalRequest {
        timeline: Some(timeline_ref()),
        begin_lsn: begin.0,
        end_lsn: end.0,
        committed_only: false,
        term: 3,
    };
    let mut chunks = nodes
        .client(1)
        .await
        .read_wal(request)
        .await
        .unwrap()
        .into_inner();
    let mut wal = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        wal.extend_from_slice(&chunk.wal);
    }
    wal
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_stored_as_wal_and_answered_in_short() {
    let nodes = Nodes::start(1).await;
    let mut stream = ready(&nodes).await;
    let (mut encoder, mut appends, mut answers) = (encoder(), Appends::default(), Answers::default());
    let (mut begin, mut committed) = (sample().start, sample().start);
    let methods = [
        Method::Records,
        Method::Plain,
        Method::Zstd,
        Method::Records,
        Method::Records,
    ];
    for (number, method) in methods.into_iter().enumerate() {
        let wal = sample().whole_records(begin, Lsn(begin.0 + 20_000));
        let end = Lsn(begin.0 + wal.len() as u64);
        let batch = encoder.encode(begin, &wal, method).unwrap();
        let message = appends.to_wire(head(begin, committed), wal.len(), batch.into());
        assert_eq!(matches!(message, Message::AppendNext(_)), number > 0);
        let answer = stream.ask(message).await.unwrap();
        assert_eq!(matches!(answer, Answer::AppendedNext(_)), number > 0);
        let wire = v1::AcceptorMessage {
            message: Some(answer),
        };
        let Body::Appended { flush, .. } = answers.response(wire).unwrap().body else {
            panic!("not appended")
        };
        assert_eq!(flush, end);
        (begin, committed) = (end, end);
    }
    let start = sample().start;
    assert!(stored(&nodes, start, begin).await == sample().bytes(start, begin));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_does_not_decode_ends_the_stream_and_leaves_no_trace() {
    let nodes = Nodes::start(1).await;
    let mut stream = ready(&nodes).await;
    let start = sample().start;
    let wal = sample().whole_records(start, Lsn(start.0 + 20_000));
    let whole = encoder().encode(start, &wal, Method::Records).unwrap();
    let send = |batch: Vec<u8>| Appends::default().to_wire(head(start, start), wal.len(), batch.into());
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 0x10;
    let status = stream.ask(send(damaged)).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    // In the middle of what nobody began, and a difference from nothing.
    let mut encoder = encoder();
    encoder.encode(start, &wal, Method::Records).unwrap();
    let second = encoder.encode(start, &wal, Method::Records).unwrap();
    let status = ready_again(&nodes).await.ask(send(second)).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    let next = Message::AppendNext(v1::AppendNext::default());
    let status = ready_again(&nodes).await.ask(next).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    // Plain, as an old proposer sends it and as a new one does after that; answered in full.
    let answer = ready_again(&nodes)
        .await
        .ask(append(3, start, wal.clone(), start))
        .await
        .unwrap();
    let end = Lsn(start.0 + wal.len() as u64);
    assert!(matches!(answer, Answer::Append(append) if append.flush_lsn == end.0));
    assert!(stored(&nodes, start, end).await == Bytes::clone(&wal));
}

/// A new stream of the same proposer, which knows no batches.
async fn ready_again(nodes: &Nodes) -> Stream {
    let mut stream = Stream::greeted(nodes, 1, &MEMBERS).await;
    let start = sample().start;
    let history = elected(&[(0, start), (3, start)], start);
    assert!(matches!(stream.ask(history).await, Ok(Answer::Elected(_))));
    stream
}
