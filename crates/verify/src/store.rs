//! Pages of the replayed cluster, with bounded memory.
//!
//! A page begins as its base's file has it, or as zeros, and stays in memory from its first use on. When the budget is
//! used up, pages leave it, least recently used first as a clock's hand finds them: an unchanged one is forgotten, a
//! changed one goes to a scratch file in the directory for temporary files, which has no name and vanishes with the
//! process. The base itself is never written to.

use std::collections::BTreeMap;
use std::fs::File;
use std::hint;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lakebed_redo::{PageBytes, page};
use lakebed_types::data_directory::{RELATION_SEGMENT_BLOCKS, SLRU_SEGMENT_PAGES};
use lakebed_types::{PAGE_SIZE, RelTag, SlruKind};
use rustc_hash::FxHashMap;

use crate::error::VerifyError;

/// What pages belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageFile {
    /// A relation fork.
    Rel(RelTag),
    /// An SLRU.
    Slru(SlruKind),
}

/// Fewest pages in memory: a record touches up to 33.
const MIN_PAGES: usize = 1024;
/// Most files of the base that are open at a time.
const MAX_OPEN_FILES: usize = 256;

/// Blocks whose locations lie side by side.
const BLOCKS_PER_GROUP: u32 = 512;
/// Frames whose pages are one piece of memory.
const FRAMES_PER_SLAB: usize = 256;

#[derive(Clone, Copy, Debug, Default)]
enum Location {
    /// As the base has it, or zeros.
    #[default]
    Base,
    Frame(u32),
    Scratch(u64),
}

/// The page that a frame holds is in the slabs.
#[derive(Debug)]
struct Frame {
    owner: Option<(PageFile, u32)>,
    /// Differs from the base and from the scratch file.
    dirty: bool,
    /// Used since the hand passed last.
    used: bool,
    scratch: Option<u64>,
}

/// A file's pages that are not as the base has them, and where the base has the others.
#[derive(Debug, Default)]
struct Pages {
    /// By block number divided by [`BLOCKS_PER_GROUP`]; a relation's pages are mostly asked for all over it.
    locations: FxHashMap<u32, Box<[Location; BLOCKS_PER_GROUP as usize]>>,
    /// Blocks below this number begin as the base's file of that name has them, all others as zeros.
    base: Option<(PageFile, u32)>,
}

impl Pages {
    fn location(&self, block: u32) -> Location {
        let group = self.locations.get(&(block / BLOCKS_PER_GROUP));
        group.map_or(Location::Base, |group| group[(block % BLOCKS_PER_GROUP) as usize])
    }

    fn location_mut(&mut self, block: u32) -> &mut Location {
        let empty = || Box::new([Location::Base; BLOCKS_PER_GROUP as usize]);
        let group = self
            .locations
            .entry(block / BLOCKS_PER_GROUP)
            .or_insert_with(empty);
        &mut group[(block % BLOCKS_PER_GROUP) as usize]
    }

    /// Blocks that are not as the base has them, or have been looked at.
    fn located(&self) -> Vec<u32> {
        let mut blocks = Vec::new();
        for (group, locations) in &self.locations {
            let of_group = (group * BLOCKS_PER_GROUP..).zip(&locations[..]);
            blocks.extend(
                of_group
                    .filter(|(_, location)| !matches!(location, Location::Base))
                    .map(|(block, _)| block),
            );
        }
        blocks
    }
}

/// See the module header.
#[derive(Debug)]
pub struct PageStore {
    limit: usize,
    files: FxHashMap<PageFile, Pages>,
    frames: Vec<Frame>,
    /// Pages of the frames, in the same order. Fresh memory, which the system gives as zeros when it is first used.
    slabs: Vec<Vec<PageBytes>>,
    free_frames: Vec<usize>,
    hand: usize,
    /// Frame of the page that was asked for last: a record's page is asked for several times in a row.
    last: usize,
    scratch: Option<File>,
    scratch_slots: u64,
    free_slots: Vec<u64>,
    /// Segment files of the base, by number.
    base: FxHashMap<PageFile, BTreeMap<u64, PathBuf>>,
    open: FxHashMap<(PageFile, u64), File>,
}

impl PageStore {
    /// A store that keeps at most `memory_bytes` of pages in memory (at least a small number of pages).
    pub fn new(memory_bytes: usize) -> PageStore {
        PageStore {
            limit: (memory_bytes / PAGE_SIZE).clamp(MIN_PAGES, u32::MAX as usize),
            files: FxHashMap::default(),
            frames: Vec::new(),
            slabs: Vec::new(),
            free_frames: Vec::new(),
            hand: 0,
            last: 0,
            scratch: None,
            scratch_slots: 0,
            free_slots: Vec::new(),
            base: FxHashMap::default(),
            open: FxHashMap::default(),
        }
    }

    /// Tells of a file of the base: its segments, and how many of its blocks count.
    pub fn add_base(&mut self, file: PageFile, segments: BTreeMap<u64, PathBuf>, blocks: u32) {
        self.base.insert(file, segments);
        self.files.insert(
            file,
            Pages {
                locations: FxHashMap::default(),
                base: Some((file, blocks)),
            },
        );
    }

    /// Pages that are in the scratch file, or were.
    pub fn spilled_pages(&self) -> u64 {
        self.scratch_slots
    }

    /// Touches the header of a page in memory and what is known of it, if it is there.
    pub fn expect_header(&self, file: PageFile, block: u32) {
        if let Some(at) = self.in_memory(file, block) {
            hint::black_box((self.frames[at].used, page_of(&self.slabs, at)[0]));
        }
    }

    /// Touches where a page in memory has its last line pointers and its last items, if it is there.
    pub fn expect_items(&self, file: PageFile, block: u32) {
        if let Some(at) = self.in_memory(file, block) {
            let page = page_of(&self.slabs, at);
            let touched = [page::lower(page), page::upper(page)].map(|end| page.get(end).copied());
            hint::black_box(touched);
        }
    }

    fn in_memory(&self, file: PageFile, block: u32) -> Option<usize> {
        match self.files.get(&file)?.location(block) {
            Location::Frame(at) => Some(at as usize),
            Location::Base | Location::Scratch(_) => None,
        }
    }

    /// A page to look at.
    ///
    /// # Errors
    /// The base or the scratch file cannot be read, or the scratch file cannot be written.
    pub fn read(&mut self, file: PageFile, block: u32) -> Result<&PageBytes, VerifyError> {
        let at = self.fetch(file, block)?;
        Ok(page_of(&self.slabs, at))
    }

    /// A page to change.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn write(&mut self, file: PageFile, block: u32) -> Result<&mut PageBytes, VerifyError> {
        let at = self.fetch(file, block)?;
        self.frames[at].dirty = true;
        Ok(page_of_mut(&mut self.slabs, at))
    }

    /// Forgets all blocks from `first` on, also those of the base: they begin as zeros from now on.
    pub fn cut(&mut self, file: PageFile, first: u32) {
        self.forget(file, |block| block >= first);
        if let Some((_, blocks)) = self.files.get_mut(&file).and_then(|pages| pages.base.as_mut()) {
            *blocks = (*blocks).min(first);
        }
    }

    /// Forgets a range of an SLRU's pages and the base's segment that they are in.
    pub fn cut_segment(&mut self, kind: SlruKind, segment: u64) {
        let file = PageFile::Slru(kind);
        self.forget(file, |block| u64::from(block) / SLRU_SEGMENT_PAGES == segment);
        self.open.remove(&(file, segment));
        if let Some(segments) = self.base.get_mut(&file) {
            segments.remove(&segment);
        }
    }

    fn forget(&mut self, file: PageFile, which: impl Fn(u32) -> bool) {
        let Some(pages) = self.files.get_mut(&file) else {
            return;
        };
        for block in pages.located().into_iter().filter(|block| which(*block)) {
            match std::mem::take(pages.location_mut(block)) {
                Location::Frame(at) => {
                    let frame = &mut self.frames[at as usize];
                    frame.owner = None;
                    self.free_slots.extend(frame.scratch.take());
                    self.free_frames.push(at as usize);
                }
                Location::Scratch(slot) => self.free_slots.push(slot),
                Location::Base => {}
            }
        }
    }

    /// Makes `to`, which must be empty, a copy of `from` as it is now.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn copy(&mut self, from: PageFile, to: PageFile) -> Result<(), VerifyError> {
        let Some(pages) = self.files.get(&from) else {
            return Ok(());
        };
        let base = pages.base;
        let changed = pages.located();
        self.files.insert(
            to,
            Pages {
                locations: FxHashMap::default(),
                base,
            },
        );
        for block in changed {
            let page = *self.read(from, block)?;
            *self.write(to, block)? = page;
        }
        Ok(())
    }

    /// Index of the frame that holds the page.
    fn fetch(&mut self, file: PageFile, block: u32) -> Result<usize, VerifyError> {
        let last = self.frames.get_mut(self.last);
        if let Some(frame) = last.filter(|frame| frame.owner == Some((file, block))) {
            frame.used = true;
            return Ok(self.last);
        }
        let pages = self.files.entry(file).or_default();
        let (base, location) = (pages.base, pages.location(block));
        if let Location::Frame(at) = location {
            let at = at as usize;
            self.frames[at].used = true;
            self.last = at;
            return Ok(at);
        }
        let at = self.frame()?;
        let slot = match location {
            Location::Scratch(slot) => {
                if let Some(scratch) = &self.scratch {
                    scratch
                        .read_exact_at(page_of_mut(&mut self.slabs, at), slot * PAGE_SIZE as u64)
                        .map_err(scratch_error)?;
                }
                Some(slot)
            }
            _ => {
                match base.filter(|(_, blocks)| block < *blocks) {
                    Some((origin, _)) => self.read_base(origin, block, at)?,
                    None => page_of_mut(&mut self.slabs, at).fill(0),
                }
                None
            }
        };
        let frame = &mut self.frames[at];
        (frame.owner, frame.dirty, frame.used, frame.scratch) = (Some((file, block)), false, true, slot);
        // No more than fit into 32 bits.
        *self.files.entry(file).or_default().location_mut(block) = Location::Frame(at as u32);
        self.last = at;
        Ok(at)
    }

    /// Reads a page of the base into a frame; what lies behind the end of its file is zeros.
    fn read_base(&mut self, file: PageFile, block: u32, at: usize) -> Result<(), VerifyError> {
        let per_segment = match file {
            PageFile::Rel(_) => u64::from(RELATION_SEGMENT_BLOCKS),
            PageFile::Slru(_) => SLRU_SEGMENT_PAGES,
        };
        let (segment, inside) = (u64::from(block) / per_segment, u64::from(block) % per_segment);
        let page = page_of_mut(&mut self.slabs, at);
        let Some(path) = self.base.get(&file).and_then(|segments| segments.get(&segment)) else {
            page.fill(0);
            return Ok(());
        };
        let failed = |source| VerifyError::Io {
            path: path.clone(),
            source,
        };
        if !self.open.contains_key(&(file, segment)) {
            if self.open.len() >= MAX_OPEN_FILES {
                self.open.clear();
            }
            self.open
                .insert((file, segment), File::open(path).map_err(failed)?);
        }
        let mut done = 0;
        while let Some(opened) = self.open.get(&(file, segment)).filter(|_| done < PAGE_SIZE) {
            match opened.read_at(&mut page[done..], inside * PAGE_SIZE as u64 + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        page[done..].fill(0);
        Ok(())
    }

    /// A frame without an owner.
    fn frame(&mut self) -> Result<usize, VerifyError> {
        if let Some(at) = self.free_frames.pop() {
            return Ok(at);
        }
        if self.frames.len() < self.limit {
            if self.frames.len().is_multiple_of(FRAMES_PER_SLAB) {
                self.slabs.push(vec![[0; PAGE_SIZE]; FRAMES_PER_SLAB]);
            }
            self.frames.push(Frame {
                owner: None,
                dirty: false,
                used: false,
                scratch: None,
            });
            return Ok(self.frames.len() - 1);
        }
        loop {
            self.hand = (self.hand + 1) % self.frames.len();
            let frame = &mut self.frames[self.hand];
            if !std::mem::take(&mut frame.used) {
                break;
            }
        }
        self.evict(self.hand)?;
        Ok(self.hand)
    }

    fn evict(&mut self, at: usize) -> Result<(), VerifyError> {
        let frame = &mut self.frames[at];
        if frame.dirty {
            let slot = match frame.scratch.or_else(|| self.free_slots.pop()) {
                Some(slot) => slot,
                None => {
                    self.scratch_slots += 1;
                    self.scratch_slots - 1
                }
            };
            if self.scratch.is_none() {
                self.scratch = Some(tempfile::tempfile().map_err(scratch_error)?);
            }
            if let Some(scratch) = &self.scratch {
                scratch
                    .write_all_at(page_of(&self.slabs, at), slot * PAGE_SIZE as u64)
                    .map_err(scratch_error)?;
            }
            frame.scratch = Some(slot);
        }
        let slot = frame.scratch.take();
        if let Some((file, block)) = frame.owner.take()
            && let Some(pages) = self.files.get_mut(&file)
        {
            *pages.location_mut(block) = slot.map_or(Location::Base, Location::Scratch);
        }
        Ok(())
    }
}

fn page_of(slabs: &[Vec<PageBytes>], at: usize) -> &PageBytes {
    &slabs[at / FRAMES_PER_SLAB][at % FRAMES_PER_SLAB]
}

fn page_of_mut(slabs: &mut [Vec<PageBytes>], at: usize) -> &mut PageBytes {
    &mut slabs[at / FRAMES_PER_SLAB][at % FRAMES_PER_SLAB]
}

fn scratch_error(source: io::Error) -> VerifyError {
    VerifyError::Io {
        path: std::env::temp_dir().join("(scratch file)"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lakebed_types::ForkNumber;

    const REL: RelTag = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };

    #[test]
    fn pages_survive_a_small_budget_and_a_cut_is_final() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("16384");
        let blocks = 3 * MIN_PAGES as u32;
        let bytes: Vec<u8> = (0..blocks)
            .flat_map(|block| [block as u8 | 1; PAGE_SIZE])
            .collect();
        std::fs::write(&path, bytes).unwrap();
        let file = PageFile::Rel(REL);
        let mut store = PageStore::new(0);
        store.add_base(file, BTreeMap::from([(0, path)]), blocks);
        for block in (0..blocks).step_by(2) {
            let page = store.write(file, block).unwrap();
            assert_eq!(page[0], block as u8 | 1);
            page[..4].copy_from_slice(&block.to_le_bytes());
        }
        assert!(store.spilled_pages() > 0);
        let copy = PageFile::Rel(RelTag { dbnode: 6, ..REL });
        store.copy(file, copy).unwrap();
        store.cut(file, 100);
        for block in 0..blocks {
            let expected = if block % 2 == 0 {
                block.to_le_bytes()
            } else {
                [block as u8 | 1; 4]
            };
            assert_eq!(store.read(copy, block).unwrap()[..4], expected, "{block}");
            let own = if block < 100 { expected } else { [0; 4] };
            assert_eq!(store.read(file, block).unwrap()[..4], own, "{block}");
        }
        // Written again after the cut, the old base does not come back.
        store.write(file, 200).unwrap()[0] = 9;
        store.cut(file, 0);
        assert_eq!(store.read(file, 200).unwrap()[0], 0);
        assert_eq!(store.read(file, 1).unwrap()[0], 0);
        assert!(store.frames.len() <= MIN_PAGES);
    }
}
