//! Batches of a feed as they come, without a message for each of their entries.
//!
//! A batch has thousands of small records. The generated code makes an object of each, with a share in the bytes that came,
//! which costs as much as taking the record apart. Here the call is the generated one but for what its answers become: a
//! [`Batch`] is the bytes, looked through once, with the place of each record in them. The schema is `FeedShardBatch` of
//! `proto/safekeeper.proto`, read by the rules of its encoding: fields in any order, unknown ones are passed over. Only an
//! entry that tells two things is refused.

use std::ops::Range;

use bytes::{Buf, Bytes};
use lakebed_proto::convert;
use lakebed_proto::v1::{self, FeedShardBatch, FeedShardRequest};
use lakebed_types::{Lsn, RelTag};
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::{ProstCodec, ProstEncoder};

const PATH: &str = "/lakebed.v1.Safekeeper/FeedShard";
/// No batch is longer.
const LONGEST_BYTES: usize = 64 << 20;
/// Entries of most batches are longer, and few are much longer.
const USUAL_ENTRY_BYTES: usize = 64;
const MALFORMED: &str = "a batch of the feed is malformed";

/// Asks for the feed.
///
/// # Errors
/// As the generated call.
pub(super) async fn feed(
    channel: Channel,
    requests: impl futures::Stream<Item = FeedShardRequest> + Send + 'static,
) -> Result<Streaming<Batch>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(LONGEST_BYTES);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unknown(format!("the service was not ready: {error}")))?;
    let path = PathAndQuery::from_static(PATH);
    let response = grpc.streaming(Request::new(requests), path, Feed).await?;
    Ok(response.into_inner())
}

/// What a batch tells of one record, which ends at `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) end: Lsn,
    pub(super) told: Told,
}

/// See [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The record; [`Batch::record`] has its bytes.
    Record {
        /// Its first byte.
        start: Lsn,
        /// Where its bytes are.
        at: usize,
        /// How many.
        length: usize,
    },
    /// It touched this fork below so many blocks.
    Extent(RelTag, u32),
    /// It carried this transaction id.
    Xid(u32),
}

/// A batch; see the module header.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Bytes,
    pub(super) entries: Vec<Entry>,
    /// All that the shard is to know up to here was sent.
    pub(super) end: Lsn,
}

impl Batch {
    fn decode(bytes: Bytes) -> Option<Batch> {
        let mut batch = Batch {
            entries: Vec::with_capacity(bytes.len() / USUAL_ENTRY_BYTES),
            ..Batch::default()
        };
        let mut fields = Fields(&bytes, 0..bytes.len());
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(entry)) => batch.entries.push(entry_of(&bytes, entry)?),
                (2, Field::Number(end)) => batch.end = Lsn(end),
                (3, Field::Number(_)) => {}
                (1..=3, _) => return None,
                _ => {}
            }
        }
        batch.bytes = bytes;
        Some(batch)
    }

    /// Bytes of a record.
    pub(super) fn record(&self, at: usize, length: usize) -> Bytes {
        self.bytes.slice(at..at + length)
    }
}

fn entry_of(batch: &[u8], entry: Range<usize>) -> Option<Entry> {
    let (mut end, mut told) = (0, None);
    let mut fields = Fields(batch, entry);
    while let Some((number, field)) = fields.next()? {
        let tells = match (number, field) {
            (1, Field::Number(lsn)) => {
                end = lsn;
                continue;
            }
            (2, Field::Bytes(record)) => record_of(batch, record)?,
            (3, Field::Bytes(extent)) => {
                let extent = v1::RelationExtent::decode(batch.get(extent)?).ok()?;
                let rel = convert::relation(extent.relation.as_ref()).ok()?;
                Told::Extent(rel, extent.blocks)
            }
            // The schema says 32 bits; what is above is cut off.
            (4, Field::Number(xid)) => Told::Xid(xid as u32),
            (1..=4, _) => return None,
            _ => continue,
        };
        if told.replace(tells).is_some() {
            return None;
        }
    }
    let (end, told) = (Lsn(end), told?);
    Some(Entry { end, told })
}

fn record_of(batch: &[u8], record: Range<usize>) -> Option<Told> {
    let (mut start, mut bytes) = (0, 0..0);
    let mut fields = Fields(batch, record);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Number(lsn)) => start = lsn,
            (2, Field::Bytes(found)) => bytes = found,
            (1 | 2, _) => return None,
            _ => {}
        }
    }
    Some(Told::Record {
        start: Lsn(start),
        at: bytes.start,
        length: bytes.len(),
    })
}

enum Field {
    Number(u64),
    /// Where they are in the batch.
    Bytes(Range<usize>),
    Other,
}

/// Fields of a message that are yet to be taken: the batch, and where in it.
struct Fields<'a>(&'a [u8], Range<usize>);

impl Fields<'_> {
    /// The next one with its number, or that there is none; `None` if it is malformed.
    #[inline]
    fn next(&mut self) -> Option<Option<(u32, Field)>> {
        if self.1.is_empty() {
            return Some(None);
        }
        let tag = u32::try_from(self.number()?).ok()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Other)?,
            _ => return None,
        };
        let number = tag >> 3;
        (number > 0).then_some(Some((number, field)))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Option<Range<usize>> {
        if length > self.1.len() {
            return None;
        }
        let taken = self.1.start..self.1.start + length;
        self.1.start = taken.end;
        Some(taken)
    }

    /// A number of at most 64 bits: 7 bits a byte from the lowest on, bit 7 set in all but the last.
    #[inline]
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for (at, byte) in self.0.get(self.1.clone())?.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                self.1.start += at + 1;
                // Of the tenth byte there is room for one bit.
                return (at < 9 || *byte < 2).then_some(number);
            }
        }
        None
    }
}

/// Requests as the generated code writes them, answers as [`Batch`]es.
struct Feed;

impl Codec for Feed {
    type Encode = FeedShardRequest;
    type Decode = Batch;
    type Encoder = ProstEncoder<FeedShardRequest>;
    type Decoder = Feed;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<FeedShardRequest, FeedShardBatch>::default().encoder()
    }

    fn decoder(&mut self) -> Feed {
        Feed
    }
}

impl Decoder for Feed {
    type Item = Batch;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Batch>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        let batch = Batch::decode(bytes);
        batch.map(Some).ok_or_else(|| Status::internal(MALFORMED))
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
