//! The functions that this library hides, found behind it in the search order.
//!
//! Each is looked up at its first use, because constructors of other libraries call `open` before ours has run.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{DIR, FILE, c_char, c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};

macro_rules! real {
    ($($name:ident: fn($($arg:ty),* $(; $dots:tt)?) -> $ret:ty;)*) => { $(
        #[doc = concat!("libc's `", stringify!($name), "`.")]
        pub(crate) fn $name() -> unsafe extern "C" fn($($arg),* $(, $dots)?) -> $ret {
            static FOUND: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
            let found = find(&FOUND, concat!(stringify!($name), "\0"));
            // SAFETY: the symbol is this function of libc, whose C declaration has this type.
            unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),* $(, $dots)?) -> $ret>(found) }
        }
    )* };
}

real! {
    open: fn(*const c_char, c_int; ...) -> c_int;
    openat: fn(c_int, *const c_char, c_int; ...) -> c_int;
    fopen: fn(*const c_char, *const c_char) -> *mut FILE;
    fclose: fn(*mut FILE) -> c_int;
    close: fn(c_int) -> c_int;
    dup: fn(c_int) -> c_int;
    dup2: fn(c_int, c_int) -> c_int;
    dup3: fn(c_int, c_int, c_int) -> c_int;
    pread: fn(c_int, *mut c_void, size_t, off_t) -> ssize_t;
    preadv: fn(c_int, *const iovec, c_int, off_t) -> ssize_t;
    pwrite: fn(c_int, *const c_void, size_t, off_t) -> ssize_t;
    pwritev: fn(c_int, *const iovec, c_int, off_t) -> ssize_t;
    read: fn(c_int, *mut c_void, size_t) -> ssize_t;
    write: fn(c_int, *const c_void, size_t) -> ssize_t;
    ftruncate: fn(c_int, off_t) -> c_int;
    truncate: fn(*const c_char, off_t) -> c_int;
    posix_fadvise: fn(c_int, off_t, off_t, c_int) -> c_int;
    fsync: fn(c_int) -> c_int;
    fdatasync: fn(c_int) -> c_int;
    syncfs: fn(c_int) -> c_int;
    sync_file_range: fn(c_int, off_t, off_t, c_uint) -> c_int;
    unlink: fn(*const c_char) -> c_int;
    access: fn(*const c_char, c_int) -> c_int;
    rename: fn(*const c_char, *const c_char) -> c_int;
    opendir: fn(*const c_char) -> *mut DIR;
    copy_file_range: fn(c_int, *mut off_t, c_int, *mut off_t, size_t, c_uint) -> ssize_t;
}

fn find(found: &AtomicPtr<c_void>, name: &'static str) -> *mut c_void {
    let known = found.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name ends with a zero byte.
    let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
    if symbol.is_null() {
        // Nothing that could be done without the function that was called.
        // SAFETY: never returns.
        unsafe { libc::abort() }
    }
    found.store(symbol, Ordering::Relaxed);
    symbol
}

/// `stat` or `lstat` as a system call: the libc symbol has another name in glibc before 2.33.
///
/// # Safety
/// As `stat`.
pub(crate) unsafe fn stat(path: *const c_char, status: *mut libc::stat, follow: bool) -> c_int {
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: the caller's pointers; on 64-bit Linux the kernel's structure is libc's.
    unsafe { libc::syscall(libc::SYS_newfstatat, libc::AT_FDCWD, path, status, flags) as c_int }
}

/// Size of an open file.
pub(crate) fn size(fd: c_int) -> u64 {
    // SAFETY: all zeros is a valid `stat`.
    let mut status: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: a valid structure; a bad descriptor only fails.
    let result = unsafe { libc::syscall(libc::SYS_fstat, fd, &raw mut status) };
    if result == 0 { status.st_size as u64 } else { 0 }
}
