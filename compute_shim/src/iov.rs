//! Buffers of one transfer, at most as many blocks as a call handles at once.
//!
//! A longer transfer is cut: a short read or write is legal, and its caller comes back for the rest.

use lakebed_shim_abi::{PAGE_SIZE, SEGMENT_BLOCKS};
use libc::{c_int, iovec};

/// Most blocks of one transfer. Postgres transfers at most 128 (`io_combine_limit`).
pub(crate) const MAX_BLOCKS: usize = 512;
const MAX_BUFFERS: usize = 128;

/// Some buffers and their length in total.
pub(crate) struct Buffers {
    list: [iovec; MAX_BUFFERS],
    count: usize,
    bytes: usize,
}

impl Buffers {
    /// One buffer; on the hot path, so the others are not even cleared.
    pub(crate) fn one(base: *mut libc::c_void, len: usize) -> One {
        One(iovec {
            iov_base: base,
            iov_len: len.min((MAX_BLOCKS - 1) * PAGE_SIZE),
        })
    }

    /// The caller's buffers, cut to what one call handles. None if the list is malformed.
    ///
    /// # Safety
    /// `list` points to `count` buffers.
    pub(crate) unsafe fn cut(list: *const iovec, count: c_int) -> Option<Buffers> {
        let given = usize::try_from(count).ok()?;
        let none = iovec {
            iov_base: core::ptr::null_mut(),
            iov_len: 0,
        };
        let mut buffers = Buffers {
            list: [none; MAX_BUFFERS],
            count: 0,
            bytes: 0,
        };
        for index in 0..given.min(MAX_BUFFERS) {
            // SAFETY: index < count.
            let mut buffer = unsafe { *list.add(index) };
            let room = (MAX_BLOCKS - 1) * PAGE_SIZE - buffers.bytes;
            buffer.iov_len = buffer.iov_len.min(room);
            buffers.list[index] = buffer;
            buffers.count += 1;
            buffers.bytes += buffer.iov_len;
            if buffer.iov_len == room {
                break;
            }
        }
        Some(buffers)
    }
}

/// A single buffer.
pub(crate) struct One(iovec);

/// What both kinds can do.
pub(crate) trait Transfer {
    fn buffers(&self) -> &[iovec];
    fn bytes(&self) -> usize;
}

impl Transfer for Buffers {
    fn buffers(&self) -> &[iovec] {
        &self.list[..self.count]
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Transfer for One {
    fn buffers(&self) -> &[iovec] {
        core::slice::from_ref(&self.0)
    }

    fn bytes(&self) -> usize {
        self.0.iov_len
    }
}

/// The blocks that these bytes of a segment touch, as `first..end`, none of them beyond the segment.
pub(crate) fn blocks(offset: u64, bytes: usize) -> (u32, u32) {
    let page = PAGE_SIZE as u64;
    let limit = u64::from(SEGMENT_BLOCKS);
    let first = (offset / page).min(limit);
    let end = offset.saturating_add(bytes as u64).div_ceil(page).min(limit);
    (first as u32, end.max(first) as u32)
}
