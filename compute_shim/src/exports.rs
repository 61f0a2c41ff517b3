//! The symbols that hide libc's. Each looks up what its descriptor or path means and hands on.
//!
//! `open` is variadic in C. On the 64-bit Linux targets a third integer is passed alike either way, so these take it
//! always and it is looked at only when the flags say that it is there.
#![allow(clippy::missing_safety_doc)] // The contract of each is that of the libc function of its name.

use libc::{DIR, FILE, c_char, c_int, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t};

use crate::blocks::{self, File};
use crate::fds::{self, Meaning};
use crate::iov::Buffers;
use crate::{errno, files, real, start, wal};

fn managed(fd: c_int) -> Option<File> {
    match fds::get(fd) {
        Meaning::Managed(of) => start::region().map(|region| File { fd, of, region }),
        Meaning::None | Meaning::Wal(_) => None,
    }
}

macro_rules! exports {
    ($($name:ident $($alias:ident)*: fn $args:tt -> $ret:ty $body:block)*) => { $(
        export!($name $args -> $ret $body);
        $(export!($alias $args -> $ret = $name);)*
    )* };
}

macro_rules! export {
    ($name:ident ($($arg:ident: $ty:ty),*) -> $ret:ty $body:block) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: the caller keeps the contract of the libc function of this name.
            unsafe { $body }
        }
    };
    ($alias:ident ($($arg:ident: $ty:ty),*) -> $ret:ty = $name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $alias($($arg: $ty),*) -> $ret {
            // SAFETY: the same function under another name.
            unsafe { $name($($arg),*) }
        }
    };
}

exports! {
    open open64: fn(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        files::open(path, flags, if flags & (libc::O_CREAT | libc::O_TMPFILE) != 0 { mode } else { 0 })
    }
    __open_2 __open64_2: fn(path: *const c_char, flags: c_int) -> c_int {
        files::open(path, flags, 0)
    }
    openat openat64: fn(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        if directory == libc::AT_FDCWD {
            return open(path, flags, mode);
        }
        let fd = real::openat()(directory, path, flags, mode);
        fds::clear(fd);
        fd
    }
    creat creat64: fn(path: *const c_char, mode: mode_t) -> c_int {
        files::open(path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
    }
    fopen fopen64: fn(path: *const c_char, mode: *const c_char) -> *mut FILE {
        files::fopen(path, mode)
    }
    fclose: fn(file: *mut FILE) -> c_int {
        if !file.is_null() {
            fds::clear(libc::fileno(file));
        }
        real::fclose()(file)
    }
    close: fn(fd: c_int) -> c_int {
        fds::clear(fd);
        real::close()(fd)
    }
    dup: fn(fd: c_int) -> c_int {
        let copy = real::dup()(fd);
        give(copy, fds::get(fd))
    }
    dup2: fn(fd: c_int, to: c_int) -> c_int {
        let meaning = fds::get(fd);
        give(real::dup2()(fd, to), meaning)
    }
    dup3: fn(fd: c_int, to: c_int, flags: c_int) -> c_int {
        let meaning = fds::get(fd);
        give(real::dup3()(fd, to, flags), meaning)
    }

    pread pread64: fn(fd: c_int, into: *mut c_void, len: size_t, offset: off_t) -> ssize_t {
        match managed(fd) {
            Some(file) => blocks::read(file, &Buffers::one(into, len), offset),
            None => real::pread()(fd, into, len, offset),
        }
    }
    __pread_chk __pread64_chk: fn(fd: c_int, into: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t {
        fits(len, room);
        pread(fd, into, len, offset)
    }
    preadv preadv64: fn(fd: c_int, list: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        match managed(fd).zip(Buffers::cut(list, count)) {
            Some((file, buffers)) => blocks::read(file, &buffers, offset),
            None => real::preadv()(fd, list, count, offset),
        }
    }
    read: fn(fd: c_int, into: *mut c_void, len: size_t) -> ssize_t {
        match managed(fd) {
            Some(file) => at_position(fd, |offset| blocks::read(file, &Buffers::one(into, len), offset)),
            None => real::read()(fd, into, len),
        }
    }
    __read_chk: fn(fd: c_int, into: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        fits(len, room);
        read(fd, into, len)
    }

    pwrite pwrite64: fn(fd: c_int, from: *const c_void, len: size_t, offset: off_t) -> ssize_t {
        match managed(fd) {
            Some(file) => blocks::write(file, &Buffers::one(from.cast_mut(), len), offset),
            None => publish(fd, offset, real::pwrite()(fd, from, len, offset)),
        }
    }
    pwritev pwritev64: fn(fd: c_int, list: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        match managed(fd).zip(Buffers::cut(list, count)) {
            Some((file, buffers)) => blocks::write(file, &buffers, offset),
            None => publish(fd, offset, real::pwritev()(fd, list, count, offset)),
        }
    }
    write: fn(fd: c_int, from: *const c_void, len: size_t) -> ssize_t {
        match managed(fd) {
            Some(file) => {
                at_position(fd, |offset| blocks::write(file, &Buffers::one(from.cast_mut(), len), offset))
            }
            None => real::write()(fd, from, len),
        }
    }
    copy_file_range: fn(
        from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint
    ) -> ssize_t {
        if managed(from).is_none() && managed(to).is_none() {
            return real::copy_file_range()(from, from_offset, to, to_offset, len, flags);
        }
        // Copying less than asked for is legal: a buffer's worth.
        let mut buffer = [0u8; 65_536];
        let len = len.min(buffer.len());
        let got = if from_offset.is_null() {
            read(from, buffer.as_mut_ptr().cast(), len)
        } else {
            pread(from, buffer.as_mut_ptr().cast(), len, *from_offset)
        };
        if got <= 0 {
            return got;
        }
        let put = if to_offset.is_null() {
            write(to, buffer.as_ptr().cast(), got as usize)
        } else {
            pwrite(to, buffer.as_ptr().cast(), got as usize, *to_offset)
        };
        if !from_offset.is_null() {
            *from_offset += put.max(0) as off_t;
        } else if put < got {
            libc::lseek(from, (put.max(0) - got) as off_t, libc::SEEK_CUR);
        }
        if !to_offset.is_null() {
            *to_offset += put.max(0) as off_t;
        }
        put
    }

    ftruncate ftruncate64: fn(fd: c_int, len: off_t) -> c_int {
        match managed(fd) {
            Some(file) => blocks::truncate(file, len),
            None => real::ftruncate()(fd, len),
        }
    }
    truncate truncate64: fn(path: *const c_char, len: off_t) -> c_int {
        files::truncate(path, len)
    }
    posix_fadvise posix_fadvise64: fn(fd: c_int, offset: off_t, len: off_t, advice: c_int) -> c_int {
        match managed(fd) {
            Some(file) if advice == libc::POSIX_FADV_WILLNEED && offset >= 0 && len > 0 => {
                let (first, end) = crate::iov::blocks(offset as u64, len as usize);
                blocks::ask_ahead(file, first, end - first);
                0
            }
            // Other advice is about the kernel's cache of the local file, and as good here as anywhere.
            _ => real::posix_fadvise()(fd, offset, len, advice),
        }
    }

    fdatasync: fn(fd: c_int) -> c_int {
        match (fds::get(fd), start::region()) {
            (Meaning::Wal(_), Some(region)) => {
                wal::flush(&region);
                0
            }
            (_, Some(_)) => 0,
            (_, None) => real::fdatasync()(fd),
        }
    }
    fsync: fn(fd: c_int) -> c_int {
        if start::region().is_some() { 0 } else { real::fsync()(fd) }
    }
    syncfs: fn(fd: c_int) -> c_int {
        if start::region().is_some() { 0 } else { real::syncfs()(fd) }
    }
    sync_file_range: fn(fd: c_int, offset: off_t, len: off_t, flags: c_uint) -> c_int {
        if start::region().is_some() { 0 } else { real::sync_file_range()(fd, offset, len, flags) }
    }

    stat stat64: fn(path: *const c_char, status: *mut libc::stat) -> c_int {
        files::exists_after_all(path, || real::stat(path, status, true))
    }
    lstat lstat64: fn(path: *const c_char, status: *mut libc::stat) -> c_int {
        files::exists_after_all(path, || real::stat(path, status, false))
    }
    __xstat __xstat64: fn(_version: c_int, path: *const c_char, status: *mut libc::stat) -> c_int {
        stat(path, status)
    }
    __lxstat __lxstat64: fn(_version: c_int, path: *const c_char, status: *mut libc::stat) -> c_int {
        lstat(path, status)
    }
    access: fn(path: *const c_char, mode: c_int) -> c_int {
        files::exists_after_all(path, || real::access()(path, mode))
    }
    unlink: fn(path: *const c_char) -> c_int {
        files::unlink(path)
    }
    rename: fn(from: *const c_char, to: *const c_char) -> c_int {
        files::rename(from, to)
    }
    opendir: fn(path: *const c_char) -> *mut DIR {
        files::opendir(path)
    }
}

/// `lseek`, `fstat` and `posix_fallocate` are absent on purpose: the local file has the right size, and blocks
/// beyond its end are local already.
fn at_position(fd: c_int, transfer: impl Fn(off_t) -> ssize_t) -> ssize_t {
    // SAFETY: plain calls.
    unsafe {
        let offset = libc::lseek(fd, 0, libc::SEEK_CUR);
        if offset < 0 {
            return -1;
        }
        let count = transfer(offset);
        if count > 0 {
            libc::lseek(fd, count as off_t, libc::SEEK_CUR);
        }
        count
    }
}

fn publish(fd: c_int, offset: off_t, written: ssize_t) -> ssize_t {
    if written > 0
        && let (Meaning::Wal(segment), Some(region)) = (fds::get(fd), start::region())
    {
        wal::written(&region, segment, offset, written as usize);
    }
    written
}

/// A new descriptor means what its original does.
fn give(fd: c_int, meaning: Meaning) -> c_int {
    if fd >= 0 && !fds::set(fd, meaning) {
        // SAFETY: just made.
        unsafe { real::close()(fd) };
        return errno::fail(libc::EMFILE);
    }
    fd
}

/// What libc does when a compiler-checked read would overflow its buffer.
fn fits(len: size_t, room: size_t) {
    if len > room {
        // SAFETY: never returns.
        unsafe { libc::abort() }
    }
}
