//! The control file: the acceptor's durable state on disk.
//!
//! The payload of the checked envelope of [`durable_file`], format version 1, little-endian:
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

use crate::durable_file::{self, DurableFileError};

/// Version of the format in the module header.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the file in the timeline's directory.
pub const FILE_NAME: &str = "control";
/// Most members of one set; more is a mistake.
pub const MAX_MEMBERS: usize = 64;
/// Most entries of a term history, so that the file stays far below its bound.
pub const MAX_HISTORY_ENTRIES: usize = 16_384;

const NO_SET: u32 = u32::MAX;
const _: () = assert!(MAX_HISTORY_ENTRIES * 16 + MAX_MEMBERS * 16 + 128 < durable_file::MAX_PAYLOAD_BYTES);

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

/// Writes the state; durable when this returns.
pub fn store(directory: &Path, state: &Durable) -> Result<(), ControlFileError> {
    Ok(durable_file::replace(
        &directory.join(FILE_NAME),
        FORMAT_VERSION,
        &encode(state),
    )?)
}

/// Reads the state.
pub fn load(directory: &Path) -> Result<Durable, ControlFileError> {
    let missing = || ControlFileError::Missing(directory.display().to_string());
    let (version, payload) = durable_file::read(&directory.join(FILE_NAME))?.ok_or_else(missing)?;
    match version {
        FORMAT_VERSION => {
            decode(&payload).ok_or(ControlFileError::Damaged("a field is missing or out of range"))
        }
        0 => Err(ControlFileError::Damaged("its format version is 0")),
        found => Err(ControlFileError::Newer { found }),
    }
}

/// The payload, as it is also kept with WAL in object storage.
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

/// Reads a payload of [`FORMAT_VERSION`]; `None` when it is none.
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
mod tests {
    use super::*;

    fn state() -> Durable {
        Durable {
            term: Term(9),
            term_history: TermHistory::new(vec![(Term(0), Lsn(80)), (Term(7), Lsn(160))]).unwrap(),
            membership: Membership {
                generation: Generation(4),
                old: [NodeId(1), NodeId(2)].into(),
                new: Some([NodeId(3)].into()),
            },
            commit: Lsn(200),
            truncate: Lsn(80),
            backup: Lsn(120),
            timeline_start: Lsn(80),
            system_id: 0x1234,
            pg_version: PgVersion::V15,
            segment_bytes: 1 << 24,
        }
    }

    #[test]
    fn state_round_trips_and_no_cut_is_taken_for_a_state() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(load(dir.path()), Err(ControlFileError::Missing(_))));
        store(dir.path(), &state()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), state());
        let without_next = Durable {
            membership: Membership {
                new: None,
                ..state().membership
            },
            ..state()
        };
        assert_eq!(decode(&encode(&without_next)), Some(without_next));
        let good = encode(&state());
        assert!((0..good.len()).all(|length| decode(&good[..length]).is_none()));
        assert_eq!(decode(&[good.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn version_1_stays_readable_and_a_newer_one_is_refused() {
        let golden = "09000000000000005000000000000000500000000000000078000000000000\
            00c80000000000000034120000000000000f00000000000001000000000400000000000000\
            020000000100000000000000020000000000000001000000030000000000000002000000\
            0000000000000000500000000000000007000000000000 00a000000000000000";
        let digits: Vec<u8> = golden.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(decode(&bytes), Some(state()));
        let dir = tempfile::tempdir().unwrap();
        durable_file::replace(&dir.path().join(FILE_NAME), 2, &bytes).unwrap();
        assert!(matches!(
            load(dir.path()),
            Err(ControlFileError::Newer { found: 2 })
        ));
    }
}
