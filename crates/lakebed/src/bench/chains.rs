//! Chains of page versions, cut from the WAL of a stock Postgres: a page, the records that changed it since in the
//! form in which a pageserver stores them, and the page as it was after some of them.
//!
//! Every page begins in the WAL (only relations that were made in it are followed), so that the server's data
//! directory is needed for nothing but comparing.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use lakebed_layer::{Value, ValueKind};
use lakebed_redo::{PageBytes, PageRecord, mask, redo_block, rmgr};
use lakebed_types::data_directory::database_directory;
use lakebed_types::{ForkNumber, Lsn, PAGE_SIZE, PageKey, RelTag};
use lakebed_wal::control::ControlFile;

use super::written_wal;

/// Lengths that are measured.
pub const LENGTHS: [usize; 5] = [1, 13, 25, 100, 300];
/// The longest.
const LONGEST: usize = LENGTHS[LENGTHS.len() - 1];
/// Chains that are kept of each kind of page, for each length that they just reach.
const KEPT: usize = 64;
/// Kind of a page that no record has changed.
const NO_KIND: &str = "other";
/// Relations below it were there before (`FirstNormalObjectId`).
const FIRST_OF_USERS: u32 = 16384;

/// Versions of one page.
#[derive(Debug)]
pub struct Chain {
    /// The page.
    pub key: PageKey,
    /// Before the first record.
    pub base: Box<PageBytes>,
    /// The records.
    pub values: Vec<(Lsn, Value)>,
    /// The page after so many records, for each of [`LENGTHS`] that the chain reaches.
    pub after: Vec<(usize, Box<PageBytes>)>,
}

/// What was cut.
#[derive(Debug, Default)]
pub struct Cut {
    /// By resource manager.
    pub chains: BTreeMap<&'static str, Vec<Chain>>,
    /// Changes of pages by resource manager of the page and type of record: how many, and bytes of their stored form.
    pub types: BTreeMap<(&'static str, String), (u64, u64)>,
    /// Pages as of the last record that were compared with the server's files.
    pub compared: usize,
    /// Of these, pages that differ by more than what the server's own checks mask: which, and the first byte.
    pub unlike: Vec<String>,
}

struct Page {
    now: Box<PageBytes>,
    kind: &'static str,
    chain: Chain,
}

/// Name of the kind of page that records of a resource manager change.
fn kind(rmid: u8) -> Option<&'static str> {
    Some(match rmid {
        rmgr::HEAP | rmgr::HEAP2 => "heap",
        rmgr::BTREE => "btree",
        rmgr::HASH => "hash",
        rmgr::GIN => "gin",
        rmgr::GIST => "gist",
        rmgr::SPGIST => "spgist",
        rmgr::BRIN => "brin",
        rmgr::SEQUENCE => "sequence",
        _ => return None,
    })
}

/// Cuts all WAL of a data directory from `start`, the start of a record. The server has written a checkpoint and rests.
///
/// # Errors
/// The WAL or a record is not readable, or a record does not replay.
pub fn cut(data: &Path, start: Lsn) -> anyhow::Result<Cut> {
    let control = fs::read(data.join("global/pg_control")).context("reading pg_control")?;
    let control = ControlFile::decode(&control)?;
    let mut pages = HashMap::new();
    let mut cut = Cut::default();
    let mut stored = Vec::new();
    written_wal::records(data, &control, start, |record| {
        let record = &record.decode()?;
        for block in &record.blocks {
            let followed = block.rel.fork == ForkNumber::Main && block.rel.relnode >= FIRST_OF_USERS;
            let page_record = PageRecord::new(record, block);
            let key = (block.rel, block.block);
            if !followed || !(page_record.starts_page() || pages.contains_key(&key)) {
                continue;
            }
            let page = pages
                .entry(key)
                .or_insert_with(|| Page::new(block.rel, block.block));
            redo_block(record, block, &mut page.now)?;
            page.kind = kind(record.rmid).unwrap_or(page.kind);
            stored.clear();
            page_record.encode(&mut stored);
            let operation = format!("{}/{:#04x}", record.rmid, record.info & 0xF0);
            let counted = cut.types.entry((page.kind, operation)).or_default();
            *counted = (counted.0 + 1, counted.1 + stored.len() as u64);
            let starts = page_record.starts_page();
            page.push(record.end, starts, &stored, &mut cut);
        }
        Ok(())
    })?;
    for ((rel, block), mut page) in pages {
        let file = database_directory(control.version(), rel.spcnode, rel.dbnode);
        let file = data.join(file).join(rel.relnode.to_string());
        let mut expected = [0; PAGE_SIZE];
        let there = File::open(file)
            .and_then(|file| file.read_exact_at(&mut expected, u64::from(block) * PAGE_SIZE as u64));
        // Without it the relation was dropped or truncated.
        // A sequence's page is ahead in the WAL by the numbers that the server may give out without a record. Pages that
        // came as an image and were never changed by a record have no chain; SP-GiST's metapage, one of these, is
        // written without WAL.
        if there.is_ok() && !["sequence", NO_KIND].contains(&page.kind) {
            cut.compared += 1;
            let mut found = *page.now;
            mask::by_layout(&mut found, block);
            mask::by_layout(&mut expected, block);
            if let Some(at) = (0..PAGE_SIZE).find(|&at| found.get(at) != expected.get(at)) {
                cut.unlike
                    .push(format!("{} page {rel} block {block} at byte {at}", page.kind));
            }
        }
        page.keep(&mut cut);
    }
    Ok(cut)
}

impl Page {
    fn new(rel: RelTag, block: u32) -> Page {
        let key = PageKey::Rel { rel, block };
        Page {
            now: Box::new([0; PAGE_SIZE]),
            kind: NO_KIND,
            chain: Chain::new(key, &[0; PAGE_SIZE]),
        }
    }

    /// Takes a record that was replayed.
    fn push(&mut self, end: Lsn, starts: bool, stored: &[u8], cut: &mut Cut) {
        if starts {
            self.keep(cut);
            return;
        }
        let value = Value {
            kind: ValueKind::Delta,
            body: Bytes::copy_from_slice(stored),
        };
        self.chain.values.push((end, value));
        let length = self.chain.values.len();
        if LENGTHS.contains(&length) {
            self.chain.after.push((length, self.now.clone()));
        }
        if length == LONGEST {
            self.keep(cut);
        }
    }

    /// Keeps the chain if there are too few like it, and begins the next.
    fn keep(&mut self, cut: &mut Cut) {
        let next = Chain::new(self.chain.key, &self.now);
        let chain = std::mem::replace(&mut self.chain, next);
        if chain.after.is_empty() {
            return;
        }
        let kept = cut.chains.entry(self.kind).or_default();
        let like = kept.iter().filter(|kept| kept.after.len() == chain.after.len());
        if like.count() < KEPT {
            kept.push(chain.in_one_block());
        }
    }
}

impl Chain {
    fn new(key: PageKey, base: &PageBytes) -> Chain {
        Chain {
            key,
            base: Box::new(*base),
            values: Vec::new(),
            after: Vec::new(),
        }
    }

    /// The values one behind the other in memory, as a layer file holds a page's versions and a read of it returns them.
    fn in_one_block(mut self) -> Chain {
        let bodies: Vec<&[u8]> = self.values.iter().map(|(_, value)| &value.body[..]).collect();
        let mut block = Bytes::from(bodies.concat());
        for (_, value) in &mut self.values {
            value.body = block.split_to(value.body.len());
        }
        self
    }
}
