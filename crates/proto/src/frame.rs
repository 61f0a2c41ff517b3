//! Frames: messages one behind the other on a byte stream.
//!
//! | bytes | content |
//! |---|---|
//! | 0..3 | length of the body, little-endian |
//! | 3 | kind: 1 a message, 2 the end of the stream and why ([`v1::StreamEnd`]) |
//! | 4..8 | CRC32C of bytes 0..4 and of the body |
//! | 8.. | the body, in protobuf |
//!
//! Both sides trust nothing: a length beyond [`MAX_BODY_BYTES`] is refused before room is made for it, and after a frame
//! that is not valid nothing more is read.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tonic::{Code, Status};

use crate::v1;

/// Longest body: an append of 4 MiB, or 512 pages, and what else is in the message.
pub const MAX_BODY_BYTES: usize = 5 << 20;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 8;
/// Room that is made for what arrives.
const READ_BYTES: usize = 64 << 10;
/// With less room than this, more is made.
const LEAST_READ_BYTES: usize = 4 << 10;
/// A reason that is longer is cut.
const MAX_REASON_BYTES: usize = 4 << 10;

const MESSAGE: u8 = 1;
const END: u8 = 2;

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame<M> {
    /// A message.
    Message(M),
    /// The end of the stream.
    End(v1::StreamEnd),
}

/// Why a frame is not valid.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than may be.
    #[error("a frame of {bytes} bytes, at most {most} are possible here")]
    TooLong {
        /// Of its body.
        bytes: usize,
        /// What there may be.
        most: usize,
    },
    /// Its checksum says that these are not the bytes that were sent.
    #[error("a frame of {0} bytes whose checksum is wrong")]
    Checksum(usize),
    /// A kind that is not known.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// Its body is no message.
    #[error("a frame that holds no message: {0}")]
    Message(#[from] prost::DecodeError),
}

impl From<FrameError> for Status {
    fn from(error: FrameError) -> Status {
        match error {
            FrameError::TooLong { .. } => Status::out_of_range(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        }
    }
}

/// Puts a message behind what is in `out`.
///
/// # Errors
/// It is too long, and `out` is as it was.
pub fn put(message: &impl Message, out: &mut BytesMut) -> Result<(), FrameError> {
    put_kind(MESSAGE, message, out)
}

/// Puts the end of the stream behind what is in `out`.
pub fn put_end(status: &Status, out: &mut BytesMut) {
    let reason = status.message();
    let cut = reason.floor_char_boundary(MAX_REASON_BYTES.min(reason.len()));
    let end = v1::StreamEnd {
        code: status.code() as u32,
        reason: reason.get(..cut).unwrap_or_default().to_owned(),
    };
    // It is short enough.
    let _ = put_kind(END, &end, out);
}

/// The status that an end tells.
pub fn status(end: v1::StreamEnd) -> Status {
    let code = i32::try_from(end.code).map_or(Code::Unknown, Code::from_i32);
    Status::new(code, end.reason)
}

fn put_kind(kind: u8, message: &impl Message, out: &mut BytesMut) -> Result<(), FrameError> {
    let header = Header::new(kind, message.encoded_len())?;
    let at = out.len();
    out.reserve(HEADER_BYTES + message.encoded_len());
    out.extend_from_slice(&[0; HEADER_BYTES]);
    // Only want of room is an error, and there is room.
    let _ = message.encode(out);
    if let Some((place, body)) = out
        .get_mut(at..)
        .and_then(|frame| frame.split_first_chunk_mut::<HEADER_BYTES>())
    {
        *place = header.finish(crc32c::crc32c_append(header.begin(), body));
    }
    Ok(())
}

/// The header of a frame that is being put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header([u8; 4]);

impl Header {
    /// Of a message with a body of so many bytes.
    ///
    /// # Errors
    /// It is too long.
    pub(crate) fn of_message(length: usize) -> Result<Header, FrameError> {
        Header::new(MESSAGE, length)
    }

    fn new(kind: u8, length: usize) -> Result<Header, FrameError> {
        if length > MAX_BODY_BYTES {
            return Err(FrameError::TooLong {
                bytes: length,
                most: MAX_BODY_BYTES,
            });
        }
        Ok(Header((length as u32 | u32::from(kind) << 24).to_le_bytes()))
    }

    /// The checksum before the body is added.
    pub(crate) fn begin(self) -> u32 {
        crc32c::crc32c(&self.0)
    }

    /// Its bytes, with the checksum of all.
    pub(crate) fn finish(self, crc: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.0);
        bytes[4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// What has arrived and was not taken yet.
#[derive(Debug)]
pub struct Inbound {
    bytes: BytesMut,
    most: usize,
    /// Of the frame before, with its header: the next one is likely to be as long.
    last: usize,
}

impl Default for Inbound {
    fn default() -> Inbound {
        Inbound::at_most(MAX_BODY_BYTES)
    }
}

impl Inbound {
    /// For frames with bodies of at most so many bytes.
    pub fn at_most(most: usize) -> Inbound {
        Inbound {
            bytes: BytesMut::new(),
            most: most.min(MAX_BODY_BYTES),
            last: 0,
        }
    }

    /// Where the next bytes are to be read to: room for the rest of a frame that has begun, and some more.
    pub fn room(&mut self) -> &mut BytesMut {
        let whole = self
            .bytes
            .first_chunk::<4>()
            .map_or(0, |head| HEADER_BYTES + split(*head).0);
        // No more than one frame at a time, and no frame that will be refused.
        let whole = whole.min(HEADER_BYTES + self.most);
        let least = whole.saturating_sub(self.bytes.len()).max(LEAST_READ_BYTES);
        if self.bytes.capacity() - self.bytes.len() < least {
            // What has arrived of a frame is copied when room is made, so that is done for more than one.
            self.bytes.reserve(least.max(READ_BYTES).max(2 * self.last));
        }
        &mut self.bytes
    }

    /// The next frame, when all of it is here. What it holds is not copied.
    ///
    /// # Errors
    /// It is not valid.
    #[expect(
        clippy::should_implement_trait,
        reason = "it needs the type, and bytes come between two calls"
    )]
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, crc @ ..] = *header;
        let head = [a, b, c, d];
        let (length, kind) = split(head);
        if length > self.most {
            return Err(FrameError::TooLong {
                bytes: length,
                most: self.most,
            });
        }
        if self.bytes.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.last = HEADER_BYTES + length;
        self.bytes.advance(HEADER_BYTES);
        let body: Bytes = self.bytes.split_to(length).freeze();
        if crc32c::crc32c_append(crc32c::crc32c(&head), &body) != u32::from_le_bytes(crc) {
            return Err(FrameError::Checksum(length));
        }
        match kind {
            MESSAGE => Ok(Some(Frame::Message(M::decode(body)?))),
            END => Ok(Some(Frame::End(v1::StreamEnd::decode(body)?))),
            other => Err(FrameError::Kind(other)),
        }
    }
}

/// Length and kind.
fn split(head: [u8; 4]) -> (usize, u8) {
    let [a, b, c, kind] = head;
    (u32::from_le_bytes([a, b, c, 0]) as usize, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: usize) -> v1::WalChunk {
        v1::WalChunk {
            begin_lsn: 7,
            wal: vec![0x5a; bytes].into(),
        }
    }

    fn frames(bytes: &[u8]) -> Result<Vec<Frame<v1::WalChunk>>, FrameError> {
        let mut inbound = Inbound::default();
        let mut out = Vec::new();
        for piece in bytes.chunks(1000) {
            inbound.room().extend_from_slice(piece);
            while let Some(frame) = inbound.next()? {
                out.push(frame);
            }
        }
        Ok(out)
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut bytes = BytesMut::new();
        for length in [0, 1, 3000, 4 << 20] {
            put(&chunk(length), &mut bytes).unwrap();
        }
        put_end(&Status::data_loss("why".repeat(4000)), &mut bytes);
        let all = frames(&bytes).unwrap();
        assert_eq!(all.len(), 5);
        for (frame, length) in all.iter().zip([0, 1, 3000, 4 << 20]) {
            assert_eq!(*frame, Frame::Message(chunk(length)));
        }
        let Some(Frame::End(end)) = all.last() else {
            panic!("no end")
        };
        let told = status(end.clone());
        assert_eq!(
            (told.code(), told.message().len()),
            (Code::DataLoss, MAX_REASON_BYTES)
        );
        let before = bytes.len();
        let long = put(&chunk(MAX_BODY_BYTES), &mut bytes);
        assert!(matches!(long, Err(FrameError::TooLong { .. })));
        assert_eq!(bytes.len(), before);
    }

    #[test]
    fn one_wrong_bit_is_noticed_wherever_it_is() {
        let mut bytes = BytesMut::new();
        put(&chunk(40), &mut bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match frames(&bad) {
                // A length that is too great: more is waited for, or refused.
                Ok(none) => assert!(none.is_empty() && bit < 24, "bit {bit}"),
                Err(FrameError::TooLong { .. }) => assert!(bit < 24),
                Err(error) => assert!(matches!(error, FrameError::Checksum(_)), "bit {bit}: {error}"),
            }
        }
    }

    #[test]
    fn no_room_is_made_for_a_length_that_is_refused() {
        let mut inbound = Inbound::default();
        inbound.room().extend_from_slice(&[0xff; 8]);
        assert!(inbound.room().capacity() <= HEADER_BYTES + MAX_BODY_BYTES + READ_BYTES);
        assert!(matches!(
            inbound.next::<v1::WalChunk>(),
            Err(FrameError::TooLong { .. })
        ));
    }
}
