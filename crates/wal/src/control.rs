//! The control file and the checkpoint inside it.
//!
//! `global/pg_control` (`catalog/pg_control.h`) is 8192 bytes, of which the first 296 mean something; integers are
//! little-endian. Offsets were measured with the headers of 15.18, 16.14, 17.11 and 18.4, and differ at the end alone:
//!
//! | bytes | field | | bytes | field |
//! |---|---|---|---|---|
//! | 0..8 | system identifier | | 136..169 | recovery and backup positions |
//! | 8..12 | control version | | 172..176 | wal_level |
//! | 12..16 | catalogue version | | 176 | wal_log_hints |
//! | 16..20 | state | | 180..201 | settings that a standby compares |
//! | 24..32 | time of last update | | 216..220 | page size |
//! | 32..40 | position of the checkpoint | | 228..232 | bytes of a WAL segment |
//! | 40..128 | copy of the checkpoint | | 252..256 | data checksum version |
//! | 128..136 | unlogged LSN | | 288..292 | CRC32C of the bytes before it; 18: 292..296 |
//!
//! 15 and 16 share a control version, so it is the catalogue version that tells them apart; the other fields from byte
//! 256 on (a nonce, and on 18 whether `char` is signed) are kept as they were read, as is all that Lakebed does not
//! have to understand.

use lakebed_types::{Lsn, PAGE_SIZE, PgVersion};

/// Bytes of the control file on disk (`PG_CONTROL_FILE_SIZE`).
pub const CONTROL_FILE_BYTES: usize = 8192;
/// Bytes of the checkpoint structure.
pub const CHECKPOINT_BYTES: usize = 88;

/// Bytes that mean something, the CRC at their end included.
const USED_BYTES: usize = 296;
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
    /// `wal_level` of the server: 0 minimal, 1 replica, 2 logical. Since Postgres 17; 0 before.
    pub wal_level: u32,
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
    /// The 88 bytes that WAL and control file hold. One layout serves all versions: where 17 put `wal_level`, earlier
    /// ones have padding.
    pub fn encode(&self) -> [u8; CHECKPOINT_BYTES] {
        let mut out = [0; CHECKPOINT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.redo.0.to_le_bytes());
        put(8, &self.timeline.to_le_bytes());
        put(12, &self.previous_timeline.to_le_bytes());
        put(16, &[u8::from(self.full_page_writes)]);
        put(20, &self.wal_level.to_le_bytes());
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

    /// Reads the 88 bytes that a server of this version wrote.
    pub fn decode(bytes: &[u8; CHECKPOINT_BYTES], version: PgVersion) -> Checkpoint {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
        Checkpoint {
            redo: Lsn(long(0)),
            timeline: word(8),
            previous_timeline: word(12),
            full_page_writes: bytes[16] != 0,
            // Padding before 17, which initdb does not clear.
            wal_level: if version >= PgVersion::V17 { word(20) } else { 0 },
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
    /// A control file of a version that is not supported, or no control file at all.
    #[error("control version {control} with catalogue version {catalogue} is of no supported Postgres")]
    Version {
        /// `PG_CONTROL_VERSION` of the file.
        control: u32,
        /// `CATALOG_VERSION_NO` of the file.
        catalogue: u32,
    },
    /// A cluster with a layout that is not supported.
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
    version: PgVersion,
    bytes: [u8; USED_BYTES],
}

/// Position of the CRC, which is of all bytes before it.
const fn crc_position(version: PgVersion) -> usize {
    match version {
        PgVersion::V15 | PgVersion::V16 | PgVersion::V17 => 288,
        PgVersion::V18 => 292,
    }
}

impl ControlFile {
    /// Reads and checks a control file, of whichever supported version.
    pub fn decode(file: &[u8]) -> Result<ControlFile, ControlError> {
        let Some(bytes) = file.first_chunk::<USED_BYTES>() else {
            return Err(ControlError::Short(file.len()));
        };
        // The version first: it tells where the CRC is.
        let (control, catalogue) = (word(bytes, 8), word(bytes, 12));
        let version = PgVersion::from_catalog_version(catalogue)
            .filter(|version| version.control_version() == control)
            .ok_or(ControlError::Version { control, catalogue })?;
        let control = ControlFile {
            version,
            bytes: *bytes,
        };
        let (found, told) = (control.crc(), control.word(crc_position(version)));
        if found != told {
            return Err(ControlError::Crc { found, told });
        }
        let layout = [
            ("page size", control.word(216), PAGE_SIZE as u32),
            ("WAL page size", control.word(224), 8192),
            ("relation segment size", control.word(220), 131_072),
        ];
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
        let mut out = self.bytes.to_vec();
        out.resize(CONTROL_FILE_BYTES, 0);
        out
    }

    /// Major version of the server that wrote it.
    pub fn version(&self) -> PgVersion {
        self.version
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
        Checkpoint::decode(&copy, self.version)
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
        self.put(crc_position(self.version), &self.crc().to_le_bytes());
    }

    fn crc(&self) -> u32 {
        crc32c::crc32c(&self.bytes[..crc_position(self.version)])
    }

    fn word(&self, at: usize) -> u32 {
        word(&self.bytes, at)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn word(bytes: &[u8; USED_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
