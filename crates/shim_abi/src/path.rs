//! What a file name below the data directory means to the shim.
//!
//! Works on bytes and allocates nothing: it runs for every `open` and `stat` of Postgres. Names are from
//! `common/relpath.c`, `access/slru.c` and `access/xlog_internal.h` of Postgres 15 to 18.

/// Longest path in a message (`MAXPGPATH` less its terminator).
pub const MAX_PATH_BYTES: usize = 1023;

/// The three numbers of a WAL segment's name. The size of a segment is not in the name, so they stay apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalSegment {
    /// First eight hexadecimal digits.
    pub timeline: u32,
    /// The next eight.
    pub log: u32,
    /// The last eight.
    pub segment: u32,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A segment of a relation fork or of an SLRU: its pages come from the tier on demand.
    Managed,
    /// A WAL segment: writes are published, `fdatasync` waits for the quorum.
    Wal(WalSegment),
    /// State that no WAL carries: a rename to or from it waits until the tier has it.
    Carried,
    /// Local, for instance a temporary relation.
    Other,
}

/// What a directory is to `opendir`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirKind {
    /// Holds managed files: their names must be made local before it is read.
    Managed,
    /// Any other.
    Other,
}

/// The path relative to the data directory, which is the current directory of every Postgres process; none if it
/// leads elsewhere.
pub fn relative<'a>(path: &'a [u8], data_directory: &[u8]) -> Option<&'a [u8]> {
    let mut path = if path.first() == Some(&b'/') {
        let rest = path.strip_prefix(data_directory)?;
        if data_directory.is_empty() || rest.first() != Some(&b'/') {
            return None;
        }
        rest
    } else {
        path
    };
    loop {
        path = match path {
            [b'/', rest @ ..] | [b'.', b'/', rest @ ..] => rest,
            _ => return Some(path),
        };
    }
}

/// Says what the file at this relative path is.
pub fn classify(path: &[u8]) -> PathKind {
    let mut parts = Parts::new(path);
    let managed = |yes| if yes { PathKind::Managed } else { PathKind::Other };
    match parts.take() {
        Some(b"base") => managed(parts.number() && parts.last(is_relation)),
        Some(b"global") => managed(parts.last(is_relation)),
        Some(b"pg_tblspc") => {
            let directory = parts.number() && parts.take().is_some_and(|v| v.starts_with(b"PG_"));
            managed(directory && parts.number() && parts.last(is_relation))
        }
        Some(b"pg_xact" | b"pg_commit_ts") => managed(parts.last(is_slru)),
        Some(b"pg_multixact") => {
            let which = matches!(parts.take(), Some(b"offsets" | b"members"));
            managed(which && parts.last(is_slru))
        }
        Some(b"pg_wal") => parts
            .take()
            .filter(|_| parts.at_end())
            .and_then(wal_segment)
            .map_or(PathKind::Other, PathKind::Wal),
        Some(b"postgresql.auto.conf") if parts.at_end() => PathKind::Carried,
        Some(b"pg_replslot") if !parts.at_end() => PathKind::Carried,
        Some(b"pg_stat") => carried(parts.last(|name| name.ends_with(b".stat"))),
        Some(b"pg_logical") => match parts.take() {
            Some(b"replorigin_checkpoint") => carried(parts.at_end()),
            Some(b"snapshots") => carried(parts.last(|name| name.ends_with(b".snap"))),
            Some(b"mappings") => carried(!parts.at_end()),
            _ => PathKind::Other,
        },
        _ => PathKind::Other,
    }
}

/// Says what the directory at this relative path is.
pub fn classify_dir(path: &[u8]) -> DirKind {
    let mut parts = Parts::new(path.strip_suffix(b"/").unwrap_or(path));
    let managed = match parts.take() {
        Some(b"base") => parts.number() && parts.at_end(),
        Some(b"global" | b"pg_xact" | b"pg_commit_ts") => parts.at_end(),
        Some(b"pg_multixact") => matches!(parts.take(), Some(b"offsets" | b"members")) && parts.at_end(),
        Some(b"pg_tblspc") => {
            let version = parts.number() && parts.take().is_some_and(|v| v.starts_with(b"PG_"));
            version && parts.number() && parts.at_end()
        }
        _ => false,
    };
    if managed { DirKind::Managed } else { DirKind::Other }
}

fn carried(yes: bool) -> PathKind {
    if yes { PathKind::Carried } else { PathKind::Other }
}

/// The parts of a path, one after the other.
struct Parts<'a>(Option<&'a [u8]>);

impl<'a> Parts<'a> {
    fn new(path: &'a [u8]) -> Parts<'a> {
        Parts(Some(path))
    }

    fn take(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        match rest.iter().position(|&b| b == b'/') {
            Some(at) => {
                self.0 = Some(&rest[at + 1..]);
                Some(&rest[..at])
            }
            None => self.0.take(),
        }
    }

    fn at_end(&self) -> bool {
        self.0.is_none()
    }

    fn number(&mut self) -> bool {
        self.take().is_some_and(is_number)
    }

    fn last(&mut self, fits: impl Fn(&[u8]) -> bool) -> bool {
        self.take().is_some_and(fits) && self.at_end()
    }
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.len() <= 10 && text.iter().all(u8::is_ascii_digit)
}

/// `16384`, `16384.1`, `16384_vm`, `16384_fsm.2`.
fn is_relation(name: &[u8]) -> bool {
    let stem = match name.iter().position(|&b| b == b'.') {
        Some(dot) if is_number(&name[dot + 1..]) => &name[..dot],
        Some(_) => return false,
        None => name,
    };
    let fork = [b"_fsm".as_slice(), b"_vm", b"_init"];
    let number = fork
        .iter()
        .find_map(|fork| stem.strip_suffix(*fork))
        .unwrap_or(stem);
    is_number(number)
}

/// Hexadecimal in capitals, four to six digits. (The long names of Postgres 17 are for SLRUs that stay local.)
fn is_slru(name: &[u8]) -> bool {
    (4..=6).contains(&name.len()) && name.iter().all(|&b| hex_digit(b).is_some())
}

fn hex_digit(byte: u8) -> Option<u32> {
    match byte {
        b'0'..=b'9' => Some(u32::from(byte - b'0')),
        b'A'..=b'F' => Some(u32::from(byte - b'A') + 10),
        _ => None,
    }
}

fn wal_segment(name: &[u8]) -> Option<WalSegment> {
    let (parts, rest) = name.as_chunks::<8>();
    let number = |part: &[u8; 8]| {
        part.iter()
            .try_fold(0u32, |sum, &b| Some(sum << 4 | hex_digit(b)?))
    };
    match (parts, rest) {
        ([timeline, log, segment], []) => Some(WalSegment {
            timeline: number(timeline)?,
            log: number(log)?,
            segment: number(segment)?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for managed in [
            "base/5/1259",
            "base/16384/2619_fsm",
            "base/5/16385_vm.2",
            "base/5/16385_init",
            "global/1262.1",
            "pg_tblspc/16400/PG_15_202209061/5/16401",
            "pg_xact/0000",
            "pg_multixact/offsets/001F",
            "pg_multixact/members/14078",
            "pg_commit_ts/0000",
        ] {
            assert_eq!(classify(managed.as_bytes()), PathKind::Managed, "{managed}");
        }
        for other in [
            "base/5/t3_16384",
            "base/5/t3_16384_fsm",
            "base/5/pg_filenode.map",
            "base/5/pg_internal.init",
            "base/5/PG_VERSION",
            "base/pgsql_tmp/pgsql_tmp123.0",
            "base/5/1259.x",
            "base/5/1259/1",
            "base/5/",
            "base/5",
            "base",
            "",
            "global/pg_control",
            "pg_tblspc/16400",
            "pg_tblspc/16400/other/5/16401",
            "pg_subtrans/0000",
            "pg_xact/000g",
            "pg_wal/xlogtemp.77",
            "pg_wal/00000002.history",
            "pg_wal/archive_status/000000010000000000000001.done",
            "pg_wal/00000001000000000000000a",
            "postgresql.conf",
            "pg_stat/global.tmp",
        ] {
            assert_eq!(classify(other.as_bytes()), PathKind::Other, "{other}");
        }
        for carried in [
            "postgresql.auto.conf",
            "pg_replslot/a",
            "pg_replslot/a/state",
            "pg_stat/pgstat.stat",
            "pg_logical/replorigin_checkpoint",
            "pg_logical/snapshots/0-15B0.snap",
        ] {
            assert_eq!(classify(carried.as_bytes()), PathKind::Carried, "{carried}");
        }
        let segment = WalSegment {
            timeline: 1,
            log: 0x1_0000,
            segment: 0xFE,
        };
        assert_eq!(
            classify(b"pg_wal/0000000100010000000000FE"),
            PathKind::Wal(segment)
        );
    }

    #[test]
    fn directories() {
        for managed in [
            "base/5",
            "base/5/",
            "global",
            "pg_tblspc/1/PG_15_2/5",
            "pg_xact",
            "pg_multixact/members",
        ] {
            assert_eq!(classify_dir(managed.as_bytes()), DirKind::Managed, "{managed}");
        }
        for other in [
            "base",
            "base/pgsql_tmp",
            "pg_tblspc",
            "pg_tblspc/1/PG_15_2",
            "pg_wal",
            "",
        ] {
            assert_eq!(classify_dir(other.as_bytes()), DirKind::Other, "{other}");
        }
    }

    #[test]
    fn paths_are_made_relative() {
        let table: [(&[u8], Option<&[u8]>); 6] = [
            (b"base/5/1", Some(b"base/5/1")),
            (b"./base/5/1", Some(b"base/5/1")),
            (b"/data/base/5/1", Some(b"base/5/1")),
            (b"/data//base/5/1", Some(b"base/5/1")),
            (b"/database/5/1", None),
            (b"/etc/passwd", None),
        ];
        for (path, expected) in table {
            assert_eq!(relative(path, b"/data"), expected);
        }
        assert_eq!(relative(b"/x", b""), None);
    }
}
