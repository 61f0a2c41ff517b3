//! A reader's side of a stream of pages.
//!
//! Requests ([`v1::GetPagesRequest`]) go out and answers ([`v1::GetPagesResponse`]) come back in any order; `request_id`
//! tells which is whose. A request has at most [`MAX_KEYS`] keys. Requests are pipelined: while many are under way the pageserver
//! stops reading, so what [`PageStream::ask`] takes may wait here, and who asks bounds how much that is.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;

use super::{PAGES, connect};
use crate::frame::{self, Frame, FrameError, Inbound};
use crate::v1;

/// Most keys in one request: the answer is a frame.
pub const MAX_KEYS: usize = 512;
/// Room for requests is given back when it was more.
const KEPT_BYTES: usize = 1 << 20;

/// Why no answer comes any more.
#[derive(Debug, thiserror::Error)]
pub enum PageStreamError {
    /// The connection broke, or could not be made.
    #[error("the connection to the pageserver: {0}")]
    Connection(#[from] io::Error),
    /// What came is not valid.
    #[error("from the pageserver: {0}")]
    Frame(#[from] FrameError),
    /// The pageserver says why.
    #[error("the pageserver ended the stream: {}", .0.message())]
    Ended(Box<Status>),
}

/// A stream of pages, see the module header.
#[derive(Debug)]
pub struct PageStream {
    socket: TcpStream,
    inbound: Inbound,
    out: BytesMut,
}

impl PageStream {
    /// Connects to a pageserver at `host:port`.
    ///
    /// # Errors
    /// Nobody answers in time.
    pub async fn connect(address: &str) -> Result<PageStream, PageStreamError> {
        Ok(PageStream {
            socket: connect(address).await?,
            inbound: Inbound::default(),
            out: BytesMut::from(PAGES.bytes().as_slice()),
        })
    }

    /// Takes a request, which goes out while [`PageStream::answer`] is waited for.
    ///
    /// # Errors
    /// It is too long to be sent.
    pub fn ask(&mut self, request: &v1::GetPagesRequest) -> Result<(), FrameError> {
        frame::put(request, &mut self.out)
    }

    /// The next answer; none when the pageserver has closed the connection. Nothing is lost when this is given up.
    ///
    /// # Errors
    /// See [`PageStreamError`]; the stream is of no use any more.
    pub async fn answer(&mut self) -> Result<Option<v1::GetPagesResponse>, PageStreamError> {
        let PageStream { socket, inbound, out } = self;
        let (mut read, mut write) = socket.split();
        loop {
            match inbound.next()? {
                Some(Frame::Message(answer)) => return Ok(Some(answer)),
                Some(Frame::End(end)) => return Err(PageStreamError::Ended(Box::new(frame::status(end)))),
                None => {}
            }
            tokio::select! {
                biased;
                written = write.write_buf(out), if out.has_remaining() => {
                    written?;
                    if out.is_empty() && out.capacity() > KEPT_BYTES {
                        *out = BytesMut::new();
                    }
                }
                received = read.read_buf(inbound.room()) => {
                    if received? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }
}
