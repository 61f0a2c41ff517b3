//! Which form of a page image pays: zstd is asked.
//!
//! Pages of one relation come in rows and are alike, so all forms are tried on one page in [`EVERY`] and when the
//! winner does worse than the image as it is; in between only these two are compared. A form is taken only if
//! zstd makes fewer bytes of it than of the image as it is.

use crate::image::{Form, to_columns};
use crate::stream::CodecError;

/// Level of zstd: that of streams.
const LEVEL: i32 = 1;
/// Pages from one trial of all forms to the next.
const EVERY: u32 = 32;

/// See the module header.
pub(crate) struct Trial {
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
    since: u32,
}

impl Trial {
    pub(crate) fn new() -> Result<Trial, CodecError> {
        let zstd = zstd::bulk::Compressor::new(LEVEL).map_err(|error| CodecError::Zstd(error.to_string()))?;
        Ok(Trial {
            zstd,
            scratch: vec![0; 32 << 10],
            since: EVERY,
        })
    }

    /// Bytes that zstd makes of these; many, if it fails.
    fn size(&mut self, bytes: &[u8]) -> usize {
        let size = self.zstd.compress_to_buffer(bytes, self.scratch.as_mut_slice());
        size.unwrap_or(usize::MAX)
    }

    fn size_in(&mut self, image: &[u8], hole: usize, form: Form) -> usize {
        to_columns(image, hole, form).map_or(usize::MAX, |columns| self.size(&columns))
    }

    /// The form for an image with a hole at `hole`; `last` is that of the one before.
    pub(crate) fn form(&mut self, image: &[u8], hole: usize, last: Form) -> Form {
        let raw = self.size(image);
        self.since += 1;
        if self.since < EVERY && last != Form::Raw && self.size_in(image, hole, last) < raw {
            return last;
        }
        if self.since < EVERY && last == Form::Raw {
            return Form::Raw;
        }
        self.since = 0;
        let mut best = (raw, Form::Raw);
        for form in Form::COLUMNS {
            let size = self.size_in(image, hole, form);
            if size < best.0 {
                best = (size, form);
            }
        }
        best.1
    }
}
