//! The last snapshot on disk, replaced as a whole.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `LKBDSNAP` |
//! | 8..12 | format version |
//! | 12..16 | CRC32C of bytes 0..12 and 16.. |
//! | 16..24, 24..32 | index and term of the last entry that it contains |
//! | 32.. | four lists of member ids, each a count (u32) and u64s: voters, learners, outgoing voters, next learners |
//! | 1 byte | whether a joint configuration ends by itself |
//! | rest | the state, in its own versioned form |
//!
//! All numbers are little-endian.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use raft::eraftpb::{ConfState, Snapshot};

use super::disk::{DiskError, io, sync_directory};

const MAGIC: &[u8; 8] = b"LKBDSNAP";
const FORMAT: u32 = 1;

/// Replaces the snapshot; durable when this returns.
pub fn write(path: &Path, snapshot: &Snapshot) -> Result<(), DiskError> {
    let metadata = snapshot.get_metadata();
    let conf = metadata.get_conf_state();
    let mut content = Vec::from(*MAGIC);
    content.extend(FORMAT.to_le_bytes());
    content.extend([0; 4]);
    content.extend(metadata.index.to_le_bytes());
    content.extend(metadata.term.to_le_bytes());
    for list in [
        &conf.voters,
        &conf.learners,
        &conf.voters_outgoing,
        &conf.learners_next,
    ] {
        content.extend((list.len() as u32).to_le_bytes());
        list.iter().for_each(|id| content.extend(id.to_le_bytes()));
    }
    content.push(u8::from(conf.auto_leave));
    content.extend(&snapshot.data[..]);
    let crc = checksum(&content);
    content[12..16].copy_from_slice(&crc.to_le_bytes());

    let beside = path.with_extension("new");
    let mut file = File::create(&beside).map_err(io(&beside))?;
    file.write_all(&content)
        .and_then(|()| file.sync_all())
        .map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Reads the snapshot, or `None` when there is none.
pub fn read(path: &Path) -> Result<Option<Snapshot>, DiskError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path)(error)),
    };
    decode(&content)
        .map(Some)
        .map_err(|reason| DiskError::damaged(path, reason))
}

fn checksum(content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&content[..12]), &content[16..])
}

fn decode(content: &[u8]) -> Result<Snapshot, String> {
    if content.len() < 32 || &content[..8] != MAGIC {
        return Err("it does not begin with a header of magic LKBDSNAP".to_owned());
    }
    if content[12..16] != checksum(content).to_le_bytes() {
        return Err("its checksum is wrong".to_owned());
    }
    if content[8..12] != FORMAT.to_le_bytes() {
        let version = u32::from_le_bytes([content[8], content[9], content[10], content[11]]);
        return Err(format!(
            "it has format version {version}, this version of lakebed reads {FORMAT}"
        ));
    }
    let short = || "it ends inside a field".to_owned();
    let mut rest = &content[16..];
    let number = |rest: &mut &[u8]| -> Result<u64, String> {
        let (taken, behind) = rest.split_first_chunk().ok_or_else(short)?;
        *rest = behind;
        Ok(u64::from_le_bytes(*taken))
    };
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = number(&mut rest)?;
    metadata.term = number(&mut rest)?;
    let mut list = || -> Result<Vec<u64>, String> {
        let (count, behind) = rest.split_first_chunk().ok_or_else(short)?;
        rest = behind;
        (0..u32::from_le_bytes(*count))
            .map(|_| number(&mut rest))
            .collect()
    };
    let mut conf = ConfState {
        voters: list()?,
        learners: list()?,
        voters_outgoing: list()?,
        learners_next: list()?,
        ..ConfState::default()
    };
    let (auto_leave, data) = rest.split_first().ok_or_else(short)?;
    conf.auto_leave = *auto_leave != 0;
    metadata.set_conf_state(conf);
    snapshot.data = data.to_vec().into();
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_back_and_every_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        assert_eq!(read(&path).unwrap(), None);
        let mut snapshot = Snapshot {
            data: b"state".to_vec().into(),
            ..Snapshot::default()
        };
        snapshot.mut_metadata().index = 7;
        snapshot.mut_metadata().term = 3;
        let mut conf = ConfState::from((vec![1, 2, 3], vec![4]));
        conf.voters_outgoing = vec![5];
        snapshot.mut_metadata().set_conf_state(conf);
        write(&path, &snapshot).unwrap();
        assert_eq!(read(&path).unwrap(), Some(snapshot));

        let good = fs::read(&path).unwrap();
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(
                matches!(read(&path), Err(DiskError::Damaged { .. })),
                "byte {byte}"
            );
            fs::write(&path, &good[..byte]).unwrap();
            assert!(
                matches!(read(&path), Err(DiskError::Damaged { .. })),
                "length {byte}"
            );
        }
    }
}
