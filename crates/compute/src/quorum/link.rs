//! The stream to one safekeeper: opened, reopened, and told about.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lakebed_proto::differences::Answers;
use lakebed_proto::frame::{self, Frame, Inbound};
use lakebed_proto::stream;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect_lazy, v1};
use lakebed_quorum::message::Response;
use lakebed_types::NodeId;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use v1::acceptor_message::Message;

use super::outbox::Outbox;
use crate::config::WireWal;

/// Largest answer to a call beside the stream.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Pause before a stream is opened again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Which stream, of all that there ever were to a safekeeper: the task that kept it, and its number there; both rise.
pub(super) type StreamId = (u64, u64);

/// What happened to a stream.
pub(super) struct LinkEvent {
    /// With whom.
    pub(super) node: NodeId,
    /// Which stream.
    pub(super) stream: StreamId,
    /// What.
    pub(super) kind: LinkEventKind,
}

pub(super) enum LinkEventKind {
    /// It is open.
    Open {
        outbox: Outbox,
        /// For what is asked beside the stream.
        client: SafekeeperClient<Channel>,
        /// How WAL may go out on it.
        wire: WireWal,
    },
    /// The version of batches of WAL that the safekeeper takes; 0: none.
    Codec(u32),
    /// An answer.
    Received(Box<Response>),
    /// It broke.
    Closed(String),
}

/// How a stream broke.
struct Broken {
    error: String,
    /// Something was received before.
    worked: bool,
    /// The safekeeper could not decode a batch: the next stream carries plain WAL.
    batch_refused: bool,
}

impl Broken {
    fn here(error: String, worked: bool) -> Broken {
        Broken {
            error,
            worked,
            batch_refused: false,
        }
    }

    fn there(status: &tonic::Status, worked: bool) -> Broken {
        Broken {
            error: status.message().to_owned(),
            worked,
            batch_refused: status.code() == tonic::Code::DataLoss,
        }
    }
}

/// Keeps a stream open until the receiver of events is gone.
pub(super) async fn keep(
    (node, task): (NodeId, u64),
    address: String,
    mut wire: WireWal,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut pause = RETRY.0;
    for number in 1.. {
        let stream = (task, number);
        let event = |kind| LinkEvent { node, stream, kind };
        let (error, worked) = match follow(&address, wire, &event, &events).await {
            Ok(worked) => ("the safekeeper ended the stream".to_owned(), worked),
            Err(broken) => {
                if broken.batch_refused {
                    wire = WireWal::Plain;
                }
                (broken.error, broken.worked)
            }
        };
        if events.send(event(LinkEventKind::Closed(error))).await.is_err() {
            return;
        }
        pause = if worked { RETRY.0 } else { (pause * 2).min(RETRY.1) };
        tokio::time::sleep(pause).await;
    }
}

/// One stream, from its opening to its end; tells also whether anything was received.
async fn follow(
    address: &str,
    wire: WireWal,
    event: &impl Fn(LinkEventKind) -> LinkEvent,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<bool, Broken> {
    let mut worked = false;
    let socket = stream::connect(address).await;
    let socket = Arc::new(socket.map_err(|error| Broken::here(format!("{address}: {error}"), worked))?);
    let channel = connect_lazy(address).map_err(|error| Broken::here(format!("{error:?}"), worked))?;
    let outbox = Outbox::new(socket.clone());
    let sending = outbox.rest();
    let client = SafekeeperClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let open = LinkEventKind::Open { outbox, client, wire };
    if events.send(event(open)).await.is_err() {
        return Ok(false);
    }
    let sending = sending.send();
    tokio::pin!(sending);
    let (mut inbound, mut differences) = (Inbound::default(), Answers::default());
    loop {
        while let Some(frame) = inbound
            .next()
            .map_err(|error| Broken::here(error.to_string(), worked))?
        {
            let answer: v1::AcceptorMessage = match frame {
                Frame::Message(answer) => answer,
                Frame::End(end) => return Err(Broken::there(&frame::status(end), worked)),
            };
            if let Some(Message::Greeting(greeting)) = &answer.message {
                // Before the greeting itself, which lets WAL flow.
                let codec = event(LinkEventKind::Codec(greeting.codec));
                if events.send(codec).await.is_err() {
                    return Ok(worked);
                }
            }
            let response = differences
                .response(answer)
                .map_err(|error| Broken::here(error.to_string(), worked))?;
            worked = true;
            let received = event(LinkEventKind::Received(Box::new(response)));
            if events.send(received).await.is_err() {
                return Ok(true);
            }
        }
        tokio::select! {
            biased;
            received = receive(&socket, &mut inbound) => match received {
                Ok(true) => {}
                Ok(false) => return Ok(worked),
                Err(error) => return Err(Broken::here(error.to_string(), worked)),
            },
            () = &mut sending => return Ok(worked),
        }
    }
}

/// Reads what there is; false at the end.
async fn receive(socket: &TcpStream, inbound: &mut Inbound) -> io::Result<bool> {
    loop {
        socket.readable().await?;
        match socket.try_read_buf(inbound.room()) {
            Ok(read) => return Ok(read > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
