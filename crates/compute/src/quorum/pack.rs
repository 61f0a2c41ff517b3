//! What goes out on one stream, in few bytes if the safekeeper understands that.
//!
//! Each stream has an encoder of its own: what a batch leaves out is what that safekeeper has seen on that stream. The
//! way that a batch goes is chosen from what was measured on the stream ([`lakebed_walcodec::choice`]).

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use lakebed_proto::differences::{AppendHead, Appends};
use lakebed_proto::{quorum, v1};
use lakebed_quorum::message::Request;
use lakebed_types::Lsn;
use lakebed_wal::page::WalFormat;
use lakebed_walcodec::choice::{Choice, LARGE_BYTES};
use lakebed_walcodec::stream::{CodecError, Encoder, MAX_BATCH_BYTES, Method, VERSION};
use v1::proposer_message::Message;

use crate::branch::Branch;
use crate::config::WireWal;

/// Level of zstd: the next ones are slower than they are smaller.
const ZSTD_LEVEL: i32 = 1;
/// Appends whose answers are timed; further ones are not.
const TIMED: usize = 256;

/// An append on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    end: Lsn,
    bytes: usize,
    /// With what was on the way before it.
    on_the_way: usize,
    small: bool,
    at: Instant,
}

/// The sending half of a stream.
#[derive(Debug)]
pub(super) struct Pack {
    format: WalFormat,
    wire: WireWal,
    /// The safekeeper takes batches.
    accepted: bool,
    appends: Appends,
    /// Made for the first batch.
    encoder: Option<Encoder>,
    choice: Choice,
    on_the_way: VecDeque<Sent>,
    /// Of all of these.
    bytes_on_the_way: usize,
    last_answer: Option<Instant>,
}

impl Pack {
    pub(super) fn new(branch: &Branch, wire: WireWal) -> Pack {
        Pack {
            format: branch.format(),
            wire,
            accepted: false,
            appends: Appends::default(),
            encoder: None,
            choice: Choice::default(),
            on_the_way: VecDeque::new(),
            bytes_on_the_way: 0,
            last_answer: None,
        }
    }

    /// The safekeeper greeted, and named the version of batches that it takes; 0 if it does not know them.
    pub(super) fn greeted(&mut self, codec: u32) {
        self.accepted = codec == u32::from(VERSION) && self.wire != WireWal::Plain;
    }

    /// A request as it goes out.
    pub(super) fn message(&mut self, request: Request, branch: &Branch) -> v1::ProposerMessage {
        let message = match request {
            Request::Append {
                generation,
                term,
                begin,
                bytes,
                commit,
                truncate,
            } if self.accepted && bytes.len() <= MAX_BATCH_BYTES => {
                let head = AppendHead {
                    generation,
                    term,
                    begin,
                    commit,
                    truncate,
                };
                match self.batch(begin, &bytes) {
                    Ok(batch) => self.appends.to_wire(head, bytes.len(), batch),
                    Err(error) => {
                        tracing::error!(%begin, %error, "WAL goes out uncompressed from here on");
                        self.accepted = false;
                        return self.message(head.request(bytes), branch);
                    }
                }
            }
            other => return self.plain(other, branch),
        };
        v1::ProposerMessage {
            message: Some(message),
        }
    }

    fn plain(&mut self, request: Request, branch: &Branch) -> v1::ProposerMessage {
        let mut message = quorum::request_to_wire(request, branch.tenant, branch.timeline);
        match &mut message.message {
            Some(Message::Greeting(greeting)) if self.wire != WireWal::Plain => {
                greeting.codec = VERSION.into()
            }
            Some(Message::Append(append)) => self.appends.sent(Appends::in_full(append), append.wal.len()),
            _ => {}
        }
        message
    }

    fn batch(&mut self, begin: Lsn, wal: &[u8]) -> Result<Bytes, CodecError> {
        if wal.is_empty() {
            return Ok(Bytes::new());
        }
        let method = match self.wire {
            WireWal::Compact => Method::Records,
            WireWal::Plain => Method::Plain,
            WireWal::Auto => self.choice.choose(wal.len()),
        };
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self.encoder.insert(Encoder::new(self.format, ZSTD_LEVEL)?),
        };
        let began = Instant::now();
        let batch = encoder.encode(begin, wal, method)?;
        self.choice
            .encoded(method, wal.len(), batch.len(), nanoseconds(began));
        if self.on_the_way.len() < TIMED {
            self.bytes_on_the_way += batch.len();
            self.on_the_way.push_back(Sent {
                end: Lsn(begin.0 + wal.len() as u64),
                bytes: batch.len(),
                on_the_way: self.bytes_on_the_way,
                small: wal.len() < LARGE_BYTES,
                at: Instant::now(),
            });
        }
        Ok(batch.into())
    }

    /// The safekeeper has everything below `flush`.
    pub(super) fn answered(&mut self, flush: Lsn) {
        let mut carried = 0;
        while let Some(sent) = self.on_the_way.front().copied().filter(|sent| sent.end <= flush) {
            self.on_the_way.pop_front();
            self.bytes_on_the_way -= sent.bytes;
            carried += sent.bytes;
            if sent.small {
                self.choice.answered(sent.on_the_way, nanoseconds(sent.at));
            }
        }
        // Of a link that was never idle meanwhile, time and bytes tell its rate.
        if let Some(last) = self.last_answer.take()
            && carried >= LARGE_BYTES
        {
            self.choice.carried(carried, nanoseconds(last));
        }
        if !self.on_the_way.is_empty() {
            self.last_answer = Some(Instant::now());
        }
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
