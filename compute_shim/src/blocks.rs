//! Reading and writing the blocks of a managed file, by the protocol of [`lakebed_shim_abi::word`].
//!
//! A process holds several blocks BUSY in two cases: as a writer, taking them in ascending order, and as a reader
//! that has claimed a run and waits for the sidecar alone, never for another process. So no two wait for each other.

use core::sync::atomic::{Ordering, fence};

use lakebed_shim_abi::message::{Blocks, Question};
use lakebed_shim_abi::region::{Region, SlotRef};
use lakebed_shim_abi::word::{State, Word};
use lakebed_shim_abi::{PAGE_SIZE, SEGMENT_BLOCKS};
use libc::{c_int, off_t, ssize_t};

use crate::iov::{MAX_BLOCKS, Transfer, blocks};
use crate::socket::{Reply, ask, now_us, tell};
use crate::{death, errno, fds, real};

/// Blocks asked for ahead of a sequential reader, and how often it is looked whether to.
const AHEAD_BLOCKS: u32 = 64;
const AHEAD_EVERY: u32 = 16;
/// Most blocks of one question.
const MAX_FILL: usize = 64;

/// A managed file as one process has it open.
#[derive(Clone, Copy)]
pub(crate) struct File {
    pub(crate) fd: c_int,
    pub(crate) of: SlotRef,
    pub(crate) region: Region,
}

/// The tier refused a block for good.
struct Refused;

/// Reads at an offset, filling what is absent.
pub(crate) fn read(file: File, into: &impl Transfer, offset: off_t) -> ssize_t {
    let (first, end) = blocks(offset as u64, into.bytes());
    // An unlinked file whose slot is another's by now: what it holds is of no interest, but must not be mixed up.
    if offset < 0 || first == end || !file.region.is_current(file.of) {
        return transfer_in(file.fd, into, offset);
    }
    let run = fds::note_read(file.fd, first, end);
    if run >= AHEAD_EVERY && end % AHEAD_EVERY < end - first {
        ask_ahead(file, end, AHEAD_BLOCKS);
    }
    // Nearly every read is of one block: the small array costs nothing to clear.
    if end - first <= 4 {
        read_sized::<4>(file, into, offset)
    } else {
        read_sized::<MAX_BLOCKS>(file, into, offset)
    }
}

fn read_sized<const N: usize>(file: File, into: &impl Transfer, offset: off_t) -> ssize_t {
    let (first, end) = blocks(offset as u64, into.bytes());
    let mut seen = [0u64; N];
    loop {
        for block in first..end {
            match present(file, block, end) {
                Ok(word) => seen[(block - first) as usize] = word.bits(),
                Err(Refused) => return errno::fail(libc::EIO) as ssize_t,
            }
        }
        let result = transfer_in(file.fd, into, offset);
        // Pairs with the evictor: had it punched a hole before our read, its word would be visible now.
        fence(Ordering::SeqCst);
        let unchanged = (first..end).all(|block| load(file, block).bits() == seen[(block - first) as usize]);
        if unchanged {
            return result;
        }
        let repeated = &file.region.control().counters.reads_repeated;
        repeated.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes at an offset.
pub(crate) fn write(file: File, from: &impl Transfer, offset: off_t) -> ssize_t {
    let (first, end) = blocks(offset as u64, from.bytes());
    if offset < 0 || first == end || !file.region.is_current(file.of) {
        return transfer_out(file.fd, from, offset);
    }
    if end - first <= 4 {
        write_sized::<4>(file, from, offset)
    } else {
        write_sized::<MAX_BLOCKS>(file, from, offset)
    }
}

fn write_sized<const N: usize>(file: File, from: &impl Transfer, offset: off_t) -> ssize_t {
    let (first, end) = blocks(offset as u64, from.bytes());
    let page = PAGE_SIZE as u64;
    let (begin, stop) = (offset as u64, offset as u64 + from.bytes() as u64);
    // What each block falls back to if the write does not reach its end.
    let mut before = [Word::from_bits(0); N];
    for block in first..end {
        let whole = begin <= u64::from(block) * page && (u64::from(block) + 1) * page <= stop;
        match lock(file, block, !whole) {
            Ok(word) => before[(block - first) as usize] = word,
            Err(Refused) => {
                (first..block).for_each(|locked| release(file, locked, before[(locked - first) as usize]));
                return errno::fail(libc::EIO) as ssize_t;
            }
        }
    }
    let result = transfer_out(file.fd, from, offset);
    let kept = errno::Kept::now();
    let written = begin + u64::try_from(result).unwrap_or(0);
    let epoch = file.region.control().epoch.load(Ordering::SeqCst);
    for block in first..end {
        let old = before[(block - first) as usize];
        let complete = (u64::from(block) + 1) * page <= written;
        if complete || old.state() == State::Present {
            store(file, block, old.next(State::Busy, 0).next(State::Present, epoch));
        } else {
            release(file, block, old);
        }
    }
    drop(kept);
    result
}

/// Cuts the file: the blocks that go are local, so that the file grows again with local ones.
pub(crate) fn truncate(file: File, len: off_t) -> c_int {
    let (_, end) = blocks(0, usize::try_from(real::size(file.fd)).unwrap_or(usize::MAX));
    if len >= 0 && file.region.is_current(file.of) {
        let (_, keep) = blocks(0, len as usize);
        if !(len as usize).is_multiple_of(PAGE_SIZE) && keep <= end && present(file, keep - 1, keep).is_err()
        {
            return errno::fail(libc::EIO);
        }
        let epoch = file.region.control().epoch.load(Ordering::SeqCst);
        for block in keep..end {
            if let Ok(old) = lock(file, block, false) {
                store(file, block, old.next(State::Busy, 0).next(State::Present, epoch));
            }
        }
    }
    // SAFETY: the caller's descriptor.
    unsafe { real::ftruncate()(file.fd, len) }
}

/// Makes every block present, for readers that do not come through here again. False if the tier refuses.
pub(crate) fn fill_all(file: File) -> bool {
    let (_, end) = blocks(0, usize::try_from(real::size(file.fd)).unwrap_or(usize::MAX));
    !file.region.is_current(file.of) || (0..end).all(|block| present(file, block, end).is_ok())
}

/// Asks the sidecar for blocks that will be read soon, from the first absent one on.
pub(crate) fn ask_ahead(file: File, first: u32, count: u32) {
    let end = first.saturating_add(count).min(SEGMENT_BLOCKS);
    let absent = (first..end).find(|&block| load(file, block).state() == State::Absent);
    if let Some(first) = absent.filter(|_| file.region.is_current(file.of)) {
        tell(&Question::Prefetch(Blocks {
            of: file.of,
            first,
            count: end - first,
        }));
    }
}

fn transfer_in(fd: c_int, into: &impl Transfer, offset: off_t) -> ssize_t {
    // SAFETY: the caller's descriptor and buffers.
    match into.buffers() {
        [one] => unsafe { real::pread()(fd, one.iov_base, one.iov_len, offset) },
        many => unsafe { real::preadv()(fd, many.as_ptr(), many.len() as c_int, offset) },
    }
}

fn transfer_out(fd: c_int, from: &impl Transfer, offset: off_t) -> ssize_t {
    // SAFETY: the caller's descriptor and buffers.
    match from.buffers() {
        [one] => unsafe { real::pwrite()(fd, one.iov_base, one.iov_len, offset) },
        many => unsafe { real::pwritev()(fd, many.as_ptr(), many.len() as c_int, offset) },
    }
}

fn load(file: File, block: u32) -> Word {
    Word::from_bits(file.region.word(file.of.slot, block).load(Ordering::Acquire))
}

fn store(file: File, block: u32, word: Word) {
    let place = file.region.word(file.of.slot, block);
    place.store(word.bits(), Ordering::Release);
}

/// Ends our hold on a block with the state and epoch it had.
fn release(file: File, block: u32, before: Word) {
    let word = before.next(State::Busy, 0).next(before.state(), before.epoch());
    store(file, block, word);
}

/// Makes the block ours if its word is still this one.
fn claim(file: File, block: u32, word: Word) -> bool {
    let busy = word.next(State::Busy, death::pid());
    let place = file.region.word(file.of.slot, block);
    place
        .compare_exchange(word.bits(), busy.bits(), Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Waits until the block is present; fills absent ones, this and those that follow it up to `end`, in one question.
fn present(file: File, block: u32, end: u32) -> Result<Word, Refused> {
    let mut patience = Patience::new();
    loop {
        let word = load(file, block);
        match word.state() {
            State::Present => return Ok(word),
            State::Absent => fill_run(file, block, end)?,
            State::Busy | State::Evicting => patience.wait(word),
        }
    }
}

/// Claims what is absent from `first` on without a gap, and has it filled.
fn fill_run(file: File, first: u32, end: u32) -> Result<(), Refused> {
    let mut before = [Word::ABSENT; MAX_FILL];
    let mut count = 0;
    for block in (first..end).take(MAX_FILL) {
        let word = load(file, block);
        if word.state() != State::Absent || !claim(file, block, word) {
            break;
        }
        before[count] = word;
        count += 1;
    }
    if count == 0 {
        return Ok(());
    }
    let filled = fill(file, first, count as u32);
    for (block, word) in (first..).zip(&before[..count]) {
        let state = if filled.is_ok() {
            State::Present
        } else {
            State::Absent
        };
        store(file, block, word.next(State::Busy, 0).next(state, word.epoch()));
    }
    filled
}

/// Takes a block for writing and returns the word it had. With `must_fill`, an absent block is filled first and the word
/// returned says present.
fn lock(file: File, block: u32, must_fill: bool) -> Result<Word, Refused> {
    let mut patience = Patience::new();
    loop {
        let word = load(file, block);
        match word.state() {
            State::Busy | State::Evicting => patience.wait(word),
            State::Present | State::Absent if !claim(file, block, word) => {}
            State::Absent if must_fill => {
                if fill(file, block, 1).is_err() {
                    release(file, block, word);
                    return Err(Refused);
                }
                return Ok(Word::from_bits(word.bits() & !3));
            }
            State::Present | State::Absent => return Ok(word),
        }
    }
}

/// Has the sidecar put blocks that we hold into the file.
fn fill(file: File, first: u32, count: u32) -> Result<(), Refused> {
    let begin = now_us();
    let of = file.of;
    let reply = ask(&Question::Fill(Blocks { of, first, count }));
    let counters = &file.region.control().counters;
    counters
        .blocks_filled
        .fetch_add(u64::from(count), Ordering::Relaxed);
    counters
        .fill_wait_us
        .fetch_add(now_us() - begin, Ordering::Relaxed);
    if reply == Reply::Done {
        Ok(())
    } else {
        Err(Refused)
    }
}

/// Waiting for another process that holds a block: microseconds as a rule.
struct Patience {
    rounds: u32,
}

impl Patience {
    fn new() -> Patience {
        Patience { rounds: 0 }
    }

    fn wait(&mut self, word: Word) {
        let _kept = errno::Kept::now();
        self.rounds += 1;
        if self.rounds < 50 {
            // SAFETY: no arguments.
            unsafe { libc::sched_yield() };
            return;
        }
        let pause = libc::timespec {
            tv_sec: 0,
            tv_nsec: 20_000,
        };
        // SAFETY: a valid structure.
        unsafe { libc::nanosleep(&raw const pause, core::ptr::null_mut()) };
        if self.rounds.is_multiple_of(4000) {
            death::check();
            // Whoever died while writing may have left half a page, and nobody here can know: start afresh.
            if let Some(owner) = word.owner()
                && !death::process_lives(owner)
            {
                death::end(format_args!("process {owner} died while it held a block"));
            }
        }
    }
}
