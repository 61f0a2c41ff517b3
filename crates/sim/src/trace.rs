//! What happened, as a hash of every step's text and, on demand, the text itself.
//!
//! Two runs of one seed must give the same hash: a core or a simulator that looks at a clock, at a hash map's order
//! or at memory addresses is found out by it.

use std::fmt::{self, Write};

/// The trace of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    /// Text of every step, when asked for.
    pub(crate) lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Trace {
        Trace {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: keep.then(Vec::new),
        }
    }

    /// Adds one step.
    pub(crate) fn step(&mut self, text: fmt::Arguments<'_>) {
        // Hashing never fails; `Write` wants a result all the same.
        let _ = self.write_fmt(text);
        if let Some(lines) = &mut self.lines {
            lines.push(text.to_string());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
