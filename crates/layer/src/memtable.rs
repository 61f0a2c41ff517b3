//! Values that are in no layer yet.
//!
//! Values of all pages are appended to one arena, a chunk at a time, so that a value costs no allocation of its own; a read
//! copies those that it needs. Those of a page are linked from the newest to the oldest, the way a read wants them; pages are
//! sorted and their values grouped once, at the flush. With values of 100 bytes for 100,000 pages at random, one takes 280 to 320 ns of a processor, and the flush goes
//! at 100 to 120 MB of values per second (`examples/ingest.rs`). What the table takes is counted and bounded: when it is full, its owner has to flush before it goes on.

use bytes::Bytes;
use lakebed_types::{Lsn, PageKey};
use rustc_hash::FxHashMap;

use crate::format::{LayerWriter, WriteError};
use crate::{Chain, SinceImage, Value, ValueKind};

/// Bytes of an arena's chunk. A longer value has memory of its own.
const CHUNK_BYTES: usize = 256 << 10;
/// Nodes that are allocated together.
const CHUNK_NODES: usize = 4096;
/// What a page takes in the hash table at its emptiest, right after it grew.
const PAGE_BYTES: usize = (size_of::<(PageKey, Head)>() + 1) * 16 / 7;
const NONE: u32 = u32::MAX;

/// Why a value was not taken. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemtableError {
    /// It has to be flushed first.
    #[error("the memory table is full: {bytes} bytes of {limit}")]
    Full {
        /// Bytes that it takes.
        bytes: usize,
        /// Bytes that it may take.
        limit: usize,
    },
    /// LSNs of a page went down: a bug of the caller.
    #[error("internal: page {key} has a value at {newest}, and one at {lsn} came after it")]
    Order {
        /// The page.
        key: PageKey,
        /// Its newest value.
        newest: Lsn,
        /// The refused one.
        lsn: Lsn,
    },
}

#[derive(Clone, Copy, Debug)]
struct Head {
    newest: u32,
    /// Number of the page: how many came before it.
    page: u32,
    /// LSN of the newest value: the node is seldom in the processor's caches.
    lsn: Lsn,
    since: SinceImage,
}

/// A value. What it consists of lies in the arena.
#[derive(Clone, Copy, Debug)]
struct Node {
    lsn: Lsn,
    older: u32,
    page: u32,
    chunk: u32,
    start: u32,
    length: u32,
    kind: ValueKind,
}

const _: () = assert!(size_of::<Node>() == 32);

/// A value as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// Its LSN.
    pub lsn: Lsn,
    /// What its bytes are.
    pub kind: ValueKind,
    /// The bytes.
    pub body: &'a [u8],
}

/// See the module header.
#[derive(Debug)]
pub struct Memtable {
    pages: FxHashMap<PageKey, Head>,
    nodes: Vec<Vec<Node>>,
    count: u32,
    chunks: Vec<Vec<u8>>,
    /// Capacity of the chunks.
    arena_bytes: usize,
    limit: usize,
}

impl Memtable {
    /// An empty table that takes at most `limit` bytes, all overhead counted, if it is at least a few chunks.
    pub fn new(limit: usize) -> Memtable {
        Memtable {
            pages: FxHashMap::default(),
            nodes: Vec::new(),
            count: 0,
            chunks: Vec::new(),
            arena_bytes: 0,
            limit,
        }
    }

    /// Bytes that the table takes.
    pub fn bytes(&self) -> usize {
        self.arena_bytes + self.nodes.len() * CHUNK_NODES * size_of::<Node>() + self.pages.len() * PAGE_BYTES
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the next version of a page; LSNs of one page never go down, and several values of one record have one LSN.
    /// Says what a read of the page has to replay now.
    ///
    /// # Errors
    /// See [`MemtableError`].
    pub fn push(
        &mut self,
        key: PageKey,
        lsn: Lsn,
        kind: ValueKind,
        body: &[u8],
    ) -> Result<SinceImage, MemtableError> {
        self.check_room(body.len())?;
        let count = self.pages.len() as u32;
        let head = self.pages.entry(key).or_insert(Head {
            newest: NONE,
            page: count,
            lsn,
            since: SinceImage::default(),
        });
        if head.lsn > lsn {
            let newest = head.lsn;
            return Err(MemtableError::Order { key, newest, lsn });
        }
        let (older, page) = (head.newest, head.page);
        head.lsn = lsn;
        head.newest = self.count;
        head.since.add(kind, body.len());
        let since = head.since;
        let place = self.keep(body);
        self.add_node((lsn, kind), (page, older), place);
        Ok(since)
    }

    /// Adds an image of the page as it was at `lsn`, which readers of that LSN and later ones then begin at. Values
    /// that came since stay after it. Older ones may be anywhere, but none between its LSN and the first one that this
    /// table takes: it would be passed over.
    ///
    /// # Errors
    /// [`MemtableError::Full`].
    pub fn insert_image(&mut self, key: &PageKey, lsn: Lsn, page: &[u8]) -> Result<(), MemtableError> {
        self.check_room(page.len())?;
        let mut head = self.pages.get(key).copied().unwrap_or(Head {
            newest: NONE,
            page: self.pages.len() as u32,
            lsn,
            since: SinceImage::default(),
        });
        let (mut newer, mut older) = (None, head.newest);
        while let Some(node) = self.node(older).filter(|node| node.lsn > lsn) {
            (newer, older) = (Some(older), node.older);
        }
        let (place, image) = (self.keep(page), self.count);
        self.add_node((lsn, ValueKind::Image), (head.page, older), place);
        match newer.and_then(|newer| self.node_mut(newer)) {
            Some(newer) => newer.older = image,
            None => head.newest = image,
        }
        head.since = self.since_newest(head.newest);
        self.pages.insert(*key, head);
        Ok(())
    }

    fn since_newest(&self, mut at: u32) -> SinceImage {
        let mut since = SinceImage::default();
        while let Some(node) = self.node(at).filter(|node| !node.kind.stands_alone()) {
            since.add(node.kind, node.length as usize);
            at = node.older;
        }
        since
    }

    /// What a read of the page's newest version replays, of what is here.
    pub fn since_image(&self, key: &PageKey) -> Option<SinceImage> {
        self.pages.get(key).map(|head| head.since)
    }

    /// Offers the page's values to a read.
    pub fn read(&self, key: &PageKey, chain: &mut Chain) {
        let mut at = self.pages.get(key).map_or(NONE, |head| head.newest);
        while let Some(node) = self.node(at) {
            at = node.older;
            if node.lsn > chain.upto() {
                continue;
            }
            let value = Value {
                kind: node.kind,
                body: Bytes::copy_from_slice(self.body(node)),
            };
            if !chain.offer_one(node.lsn, value) {
                return;
            }
        }
    }

    /// Gives each page with its values, oldest first: pages ascend.
    ///
    /// Values are grouped by a pass over all of them as they lie in memory. To follow a page's values from the newest to the
    /// oldest would wait for memory once for each; so the addresses of many are known at once.
    ///
    /// # Errors
    /// What `each` says.
    pub fn for_each_page<E>(
        &self,
        mut each: impl FnMut(&PageKey, &[Stored<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pages: Vec<(PageKey, u32)> = self.pages.iter().map(|(key, head)| (*key, head.page)).collect();
        pages.sort_unstable();
        // Where the values of each page begin, by the page's number.
        let mut next = vec![0; pages.len()];
        for node in self.nodes.iter().flatten() {
            next[node.page as usize] += 1;
        }
        let mut end = 0;
        for (_, page) in &pages {
            end += std::mem::replace(&mut next[*page as usize], end);
        }
        let mut order = vec![0; end];
        for (number, node) in (0..).zip(self.nodes.iter().flatten()) {
            let place = &mut next[node.page as usize];
            order[*place] = number;
            *place += 1;
        }
        let (mut begin, mut values) = (0, Vec::new());
        for (key, page) in &pages {
            let end = next[*page as usize];
            values.clear();
            let nodes = order[begin..end].iter().filter_map(|number| self.node(*number));
            values.extend(nodes.map(|node| Stored {
                lsn: node.lsn,
                kind: node.kind,
                body: self.body(node),
            }));
            begin = end;
            // An image came after the values that it stands among. It follows those of its LSN, as here.
            if !values.is_sorted_by_key(|value| value.lsn) {
                values.sort_by_key(|value| value.lsn);
            }
            each(key, &values)?;
        }
        Ok(())
    }

    /// Writes everything, in order.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write<W: std::io::Write>(&self, writer: &mut LayerWriter<W>) -> Result<(), WriteError> {
        self.for_each_page(|key, values| {
            let mut values = values.iter();
            values.try_for_each(|value| writer.body(key, value.lsn, value.kind, value.body))
        })
    }

    fn check_room(&self, body: usize) -> Result<(), MemtableError> {
        let full = self.count as usize == self.nodes.len() * CHUNK_NODES;
        let nodes = usize::from(full) * CHUNK_NODES * size_of::<Node>();
        let bytes = self.bytes();
        let wanted = bytes.saturating_add(self.allocation(body));
        // Numbers of nodes are 32 bits; no table of a sensible limit comes near.
        if wanted.saturating_add(nodes + PAGE_BYTES) > self.limit || self.count >= NONE - 1 {
            return Err(MemtableError::Full {
                bytes,
                limit: self.limit,
            });
        }
        Ok(())
    }

    /// Bytes to allocate before a body of this length is kept.
    fn allocation(&self, body: usize) -> usize {
        let free = self
            .chunks
            .last()
            .map_or(0, |chunk| chunk.capacity() - chunk.len());
        if body <= free { 0 } else { body.max(CHUNK_BYTES) }
    }

    /// Copies a body into the arena. Returns its chunk and where it begins in there.
    fn keep(&mut self, body: &[u8]) -> (u32, u32, u32) {
        let allocation = self.allocation(body.len());
        if allocation > 0 || self.chunks.is_empty() {
            self.arena_bytes += allocation;
            self.chunks.push(Vec::with_capacity(allocation));
        }
        let chunk = (self.chunks.len() - 1) as u32;
        let Some(last) = self.chunks.last_mut() else {
            return (chunk, 0, 0);
        };
        let start = last.len() as u32;
        last.extend_from_slice(body);
        (chunk, start, body.len() as u32)
    }

    fn body(&self, node: &Node) -> &[u8] {
        let chunk = self.chunks.get(node.chunk as usize);
        let start = node.start as usize;
        let body = chunk.and_then(|chunk| chunk.get(start..start + node.length as usize));
        body.unwrap_or_default()
    }

    fn add_node(
        &mut self,
        (lsn, kind): (Lsn, ValueKind),
        (page, older): (u32, u32),
        (chunk, start, length): (u32, u32, u32),
    ) {
        if self.count as usize == self.nodes.len() * CHUNK_NODES {
            self.nodes.push(Vec::with_capacity(CHUNK_NODES));
        }
        if let Some(nodes) = self.nodes.last_mut() {
            nodes.push(Node {
                lsn,
                older,
                page,
                chunk,
                start,
                length,
                kind,
            });
        }
        self.count += 1;
    }

    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes
            .get(at as usize / CHUNK_NODES)?
            .get(at as usize % CHUNK_NODES)
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes
            .get_mut(at as usize / CHUNK_NODES)?
            .get_mut(at as usize % CHUNK_NODES)
    }
}

#[cfg(test)]
#[path = "memtable_tests.rs"]
mod tests;
