//! Writes the corpora that the fuzz targets of the crates `redo`, `wal` and `ingest` start from: real records, real
//! pages and a piece of real WAL. Done by `tests/fuzz-corpus`, not by a test run.
//!
//! | file | content |
//! |---|---|
//! | `redo/tests/fuzz/corpus/pages.zst` | compressed; each: end (8 bytes), block (4), length (4), stored record, page before it |
//! | `wal/tests/corpus/records` | each: start, end (8 each), length (4), bytes of the record |
//! | `wal/tests/corpus/stream` | first byte's LSN, system identifier (8 each), bytes of a segment (4), WAL |
//! | `wal/tests/corpus/control` | the first 296 bytes of a control file, all that mean something in any version |

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lakebed_redo::{PageBytes, PageRecord};
use lakebed_types::Lsn;
use lakebed_wal::control::ControlFile;
use lakebed_wal::stream::RawRecord;

/// Records of one type that are kept, and pages of one role in them.
const KEPT: usize = 2;
/// Longer ones teach nothing that shorter ones do not.
const LONGEST: usize = 2000;
/// Bytes of WAL: a dozen records, most of them continued on another page.
const STREAM: usize = 48 << 10;

/// Collects samples of a run.
#[derive(Default)]
pub struct CorpusWriter {
    pages: BTreeMap<(u8, u8, u8), Vec<Vec<u8>>>,
    records: BTreeMap<(u8, u8), Vec<Vec<u8>>>,
}

impl CorpusWriter {
    /// Offers a record.
    pub fn record(&mut self, record: &RawRecord, rmid: u8, info: u8) {
        let kept = self.records.entry((rmid, info & 0xF0)).or_default();
        if kept.len() < KEPT && record.bytes.len() <= LONGEST {
            let mut entry = record.start.0.to_le_bytes().to_vec();
            entry.extend(record.end.0.to_le_bytes());
            entry.extend((record.bytes.len() as u32).to_le_bytes());
            entry.extend(&record.bytes[..]);
            kept.push(entry);
        }
    }

    /// Offers a record's page as it was before.
    pub fn page(&mut self, record: &PageRecord<'_>, page: &PageBytes) {
        let role = (record.rmid, record.info & 0xF0, record.own.id);
        let kept = self.pages.entry(role).or_default();
        if kept.len() < KEPT {
            let mut stored = Vec::new();
            record.encode(&mut stored);
            let mut entry = record.end.0.to_le_bytes().to_vec();
            entry.extend(record.own.block.to_le_bytes());
            entry.extend((stored.len() as u32).to_le_bytes());
            entry.extend(stored);
            entry.extend(page);
            kept.push(entry);
        }
    }

    /// Whether a page of this role (resource manager, operation, id of the reference) was offered.
    pub fn has_role(&self, role: (u8, u8, u8)) -> bool {
        self.pages.contains_key(&role)
    }

    /// Writes the files. `wal` is the WAL from `start` on, `start` the first byte of a page.
    pub fn write(self, control: &ControlFile, start: Lsn, wal: &[u8]) {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pages: Vec<u8> = self.pages.into_values().flatten().flatten().collect();
        let pages = zstd::bulk::compress(&pages, 19).unwrap();
        fs::write(crates.join("redo/tests/fuzz/corpus/pages.zst"), pages).unwrap();
        let records: Vec<u8> = self.records.into_values().flatten().flatten().collect();
        fs::write(crates.join("wal/tests/corpus/records"), records).unwrap();
        let mut stream = start.0.to_le_bytes().to_vec();
        stream.extend(control.system_identifier().to_le_bytes());
        stream.extend(control.segment_bytes().to_le_bytes());
        stream.extend(&wal[..STREAM]);
        fs::write(crates.join("wal/tests/corpus/stream"), stream).unwrap();
        fs::write(crates.join("wal/tests/corpus/control"), &control.encode()[..296]).unwrap();
    }
}
