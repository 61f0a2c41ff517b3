//! Lines to standard error, where the server log is, without allocation.

use core::fmt::{self, Write};

struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Write for Line {
    /// Cuts what does not fit.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let count = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        Ok(())
    }
}

/// Writes one line.
pub(crate) fn line(message: fmt::Arguments<'_>) {
    let _kept = crate::errno::Kept::now();
    let mut line = Line {
        bytes: [0; 512],
        len: 0,
    };
    let pid = std::process::id();
    let _ = write!(line, "lakebed shim [{pid}]: {message}");
    let end = line.len.min(line.bytes.len() - 1);
    line.bytes[end] = b'\n';
    // SAFETY: the buffer has end + 1 bytes. A failure to log cannot be reported anywhere.
    unsafe { crate::real::write()(2, line.bytes.as_ptr().cast(), end + 1) };
}

/// Text from outside, made printable.
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char('?')?;
            }
        }
        Ok(())
    }
}
