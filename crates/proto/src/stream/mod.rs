//! Streams beside gRPC, for what every commit and every read of a page waits for.
//!
//! A TCP connection to the port of gRPC that begins with eight bytes of its own, a [`Preamble`]: connections of HTTP/2 begin
//! with others, so that [`door`] can tell them apart. Then [frames](crate::frame) both ways. The daemon that serves a stream
//! ends it with a frame that says why.
//!
//! Not gRPC calls, because HTTP/2 hands each message from the task of the connection to that of the stream, copies it on the
//! way, and has windows and frames of its own, for nothing that one stream on one connection needs.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;

use crate::connect::CONNECT_TIMEOUT;
use crate::frame;

pub mod door;
pub mod pages;

/// The consensus stream between a proposer and a safekeeper: [`v1::ProposerMessage`](crate::v1::ProposerMessage) one way and
/// [`v1::AcceptorMessage`](crate::v1::AcceptorMessage) the other.
pub const PROPOSE: Preamble = Preamble::new(*b"LKBDPRO", 1, "a proposer");
/// Reads of pages from a pageserver, see [`pages`].
pub const PAGES: Preamble = Preamble::new(*b"LKBDPAG", 1, "a reader of pages");

/// A connection is idle for this long before its peer is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Questions without an answer after which it is not, a second each.
const KEEPALIVE_PROBES: u32 = 5;
/// What was sent may be unacknowledged for this long.
const UNACKNOWLEDGED_MS: u32 = 10_000;
/// How long a peer may take to read why its stream ends.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// First bytes of a stream: seven that say what it is for, then the version of frames and of what begins a connection. What the
/// messages mean has a version of its own where it needs one.
#[derive(Clone, Copy, Debug)]
pub struct Preamble {
    bytes: [u8; 8],
    peer: &'static str,
}

impl Preamble {
    /// No connection of HTTP/2 begins with `L`.
    const fn new(magic: [u8; 7], version: u8, peer: &'static str) -> Preamble {
        let [a, b, c, d, e, f, g] = magic;
        Preamble {
            bytes: [a, b, c, d, e, f, g, version],
            peer,
        }
    }

    /// What the peer sends first.
    pub const fn bytes(&self) -> &[u8; 8] {
        &self.bytes
    }

    /// Whether a connection that begins with this byte is such a stream, or another that is not gRPC.
    pub fn begins_with(&self, first: u8) -> bool {
        first == self.bytes[0]
    }

    /// Checks what a peer sent first.
    ///
    /// # Errors
    /// It speaks another version, or wants something else.
    pub fn check(&self, received: [u8; 8]) -> Result<(), Status> {
        let ([magic @ .., version], [own @ .., own_version]) = (received, self.bytes);
        let peer = self.peer;
        if magic != own {
            return Err(Status::invalid_argument(format!(
                "these are not the first bytes of {peer}: is the address that of another kind of daemon?"
            )));
        }
        if version != own_version {
            return Err(Status::failed_precondition(format!(
                "{peer} speaks version {version} of the stream, this daemon {own_version}: use programs of one release"
            )));
        }
        Ok(())
    }
}

/// Connects to a daemon at `host:port`. Nothing was sent yet, not even the preamble.
///
/// # Errors
/// Nobody answers in time.
pub async fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
    settle(&stream)?;
    Ok(stream)
}

/// What both ends ask of the connection: nothing waits to be sent, and a dead peer is noticed within seconds.
///
/// # Errors
/// The connection is closed already.
pub fn settle(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// Tells the peer why its stream ends, and waits for a moment until it has heard.
pub async fn end(socket: &mut TcpStream, why: &Status) {
    let mut out = BytesMut::new();
    frame::put_end(why, &mut out);
    part(socket, &out).await;
}

/// Sends the last bytes of a stream, and reads what is on its way from there: closing a socket with unread bytes in it takes
/// back what was sent. Whether the peer reads them makes no difference here.
pub async fn part(socket: &mut TcpStream, last: &[u8]) {
    let parting = async {
        socket.write_all(last).await?;
        socket.shutdown().await?;
        let mut rest = vec![0; 1 << 14];
        while socket.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(END_PATIENCE, parting).await;
}
