//! What `BASE_BACKUP (…, TARGET 'client')` sends inside `CopyData` (Postgres 15 and later), and `backup_label`.

use bytes::{Buf, Bytes};
use lakebed_types::Lsn;

/// One message of a base backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupMessage {
    /// A new archive begins: its name, and the place of its tablespace, empty for the data directory.
    Archive {
        /// File name, such as `base.tar`.
        name: String,
        /// Location of the tablespace.
        location: String,
    },
    /// Bytes of the archive.
    Data(Bytes),
    /// Bytes done so far.
    Progress(u64),
    /// The manifest begins; this client asks for none.
    Manifest,
}

/// Why a base backup cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// A message that does not parse.
    #[error("the server sent a malformed base backup message ({0} bytes)")]
    Malformed(usize),
    /// `backup_label` lacks a line, or one does not parse.
    #[error("backup_label has no valid line `{0}`")]
    Label(&'static str),
}

/// Reads one message.
///
/// # Errors
/// [`BackupError::Malformed`].
pub fn parse(mut data: Bytes) -> Result<BackupMessage, BackupError> {
    let malformed = BackupError::Malformed(data.len());
    match data.try_get_u8() {
        Ok(b'n') => {
            let mut texts = data.split(|&byte| byte == 0);
            let mut text = || {
                texts
                    .next()
                    .and_then(|text| String::from_utf8(text.to_vec()).ok())
            };
            match (text(), text()) {
                (Some(name), Some(location)) => Ok(BackupMessage::Archive { name, location }),
                _ => Err(malformed),
            }
        }
        Ok(b'd') => Ok(BackupMessage::Data(data)),
        Ok(b'p') => data
            .try_get_u64()
            .map(BackupMessage::Progress)
            .map_err(|_| malformed),
        Ok(b'm') => Ok(BackupMessage::Manifest),
        _ => Err(malformed),
    }
}

/// What `backup_label` says (`xlogbackup.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins: the redo LSN of the backup's checkpoint.
    pub redo: Lsn,
    /// Start of that checkpoint's record.
    pub checkpoint: Lsn,
    /// Postgres timeline.
    pub timeline: u32,
    /// It was taken from a server that is itself a standby.
    pub from_standby: bool,
}

impl BackupLabel {
    /// Reads the file.
    ///
    /// # Errors
    /// [`BackupError::Label`].
    pub fn parse(text: &str) -> Result<BackupLabel, BackupError> {
        let value = |name: &'static str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|rest| rest.strip_prefix(": "));
            value.ok_or(BackupError::Label(name))
        };
        let lsn = |name: &'static str| {
            let word = value(name)?.split_whitespace().next().unwrap_or_default();
            word.parse::<Lsn>().map_err(|_| BackupError::Label(name))
        };
        let timeline = value("START TIMELINE")?.trim().parse();
        Ok(BackupLabel {
            redo: lsn("START WAL LOCATION")?,
            checkpoint: lsn("CHECKPOINT LOCATION")?,
            timeline: timeline.map_err(|_| BackupError::Label("START TIMELINE"))?,
            from_standby: value("BACKUP FROM")?.trim() != "primary",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_nonsense_is_refused() {
        let archive = BackupMessage::Archive {
            name: "base.tar".to_owned(),
            location: String::new(),
        };
        let table: [(&'static [u8], Result<BackupMessage, BackupError>); 7] = [
            (b"nbase.tar\0\0", Ok(archive)),
            (b"dxyz", Ok(BackupMessage::Data(Bytes::from_static(b"xyz")))),
            (b"p\0\0\0\0\0\0\x01\0", Ok(BackupMessage::Progress(256))),
            (b"m", Ok(BackupMessage::Manifest)),
            (b"p\0", Err(BackupError::Malformed(2))),
            (b"", Err(BackupError::Malformed(0))),
            (b"z", Err(BackupError::Malformed(1))),
        ];
        for (data, expected) in table {
            assert_eq!(parse(Bytes::from_static(data)), expected, "{data:?}");
        }
    }

    #[test]
    fn a_label_is_read() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
                    START TIME: 2026-11-21 10:00:00 UTC\nLABEL: lakebed\nSTART TIMELINE: 1\n";
        let expected = BackupLabel {
            redo: Lsn(0x200_0028),
            checkpoint: Lsn(0x200_0060),
            timeline: 1,
            from_standby: false,
        };
        assert_eq!(BackupLabel::parse(text), Ok(expected));
        let standby = text.replace("primary", "standby");
        assert!(BackupLabel::parse(&standby).is_ok_and(|label| label.from_standby));
        for name in [
            "START WAL LOCATION",
            "CHECKPOINT LOCATION",
            "BACKUP FROM",
            "START TIMELINE",
        ] {
            let without = text.replace(name, "X");
            assert_eq!(BackupLabel::parse(&without), Err(BackupError::Label(name)));
        }
    }
}
