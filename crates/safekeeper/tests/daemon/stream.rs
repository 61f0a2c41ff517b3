//! A proposer's stream with messages made by hand.

use bytes::{Bytes, BytesMut};
use lakebed_proto::frame::{self, Frame, Inbound};
use lakebed_proto::stream::{PROPOSE, connect};
use lakebed_proto::v1::acceptor_message::Message as Answer;
use lakebed_proto::v1::proposer_message::Message;
use lakebed_proto::{quorum, v1};
use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::history::TermHistory;
use lakebed_types::{Lsn, PgVersion, Term};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;

use crate::node::{Nodes, create_request, soon, timeline_ref};
use crate::sample::{SEGMENT, sample};

/// The connection of a proposer.
pub struct Stream {
    socket: TcpStream,
    inbound: Inbound,
}

impl Stream {
    /// Opens a stream.
    pub async fn open(nodes: &Nodes, id: u64) -> Stream {
        let mut stream = Stream::connect(&nodes.address(id)).await;
        stream.send_bytes(PROPOSE.bytes()).await;
        stream
    }

    /// Connects. Nothing is sent yet.
    pub async fn connect(address: &str) -> Stream {
        let socket = soon("a connection", connect(address)).await;
        Stream {
            socket: socket.unwrap(),
            inbound: Inbound::default(),
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
        let message = v1::ProposerMessage {
            message: Some(message),
        };
        self.send_bytes(&framed(&message)).await;
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        // Who is not heard any more hears why.
        let _ = soon("bytes to be taken", self.socket.write_all(bytes)).await;
    }

    /// The next answer, or how the stream ends.
    pub async fn answer(&mut self) -> Result<Answer, Status> {
        loop {
            match self.inbound.next::<v1::AcceptorMessage>().unwrap() {
                Some(Frame::Message(answer)) => return Ok(answer.message.unwrap()),
                Some(Frame::End(end)) => return Err(frame::status(end)),
                None => {}
            }
            let read = soon("an answer", self.socket.read_buf(self.inbound.room())).await;
            assert!(read.unwrap() > 0, "the stream ended without a status");
        }
    }

    /// Says that nothing more comes.
    pub async fn no_more(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// Waits for the end of the stream, which brings no answer; the status that was told, if one was.
    pub async fn end(&mut self) -> Option<Status> {
        loop {
            match self.inbound.next::<v1::AcceptorMessage>().unwrap() {
                Some(Frame::Message(answer)) => panic!("answered with {answer:?}"),
                Some(Frame::End(end)) => return Some(frame::status(end)),
                None => {}
            }
            match soon("the end of a stream", self.socket.read_buf(self.inbound.room())).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Waits until the connection is closed; true when not one more byte came.
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        let read = soon("the connection to be closed", self.socket.read_to_end(&mut rest)).await;
        read.is_err() || rest.is_empty()
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

/// A message in its frame.
pub fn framed(message: &v1::ProposerMessage) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::put(message, &mut bytes).unwrap();
    bytes
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
