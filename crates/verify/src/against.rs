//! The replayed cluster against files that stock Postgres recovered from the same WAL.
//!
//! Compared: every page of every relation fork but free space maps, fork sizes, SLRU pages, relation maps, files of
//! prepared transactions, which databases and tablespaces there are. Pages are compared under Postgres's masks; what
//! only the masks hide is counted by field. What cannot be equal is a class of its own with its reason, in the report
//! and in docs/verify-wal.md, never left out in silence.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use lakebed_redo::PageBytes;
use lakebed_types::data_directory::SLRU_SEGMENT_PAGES;
use lakebed_types::{ForkNumber, Lsn, PAGE_SIZE, RelTag, SlruKind};

use crate::cluster::Cluster;
use crate::compare::with_file;
use crate::directory::{DataDirectory, RELATION_SEGMENT_BLOCKS};
use crate::error::{VerifyError, io_error};
use crate::fields::{FieldDifference, Layout, differences};
use crate::report::{Against, Difference, LegitimateClass};
use crate::verify::Progress;

/// Most fields that are named of one page.
const FIELDS: usize = 16;
/// Pages that are read at a time.
const READ_PAGES: usize = 64;

const UNLOGGED: &str =
    "unlogged relations: WAL does not have them; recovery resets them to a copy of their init fork";
const FREE_SPACE_MAP: &str =
    "free space maps: a hint that WAL does not keep exact, and that a server repairs when it uses it";
const COMMIT_TS_OFF: &str =
    "the recovered server has track_commit_timestamp off and removed all pages when recovery ended";
const NO_SUCH_SEGMENT: &str =
    "pages of zeros that only one side has: a page without any version reads as zeros on both";

/// Compares with a recovered data directory.
///
/// # Errors
/// It is not a copy of this cluster, was recovered to another position, or cannot be read.
pub fn compare(
    cluster: &mut Cluster,
    base: &DataDirectory,
    directory: &Path,
    end: Lsn,
    shown: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Against, VerifyError> {
    let theirs = DataDirectory::open(directory)?;
    check_identity(base, &theirs, end)?;
    let pages = |segments: &BTreeMap<u32, (std::path::PathBuf, u32)>| {
        segments.values().map(|(_, pages)| u64::from(*pages)).sum::<u64>()
    };
    let all = theirs.forks.values().map(pages).sum::<u64>() * PAGE_SIZE as u64;
    let mut comparison = Comparison {
        cluster,
        shown,
        result: Against::default(),
        progress,
        done: 0,
        all,
    };
    for (rel, segments) in &theirs.forks {
        comparison.fork(*rel, segments)?;
    }
    comparison.forks_without_files(&theirs);
    comparison.slrus(&theirs)?;
    comparison.files(&theirs);
    Ok(comparison.result)
}

/// The same cluster, recovered to the same position.
fn check_identity(base: &DataDirectory, theirs: &DataDirectory, end: Lsn) -> Result<(), VerifyError> {
    let refuse = |reason: String| {
        Err(VerifyError::Directory {
            directory: theirs.root.clone(),
            reason,
        })
    };
    let (own, other) = (
        base.control.system_identifier(),
        theirs.control.system_identifier(),
    );
    if own != other {
        return refuse(format!(
            "its system identifier is {other}, the base has {own}: another cluster"
        ));
    }
    if base.version != theirs.version {
        return refuse(format!(
            "it is of Postgres {}, the base of {}",
            theirs.version, base.version
        ));
    }
    if theirs.label.is_some() {
        return refuse("it has a backup_label: no server has recovered it".to_owned());
    }
    let timeline = theirs.control.checkpoint().timeline;
    if timeline <= base.timeline() {
        return refuse(
            "recovery did not end with a promotion (its timeline is that of the base), so its files may be stale: \
             recover with recovery.signal and recovery_target_action=promote"
                .to_owned(),
        );
    }
    match switch_point(&theirs.root, timeline, base.timeline())? {
        Some(switch) if switch != end => refuse(format!(
            "it was recovered to {switch}, the replay ended at {end}: give --to {switch}"
        )),
        Some(_) => Ok(()),
        None => refuse(format!(
            "its pg_wal has no {timeline:08X}.history, which would tell where recovery ended"
        )),
    }
}

/// Where a timeline left its parent, from its history file: lines of parent, position and reason.
fn switch_point(root: &Path, timeline: u32, parent: u32) -> Result<Option<Lsn>, VerifyError> {
    let path = root.join("pg_wal").join(format!("{timeline:08X}.history"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path)(error)),
    };
    Ok(text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let of_parent = words.next()?.parse() == Ok(parent);
        let lsn = words.next()?.parse().ok()?;
        of_parent.then_some(lsn)
    }))
}

struct Comparison<'a> {
    cluster: &'a mut Cluster,
    shown: usize,
    result: Against,
    progress: &'a mut dyn FnMut(Progress),
    done: u64,
    all: u64,
}

impl Comparison<'_> {
    fn differs(&mut self, what: String, how: String, fields: Vec<FieldDifference>) {
        self.result.differing += 1;
        if self.result.differences.len() < self.shown {
            self.result.differences.push(Difference { what, how, fields });
        }
    }

    fn legitimate(&mut self, class: &str, justification: &'static str, count: u64) {
        let entry = self.result.legitimate.entry(class.to_owned()).or_default();
        *entry = LegitimateClass {
            count: entry.count + count,
            justification,
        };
    }

    fn fork(
        &mut self,
        rel: RelTag,
        segments: &BTreeMap<u32, (std::path::PathBuf, u32)>,
    ) -> Result<(), VerifyError> {
        let blocks = DataDirectory::blocks(segments);
        if rel.fork == ForkNumber::Fsm {
            self.legitimate("free space map", FREE_SPACE_MAP, u64::from(blocks));
            return Ok(());
        }
        if rel.fork != ForkNumber::Init && self.cluster.is_unlogged(rel) {
            self.legitimate("unlogged relation", UNLOGGED, u64::from(blocks));
            return Ok(());
        }
        self.result.forks += 1;
        let ours = self.cluster.sizes().get(&rel).copied();
        match ours {
            None => self.differs(
                rel.to_string(),
                format!("does not exist here, {blocks} blocks there"),
                Vec::new(),
            ),
            Some(size) if size != blocks => self.differs(
                rel.to_string(),
                format!("has {size} blocks here, {blocks} there"),
                Vec::new(),
            ),
            Some(_) => {}
        }
        let mut buffer = vec![0; READ_PAGES * PAGE_SIZE];
        for (number, (path, pages)) in segments {
            let first = number.saturating_mul(RELATION_SEGMENT_BLOCKS);
            let mut file = File::open(path).map_err(io_error(path))?;
            let mut left = *pages;
            let mut block = first;
            while left > 0 {
                let now = left.min(READ_PAGES as u32);
                let bytes = &mut buffer[..now as usize * PAGE_SIZE];
                file.read_exact(bytes).map_err(io_error(path))?;
                for theirs in bytes.as_chunks::<PAGE_SIZE>().0 {
                    if block < blocks && ours.is_some_and(|size| block < size) {
                        self.page(rel, block, theirs)?;
                    }
                    block = block.saturating_add(1);
                }
                left -= now;
                self.done += u64::from(now) * PAGE_SIZE as u64;
                (self.progress)(Progress::Files {
                    done: self.done,
                    all: self.all,
                });
            }
        }
        Ok(())
    }

    fn page(&mut self, rel: RelTag, block: u32, theirs: &PageBytes) -> Result<(), VerifyError> {
        let kind = rel.fork.name();
        *self.result.pages.entry(kind.to_owned()).or_default() += 1;
        let ours = self.cluster.page(rel, block)?;
        if ours == theirs {
            return Ok(());
        }
        let ours = *ours;
        let fields = with_file(rel, block, &ours, theirs, FIELDS);
        if !fields.is_empty() {
            self.differs(format!("{rel} block {block}"), String::new(), fields);
            return Ok(());
        }
        let layout = if rel.fork == ForkNumber::Vm {
            Layout::VisibilityMap
        } else {
            Layout::of(theirs)
        };
        let mut classes: Vec<(String, &'static str)> = differences(layout, &ours, theirs, usize::MAX)
            .iter()
            .map(|field| masked_class(layout, &field.field))
            .collect();
        classes.sort();
        classes.dedup();
        for (class, justification) in classes {
            self.legitimate(&class, justification, 1);
        }
        Ok(())
    }

    fn forks_without_files(&mut self, theirs: &DataDirectory) {
        let mut extra: Vec<(RelTag, u32)> = self
            .cluster
            .sizes()
            .iter()
            .map(|(rel, blocks)| (*rel, *blocks))
            .filter(|(rel, _)| rel.fork != ForkNumber::Fsm && !theirs.forks.contains_key(rel))
            .collect();
        extra.sort();
        for (rel, blocks) in extra {
            if rel.fork != ForkNumber::Init && self.cluster.is_unlogged(rel) {
                self.legitimate("unlogged relation", UNLOGGED, u64::from(blocks));
            } else {
                self.differs(
                    rel.to_string(),
                    format!("has {blocks} blocks here and does not exist there"),
                    Vec::new(),
                );
            }
        }
    }

    fn slrus(&mut self, theirs: &DataDirectory) -> Result<(), VerifyError> {
        let no_commit_ts = !theirs.slrus.keys().any(|(kind, _)| *kind == SlruKind::CommitTs);
        let mut segments: Vec<(SlruKind, u64)> = self
            .cluster
            .slrus()
            .keys()
            .chain(theirs.slrus.keys())
            .copied()
            .collect();
        segments.sort();
        segments.dedup();
        for (kind, segment) in segments {
            let ours = self.cluster.slrus().get(&(kind, segment)).copied().unwrap_or(0);
            let file = theirs.slrus.get(&(kind, segment));
            if file.is_none() && kind == SlruKind::CommitTs && no_commit_ts {
                self.legitimate("commit timestamps removed", COMMIT_TS_OFF, u64::from(ours));
                continue;
            }
            let content = match file {
                Some((path, _)) => fs::read(path).map_err(io_error(path))?,
                None => Vec::new(),
            };
            let pages = content.as_chunks::<PAGE_SIZE>().0;
            let count = ours.max(u32::try_from(pages.len()).unwrap_or(u32::MAX));
            for inside in 0..count {
                let number = segment * SLRU_SEGMENT_PAGES + u64::from(inside);
                let Ok(block) = u32::try_from(number) else {
                    return Err(VerifyError::Position(format!(
                        "page {number} of {} is beyond all transactions",
                        kind.directory()
                    )));
                };
                let other = pages.get(inside as usize);
                self.slru_page(kind, block, inside < ours, other)?;
            }
        }
        Ok(())
    }

    fn slru_page(
        &mut self,
        kind: SlruKind,
        number: u32,
        exists: bool,
        theirs: Option<&PageBytes>,
    ) -> Result<(), VerifyError> {
        let zeros = [0; PAGE_SIZE];
        let ours = if exists {
            *self.cluster.slru_page(kind, number)?
        } else {
            zeros
        };
        let what = format!("{} page {number}", kind.directory());
        if exists != theirs.is_some() && ours == *theirs.unwrap_or(&zeros) {
            let class = format!("{} page of zeros", kind.directory());
            self.legitimate(&class, NO_SUCH_SEGMENT, 1);
            return Ok(());
        }
        *self.result.pages.entry(kind.directory().to_owned()).or_default() += 1;
        let fields = differences(Layout::Slru, &ours, theirs.unwrap_or(&zeros), FIELDS);
        if !fields.is_empty() {
            self.differs(what, String::new(), fields);
        }
        Ok(())
    }

    /// Small files, and which databases and tablespaces there are.
    fn files(&mut self, theirs: &DataDirectory) {
        let place = |(tablespace, db): &(u32, u32)| format!("{tablespace}/{db}");
        let maps = self.cluster.relation_maps().clone();
        self.same("pg_filenode.map", &maps, &theirs.relation_maps, place);
        let versions = self.cluster.database_versions().clone();
        self.same("PG_VERSION", &versions, &theirs.database_versions, place);
        let prepared = self.cluster.two_phase().clone();
        self.same("pg_twophase", &prepared, &theirs.two_phase, |xid| {
            format!("{xid:08X}")
        });
        let present = |oids: &std::collections::BTreeSet<u32>| -> BTreeMap<u32, Bytes> {
            oids.iter().map(|oid| (*oid, Bytes::new())).collect()
        };
        let (ours, other) = (present(self.cluster.tablespaces()), present(&theirs.tablespaces));
        self.same("pg_tblspc", &ours, &other, u32::to_string);
    }

    fn same<K: Ord>(
        &mut self,
        kind: &'static str,
        ours: &BTreeMap<K, Bytes>,
        theirs: &BTreeMap<K, Bytes>,
        name: impl Fn(&K) -> String,
    ) {
        let keys: std::collections::BTreeSet<&K> = ours.keys().chain(theirs.keys()).collect();
        for key in keys {
            *self.result.files.entry(kind).or_default() += 1;
            let how = match (ours.get(key), theirs.get(key)) {
                (Some(ours), Some(theirs)) if ours == theirs => continue,
                (Some(_), Some(_)) => "its bytes differ",
                (Some(_), None) => "exists here and not there",
                _ => "exists there and not here",
            };
            self.differs(format!("{kind} {}", name(key)), how.to_owned(), Vec::new());
        }
    }
}

/// Class of a field that differs and is blanked by the masks: its name without numbers, and why it may differ.
fn masked_class(layout: Layout, field: &str) -> (String, &'static str) {
    let words: Vec<&str> = field
        .split(' ')
        .map(|word| {
            if word.starts_with(|c: char| c.is_ascii_digit()) {
                "n"
            } else {
                word
            }
        })
        .collect();
    let class = words.join(" ");
    let justification = match class.as_str() {
        "pd_lsn" => "LSN: Postgres's masks blank it; hints and pages restored at other times move it",
        "pd_checksum" => "checksum: it is computed when a page is written",
        "pd_flags" | "pd_prune_xid" => "hints of the page header",
        "free space" => "free space: its bytes have no meaning",
        "tuple n t_infomask" => "hint bits of a tuple: set by whoever reads it",
        "tuple n t_cid" => "command ids: not in WAL, meaningless after the transaction",
        "tuple n t_ctid" => "token of a speculative insertion: not in WAL",
        "tuple n data" => "padding behind a tuple",
        "line pointer n" => "dead marks of index items: hints, set by scans",
        "btpo_flags" | "btpo_cycleid" => "B-tree: garbage and split-end flags and the id of a running VACUUM",
        "hasho_flag" => "hash: the flag that a page has dead items",
        "nsn" | "flags" => {
            "split marks and hint flags of the page's kind, written after the record that finishes a split"
        }
        _ => "blanked by Postgres's mask for pages of this kind",
    };
    (format!("masked: {layout:?} {class}"), justification)
}
