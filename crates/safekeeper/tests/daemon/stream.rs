//! A proposer's stream with messages made by hand.

use bytes::Bytes;
use lakebed_proto::v1::acceptor_message::Message as Answer;
use lakebed_proto::v1::proposer_message::Message;
use lakebed_proto::{quorum, v1};
use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::history::TermHistory;
use lakebed_types::{Lsn, PgVersion, Term};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::node::{Nodes, create_request, soon, timeline_ref};
use crate::sample::{SEGMENT, sample};

pub struct Stream {
    messages: mpsc::Sender<v1::ProposerMessage>,
    answers: Streaming<v1::AcceptorMessage>,
}

impl Stream {
    /// Opens a stream. Nothing is sent yet: the call has to return all the same.
    pub async fn open(nodes: &Nodes, id: u64) -> Stream {
        let (messages, outbound) = mpsc::channel(64);
        let mut client = nodes.client(id).await.max_encoding_message_size(64 << 20);
        let opened = soon("a stream to open", client.propose(ReceiverStream::new(outbound))).await;
        Stream {
            messages,
            answers: opened.unwrap().into_inner(),
        }
    }

    /// Opens a stream and greets.
    pub async fn greeted(nodes: &Nodes, id: u64, members: &[u64]) -> Stream {
        let mut stream = Stream::open(nodes, id).await;
        let answer = stream.ask(greeting(members)).await.unwrap();
        assert!(matches!(answer, Answer::Greeting(_)), "{answer:?}");
        stream
    }

    pub async fn send(&mut self, message: Message) {
        let sent = self.messages.send(v1::ProposerMessage {
            message: Some(message),
        });
        sent.await.unwrap();
    }

    /// The next answer, or how the stream ends.
    pub async fn answer(&mut self) -> Result<Answer, Status> {
        let answer = soon("an answer", self.answers.message()).await?;
        Ok(answer.expect("an answer or a status").message.unwrap())
    }

    pub async fn ask(&mut self, message: Message) -> Result<Answer, Status> {
        self.send(message).await;
        self.answer().await
    }

    /// Sends what must be refused; returns the kind and the value.
    pub async fn refused(&mut self, message: Message) -> (v1::RefusalKind, u64) {
        match self.ask(message).await.unwrap() {
            Answer::Refusal(refusal) => {
                assert!(!refusal.reason.is_empty());
                (refusal.kind(), refusal.value)
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

pub fn greeting(members: &[u64]) -> Message {
    let created = create_request(members);
    Message::Greeting(v1::ProposerGreeting {
        protocol_version: quorum::PROTOCOL_VERSION,
        timeline: Some(timeline_ref()),
        cluster: created.cluster,
        membership: created.membership,
        codec: 0,
    })
}

pub fn vote(term: u64) -> Message {
    Message::Vote(v1::VoteRequest { generation: 1, term })
}

/// The state of an acceptor that nobody has written to yet.
pub fn durable(members: &[u64]) -> Durable {
    Durable {
        term: Term(0),
        term_history: TermHistory::new(vec![(Term(0), sample().start)]).unwrap(),
        membership: quorum::membership(create_request(members).membership.as_ref()).unwrap(),
        commit: sample().start,
        truncate: sample().start,
        backup: sample().start,
        timeline_start: sample().start,
        system_id: sample().system_id,
        pg_version: PgVersion::V15,
        segment_bytes: SEGMENT.into(),
    }
}

/// A history of (term, start), which parts from the acceptor's at `common`.
pub fn elected(history: &[(u64, Lsn)], common: Lsn) -> Message {
    Message::Elected(v1::Elected {
        generation: 1,
        term: history[history.len() - 1].0,
        history: history
            .iter()
            .map(|&(term, start)| v1::TermStart {
                term,
                start_lsn: start.0,
            })
            .collect(),
        common_lsn: common.0,
    })
}

pub fn append(term: u64, begin: Lsn, wal: Bytes, commit: Lsn) -> Message {
    Message::Append(v1::Append {
        generation: 1,
        term,
        begin_lsn: begin.0,
        wal,
        commit_lsn: commit.0,
        truncate_lsn: 0,
        batch: Bytes::new(),
    })
}
