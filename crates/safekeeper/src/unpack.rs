//! Messages of one proposer's stream into requests: differences added up, batches of WAL decoded.
//!
//! What comes out is what an old proposer would have sent: the rest of the safekeeper knows WAL as Postgres writes it
//! and nothing else. A batch that does not decode to the bytes that its CRC tells ends the stream with `DATA_LOSS`;
//! a proposer sends plain WAL on its next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use lakebed_proto::differences::{AppendHead, Appends};
use lakebed_proto::v1;
use lakebed_quorum::message::Request;
use lakebed_wal::page::WalFormat;
use lakebed_walcodec::stream::{Decoder, MAX_BATCH_BYTES};
use tonic::Status;
use v1::proposer_message::Message;

use crate::data_dir::Name;
use crate::wire::{self, MAX_APPEND_BYTES};

const _: () = assert!(MAX_BATCH_BYTES <= MAX_APPEND_BYTES);

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) struct Unpack {
    /// Told to [`crate::pack::Pack`].
    shorten: Arc<AtomicBool>,
    format: Option<WalFormat>,
    appends: Appends,
    /// Made for the first batch: a stream without any costs nothing.
    decoder: Option<Decoder>,
}

impl Unpack {
    pub(crate) fn new(shorten: Arc<AtomicBool>) -> Unpack {
        Unpack {
            shorten,
            format: None,
            appends: Appends::default(),
            decoder: None,
        }
    }

    /// The request; with the timeline when it is a greeting.
    pub(crate) fn request(&mut self, wire: v1::ProposerMessage) -> Result<(Option<Name>, Request), Status> {
        match wire.message {
            Some(Message::Append(append)) => {
                let head = Appends::in_full(&append);
                if append.batch.is_empty() {
                    self.appends.sent(head, append.wal.len());
                    return wire::request(message(Message::Append(append))).map_err(wire::refused);
                }
                if !append.wal.is_empty() {
                    return Err(Status::invalid_argument("an append has both WAL and a batch"));
                }
                Ok((None, self.append(head, &append.batch)?))
            }
            Some(Message::AppendNext(next)) => {
                let head = self.appends.next(&next).map_err(wire::refused)?;
                Ok((None, self.append(head, &next.batch)?))
            }
            other => {
                if let Some(Message::Greeting(greeting)) = &other {
                    self.greeting(greeting)?;
                }
                wire::request(v1::ProposerMessage { message: other }).map_err(wire::refused)
            }
        }
    }

    fn greeting(&mut self, greeting: &v1::ProposerGreeting) -> Result<(), Status> {
        let cluster = wire::cluster(greeting.cluster.as_ref()).map_err(wire::refused)?;
        let format = WalFormat {
            version: cluster.pg_version,
            timeline: 1,
            system_identifier: cluster.system_id,
            segment_bytes: cluster.segment_bytes,
        };
        if self.format.is_some_and(|known| known != format) {
            // The core refuses one of the two; batches were of the other.
            self.decoder = None;
        }
        self.format = Some(format);
        self.shorten.store(greeting.codec != 0, Ordering::Release);
        Ok(())
    }

    fn append(&mut self, head: AppendHead, batch: &[u8]) -> Result<Request, Status> {
        let wal = if batch.is_empty() {
            Vec::new()
        } else {
            self.decode(head, batch)?
        };
        self.appends.sent(head, wal.len());
        Ok(head.request(Bytes::from(wal)))
    }

    fn decode(&mut self, head: AppendHead, batch: &[u8]) -> Result<Vec<u8>, Status> {
        let refused = |error| Status::data_loss(format!("the batch at {}: {error}", head.begin));
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            None => {
                let format = self
                    .format
                    .ok_or_else(|| Status::invalid_argument("a batch before a greeting"))?;
                self.decoder.insert(Decoder::new(format).map_err(refused)?)
            }
        };
        decoder.decode(head.begin, batch).map_err(refused)
    }
}

fn message(message: Message) -> v1::ProposerMessage {
    v1::ProposerMessage {
        message: Some(message),
    }
}
