//! A small file system that a test can fill.
//!
//! A tmpfs: mounting one needs root, which these tests have wherever Postgres runs as another user.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// A file system of its own, until this is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of this many bytes.
    pub fn mount(at: &Path, bytes: u64) -> SmallDisk {
        fs::create_dir_all(at).expect("a directory");
        let size = format!("size={bytes}");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "lakebed-test"])
            .arg(at));
        SmallDisk(at.to_owned())
    }

    /// Takes all the room that is left, to the last byte.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file");
        let error = std::io::copy(&mut std::io::repeat(1), &mut ballast).expect_err("an end of the room");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    /// Gives it back.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the ballast gone");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process under test may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
