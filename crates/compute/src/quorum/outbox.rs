//! What goes out on one stream: written at once, by whoever has it.
//!
//! The driver writes an append into the socket itself, as long as that takes it. What it does not take waits here, and
//! the task of the stream sends it when there is room again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BytesMut};
use lakebed_proto::{frame, stream, v1};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Bytes that may wait, more than the core lets be on the way. A safekeeper that is further behind gets a new stream,
/// and then larger messages.
const MAX_BYTES: usize = 32 << 20;
/// Room that is kept when nothing waits.
const KEPT_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Shared {
    socket: Arc<TcpStream>,
    waiting: Mutex<Waiting>,
    /// Something waits that did not before, or it is over.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: BytesMut,
    over: bool,
}

/// The driver's end; the stream ends with it.
#[derive(Debug)]
pub(super) struct Outbox(Arc<Shared>);

/// The end of the task of the stream.
#[derive(Debug)]
pub(super) struct Rest(Arc<Shared>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes as much as the socket takes.
    fn write(&self, waiting: &mut Waiting) -> io::Result<()> {
        while !waiting.bytes.is_empty() {
            match self.socket.try_write(&waiting.bytes) {
                Ok(written) => waiting.bytes.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if waiting.bytes.capacity() > KEPT_BYTES {
            waiting.bytes = BytesMut::new();
        }
        Ok(())
    }
}

impl Outbox {
    /// For a new connection.
    pub(super) fn new(socket: Arc<TcpStream>) -> Outbox {
        let waiting = Waiting {
            bytes: BytesMut::from(stream::PROPOSE.bytes().as_slice()),
            over: false,
        };
        Outbox(Arc::new(Shared {
            socket,
            waiting: Mutex::new(waiting),
            changed: Notify::new(),
        }))
    }

    /// What the task of the stream needs.
    pub(super) fn rest(&self) -> Rest {
        Rest(self.0.clone())
    }

    /// Sends a message; false when that cannot be done any more, or too much waits.
    pub(super) fn send(&self, message: &v1::ProposerMessage) -> bool {
        let mut waiting = self.0.lock();
        let first = waiting.bytes.is_empty();
        if waiting.over || waiting.bytes.len() > MAX_BYTES || frame::put(message, &mut waiting.bytes).is_err()
        {
            return false;
        }
        // Behind what waits already there is no room.
        let written = !first || self.0.write(&mut waiting).is_ok();
        if first && !waiting.bytes.is_empty() {
            self.0.changed.notify_one();
        }
        written
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_one();
    }
}

impl Rest {
    /// Sends what waits whenever there is room, until the driver wants no more.
    pub(super) async fn send(self) {
        loop {
            let empty = {
                let mut waiting = self.0.lock();
                if waiting.over {
                    return;
                }
                if self.0.write(&mut waiting).is_err() {
                    break;
                }
                waiting.bytes.is_empty()
            };
            if empty {
                self.0.changed.notified().await;
            } else if self.0.socket.writable().await.is_err() {
                break;
            }
        }
        // Who reads learns why.
        std::future::pending().await
    }
}
