//! The raft log on disk: an append-only file of checksummed frames.
//!
//! File header, 16 bytes: magic `LKBDRAFT`, format version (u32), CRC32C of bytes 0..12. Then frames:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the payload |
//! | 4..8 | CRC32C of bytes 0..4 and the payload |
//! | 8.. | payload: term, vote and commit (u64 each), number of entries (u32), the entries |
//!
//! An entry: term, index (u64), kind (u8), length of context (u32), length of data (u32), context, data. All numbers
//! are little-endian.
//!
//! A frame is what one [`LogFile::append`] made durable: hard state and new entries together. Entries replace those
//! of the same and higher indexes in earlier frames. The next append starts only after the sync of the one before,
//! so a crash can tear the *last* frame alone, and nobody was told of that one. Hence on opening: a bad frame at the
//! very end is cut off; a bad frame with a whole one behind it means that the disk lost what was durable, and is
//! refused. (Damage to exactly the last frame cannot be told from a torn write; the other members have its content.)

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use raft::eraftpb::{Entry, EntryType, HardState};

use super::disk::{DiskError, io, sync_directory};

const MAGIC: &[u8; 8] = b"LKBDRAFT";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 8;
/// The largest payload of a frame. Proposals are bounded far below.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// What a log file holds.
#[derive(Debug, Default, PartialEq)]
pub struct Replayed {
    /// The last hard state, if any was written.
    pub hard_state: Option<HardState>,
    /// Entries in order, without gaps.
    pub entries: Vec<Entry>,
    /// Bytes of a torn frame that were cut off.
    pub cut_bytes: u64,
}

/// An open log file, positioned at its end.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl LogFile {
    /// Opens the file, or makes it; returns what it holds.
    pub fn open(path: &Path) -> Result<(LogFile, Replayed), DiskError> {
        if !path.exists() {
            return Ok((
                Self::create(path, &HardState::default(), &[])?,
                Replayed::default(),
            ));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io(path))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io(path))?;
        let (replayed, end) = replay(&content).map_err(|reason| DiskError::damaged(path, reason))?;
        if replayed.cut_bytes > 0 {
            tracing::warn!(path = %path.display(), bytes = replayed.cut_bytes, "cut off a torn append");
            file.set_len(end as u64)
                .and_then(|()| file.sync_all())
                .map_err(io(path))?;
        }
        file.seek(SeekFrom::Start(end as u64)).map_err(io(path))?;
        Ok((
            LogFile {
                file,
                path: path.to_owned(),
                bytes: end as u64,
            },
            replayed,
        ))
    }

    /// Replaces the file by one that holds exactly this; durable when it returns.
    pub fn create(path: &Path, hard_state: &HardState, entries: &[Entry]) -> Result<LogFile, DiskError> {
        let mut content = Vec::from(header());
        encode_frame(&mut content, hard_state, entries).map_err(|bytes| too_large(path, bytes))?;
        let beside = path.with_extension("new");
        let mut file = File::create(&beside).map_err(io(&beside))?;
        file.write_all(&content)
            .and_then(|()| file.sync_all())
            .map_err(io(&beside))?;
        fs::rename(&beside, path).map_err(io(path))?;
        sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        Ok(LogFile {
            file,
            path: path.to_owned(),
            bytes: content.len() as u64,
        })
    }

    /// Appends one frame; durable when it returns. After an error the file must be opened anew.
    pub fn append(&mut self, hard_state: &HardState, entries: &[Entry]) -> Result<(), DiskError> {
        let mut frame = Vec::new();
        encode_frame(&mut frame, hard_state, entries).map_err(|bytes| too_large(&self.path, bytes))?;
        let written = self.file.write_all(&frame).and_then(|()| self.file.sync_data());
        written.map_err(io(&self.path))?;
        self.bytes += frame.len() as u64;
        Ok(())
    }

    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn too_large(path: &Path, bytes: usize) -> DiskError {
    DiskError::damaged(
        path,
        format!("an append of {bytes} bytes is larger than a frame may be"),
    )
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Appends a frame to `out`, or returns the size that is too large.
fn encode_frame(out: &mut Vec<u8>, hard_state: &HardState, entries: &[Entry]) -> Result<(), usize> {
    let start = out.len();
    out.extend([0; FRAME_HEADER_BYTES]);
    for number in [hard_state.term, hard_state.vote, hard_state.commit] {
        out.extend(number.to_le_bytes());
    }
    out.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend(entry.term.to_le_bytes());
        out.extend(entry.index.to_le_bytes());
        out.push(match entry.entry_type {
            EntryType::EntryNormal => 0,
            EntryType::EntryConfChange => 1,
            EntryType::EntryConfChangeV2 => 2,
        });
        out.extend((entry.context.len() as u32).to_le_bytes());
        out.extend((entry.data.len() as u32).to_le_bytes());
        out.extend(&entry.context[..]);
        out.extend(&entry.data[..]);
    }
    let payload = out.len() - start - FRAME_HEADER_BYTES;
    if payload > MAX_FRAME_BYTES {
        out.truncate(start);
        return Err(payload);
    }
    let length = (payload as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), &out[start + FRAME_HEADER_BYTES..]);
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Reads a whole file; returns what it holds and where its last good frame ends.
fn replay(content: &[u8]) -> Result<(Replayed, usize), String> {
    let Some((found, _)) = content.split_first_chunk::<HEADER_BYTES>() else {
        return Err(format!("{} bytes are shorter than its header", content.len()));
    };
    if &found[..8] != MAGIC {
        return Err("it does not begin with the magic LKBDRAFT".to_owned());
    }
    if found[12..] != crc32c::crc32c(&found[..12]).to_le_bytes() {
        return Err("the checksum of its header is wrong".to_owned());
    }
    if found[8..12] != FORMAT.to_le_bytes() {
        let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
        return Err(format!(
            "it has format version {version}, this version of lakebed reads {FORMAT}"
        ));
    }
    let mut replayed = Replayed::default();
    let mut at = HEADER_BYTES;
    while at < content.len() {
        let Some(payload) = frame_at(content, at) else {
            if let Some(next) = (at + 1..content.len()).find(|&later| frame_at(content, later).is_some()) {
                return Err(format!(
                    "the frame at byte {at} is bad, with a good one behind it at byte {next}"
                ));
            }
            replayed.cut_bytes = (content.len() - at) as u64;
            break;
        };
        replay_frame(&mut replayed, payload).map_err(|reason| format!("the frame at byte {at}: {reason}"))?;
        at += FRAME_HEADER_BYTES + payload.len();
    }
    Ok((replayed, at))
}

/// The payload of the whole and undamaged frame at an offset.
fn frame_at(content: &[u8], at: usize) -> Option<&[u8]> {
    let frame = content.get(at..)?;
    let (length, rest) = frame.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    // A payload is never shorter than its three numbers and its count: four zero bytes are no frame.
    if !(28..=MAX_FRAME_BYTES).contains(&bytes) {
        return None;
    }
    let payload = rest.get(..bytes)?;
    let computed = crc32c::crc32c_append(crc32c::crc32c(length), payload);
    (computed == u32::from_le_bytes(*crc)).then_some(payload)
}

fn replay_frame(replayed: &mut Replayed, payload: &[u8]) -> Result<(), String> {
    let mut cursor = Cursor(payload);
    let hard_state = HardState {
        term: cursor.u64()?,
        vote: cursor.u64()?,
        commit: cursor.u64()?,
        ..HardState::default()
    };
    for _ in 0..cursor.u32()? {
        let mut entry = Entry {
            term: cursor.u64()?,
            index: cursor.u64()?,
            ..Entry::default()
        };
        entry.entry_type = match cursor.bytes(1)? {
            [0] => EntryType::EntryNormal,
            [1] => EntryType::EntryConfChange,
            [2] => EntryType::EntryConfChangeV2,
            other => return Err(format!("entry {} has the unknown kind {}", entry.index, other[0])),
        };
        let (context, data) = (cursor.u32()? as usize, cursor.u32()? as usize);
        entry.context = cursor.bytes(context)?.to_vec().into();
        entry.data = cursor.bytes(data)?.to_vec().into();
        append_entry(&mut replayed.entries, entry)?;
    }
    if !cursor.0.is_empty() {
        return Err(format!("{} bytes follow its last entry", cursor.0.len()));
    }
    replayed.hard_state = Some(hard_state);
    Ok(())
}

/// Appends an entry, which replaces those at and above its index.
pub(super) fn append_entry(entries: &mut Vec<Entry>, entry: Entry) -> Result<(), String> {
    if let Some(first) = entries.first().map(|first| first.index) {
        let next = first + entries.len() as u64;
        if entry.index > next || entry.index < first {
            return Err(format!(
                "entry {} does not continue a log of {first}..{next}",
                entry.index
            ));
        }
        entries.truncate((entry.index - first) as usize);
    }
    entries.push(entry);
    Ok(())
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it ends inside a field")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u64(&mut self) -> Result<u64, String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("it ends inside a field")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*taken))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("it ends inside a field")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*taken))
    }
}

#[cfg(test)]
#[path = "log_file_tests.rs"]
mod tests;
