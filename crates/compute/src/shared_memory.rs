//! The memory that is shared with every process of Postgres.
//!
//! A file in `/dev/shm`: sparse, so the arena costs what is touched, and never written to a disk. It is removed as
//! soon as the postmaster has mapped it, for its children inherit the mapping.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use lakebed_shim_abi::region::{Layout, Region};
use lakebed_shim_abi::ring::Wait;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

/// Files with block states at a time; more files are fetched whole when they are opened.
const SLOTS: u32 = 1 << 15;
/// WAL writes under way.
const RING_ENTRIES: u32 = 1 << 12;

/// The mapped region and its file.
#[derive(Debug)]
pub struct SharedMemory {
    region: Region,
    path: PathBuf,
}

impl SharedMemory {
    /// Makes the region anew. `name` is unique to this compute's directory, so that what a killed sidecar left is
    /// replaced.
    ///
    /// # Errors
    /// Shared memory is full or not permitted.
    pub fn create(name: &str, owner: Option<(u32, u32)>) -> io::Result<SharedMemory> {
        let layout = Layout::new(SLOTS, RING_ENTRIES).map_err(|_| io::Error::other("bad layout"))?;
        let path = Path::new("/dev/shm").join(name);
        let _ = fs::remove_file(&path);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(layout.total_bytes() as u64)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        // SAFETY: a new mapping at an address of the kernel's choice; the file is never shortened.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                layout.total_bytes(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }?;
        // SAFETY: mapped just now at this size, and never unmapped.
        let region = unsafe { Region::attach(base.cast(), layout.total_bytes(), layout) };
        let region = region.map_err(|_| io::Error::other("the region is too short"))?;
        region.initialise(std::process::id());
        Ok(SharedMemory { region, path })
    }

    /// The region.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Where the shim maps it from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the name; mappings stay.
    pub fn unlink(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// Sleeps until the word changes, or for at most this long.
pub fn sleep(wait: &Wait<'_>, at_most: Duration) {
    let timeout = futex::Timespec {
        tv_sec: at_most.as_secs() as _,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    // Not a private futex: the other side is another process. Any outcome means: look again.
    let _ = futex::wait(wait.word, futex::Flags::empty(), wait.value, Some(&timeout));
}

/// Wakes all who sleep on the word.
pub fn wake(word: Option<&AtomicU32>) {
    if let Some(word) = word {
        let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
    }
}
