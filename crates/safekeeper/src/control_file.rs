//! The control file: the acceptor's durable state on disk.
//!
//! It is there twice ([`ControlFile`]). The payload of the checked envelope of [`durable_file`](crate::durable_file),
//! format version 2, little-endian, is the number of the write (8 bytes; the higher one is the newer) and the state, which
//! was the whole payload of version 1:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | promised term |
//! | 8..48 | timeline start, truncate, backup, commit (LSNs), system identifier |
//! | 48..60 | Postgres major version (4 bytes), bytes of a WAL segment (8 bytes) |
//! | 60..68 | membership generation |
//! | then | count (4 bytes) and node ids (8 each) of the set in force |
//! | then | the same for the set that is to follow; count `0xffffffff` when there is none |
//! | then | count (4 bytes) and entries (term, start LSN: 16 bytes) of the term history |

use std::collections::BTreeSet;
use std::path::Path;

use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::membership::Membership;
use lakebed_types::{Generation, Lsn, NodeId, PgVersion, Term};

use crate::durable_file::{DurableFileError, MAX_PAYLOAD_BYTES};

pub use copies::{ControlFile, damage};

mod copies;

/// Version of the format in the module header.
pub const FORMAT_VERSION: u32 = 2;
/// Names of the two copies in the timeline's directory.
pub const FILE_NAMES: [&str; 2] = ["control", "control-copy"];
/// Most members of one set; more is a mistake.
pub const MAX_MEMBERS: usize = 64;
/// Most entries of a term history, so that the file stays far below its bound.
pub const MAX_HISTORY_ENTRIES: usize = 16_384;

const NO_SET: u32 = u32::MAX;
const _: () = assert!(MAX_HISTORY_ENTRIES * 16 + MAX_MEMBERS * 16 + 128 < MAX_PAYLOAD_BYTES);

/// Why there is no acceptor state to work with.
#[derive(Debug, thiserror::Error)]
pub enum ControlFileError {
    /// The envelope could not be read or written.
    #[error(transparent)]
    File(#[from] DurableFileError),
    /// No file where one must be.
    #[error(
        "there is no control file in {0}: restore it, or let the other safekeepers go on without this one. Do not \
         create the timeline anew under this safekeeper's id, which would forget the terms that it promised"
    )]
    Missing(String),
    /// A newer version of Lakebed wrote it.
    #[error(
        "the control file has format {found}, this version reads up to {FORMAT_VERSION}: start a newer one"
    )]
    Newer {
        /// Its version.
        found: u32,
    },
    /// The checksum is right and the content makes no sense.
    #[error("the control file is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads the state: the newest copy that is intact.
///
/// # Errors
/// There is none: see [`ControlFileError`].
pub fn load(directory: &Path) -> Result<Durable, ControlFileError> {
    copies::newest(directory).map(|(_, state)| state)
}

/// The state, as it is also kept with WAL in object storage.
pub fn encode(state: &Durable) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [
        state.term.0,
        state.timeline_start.0,
        state.truncate.0,
        state.backup.0,
        state.commit.0,
        state.system_id,
    ] {
        out.extend(word.to_le_bytes());
    }
    out.extend(state.pg_version.major().to_le_bytes());
    out.extend(state.segment_bytes.to_le_bytes());
    out.extend(state.membership.generation.0.to_le_bytes());
    for set in [Some(&state.membership.old), state.membership.new.as_ref()] {
        out.extend(set.map_or(NO_SET, |set| set.len() as u32).to_le_bytes());
        for node in set.into_iter().flatten() {
            out.extend(node.0.to_le_bytes());
        }
    }
    let entries = state.term_history.entries();
    out.extend((entries.len() as u32).to_le_bytes());
    for (term, start) in entries {
        out.extend(term.0.to_le_bytes());
        out.extend(start.0.to_le_bytes());
    }
    out
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (now, later) = self.0.split_first_chunk()?;
        self.0 = later;
        Some(u32::from_le_bytes(*now))
    }

    fn u64(&mut self) -> Option<u64> {
        let (now, later) = self.0.split_first_chunk()?;
        self.0 = later;
        Some(u64::from_le_bytes(*now))
    }

    fn lsn(&mut self) -> Option<Lsn> {
        self.u64().map(Lsn)
    }

    fn set(&mut self) -> Option<Option<BTreeSet<NodeId>>> {
        match self.u32()? {
            NO_SET => Some(None),
            count => (0..count)
                .map(|_| self.u64().map(NodeId))
                .collect::<Option<_>>()
                .map(Some),
        }
    }
}

/// Reads a state; `None` when it is none.
pub fn decode(payload: &[u8]) -> Option<Durable> {
    let mut from = Cursor(payload);
    let term = Term(from.u64()?);
    let (timeline_start, truncate, backup, commit) = (from.lsn()?, from.lsn()?, from.lsn()?, from.lsn()?);
    let system_id = from.u64()?;
    let pg_version = PgVersion::try_from(from.u32()?).ok()?;
    let segment_bytes = from.u64()?;
    let membership = Membership {
        generation: Generation(from.u64()?),
        old: from.set()??,
        new: from.set()?,
    };
    let count = from.u32()?;
    let entries: Option<Vec<_>> = (0..count)
        .map(|_| Some((Term(from.u64()?), from.lsn()?)))
        .collect();
    let term_history = TermHistory::new(entries?).ok()?;
    let in_order = timeline_start <= truncate && truncate <= backup && backup <= commit;
    (from.0.is_empty() && in_order).then_some(Durable {
        term,
        term_history,
        membership,
        commit,
        truncate,
        backup,
        timeline_start,
        system_id,
        pg_version,
        segment_bytes,
    })
}

#[cfg(test)]
mod tests;
