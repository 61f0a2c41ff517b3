//! The two files that describe a base backup (`backup_label` and `tablespace_map`, written by `build_backup_content`
//! in `access/transam/xlogbackup.c` of newer and `xlog.c` of older versions).

use lakebed_types::Lsn;

/// What `backup_label` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay must begin.
    pub start: Lsn,
    /// Timeline of the WAL there.
    pub timeline: u32,
    /// Taken from a standby: the backup's end is the minimum recovery point of its control file, not a record.
    pub from_standby: bool,
}

/// Reads `backup_label`; an error says which line is not as expected.
pub fn parse_label(text: &str) -> Result<BackupLabel, String> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::trim)
    };
    let start = field("START WAL LOCATION").ok_or("backup_label has no START WAL LOCATION")?;
    let lsn = start.split_whitespace().next().unwrap_or_default();
    let start_lsn = lsn
        .parse()
        .map_err(|error| format!("backup_label's START WAL LOCATION: {error}"))?;
    // Postgres 10 and older have no such line; the file name says the same.
    let named = start
        .split_once("(file ")
        .and_then(|(_, rest)| u32::from_str_radix(rest.get(..8)?, 16).ok());
    let told = match field("START TIMELINE") {
        Some(number) => Some(
            number
                .parse()
                .map_err(|_| "backup_label's START TIMELINE is not a number")?,
        ),
        None => named,
    };
    Ok(BackupLabel {
        start: start_lsn,
        timeline: told.ok_or("backup_label does not tell the timeline")?,
        from_standby: field("BACKUP FROM") == Some("standby"),
    })
}

/// Reads `tablespace_map`: oid and directory of each line. A backslash stands before a newline, a carriage return or a
/// backslash of a path.
pub fn parse_tablespace_map(text: &str) -> Result<Vec<(u32, String)>, String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => line.extend(characters.next()),
            '\n' | '\r' => lines.push(std::mem::take(&mut line)),
            other => line.push(other),
        }
    }
    lines.push(line);
    lines.retain(|line| !line.is_empty());
    let entry = |line: &String| {
        let (oid, path) = line.split_once(' ')?;
        Some((oid.parse().ok()?, path.to_owned()))
    };
    lines
        .iter()
        .map(|line| entry(line).ok_or_else(|| format!("tablespace_map has the line {line:?}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_and_one_without_a_start_refused() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000030000000000000002)\n\
                    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
                    START TIME: 2026-11-21 11:00:00 UTC\nLABEL: x\n";
        let expected = BackupLabel {
            start: Lsn(0x200_0028),
            timeline: 3,
            from_standby: true,
        };
        assert_eq!(parse_label(text), Ok(expected.clone()));
        let told = format!("{text}START TIMELINE: 3\n");
        assert_eq!(parse_label(&told), Ok(expected));
        assert!(parse_label("LABEL: x\n").is_err());
        assert!(parse_label("START WAL LOCATION: x (file 0)\n").is_err());
    }

    #[test]
    fn a_tablespace_map_is_read_with_its_escapes() {
        let map = parse_tablespace_map("16400 /srv/a b\n16401 /srv/c\\\\d\\\ne\n");
        let expected = vec![(16400, "/srv/a b".to_owned()), (16401, "/srv/c\\d\ne".to_owned())];
        assert_eq!(map, Ok(expected));
        assert!(parse_tablespace_map("x /srv\n").is_err());
    }
}
