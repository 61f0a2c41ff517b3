//! Changes of pages and of the catalogue on their way into the memory table.

use lakebed_layer::{Memtable, MemtableError, ValueKind};
use lakebed_types::{Lsn, PageKey};

use crate::catalogue::Entry;

/// Versions whose places in the memory table are looked for together.
const FETCHED_AT_ONCE: usize = 16;
/// Bytes of versions that [`Changes`] keep memory for: records with page images may come to megabytes.
const KEPT_BYTES: usize = 1 << 20;

/// Changes of one or more records, to be published together.
#[derive(Debug, Default)]
pub struct Changes {
    /// Versions of pages, in LSN order.
    versions: Vec<Version>,
    /// Their bytes, one behind the other: no allocation for each.
    bodies: Vec<u8>,
    /// Catalogue entries, in LSN order.
    pub entries: Vec<(Lsn, Entry)>,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    key: PageKey,
    lsn: Lsn,
    kind: ValueKind,
    bytes: usize,
}

impl Changes {
    /// Adds a version of a page, whose bytes `write` appends.
    pub fn value(&mut self, key: PageKey, lsn: Lsn, kind: ValueKind, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bodies.len();
        write(&mut self.bodies);
        let bytes = self.bodies.len() - before;
        self.versions.push(Version {
            key,
            lsn,
            kind,
            bytes,
        });
    }

    /// Versions of pages.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether there is no version of a page.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Back to none. Memory is kept, unless it became far more than usual.
    pub(super) fn clear(&mut self) {
        self.versions.clear();
        self.bodies.clear();
        self.bodies.shrink_to(KEPT_BYTES);
        self.entries.clear();
    }

    /// Keeps the versions of some pages only.
    pub fn retain(&mut self, keep: impl Fn(&PageKey) -> bool) {
        let (versions, bodies) = (
            std::mem::take(&mut self.versions),
            std::mem::take(&mut self.bodies),
        );
        let mut rest = &bodies[..];
        for version in versions {
            let (body, after) = rest.split_at(version.bytes);
            rest = after;
            if keep(&version.key) {
                self.value(version.key, version.lsn, version.kind, |out| {
                    out.extend_from_slice(body)
                });
            }
        }
    }

    /// Moves the versions into a table.
    pub(super) fn store(&self, table: &mut Memtable) -> Result<(), MemtableError> {
        let mut rest = &self.bodies[..];
        for versions in self.versions.chunks(FETCHED_AT_ONCE) {
            table.fetch(versions.iter().map(|version| version.key));
            for version in versions {
                let (body, after) = rest.split_at(version.bytes);
                rest = after;
                table.push(version.key, version.lsn, version.kind, body)?;
            }
        }
        Ok(())
    }
}
