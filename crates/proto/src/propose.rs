//! The consensus stream between a proposer and a safekeeper.
//!
//! A TCP connection to the safekeeper's address, which begins with [`PREAMBLE`]: the port serves gRPC as well, whose
//! connections begin with other bytes. Then [frames](crate::frame), [`v1::ProposerMessage`] one way and
//! [`v1::AcceptorMessage`] the other. The safekeeper ends a stream with a frame that says why.
//!
//! Not a gRPC call, because every commit waits for it: HTTP/2 hands each message from the task of the connection to that
//! of the stream, with windows and frames of its own, for nothing that one stream on one connection needs.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;
use tonic::Status;

use crate::connect::CONNECT_TIMEOUT;

/// First bytes of every version; no connection of HTTP/2 begins so.
pub const MAGIC: [u8; 7] = *b"LKBDPRO";
/// The version of frames and of what begins a connection. What the messages mean has another.
pub const VERSION: u8 = 1;
/// What a proposer sends first.
pub const PREAMBLE: [u8; 8] = {
    let [a, b, c, d, e, f, g] = MAGIC;
    [a, b, c, d, e, f, g, VERSION]
};
/// A connection is idle for this long before its peer is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Questions without an answer after which it is not, a second each.
const KEEPALIVE_PROBES: u32 = 5;
/// What was sent may be unacknowledged for this long.
const UNACKNOWLEDGED_MS: u32 = 10_000;

/// Whether a connection that begins with this byte is a proposer's.
pub fn begins_with(first: u8) -> bool {
    first == MAGIC[0]
}

/// Checks what a proposer sent first.
///
/// # Errors
/// It speaks another version, or is no proposer.
pub fn check(preamble: [u8; 8]) -> Result<(), Status> {
    let [magic @ .., version] = preamble;
    if magic != MAGIC {
        return Err(Status::invalid_argument(
            "these are not the first bytes of a proposer",
        ));
    }
    if version != VERSION {
        return Err(Status::failed_precondition(format!(
            "the proposer speaks version {version} of the stream, this safekeeper {VERSION}: use programs of one release"
        )));
    }
    Ok(())
}

/// Connects to a safekeeper at `host:port`. Nothing was sent yet, not even [`PREAMBLE`].
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
