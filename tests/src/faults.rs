//! Faults of one process's disk, clock and network, at a test's command.
//!
//! A small library (`faults.c`, built with `cc` at its first use) is preloaded into the process and does what a shared
//! file says. A power cut undoes what was written and not flushed, but for a random part, so it loses what `kill -9`
//! leaves in the kernel's hands.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use lakebed_pgtest::run;

use crate::build_dir;

static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let library = build_dir().join("liblakebed_faults.so");
    // Several test processes may build it at a time.
    let beside = library.with_extension(std::process::id().to_string());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/faults.c");
    run(Command::new("cc")
        .args([
            "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o",
        ])
        .arg(&beside)
        .arg(&source));
    fs::rename(&beside, &library).expect("the library in its place");
    library
});

/// The faults of one process. They outlast it: a process that starts again has them as well.
#[derive(Debug)]
pub struct Faults {
    path: PathBuf,
    file: File,
}

impl Faults {
    /// None yet; commands go through a file at `path`.
    pub fn new(path: &Path) -> Faults {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(path).expect("a file of faults");
        file.set_len(4096).expect("a file of faults");
        Faults {
            path: path.to_owned(),
            file,
        }
    }

    /// What the process needs in its environment.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [
            ("LD_PRELOAD", LIBRARY.as_os_str().to_owned()),
            ("LAKEBED_FAULTS", self.path.as_os_str().to_owned()),
        ]
    }

    fn set(&self, at: u64, value: u32) {
        let written = self.file.write_all_at(&value.to_ne_bytes(), at);
        written.expect("a command");
    }

    /// From now on every fsync fails, and what it was to write is lost.
    pub fn fail_fsync(&self, fail: bool) {
        self.set(0, fail.into());
    }

    /// How many failed.
    pub fn failed_fsyncs(&self) -> u32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 12).expect("a number");
        u32::from_ne_bytes(bytes)
    }

    /// From now on an fsync does nothing and says that it worked: what is acknowledged then is not on disk.
    pub fn skip_fsync(&self) {
        self.set(4, 1);
    }

    /// How much longer every fsync takes from now on.
    pub fn slow_fsync(&self, by: Duration) {
        self.set(32, u32::try_from(by.as_micros()).expect("a short time"));
    }

    /// Ends the process as a power cut would.
    pub(crate) fn cut_power(&self) {
        self.set(8, 1);
    }

    pub(crate) fn restore_power(&self) {
        self.set(8, 0);
    }

    /// How many seconds its wall clock is wrong.
    pub fn set_clock_wrong(&self, seconds: i64) {
        let wrong = (seconds * 1_000_000_000).to_ne_bytes();
        self.file.write_all_at(&wrong, 16).expect("a command");
    }

    /// Cuts it off from the network, in one direction or both.
    pub fn cut_off(&self, sends_nothing: bool, receives_nothing: bool) {
        self.set(24, sends_nothing.into());
        self.set(28, receives_nothing.into());
    }
}
