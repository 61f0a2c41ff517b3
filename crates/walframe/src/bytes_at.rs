//! Fixed fields of a header.

use crate::FrameError;

/// A header of `N` bytes whose bounds are known.
pub(crate) struct Fields<'a, const N: usize>(pub(crate) &'a [u8; N]);

impl<'a, const N: usize> Fields<'a, N> {
    /// The first `N` bytes.
    pub(crate) fn of(bytes: &'a [u8]) -> Result<Fields<'a, N>, FrameError> {
        let fixed = bytes
            .first_chunk()
            .ok_or(FrameError::Damaged("it is cut short"))?;
        Ok(Fields(fixed))
    }

    fn array<const W: usize>(&self, at: usize) -> [u8; W] {
        let part = self.0.get(at..).and_then(|rest| rest.first_chunk());
        part.copied().unwrap_or([0; W])
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(crate) fn zeros(&self, from: usize, to: usize) -> Result<(), FrameError> {
        let all = self
            .0
            .get(from..to)
            .is_some_and(|part| part.iter().all(|&byte| byte == 0));
        if all {
            Ok(())
        } else {
            Err(FrameError::Damaged("reserved bytes are used"))
        }
    }

    /// The CRC32C at `at` is that of everything before it.
    pub(crate) fn checked(&self, at: usize, what: &'static str) -> Result<(), FrameError> {
        let covered = self.0.get(..at).unwrap_or_default();
        if crc32c::crc32c(covered) == self.u32(at) {
            Ok(())
        } else {
            Err(FrameError::Damaged(what))
        }
    }
}
