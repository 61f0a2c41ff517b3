//! The constructor: maps the shared region, copies what the environment says and cleans it.
//!
//! Postgres overwrites its environment to show process titles, so nothing may point into it afterwards; and what it
//! starts (`archive_command`, `COPY … PROGRAM`) must not inherit the shim.

use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use lakebed_shim_abi::path::MAX_PATH_BYTES;
use lakebed_shim_abi::region::Region;
use lakebed_shim_abi::{ENV_DATA, ENV_SHM, ENV_SOCKET};
use libc::{c_char, c_int};

use crate::{death, log, real, socket};

/// Set last in the constructor and never cleared.
static ACTIVE: AtomicBool = AtomicBool::new(false);
static mut REGION: Option<Region> = None;
static mut DATA: ([u8; MAX_PATH_BYTES], usize) = ([0; MAX_PATH_BYTES], 0);

/// The shared region; none while the shim is inert.
pub(crate) fn region() -> Option<Region> {
    if !ACTIVE.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: written once, before ACTIVE was set.
    unsafe { REGION }
}

/// The data directory's absolute path.
pub(crate) fn data_directory() -> &'static [u8] {
    let data = &raw const DATA;
    // SAFETY: written once, before ACTIVE was set, and only active code asks.
    let (bytes, len) = unsafe { &*data };
    &bytes[..*len]
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

extern "C" fn start() {
    let Some(shm) = variable(ENV_SHM) else {
        return;
    };
    let (Some(socket_path), Some(data)) = (variable(ENV_SOCKET), variable(ENV_DATA)) else {
        refuse("LAKEBED_SHM is set, LAKEBED_SOCKET or LAKEBED_DATA is not");
    };
    let data = data.to_bytes();
    if data.len() > MAX_PATH_BYTES || !socket::set_path(socket_path) {
        refuse("a path in the environment is too long");
    }
    let region = map(shm);
    // SAFETY: the process has one thread, and nothing reads these before ACTIVE is set.
    unsafe {
        let copy = &raw mut DATA;
        (*copy).1 = data.len();
        (&mut (*copy).0)[..data.len()].copy_from_slice(data);
        REGION = Some(region);
    }
    for name in [c"LAKEBED_SHM", c"LAKEBED_SOCKET", c"LAKEBED_DATA", c"LD_PRELOAD"] {
        // SAFETY: a C string; no other thread looks at the environment.
        unsafe { libc::unsetenv(name.as_ptr()) };
    }
    death::tie_to_sidecar(&region);
    ACTIVE.store(true, Ordering::Release);
}

fn variable(name: &str) -> Option<&'static CStr> {
    let mut zero_ended = [0u8; 32];
    zero_ended[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: a C string; the result is used before the environment changes.
    let value = unsafe { libc::getenv(zero_ended.as_ptr().cast::<c_char>()) };
    // SAFETY: not null, a C string.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
}

fn map(path: &CStr) -> Region {
    // SAFETY: a C string.
    let fd = unsafe { real::open()(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        refuse("cannot open the shared region");
    }
    let first = map_bytes(fd, 4096);
    // SAFETY: a page of the file is mapped there.
    let Ok(layout) = (unsafe { Region::probe(first) }) else {
        refuse("the shared region is of another build");
    };
    if real::size(fd) < layout.total_bytes() as u64 {
        refuse("the shared region is shorter than it says");
    }
    let base = map_bytes(fd, layout.total_bytes());
    // SAFETY: the first mapping is used no more; the descriptor is ours.
    unsafe {
        libc::munmap(first.cast(), 4096);
        real::close()(fd);
    }
    // SAFETY: mapped with this size, and never unmapped.
    match unsafe { Region::attach(base, layout.total_bytes(), layout) } {
        Ok(region) => region,
        Err(_) => refuse("the shared region is too short"),
    }
}

fn map_bytes(fd: c_int, bytes: usize) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, fd, 0) };
    if base == libc::MAP_FAILED {
        refuse("cannot map the shared region");
    }
    base.cast()
}

/// A Postgres that was to run on the tier must not run on its local disk instead.
fn refuse(why: &str) -> ! {
    log::line(format_args!("{why}; refusing to start"));
    // SAFETY: never returns.
    unsafe { libc::_exit(3) }
}
