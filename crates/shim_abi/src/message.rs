//! Questions of the shim and answers of the sidecar, on a unix stream socket.
//!
//! Each process of Postgres has one connection, made at its first question and again after a fork; it asks one
//! question at a time and waits. A frame is 16 bytes of header and a body, all little-endian:
//!
//! | offset | holds |
//! |---|---|
//! | 0 | u32 length of the body, at most [`crate::frame::MAX_BODY_BYTES`] |
//! | 4 | u16 kind |
//! | 6 | u16 zero |
//! | 8 | u64 number of the question; an answer repeats it |
//! | 16 | body |
//!
//! | kind | question | answer |
//! |---|---|---|
//! | 1 | `Hello` magic u64, version u32, pid u32 | none; a connection of another version is closed |
//! | 2 | `Open` create u8, path | `Opened` |
//! | 3 | `Fill` slot u32, generation u32, first u32, count u32 | `Done` |
//! | 4 | `Prefetch`, as `Fill` | none |
//! | 5 | `ListDir` path | `Done` |
//! | 6 | `Unlink` path | `Removed` |
//! | 7 | `Renamed` path, path | `Done` |
//!
//! | kind | answer |
//! |---|---|
//! | 128 | `Done` |
//! | 129 | `Opened` outcome u8 (0 missing, 1 existing, 2 created), slot u32, generation u32 |
//! | 130 | `Removed` existed u8 |
//! | 131 | `Retry` after_ms u32 |
//! | 132 | `Refused` text |
//!
//! A path is a u16 length and bytes, relative to the data directory; a text likewise.

use crate::frame::{DecodeError, Fields, Frame};
use crate::region::SlotRef;

/// A run of blocks of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Whose.
    pub of: SlotRef,
    /// First block, counted in this file.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What the shim asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// First frame of a connection.
    Hello {
        /// [`crate::MAGIC`].
        magic: u64,
        /// [`crate::VERSION`].
        version: u32,
        /// The process.
        pid: u32,
    },
    /// Makes a managed file exist locally if the tier has it, sparse and at its right size, with the state of its
    /// blocks in its slot; with `create`, makes an empty one if the tier has none. Also asked (without `create`) for
    /// a WAL segment that a reader misses; that file comes whole. An answer whose generation is 0 means that the file
    /// has no slot: it is whole, and local from then on.
    Open {
        /// Whether to create it.
        create: bool,
        /// The file.
        path: &'a [u8],
    },
    /// Puts blocks into the local file. The asker holds their words BUSY and will store PRESENT.
    Fill(Blocks),
    /// Blocks that will be asked for soon. The sidecar takes the words itself, skipping those that are not ABSENT.
    Prefetch(Blocks),
    /// Makes every managed file of the directory exist locally, as `Open` does.
    ListDir {
        /// The directory.
        path: &'a [u8],
    },
    /// Removes a managed or carried file, here and from the tier, in one step: whoever opens it afterwards misses it,
    /// until somebody creates it anew.
    Unlink {
        /// The file.
        path: &'a [u8],
    },
    /// What was at `from`, a carried file or a directory of such, is now at `to`. Answered when that is durable.
    Renamed {
        /// The old name, which may be no carried one (a temporary file).
        from: &'a [u8],
        /// The new name, which may be no carried one (a directory about to be deleted).
        to: &'a [u8],
    },
}

/// What `Open` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is no such file, here or in the tier.
    Missing,
    /// It exists locally, now if not before.
    Existing,
    /// It did not exist and has been created, empty.
    Created,
}

/// What the sidecar answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It is done.
    Done,
    /// To `Open`.
    Opened {
        /// What happened.
        outcome: Outcome,
        /// Where the file's words are; zeros when missing.
        of: SlotRef,
    },
    /// To `Unlink`.
    Removed {
        /// Whether the file existed, here or in the tier.
        existed: bool,
    },
    /// The tier cannot now: ask the same again.
    Retry {
        /// Wait this long first.
        after_ms: u32,
    },
    /// It will never be possible.
    Refused {
        /// For the log.
        text: &'a [u8],
    },
}

impl<'a> Question<'a> {
    /// Encodes under a number.
    pub fn encode(&self, number: u64) -> Frame {
        let new = |kind| Frame::new(kind, number);
        let mut frame;
        match *self {
            Question::Hello { magic, version, pid } => {
                frame = new(1);
                frame.put(&magic.to_le_bytes()).put(&version.to_le_bytes());
                frame.put(&pid.to_le_bytes());
            }
            Question::Open { create, path } => {
                frame = new(2);
                frame.put(&[u8::from(create)]).put_text(path);
            }
            Question::Fill(blocks) => {
                frame = new(3);
                frame.put_blocks(blocks);
            }
            Question::Prefetch(blocks) => {
                frame = new(4);
                frame.put_blocks(blocks);
            }
            Question::ListDir { path } => {
                frame = new(5);
                frame.put_text(path);
            }
            Question::Unlink { path } => {
                frame = new(6);
                frame.put_text(path);
            }
            Question::Renamed { from, to } => {
                frame = new(7);
                frame.put_text(from).put_text(to);
            }
        }
        frame
    }

    /// Decodes a body.
    pub fn decode(kind: u16, body: &'a [u8]) -> Result<Question<'a>, DecodeError> {
        let mut fields = Fields::new(body);
        let question = match kind {
            1 => Question::Hello {
                magic: fields.u64()?,
                version: fields.u32()?,
                pid: fields.u32()?,
            },
            2 => Question::Open {
                create: fields.bool()?,
                path: fields.path()?,
            },
            3 => Question::Fill(fields.blocks()?),
            4 => Question::Prefetch(fields.blocks()?),
            5 => Question::ListDir { path: fields.path()? },
            6 => Question::Unlink { path: fields.path()? },
            7 => Question::Renamed {
                from: fields.path()?,
                to: fields.path()?,
            },
            _ => return Err(DecodeError::Kind),
        };
        fields.end(question)
    }
}

impl<'a> Answer<'a> {
    /// Encodes as the answer to the question with this number.
    pub fn encode(&self, number: u64) -> Frame {
        let new = |kind| Frame::new(kind, number);
        let mut frame;
        match *self {
            Answer::Done => frame = new(128),
            Answer::Opened { outcome, of } => {
                frame = new(129);
                frame.put(&[outcome as u8]).put_slot(of);
            }
            Answer::Removed { existed } => {
                frame = new(130);
                frame.put(&[u8::from(existed)]);
            }
            Answer::Retry { after_ms } => {
                frame = new(131);
                frame.put(&after_ms.to_le_bytes());
            }
            Answer::Refused { text } => {
                frame = new(132);
                frame.put_text(text);
            }
        }
        frame
    }

    /// Decodes a body.
    pub fn decode(kind: u16, body: &'a [u8]) -> Result<Answer<'a>, DecodeError> {
        let mut fields = Fields::new(body);
        let answer = match kind {
            128 => Answer::Done,
            129 => Answer::Opened {
                outcome: match fields.array()? {
                    [0] => Outcome::Missing,
                    [1] => Outcome::Existing,
                    [2] => Outcome::Created,
                    [_] => return Err(DecodeError::Body),
                },
                of: fields.slot()?,
            },
            130 => Answer::Removed {
                existed: fields.bool()?,
            },
            131 => Answer::Retry {
                after_ms: fields.u32()?,
            },
            132 => Answer::Refused { text: fields.text()? },
            _ => return Err(DecodeError::Kind),
        };
        fields.end(answer)
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
