//! Connecting to another node.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Error};

/// How long a connection may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest HTTP/2 frame that we accept: pages and WAL come in few large frames instead of many of 16 KiB.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// Flow-control window: bytes in flight on a connection.
const WINDOW_BYTES: u32 = 16 << 20;

/// Connects to `host:port`, with keep-alive, so that a dead peer is noticed within seconds.
///
/// # Errors
/// The address is not one, or nobody answers in time.
pub async fn connect(address: &str) -> Result<Channel, Error> {
    endpoint(address)?.connect().await
}

/// As [`connect`], when the first call is made.
///
/// # Errors
/// The address is not one.
pub fn connect_lazy(address: &str) -> Result<Channel, Error> {
    Ok(endpoint(address)?.connect_lazy())
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES))
}
