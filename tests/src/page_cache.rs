//! Files that the operating system has in memory.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Has the operating system forget what it has in memory of the files below a directory. Whether it has forgotten something: a
/// file system without a disk cannot.
pub fn forget(directory: &Path) -> bool {
    let mut forgotten = false;
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            forgotten |= forget(&path);
        } else if let Ok(file) = File::open(&path) {
            // What is not on disk yet cannot be forgotten.
            file.sync_all().expect("a file on disk");
            fadvise(&file, 0, None, Advice::DontNeed).expect("a file");
            let mut byte = [0];
            let read = preadv2(
                &file,
                &mut [IoSliceMut::new(&mut byte)],
                0,
                ReadWriteFlags::NOWAIT,
            );
            forgotten |= read == Err(Errno::AGAIN);
        }
    }
    forgotten
}
