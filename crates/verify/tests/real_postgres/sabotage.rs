//! Redo that is wrong in one place for each resource manager.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use lakebed_ingest::{CLOG_ABORTED, CLOG_COMMITTED, CatalogueChange, Effects, IngestError, SlruDelta};
use lakebed_redo::{PageBytes, page};
use lakebed_types::{ForkNumber, Lsn, PageKey, SlruKind};
use lakebed_verify::{Native, Redo};
use lakebed_wal::record::{BlockRef, DecodedRecord};

/// What was made wrong: by resource manager, where and what a report must name.
pub type Done = BTreeMap<&'static str, (Lsn, String)>;

/// Wrong pages: each mistake is made once, on the first record that it fits.
#[derive(Default)]
pub struct WrongPages(pub Mutex<Done>);

struct Mistake {
    rmgr: &'static str,
    rmid: u8,
    /// Upper half of `xl_info`.
    operation: u8,
    block_id: u8,
    make: fn(&DecodedRecord, &mut PageBytes) -> String,
}

fn special(page: &PageBytes) -> usize {
    page::special(page)
}

fn item(page: &PageBytes, number: u16) -> usize {
    usize::from(page::item_id(page, number).unwrap().offset)
}

fn number(record: &DecodedRecord) -> u16 {
    u16::from_le_bytes([record.main_data[0], record.main_data[1]])
}

const MISTAKES: [Mistake; 12] = [
    Mistake {
        rmgr: "Heap",
        rmid: 10,
        operation: 0x00,
        block_id: 0,
        // The tuple's own number, off by one.
        make: |record, page| {
            let number = number(record);
            let at = item(page, number) + 16;
            page[at] = page[at].wrapping_add(1);
            format!("tuple {number} t_ctid")
        },
    },
    Mistake {
        rmgr: "Heap2",
        rmid: 9,
        operation: 0x50,
        block_id: 0,
        make: |_, page| {
            let number = page::item_count(page);
            let at = item(page, number) + 18;
            page[at] ^= 1;
            format!("tuple {number} t_infomask2")
        },
    },
    Mistake {
        rmgr: "Heap2 (map)",
        rmid: 9,
        operation: 0x40,
        block_id: 0,
        // The neighbour's bit.
        make: |_, page| {
            page[24 + 4000] ^= 1;
            "bits of the heap blocks 16000 to 16003 of this map page".to_owned()
        },
    },
    Mistake {
        rmgr: "Btree",
        rmid: 11,
        operation: 0x00,
        block_id: 0,
        make: |_, page| {
            // BTP_INCOMPLETE_SPLIT.
            let at = special(page) + 12;
            page[at] ^= 0x80;
            "btpo_flags".to_owned()
        },
    },
    Mistake {
        rmgr: "Hash",
        rmid: 12,
        operation: 0x20,
        block_id: 1,
        make: |_, page| {
            let tuples = f64::from_le_bytes(page[32..40].try_into().unwrap()) + 1.0;
            page[32..40].copy_from_slice(&tuples.to_le_bytes());
            "hashm_ntuples".to_owned()
        },
    },
    Mistake {
        rmgr: "Gin",
        rmid: 13,
        operation: 0x60,
        block_id: 0,
        make: |_, page| {
            page[40] = page[40].wrapping_add(1);
            "nPendingHeapTuples".to_owned()
        },
    },
    Mistake {
        rmgr: "Gist",
        rmid: 14,
        operation: 0x00,
        block_id: 0,
        make: |_, page| {
            let at = special(page) + 8;
            page[at] ^= 1;
            "rightlink".to_owned()
        },
    },
    Mistake {
        rmgr: "Sequence",
        rmid: 15,
        operation: 0x00,
        block_id: 0,
        make: |_, page| {
            let at = item(page, 1) + 24;
            page[at] = page[at].wrapping_add(1);
            "item 1 data".to_owned()
        },
    },
    Mistake {
        rmgr: "SPGist",
        rmid: 16,
        operation: 0x10,
        block_id: 0,
        make: |_, page| {
            let at = special(page);
            page[at] ^= 0x40;
            "flags".to_owned()
        },
    },
    Mistake {
        rmgr: "BRIN",
        rmid: 17,
        operation: 0x30,
        block_id: 0,
        make: |record, page| {
            let number = number(record);
            let at = item(page, number);
            page[at] ^= 1;
            format!("item {number} bt_blkno")
        },
    },
    Mistake {
        rmgr: "BRIN (map)",
        rmid: 17,
        operation: 0x10,
        block_id: 1,
        make: |_, page| {
            page[24 + 6 * 1000] ^= 1;
            "revmap tids".to_owned()
        },
    },
    Mistake {
        rmgr: "Generic",
        rmid: 20,
        operation: 0x00,
        block_id: 0,
        make: |_, page| {
            page[33] ^= 1;
            "bytes 32..48".to_owned()
        },
    },
];

/// Names of all mistakes in [`WrongPages`].
pub fn mistakes() -> Vec<&'static str> {
    MISTAKES.iter().map(|mistake| mistake.rmgr).collect()
}

impl Redo for WrongPages {
    fn page(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String> {
        Native.page(record, block, page)?;
        let checked = block.image.as_ref().is_some_and(|image| !image.apply);
        let mut done = self.0.lock().unwrap();
        for mistake in &MISTAKES {
            if checked
                && (mistake.rmid, mistake.operation) == (record.rmid, record.info & 0xF0)
                && mistake.block_id == block.id
                && !done.contains_key(mistake.rmgr)
            {
                let field = (mistake.make)(record, page);
                done.insert(mistake.rmgr, (record.start, field));
            }
        }
        Ok(())
    }

    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError> {
        Native.effects(record, effects)
    }
}

/// Wrong effects on what is no relation page, for one kind of record each; only a recovered cluster shows them. The
/// report must name what is behind the resource manager.
#[derive(Default)]
pub struct WrongEffects(pub Mutex<BTreeMap<&'static str, String>>);

impl WrongEffects {
    fn once(&self, rmgr: &'static str, what: String, make: impl FnOnce()) {
        let mut done = self.0.lock().unwrap();
        if let std::collections::btree_map::Entry::Vacant(entry) = done.entry(rmgr) {
            entry.insert(what);
            make();
        }
    }

    fn slru(&self, key: &mut PageKey, delta: &mut SlruDelta) {
        let PageKey::Slru { kind, page } = *key else {
            return;
        };
        let what = format!("{} page {page}", kind.directory());
        match delta {
            SlruDelta::ClogSetStatus { status, .. } => self.once("Transaction", what, || {
                *status = CLOG_COMMITTED + CLOG_ABORTED - *status;
            }),
            SlruDelta::CommitTsSet { pg_time, .. } => self.once("CommitTs", what, || *pg_time += 1),
            SlruDelta::MembersSet { members, .. } => self.once("MultiXact", what, || members[0].0 += 1),
            // The page before, which is full.
            SlruDelta::ZeroPage if kind == SlruKind::Clog && page > 0 => {
                let page = page - 1;
                self.once("CLOG", format!("pg_xact page {page}"), || {
                    *key = PageKey::Slru { kind, page };
                });
            }
            SlruDelta::ZeroPage | SlruDelta::MultiOffsetsSet { .. } => {}
        }
    }

    /// Whether the change stays.
    fn catalogue(&self, change: &mut CatalogueChange) -> bool {
        let mut stays = true;
        match change {
            // Cut one block too far, every time: relations that are truncated early are dropped later.
            CatalogueChange::RelationTruncated { rel, blocks }
                if rel.fork == ForkNumber::Main && *blocks > 9 =>
            {
                self.0.lock().unwrap().insert("Storage", rel.to_string());
                *blocks -= 1;
            }
            // Of a database that stays.
            CatalogueChange::RelationMapUpdated {
                db,
                tablespace,
                bytes,
            } if *db == 5 => self.once("RelMap", format!("pg_filenode.map {tablespace}/{db}"), || {
                let mut wrong = bytes.to_vec();
                wrong[100] ^= 1;
                *bytes = Bytes::from(wrong);
            }),
            CatalogueChange::DatabaseDropped { db, tablespaces } => {
                let what = format!("PG_VERSION {}/{db}", tablespaces[0]);
                self.once("Database", what, || stays = false);
            }
            CatalogueChange::TablespaceCreated { oid, .. } => {
                self.once("Tablespace", format!("pg_tblspc {oid}"), || stays = false);
            }
            // The one that stays prepared.
            CatalogueChange::TwoPhasePrepared { xid, file }
                if file.windows(9).any(|name| name == b"left open") =>
            {
                let what = format!("pg_twophase {xid:08X}");
                self.once("Transaction (prepare)", what, || stays = false);
            }
            _ => {}
        }
        stays
    }
}

impl Redo for WrongEffects {
    fn page(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String> {
        Native.page(record, block, page)?;
        // XLOG: images of a heap page of databases that nothing changes any more are restored with one bit wrong.
        const TEXT_SEARCH_CONFIGURATIONS: u32 = 3602;
        let heap = page::special(page) == page.len() && block.rel.fork == ForkNumber::Main;
        if record.rmid == 0 && heap && block.rel.relnode == TEXT_SEARCH_CONFIGURATIONS {
            let at = page.len() - 1;
            page[at] ^= 1;
            let what = format!("/{TEXT_SEARCH_CONFIGURATIONS} block {}", block.block);
            self.0.lock().unwrap().insert("XLOG", what);
        }
        Ok(())
    }

    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError> {
        Native.effects(record, effects)?;
        for (key, delta) in effects.slru.iter_mut().chain(effects.commit_ts.iter_mut()) {
            self.slru(key, delta);
        }
        effects.catalogue.retain_mut(|change| self.catalogue(change));
        Ok(())
    }
}

/// Bits of visibility maps stay set when a heap record clears them in passing.
pub struct ForgottenMapClears;

impl Redo for ForgottenMapClears {
    fn page(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String> {
        Native.page(record, block, page)
    }

    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError> {
        Native.effects(record, effects)?;
        effects.vm_clears.clear();
        Ok(())
    }
}
