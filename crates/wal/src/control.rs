//! The control file and the checkpoint inside it, of Postgres 15.
//!
//! `global/pg_control` (`catalog/pg_control.h`) is 8192 bytes, of which the first 296 mean something; integers are
//! little-endian, all offsets below were measured on 15.18:
//!
//! | bytes | field | | bytes | field |
//! |---|---|---|---|---|
//! | 0..8 | system identifier | | 128..136 | unlogged LSN |
//! | 8..12 | control version, 1300 | | 136..169 | recovery and backup positions |
//! | 12..16 | catalogue version | | 172..176 | wal_level |
//! | 16..20 | state | | 176 | wal_log_hints |
//! | 24..32 | time of last update | | 180..200 | settings that a standby compares |
//! | 32..40 | position of the checkpoint | | 216..220 | page size |
//! | 40..128 | copy of the checkpoint | | 228..232 | bytes of a WAL segment |
//! | | | | 252..256 | data checksum version |
//! | | | | 288..292 | CRC32C of bytes 0..288 |
//!
//! What Lakebed does not have to understand is kept as it was read.

use lakebed_types::{Lsn, PAGE_SIZE};

/// Bytes of the control file on disk (`PG_CONTROL_FILE_SIZE`).
pub const CONTROL_FILE_BYTES: usize = 8192;
/// Bytes of the checkpoint structure.
pub const CHECKPOINT_BYTES: usize = 88;
/// Control file version of Postgres 13 to 16.
pub const CONTROL_VERSION_15: u32 = 1300;

const CHECKED_BYTES: usize = 288;
const STATE_SHUT_DOWN: u32 = 1;
/// `FirstNormalUnloggedLSN` (`access/xlogdefs.h`).
const FIRST_UNLOGGED_LSN: u64 = 1000;

/// Body of a checkpoint record (`CheckPoint`, `catalog/pg_control.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where replay begins; a shutdown checkpoint's own position.
    pub redo: Lsn,
    /// Postgres timeline.
    pub timeline: u32,
    /// Postgres timeline before, for the first checkpoint of a timeline.
    pub previous_timeline: u32,
    /// Whether the compute writes full page images.
    pub full_page_writes: bool,
    /// Next transaction id, with its epoch in the high half.
    pub next_xid: u64,
    /// Next object id.
    pub next_oid: u32,
    /// Next multixact id.
    pub next_multi: u32,
    /// Next free slot in the multixact members.
    pub next_multi_offset: u32,
    /// Oldest transaction id still needed, …
    pub oldest_xid: u32,
    /// … and the database that needs it.
    pub oldest_xid_db: u32,
    /// Oldest multixact id still needed, …
    pub oldest_multi: u32,
    /// … and the database that needs it.
    pub oldest_multi_db: u32,
    /// Seconds since 1970.
    pub time: i64,
    /// Oldest transaction with a commit timestamp; 0 when there is none.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction with a commit timestamp; 0 when there is none.
    pub newest_commit_ts_xid: u32,
    /// Oldest running transaction; 0 in a shutdown checkpoint.
    pub oldest_active_xid: u32,
}

impl Checkpoint {
    /// The 88 bytes that WAL and control file hold.
    pub fn encode(&self) -> [u8; CHECKPOINT_BYTES] {
        let mut out = [0; CHECKPOINT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.redo.0.to_le_bytes());
        put(8, &self.timeline.to_le_bytes());
        put(12, &self.previous_timeline.to_le_bytes());
        put(16, &[u8::from(self.full_page_writes)]);
        put(24, &self.next_xid.to_le_bytes());
        put(32, &self.next_oid.to_le_bytes());
        put(36, &self.next_multi.to_le_bytes());
        put(40, &self.next_multi_offset.to_le_bytes());
        put(44, &self.oldest_xid.to_le_bytes());
        put(48, &self.oldest_xid_db.to_le_bytes());
        put(52, &self.oldest_multi.to_le_bytes());
        put(56, &self.oldest_multi_db.to_le_bytes());
        put(64, &self.time.to_le_bytes());
        put(72, &self.oldest_commit_ts_xid.to_le_bytes());
        put(76, &self.newest_commit_ts_xid.to_le_bytes());
        put(80, &self.oldest_active_xid.to_le_bytes());
        out
    }

    /// Reads the 88 bytes.
    pub fn decode(bytes: &[u8; CHECKPOINT_BYTES]) -> Checkpoint {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
        Checkpoint {
            redo: Lsn(long(0)),
            timeline: word(8),
            previous_timeline: word(12),
            full_page_writes: bytes[16] != 0,
            next_xid: long(24),
            next_oid: word(32),
            next_multi: word(36),
            next_multi_offset: word(40),
            oldest_xid: word(44),
            oldest_xid_db: word(48),
            oldest_multi: word(52),
            oldest_multi_db: word(56),
            time: long(64) as i64,
            oldest_commit_ts_xid: word(72),
            newest_commit_ts_xid: word(76),
            oldest_active_xid: word(80),
        }
    }
}

/// Why a control file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Shorter than its fixed part.
    #[error("a control file of {0} bytes is too short")]
    Short(usize),
    /// Its CRC does not match.
    #[error("the control file's CRC is {found:08x}, it tells {told:08x}")]
    Crc {
        /// CRC of the bytes.
        found: u32,
        /// What the file tells.
        told: u32,
    },
    /// A control file of a version, or a cluster with a layout, that is not supported.
    #[error("the control file's {field} is {found}, supported is {supported}")]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// What the file holds.
        found: u32,
        /// What is supported.
        supported: u32,
    },
}

/// A control file that passed its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    bytes: [u8; CHECKED_BYTES],
}

impl ControlFile {
    /// Reads and checks a control file of Postgres 15.
    pub fn decode(file: &[u8]) -> Result<ControlFile, ControlError> {
        let Some((bytes, rest)) = file.split_first_chunk::<CHECKED_BYTES>() else {
            return Err(ControlError::Short(file.len()));
        };
        let Some(told) = rest.first_chunk::<4>() else {
            return Err(ControlError::Short(file.len()));
        };
        let control = ControlFile { bytes: *bytes };
        let (found, told) = (crc32c::crc32c(bytes), u32::from_le_bytes(*told));
        // The version first: a file of another version has its CRC elsewhere.
        let layout = [
            ("version", control.word(8), CONTROL_VERSION_15),
            ("page size", control.word(216), PAGE_SIZE as u32),
            ("WAL page size", control.word(224), 8192),
            ("relation segment size", control.word(220), 131_072),
        ];
        if control.word(8) == CONTROL_VERSION_15 && found != told {
            return Err(ControlError::Crc { found, told });
        }
        for (field, found, supported) in layout {
            if found != supported {
                return Err(ControlError::Unsupported {
                    field,
                    found,
                    supported,
                });
            }
        }
        Ok(control)
    }

    /// The file as Postgres reads it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CONTROL_FILE_BYTES);
        out.extend(self.bytes);
        out.extend(crc32c::crc32c(&self.bytes).to_le_bytes());
        out.resize(CONTROL_FILE_BYTES, 0);
        out
    }

    /// The cluster's identity.
    pub fn system_identifier(&self) -> u64 {
        u64::from(self.word(4)) << 32 | u64::from(self.word(0))
    }

    /// Position of the last checkpoint record.
    pub fn checkpoint_lsn(&self) -> Lsn {
        Lsn(u64::from(self.word(36)) << 32 | u64::from(self.word(32)))
    }

    /// The last checkpoint.
    pub fn checkpoint(&self) -> Checkpoint {
        let mut copy = [0; CHECKPOINT_BYTES];
        copy.copy_from_slice(&self.bytes[40..128]);
        Checkpoint::decode(&copy)
    }

    /// Bytes of a WAL segment.
    pub fn segment_bytes(&self) -> u32 {
        self.word(228)
    }

    /// Whether the server was shut down cleanly.
    pub fn is_shut_down(&self) -> bool {
        self.word(16) == STATE_SHUT_DOWN
    }

    /// Whether pages carry checksums.
    pub fn has_data_checksums(&self) -> bool {
        self.word(252) != 0
    }

    /// Makes this the control file of a server that was shut down with this checkpoint at `lsn`: it will start there
    /// without recovery.
    pub fn shut_down_at(&mut self, lsn: Lsn, checkpoint: &Checkpoint) {
        self.put(16, &STATE_SHUT_DOWN.to_le_bytes());
        self.put(24, &checkpoint.time.to_le_bytes());
        self.put(32, &lsn.0.to_le_bytes());
        self.put(40, &checkpoint.encode());
        self.put(128, &FIRST_UNLOGGED_LSN.to_le_bytes());
        self.put(136, &[0; 33]); // minimum recovery point and backup positions
    }

    fn word(&self, at: usize) -> u32 {
        let b = &self.bytes;
        u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
