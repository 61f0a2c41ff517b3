//! WAL segments: writes are published, `fdatasync` waits until a quorum has them.
//!
//! So "flushed" means "on a quorum" to Postgres, and all its own rules follow: no commit is acknowledged, no row
//! visible and no dirty page written before that. A wait is not interruptible: a cancel is taken up after it.
//!
//! `fsync` of a segment does not wait: `durable_rename` calls it with names of segments while it holds locks. The
//! sidecar starts Postgres with `fsync=on` and `wal_sync_method=fdatasync`, else nothing would ever wait.

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use lakebed_shim_abi::path::WalSegment;
use lakebed_shim_abi::region::Region;
use lakebed_shim_abi::ring::{Wait, WalWrite};
use libc::off_t;

use crate::socket::now_us;
use crate::{death, errno};

/// How often a wait looks whether the sidecar still lives.
const CHECK_NS: i64 = 100_000_000;

/// After a successful write.
pub(crate) fn written(region: &Region, segment: WalSegment, offset: off_t, len: usize) {
    let _kept = errno::Kept::now();
    let (Ok(offset), Ok(len)) = (u32::try_from(offset), u32::try_from(len)) else {
        death::end(format_args!("a write beyond a WAL segment: {offset} + {len}"));
    };
    let sequence = region.wal_reserve();
    while let Some(wait) = region.wal_wait_for_room(sequence) {
        let full = &region.control().counters.ring_full;
        full.fetch_add(1, Ordering::Relaxed);
        sleep(&wait);
    }
    let write = WalWrite { segment, offset, len };
    if let Some(word) = region.wal_publish(sequence, write) {
        wake(word);
    }
}

/// Returns when a quorum has all that was written before the call; otherwise never.
pub(crate) fn flush(region: &Region) {
    let _kept = errno::Kept::now();
    let sequence = region.wal_reserved();
    let Some(mut wait) = region.wal_wait_for_ack(sequence) else {
        return;
    };
    let counters = &region.control().counters;
    counters.flush_waits.fetch_add(1, Ordering::Relaxed);
    let begin = now_us();
    loop {
        sleep(&wait);
        match region.wal_wait_for_ack(sequence) {
            Some(next) => wait = next,
            None => break,
        }
    }
    let waited = now_us() - begin;
    counters.flush_wait_us.fetch_add(waited, Ordering::Relaxed);
}

/// Until the word changes, a signal comes or the time is over; after the latter, only if the sidecar lives.
fn sleep(wait: &Wait<'_>) {
    let timeout = libc::timespec {
        tv_sec: 0,
        tv_nsec: CHECK_NS,
    };
    // Not a private futex: the other side is another process.
    // SAFETY: a word in the shared mapping, a timeout on the stack.
    let result = unsafe {
        let word = ptr::from_ref::<AtomicU32>(wait.word);
        libc::syscall(
            libc::SYS_futex,
            word,
            libc::FUTEX_WAIT,
            wait.value,
            &raw const timeout,
        )
    };
    if result != 0 && errno::get() == libc::ETIMEDOUT {
        death::check();
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: a word in the shared mapping.
    unsafe { libc::syscall(libc::SYS_futex, ptr::from_ref(word), libc::FUTEX_WAKE, i32::MAX) };
}
