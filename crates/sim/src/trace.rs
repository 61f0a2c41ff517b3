//! What happened, as a hash of every step's text and, on demand, the text itself.
//!
//! Two runs of one seed must give the same hash: a core or a simulator that looks at a clock, at a hash map's order
//! or at memory addresses is found out by it.

use std::fmt::{self, Write};

/// The trace of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    /// Of every step's text, unless nobody looks.
    hash: Option<u64>,
    /// Text of every step, when asked for.
    pub(crate) lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(hash: bool, keep: bool) -> Trace {
        Trace {
            hash: hash.then_some(0xcbf2_9ce4_8422_2325),
            lines: keep.then(Vec::new),
        }
    }

    /// Adds one step.
    pub(crate) fn step(&mut self, text: fmt::Arguments<'_>) {
        if self.hash.is_some() {
            // Hashing never fails; `Write` wants a result all the same.
            let _ = self.write_fmt(text);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(text.to_string());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.unwrap_or(0)
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let hash = self.hash.unwrap_or(0);
        let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.hash = Some(text.bytes().fold(hash, add));
        Ok(())
    }
}
