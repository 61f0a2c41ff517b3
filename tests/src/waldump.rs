//! WAL as Postgres's own reader sees it.

use std::path::Path;
use std::process::Command;

use lakebed_pgtest::bin_dir;
use lakebed_types::Lsn;

/// What `pg_waldump` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Start of the last record.
    pub last: Lsn,
    /// Where it ends and no other begins.
    pub end: Lsn,
    /// Number of records.
    pub records: usize,
}

/// Reads the segments of a directory from a record boundary to the end.
///
/// # Panics
/// When the records are not one chain from `start` on, or `pg_waldump` complains about anything but the end.
pub fn walk(directory: &Path, start: Lsn) -> Walk {
    let mut waldump = Command::new(bin_dir().join("pg_waldump"));
    waldump
        .arg("-p")
        .arg(directory)
        .arg("-s")
        .arg(start.to_string())
        .env("LC_ALL", "C");
    let output = waldump.output().expect("pg_waldump");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // rmgr: Heap  len (rec/tot):     54/    54, tx:  7, lsn: 0/01500028, prev 0/014FFFA0, desc: …
    let field = |line: &str, name: &str| -> Lsn {
        let rest = line.split_once(name).unwrap_or_else(|| panic!("{line}")).1;
        let text = rest.split(',').next().expect("a value").trim();
        text.parse().unwrap_or_else(|_| panic!("{text} in {line}"))
    };
    let mut last = None;
    let mut records = 0;
    for line in out.lines() {
        let (lsn, prev) = (field(line, "lsn: "), field(line, "prev "));
        match last {
            Some(last) => assert_eq!(prev, last, "{line}"),
            // Only a page header may come in between.
            None => assert!(
                lsn.0 - start.0 <= 40,
                "the first record is not at {start}: {line}"
            ),
        }
        last = Some(lsn);
        records += 1;
    }
    let last = last.unwrap_or_else(|| panic!("no record at {start}: {err}"));
    // Its only complaint: where the last record ends no other begins.
    let complaints: Vec<&str> = err.lines().collect();
    let expected = format!("error in WAL record at {last}: invalid record length at ");
    let end = match complaints.as_slice() {
        [one] => one
            .split_once(&expected)
            .and_then(|(_, rest)| rest.split(':').next()),
        _ => None,
    };
    let end = end.and_then(|end| end.parse().ok());
    Walk {
        last,
        end: end.unwrap_or_else(|| panic!("expected `{expected}…`, found {complaints:#?}")),
        records,
    }
}
