//! A layer's file on local disk.
//!
//! Reads of pages run in tasks of the runtime, which must not wait for a disk: while one does, no other request of its thread
//! goes on. Nearly always the block is in the operating system's page cache. [`without_waiting`] makes reads of files in its
//! scope fail where it is not (`RWF_NOWAIT`); who gets that error makes the read again on a thread that may wait, next to
//! those of other pages. There is no guess about what is cached, and a read that finds everything costs one system call as before.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use lakebed_layer::format::ReadAt;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Blocks up to here are read into memory that is used again.
const SCRATCH_BYTES: usize = 128 << 10;

thread_local! {
    /// Where blocks are read to that are decoded at once into other memory.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Whether reads may wait for the disk.
    static MAY_WAIT: Cell<bool> = const { Cell::new(true) };
}

/// Does something in which reads of local files fail with [`io::ErrorKind::WouldBlock`] instead of waiting for the disk.
pub fn without_waiting<T>(work: impl FnOnce() -> T) -> T {
    in_scope(false, work)
}

/// The opposite, inside of that.
pub fn waiting<T>(work: impl FnOnce() -> T) -> T {
    in_scope(true, work)
}

fn in_scope<T>(may_wait: bool, work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            MAY_WAIT.set(self.0);
        }
    }
    let _before = Before(MAY_WAIT.replace(may_wait));
    work()
}

/// A local file as a source of blocks.
#[derive(Debug)]
pub struct LocalFile(File);

impl From<File> for LocalFile {
    fn from(file: File) -> LocalFile {
        LocalFile(file)
    }
}

impl LocalFile {
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if MAY_WAIT.get() || bytes.is_empty() {
            return self.0.read_exact_at(bytes, offset);
        }
        let wanted = bytes.len();
        match preadv2(
            &self.0,
            &mut [IoSliceMut::new(bytes)],
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(read) if read == wanted => Ok(()),
            // Its end: said at once, and by name.
            Ok(0) => self.0.read_exact_at(bytes, offset),
            // A part of it is there.
            Ok(_) | Err(Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            // Not every file system can tell.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => self.0.read_exact_at(bytes, offset),
            Err(error) => Err(error.into()),
        }
    }
}

impl ReadAt for LocalFile {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.read(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    fn with_bytes<T>(&self, offset: u64, length: usize, look: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        if length > SCRATCH_BYTES {
            return self.read_at(offset, length).map(|bytes| look(&bytes));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < length {
                scratch.resize(length, 0);
            }
            let bytes = &mut scratch[..length];
            self.read(bytes, offset)?;
            Ok(look(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_not_in_memory_is_not_waited_for() {
        let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        let local = LocalFile(file.try_clone().unwrap());
        let read = || local.read_at(300_000, 9000);
        let same = |read: io::Result<Bytes>| assert!(read.unwrap()[..] == content[300_000..309_000]);
        same(read());
        same(without_waiting(read));
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // A file system that has no disk keeps it.
        match without_waiting(read) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            kept => same(kept),
        }
        same(without_waiting(|| waiting(read)));
        same(without_waiting(read));
        for (offset, length) in [(content.len() as u64 - 10, 11), (content.len() as u64 + 5, 1)] {
            let beyond = without_waiting(|| local.read_at(offset, length)).unwrap_err();
            // What is there of it may be told apart from its end by waiting only.
            let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::WouldBlock];
            assert!(kinds.contains(&beyond.kind()), "{beyond}");
            assert_eq!(
                local.read_at(offset, length).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
    }
}
