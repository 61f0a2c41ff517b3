//! The vocabulary of effects.

use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PAGE_SIZE, PageKey, RelTag, SlruKind};
use smallvec::SmallVec;

use crate::delta::SlruDelta;
use crate::slru::SlruCut;

/// All that a record changes, except the bytes of the pages that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Every block reference of the record, in its order: fork and block number. A block at or beyond a fork's size
    /// extends the fork.
    pub touched: SmallVec<[(RelTag, u32); 2]>,
    /// Visibility-map bits that the record clears without naming the map's page.
    pub vm_clears: Vec<VmClear>,
    /// Tails of visibility-map pages that a truncation clears.
    pub vm_truncates: Vec<VmTruncate>,
    /// Changes of SLRU pages, to be applied in order. A page without any version is a page of zeros.
    pub slru: Vec<(PageKey, SlruDelta)>,
    /// Changes of `pg_commit_ts` pages, to be applied in order if [`crate::ControlState::commit_ts_active`] was
    /// true before the record, else to be ignored. Whether a commit stores its time is a setting of the server that
    /// commit records do not tell.
    pub commit_ts: Vec<(PageKey, SlruDelta)>,
    /// Changes of the catalogue, to be applied in order, after the page changes of the same record.
    pub catalogue: Vec<CatalogueChange>,
}

impl Effects {
    /// Back to none, with the memory kept.
    pub(crate) fn clear(&mut self) {
        let Effects {
            touched,
            vm_clears,
            vm_truncates,
            slru,
            commit_ts,
            catalogue,
        } = self;
        touched.clear();
        vm_clears.clear();
        vm_truncates.clear();
        slru.clear();
        commit_ts.clear();
        catalogue.clear();
    }
}

/// Offset of the visibility map's bits in its page: behind the page header.
const VM_HEADER_BYTES: usize = 24;

/// Bits of the visibility map that a heap record clears (`visibilitymap_clear`, `access/heap/visibilitymap.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClear {
    /// The visibility map fork.
    pub rel: RelTag,
    /// Page of the map.
    pub block: u32,
    /// Heap block whose bits are cleared.
    pub heap_block: u32,
    /// Which of its bits: 1 all-visible, 2 all-frozen.
    pub flags: u8,
}

impl VmClear {
    /// Clears the bits; returns whether that changed the page. Postgres leaves the page's LSN alone.
    pub fn apply(&self, page: &mut [u8; PAGE_SIZE]) -> bool {
        let slot = self.heap_block % crate::heap_vm::HEAP_BLOCKS_PER_VM_PAGE;
        let byte = &mut page[VM_HEADER_BYTES + (slot / 4) as usize];
        let mask = (self.flags & 3) << (slot % 4 * 2);
        let changed = *byte & mask != 0;
        *byte &= !mask;
        changed
    }
}

/// The tail of the last remaining page of a visibility map that was truncated in the middle of that page
/// (`visibilitymap_prepare_truncate`). A map that ends before this page stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmTruncate {
    /// The visibility map fork.
    pub rel: RelTag,
    /// Page of the map.
    pub block: u32,
    /// First heap block that is gone: its bits and all after it on this page become zero.
    pub first_heap_block: u32,
}

impl VmTruncate {
    /// Clears the tail.
    pub fn apply(&self, page: &mut [u8; PAGE_SIZE]) {
        let slot = self.first_heap_block % crate::heap_vm::HEAP_BLOCKS_PER_VM_PAGE;
        let byte = VM_HEADER_BYTES + (slot / 4) as usize;
        page[byte] &= (1u8 << (slot % 4 * 2)) - 1;
        page[byte + 1..].fill(0);
    }
}

/// Settings of the server that the control file keeps for standbys (`xl_parameter_change`, `access/xlog_internal.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// One change of what a timeline's catalogue holds. Growth of a relation is not here: it follows from
/// [`Effects::touched`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueChange {
    /// A fork came into being with no blocks, unless it exists (`XLOG_SMGR_CREATE`).
    RelationCreated {
        /// The fork.
        rel: RelTag,
    },
    /// A fork was cut to at most this many blocks (`XLOG_SMGR_TRUNCATE`); a shorter fork, or one that does not exist,
    /// stays as it is. Versions of the blocks cut off must never again serve as a base.
    RelationTruncated {
        /// The fork: a truncation of a heap comes as up to three changes, for Main, Fsm and Vm.
        rel: RelTag,
        /// Blocks of this fork that may remain.
        blocks: u32,
    },
    /// A relation is gone, with all its forks; its relfilenode may be used again.
    RelationDropped {
        /// The relation; the fork is Main and stands for all.
        rel: RelTag,
    },
    /// `CREATE DATABASE … STRATEGY file_copy`, or a database moved to another tablespace: all files of the source
    /// directory as of this record. What the target directory held before is gone.
    DatabaseCreatedByCopy {
        /// Oid of the source database.
        source_db: u32,
        /// Its tablespace.
        source_tablespace: u32,
        /// Oid of the new database.
        db: u32,
        /// Its tablespace.
        tablespace: u32,
    },
    /// A database came into being empty; its contents follow as records of their own.
    DatabaseCreatedWalLog {
        /// Oid of the database.
        db: u32,
        /// Its default tablespace.
        tablespace: u32,
    },
    /// A database's directories are gone, with all that was in them.
    DatabaseDropped {
        /// Oid of the database.
        db: u32,
        /// Tablespaces in which its directory was removed. A move to another tablespace drops just the old one.
        tablespaces: Vec<u32>,
    },
    /// A `pg_filenode.map` was replaced.
    RelationMapUpdated {
        /// Oid of the database; 0 for the shared map.
        db: u32,
        /// The database's default tablespace; 1664 (`pg_global`) for the shared map.
        tablespace: u32,
        /// The file's bytes, [`crate::relation_map_bytes`] of them.
        bytes: Bytes,
    },
    /// A transaction was prepared.
    TwoPhasePrepared {
        /// Its id.
        xid: u32,
        /// Bytes of its file, as recovery writes it; [`crate::two_phase_path`] tells where.
        file: Bytes,
    },
    /// A prepared transaction was committed or rolled back: its file ([`crate::two_phase_path`]) is gone.
    TwoPhaseFinished {
        /// Its id.
        xid: u32,
    },
    /// A tablespace came into being.
    TablespaceCreated {
        /// Its oid.
        oid: u32,
        /// Where `pg_tblspc/<oid>` points to; empty for an in-place tablespace. Bytes as the server wrote them.
        path: Bytes,
    },
    /// A tablespace, empty by then, is gone.
    TablespaceDropped {
        /// Its oid.
        oid: u32,
    },
    /// A replication origin got on (`replorigin_advance`). Unless `force`, each position only moves forward.
    OriginAdvanced {
        /// The origin's id.
        origin: u16,
        /// Position on the remote side.
        remote: Lsn,
        /// End of this record.
        local: Lsn,
        /// Move backward too.
        force: bool,
    },
    /// A replication origin's progress was forgotten.
    OriginDropped {
        /// The origin's id.
        origin: u16,
    },
    /// Old pages of an SLRU are gone.
    SlruTruncated {
        /// Which SLRU.
        kind: SlruKind,
        /// Which pages.
        cut: SlruCut,
    },
    /// A transaction, or an aborted subtransaction, ended: an entry for the index from LSN to time.
    TransactionEnd {
        /// Its id.
        xid: u32,
        /// When it ended by the server's clock, microseconds since 1970.
        time_micros: i64,
        /// Committed or aborted.
        committed: bool,
    },
    /// The server switched `full_page_writes`.
    FullPageWrites {
        /// To this.
        on: bool,
    },
    /// The server's settings that the control file keeps changed.
    ParametersChanged(Parameters),
    /// A named restore point (`pg_create_restore_point`).
    RestorePoint {
        /// Its name.
        name: Bytes,
        /// When it was made, microseconds since 1970.
        time_micros: i64,
    },
    /// A piece of a file in `pg_logical/mappings`, which logical decoding of a rewritten system table needs
    /// (`heap_xlog_logical_rewrite`). The file is cut to `offset` first.
    LogicalRewriteMapping {
        /// Name of the file.
        file_name: String,
        /// Where the piece belongs, in bytes.
        offset: u64,
        /// The piece.
        bytes: Bytes,
    },
}

/// Whether a change concerns the pages of every shard, so that its record must reach all of them.
pub fn reaches_every_shard(change: &CatalogueChange) -> bool {
    matches!(
        change,
        CatalogueChange::RelationTruncated { .. }
            | CatalogueChange::RelationDropped { .. }
            | CatalogueChange::DatabaseCreatedByCopy { .. }
            | CatalogueChange::DatabaseCreatedWalLog { .. }
            | CatalogueChange::DatabaseDropped { .. }
    )
}

impl Effects {
    /// The SLRU changes that take place on a server whose commit timestamps are on or off.
    pub fn slru_changes(&self, commit_ts_active: bool) -> impl Iterator<Item = &(PageKey, SlruDelta)> {
        self.slru
            .iter()
            .chain(self.commit_ts.iter().filter(move |_| commit_ts_active))
    }

    /// Pages of visibility maps that change without being named by the record.
    pub fn unnamed_pages(&self) -> impl Iterator<Item = PageKey> + '_ {
        debug_assert!(
            self.vm_clears
                .iter()
                .all(|clear| clear.rel.fork == ForkNumber::Vm)
        );
        let cleared = self.vm_clears.iter().map(|clear| (clear.rel, clear.block));
        let truncated = self.vm_truncates.iter().map(|cut| (cut.rel, cut.block));
        cleared
            .chain(truncated)
            .map(|(rel, block)| PageKey::Rel { rel, block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: RelTag = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Vm,
    };

    #[test]
    fn clearing_bits_of_the_map() {
        let mut page = [0xff; PAGE_SIZE];
        let clear = VmClear {
            rel: VM,
            block: 1,
            heap_block: 32672 + 6,
            flags: 2,
        };
        assert!(clear.apply(&mut page));
        assert!(!clear.apply(&mut page));
        assert_eq!(page[24..27], [0xff, 0b1101_1111, 0xff]);
    }

    #[test]
    fn clearing_the_tail_of_the_map() {
        for (first, byte, kept) in [
            (0, 24, 0),
            (1, 24, 3),
            (5, 25, 3),
            (7, 25, 0x3f),
            (32671, 8191, 0x3f),
        ] {
            let mut page = [0xff; PAGE_SIZE];
            let cut = VmTruncate {
                rel: VM,
                block: 0,
                first_heap_block: first,
            };
            cut.apply(&mut page);
            assert!(page[..byte].iter().all(|&b| b == 0xff), "{first}");
            assert_eq!(page[byte], kept, "{first}");
            assert!(page[byte + 1..].iter().all(|&b| b == 0), "{first}");
        }
    }
}
