//! A reader's stream of pages: requests are answered where they arrive.
//!
//! One task reads what is in the socket, makes the answers that can be made at once, and writes all of them together; nothing is
//! handed to another thread. A request that has to wait (for WAL, the disk, object storage) is put aside, those behind it
//! go on, and its answer follows when it is there: answers come in any order. A stream stops reading while the reader does
//! not take its answers, and while many keys wait.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Buf;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lakebed_proto::frame::{Frame, Inbound};
use lakebed_proto::outbound::Outbound;
use lakebed_proto::stream::{end, pages::MAX_KEYS};
use lakebed_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::pages;
use crate::node::Node;

/// Bytes of a request: its keys, and what else is in it.
const MAX_REQUEST_BYTES: usize = MAX_KEYS * 32 + 1024;
/// With so many bytes of answers no more are made before they have gone.
const OUT_BYTES: usize = 256 << 10;
/// Room for what is not pages is given back when it was more.
const KEPT_BYTES: usize = 64 << 10;
/// With so many keys under way no more requests are read.
const KEYS_UNDER_WAY: usize = 4 * MAX_KEYS;

type Answer = Result<v1::GetPagesResponse, Status>;
/// A request that waits: the number of its keys, and what comes of it.
type Waiting = Pin<Box<dyn Future<Output = (usize, Answer)> + Send>>;

struct PageStream {
    node: Arc<Node>,
    inbound: Inbound,
    out: Outbound,
    waiting: FuturesUnordered<Waiting>,
    keys_waiting: usize,
}

/// Serves a stream behind its preamble, until the reader goes or `ending`.
pub(crate) async fn serve(node: Arc<Node>, mut socket: TcpStream, ending: CancellationToken) {
    node.metrics.page_streams.inc();
    let mut stream = PageStream {
        node: node.clone(),
        inbound: Inbound::at_most(MAX_REQUEST_BYTES),
        out: Outbound::default(),
        waiting: FuturesUnordered::new(),
        keys_waiting: 0,
    };
    if let Err(status) = stream.work(&mut socket, &ending).await {
        tracing::info!(%status, "a stream of pages ends");
        end(&mut socket, &status).await;
    }
    node.metrics.page_streams.dec();
}

impl PageStream {
    async fn work(&mut self, socket: &mut TcpStream, ending: &CancellationToken) -> Result<(), Status> {
        let (mut read, mut write) = socket.split();
        let ended = ending.cancelled();
        tokio::pin!(ended);
        loop {
            self.answer_what_is_here()?;
            // Requests that nobody takes up would only pile up here.
            let room = !self.out.has_remaining() && self.has_room();
            tokio::select! {
                biased;
                written = write.write_buf(&mut self.out), if self.out.has_remaining() => {
                    if written.is_err() {
                        return Ok(());
                    }
                    if !self.out.has_remaining() && self.out.capacity() > KEPT_BYTES {
                        self.out = Outbound::default();
                    }
                }
                Some((keys, answer)) = self.waiting.next(), if !self.waiting.is_empty() => {
                    self.keys_waiting -= keys;
                    self.out.put(answer?)?;
                }
                received = read.read_buf(self.inbound.room()), if room => {
                    if !matches!(received, Ok(1..)) {
                        return Ok(());
                    }
                }
                () = &mut ended => {}
            }
            // Also when there is always something else to do.
            if ending.is_cancelled() {
                return Err(Status::unavailable(
                    "this pageserver is shutting down: ask where its shards are now",
                ));
            }
        }
    }

    fn has_room(&self) -> bool {
        self.out.remaining() < OUT_BYTES && self.keys_waiting < KEYS_UNDER_WAY
    }

    /// Takes the requests that have arrived, as long as there is room for their answers.
    fn answer_what_is_here(&mut self) -> Result<(), Status> {
        if self.out.has_remaining() {
            // First the reader gets what is there.
            return Ok(());
        }
        while self.has_room() {
            let request: v1::GetPagesRequest = match self.inbound.next()? {
                Some(Frame::Message(request)) => request,
                Some(Frame::End(_)) => {
                    return Err(Status::invalid_argument(
                        "only a pageserver tells why a stream ends",
                    ));
                }
                None => break,
            };
            let (node, keys) = (self.node.clone(), request.keys.len());
            let mut answer: Waiting = Box::pin(async move { (keys, pages::get(&node, request).await) });
            match (&mut answer).now_or_never() {
                Some((_, answer)) => self.out.put(answer?)?,
                None => {
                    self.keys_waiting += keys;
                    self.waiting.push(answer);
                }
            }
        }
        Ok(())
    }
}
