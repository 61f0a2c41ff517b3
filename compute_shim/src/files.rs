//! Calls that name a file.
//!
//! A managed file exists for Postgres if the local file exists *or* the tier has it. Every open asks the sidecar,
//! which makes the local file (sparse, at its right size) and says where the states of its blocks are. `stat` and
//! `access` ask only when there is no local file.

use core::ffi::CStr;

use lakebed_shim_abi::message::{Outcome, Question};
use lakebed_shim_abi::path::{
    DirKind, MAX_PATH_BYTES, PathKind, WalSegment, classify, classify_dir, relative,
};
use lakebed_shim_abi::region::{Region, SlotRef};
use libc::{DIR, FILE, c_char, c_int, mode_t, off_t};

use crate::blocks::{self, File};
use crate::fds::{self, Meaning};
use crate::socket::{Reply, ask};
use crate::{death, errno, real, start};

/// The path below the data directory and what it is; nothing while the shim is inert.
///
/// # Safety
/// `path` is null or a C string that outlives the result.
unsafe fn known<'a>(path: *const c_char) -> Option<(Region, &'a [u8], PathKind)> {
    let region = start::region()?;
    if path.is_null() {
        return None;
    }
    // SAFETY: by the caller.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    let path = relative(bytes, start::data_directory())?;
    if path.len() > MAX_PATH_BYTES {
        return None;
    }
    Some((region, path, classify(path)))
}

/// Whether the tier has it; then it exists locally now.
fn materialise(path: &[u8]) -> bool {
    let create = false;
    matches!(
        ask(&Question::Open { create, path }),
        Reply::Opened(Outcome::Existing, _)
    )
}

/// `open`.
///
/// # Safety
/// As `open`.
pub(crate) unsafe fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, here and below.
    let plain = |flags| unsafe { real::open()(path, flags, mode) };
    let fd = match unsafe { known(path) } {
        Some((region, name, PathKind::Managed)) if flags & libc::O_DIRECTORY == 0 => {
            return open_managed(region, name, flags, plain);
        }
        Some((_, name, PathKind::Wal(segment))) => return open_wal(name, segment, flags, plain),
        _ => plain(flags),
    };
    fds::clear(fd);
    fd
}

fn open_managed(region: Region, path: &[u8], flags: c_int, plain: impl Fn(c_int) -> c_int) -> c_int {
    let create = flags & libc::O_CREAT != 0;
    let opens = &region.control().counters.opens;
    opens.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    loop {
        let of = match ask(&Question::Open { create, path }) {
            Reply::Opened(Outcome::Existing, _) if create && flags & libc::O_EXCL != 0 => {
                return errno::fail(libc::EEXIST);
            }
            Reply::Opened(Outcome::Existing | Outcome::Created, of) => of,
            Reply::Opened(Outcome::Missing, _) => return errno::fail(libc::ENOENT),
            Reply::Done | Reply::Removed { .. } | Reply::Refused => return errno::fail(libc::EIO),
        };
        let fd = plain(flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC));
        if fd < 0 {
            // Removed by another process since the answer; whoever creates tries again.
            if create && errno::get() == libc::ENOENT {
                continue;
            }
            return fd;
        }
        if !has_meaning(fd, managed(of)) {
            return errno::fail(libc::EMFILE);
        }
        if flags & libc::O_TRUNC != 0 && blocks::truncate(File { fd, of, region }, 0) != 0 {
            return errno::fail(libc::EIO);
        }
        return fd;
    }
}

/// A file without a slot (generation 0) is whole, and local from now on.
fn managed(of: SlotRef) -> Meaning {
    if of.generation == 0 {
        Meaning::None
    } else {
        Meaning::Managed(of)
    }
}

fn open_wal(path: &[u8], segment: WalSegment, flags: c_int, plain: impl Fn(c_int) -> c_int) -> c_int {
    let mut fd = plain(flags);
    // A reader (a walsender for a logical slot) may want WAL from before this compute. A writer that probes for a
    // segment must not get one from the tier.
    let reads = flags & (libc::O_ACCMODE | libc::O_CREAT) == libc::O_RDONLY;
    if fd < 0 && reads && errno::get() == libc::ENOENT && materialise(path) {
        fd = plain(flags);
    }
    if fd >= 0 && !has_meaning(fd, Meaning::Wal(segment)) {
        return errno::fail(libc::EMFILE);
    }
    fd
}

/// Closes a descriptor that cannot be given its meaning.
fn has_meaning(fd: c_int, meaning: Meaning) -> bool {
    let set = fds::set(fd, meaning);
    if !set {
        // SAFETY: just opened by us.
        unsafe { real::close()(fd) };
    }
    set
}

/// `fopen`. libc reads the file behind our back afterwards, so all of it is made local first.
///
/// # Safety
/// As `fopen`.
pub(crate) unsafe fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's arguments, here and below.
    unsafe {
        if let Some((region, _, PathKind::Managed)) = known(path)
            && *mode == b'r' as c_char
        {
            let fd = open(path, libc::O_RDONLY, 0);
            if fd < 0 {
                return core::ptr::null_mut();
            }
            let filled = match fds::get(fd) {
                Meaning::Managed(of) => blocks::fill_all(File { fd, of, region }),
                Meaning::None | Meaning::Wal(_) => true,
            };
            let kept = errno::Kept::now();
            fds::clear(fd);
            real::close()(fd);
            drop(kept);
            if !filled {
                errno::set(libc::EIO);
                return core::ptr::null_mut();
            }
        }
        let file = real::fopen()(path, mode);
        if !file.is_null() {
            fds::clear(libc::fileno(file));
        }
        file
    }
}

/// A call that answers ENOENT when there is no local file, and is made again when the tier has it.
///
/// # Safety
/// `path` is a C string.
pub(crate) unsafe fn exists_after_all(path: *const c_char, call: impl Fn() -> c_int) -> c_int {
    let result = call();
    if result == 0 || errno::get() != libc::ENOENT {
        return result;
    }
    // SAFETY: by the caller.
    match unsafe { known(path) } {
        Some((_, name, PathKind::Managed)) => {
            if materialise(name) {
                call()
            } else {
                errno::fail(libc::ENOENT)
            }
        }
        _ => result,
    }
}

/// `truncate`.
///
/// # Safety
/// As `truncate`.
pub(crate) unsafe fn truncate(path: *const c_char, len: off_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe {
        let Some((region, _, PathKind::Managed)) = known(path) else {
            return real::truncate()(path, len);
        };
        let fd = open(path, libc::O_RDWR, 0);
        if fd < 0 {
            return fd;
        }
        let result = match fds::get(fd) {
            Meaning::Managed(of) => blocks::truncate(File { fd, of, region }, len),
            Meaning::None | Meaning::Wal(_) => real::ftruncate()(fd, len),
        };
        let _kept = errno::Kept::now();
        fds::clear(fd);
        real::close()(fd);
        result
    }
}

/// `unlink`. The sidecar removes managed and carried files, here and from the tier in one step: else somebody could
/// get the file back from the tier in between, or lose one created under the same name.
///
/// # Safety
/// As `unlink`.
pub(crate) unsafe fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's arguments, here and below.
    match unsafe { known(path) } {
        // Postgres removes the statistics when it has read them. The tier keeps them for the next start.
        Some((_, path, PathKind::Managed | PathKind::Carried)) if !path.starts_with(b"pg_stat/") => {
            match ask(&Question::Unlink { path }) {
                Reply::Removed { existed: true } => 0,
                Reply::Removed { existed: false } => errno::fail(libc::ENOENT),
                Reply::Done | Reply::Opened(..) | Reply::Refused => errno::fail(libc::EIO),
            }
        }
        _ => unsafe { real::unlink()(path) },
    }
}

/// `rename`. If a carried file took part, returns when the tier has it.
///
/// # Safety
/// As `rename`.
pub(crate) unsafe fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's arguments, here and below.
    let result = unsafe { real::rename()(from, to) };
    if result != 0 {
        return result;
    }
    let (Some((_, from, old)), Some((_, to, new))) = (unsafe { known(from) }, unsafe { known(to) }) else {
        return result;
    };
    if old != PathKind::Carried && new != PathKind::Carried {
        return result;
    }
    match ask(&Question::Renamed { from, to }) {
        Reply::Done => result,
        Reply::Opened(..) | Reply::Removed { .. } | Reply::Refused => errno::fail(libc::EIO),
    }
}

/// `opendir`. Every name must be there before the directory is read (size functions, `CREATE DATABASE … file_copy`).
/// Not for the postmaster: it looks for left-over temporary files at its start, in every database.
///
/// # Safety
/// As `opendir`.
pub(crate) unsafe fn opendir(path: *const c_char) -> *mut DIR {
    // SAFETY: the caller's argument, here and below.
    if let Some((_, path, _)) = unsafe { known(path) }
        && classify_dir(path) == DirKind::Managed
        && !death::is_postmaster()
    {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if ask(&Question::ListDir { path }) != Reply::Done {
            errno::set(libc::EIO);
            return core::ptr::null_mut();
        }
    }
    unsafe { real::opendir()(path) }
}
