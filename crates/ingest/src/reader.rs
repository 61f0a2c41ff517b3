//! Checked reading of the structures inside a record's main data: little-endian, as an x86 or ARM server writes them.

use bytes::{Buf, Bytes};
use lakebed_types::{ForkNumber, RelTag};

use crate::error::Rule;

const SHORT: Rule = "its main data is too short";
const NEGATIVE: Rule = "a count in its main data is negative";

/// What is left of a record's main data.
#[derive(Clone, Debug)]
pub(crate) struct Reader(Bytes);

impl Reader {
    pub(crate) fn new(bytes: &Bytes) -> Reader {
        Reader(bytes.clone())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Rule> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Rule> {
        self.0.try_get_u16_le().map_err(|_| SHORT)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Rule> {
        self.0.try_get_u32_le().map_err(|_| SHORT)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Rule> {
        self.0.try_get_u64_le().map_err(|_| SHORT)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Rule> {
        self.0.try_get_i64_le().map_err(|_| SHORT)
    }

    /// A C `bool`.
    pub(crate) fn bool(&mut self) -> Result<bool, Rule> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a boolean in its main data is neither 0 nor 1"),
        }
    }

    /// An `int32` that counts the elements of `element_bytes` each that follow. It is checked against what is left,
    /// so that it may size an allocation.
    pub(crate) fn count(&mut self, element_bytes: usize) -> Result<usize, Rule> {
        let count = usize::try_from(self.u32()? as i32).map_err(|_| NEGATIVE)?;
        self.check_room(count, element_bytes)?;
        Ok(count)
    }

    pub(crate) fn check_room(&self, count: usize, element_bytes: usize) -> Result<(), Rule> {
        let room = count
            .checked_mul(element_bytes)
            .is_some_and(|bytes| bytes <= self.0.len());
        if room { Ok(()) } else { Err(SHORT) }
    }

    pub(crate) fn skip(&mut self, bytes: usize) -> Result<(), Rule> {
        self.take(bytes).map(drop)
    }

    pub(crate) fn take(&mut self, bytes: usize) -> Result<Bytes, Rule> {
        if self.0.len() < bytes {
            return Err(SHORT);
        }
        Ok(self.0.split_to(bytes))
    }

    pub(crate) fn u32s(&mut self, count: usize) -> Result<Vec<u32>, Rule> {
        self.check_room(count, 4)?;
        (0..count).map(|_| self.u32()).collect()
    }

    /// Bytes up to a terminating zero, which is consumed.
    pub(crate) fn c_string(&mut self) -> Result<Bytes, Rule> {
        let length = self
            .0
            .iter()
            .position(|&byte| byte == 0)
            .ok_or("a string in its main data has no end")?;
        let text = self.0.split_to(length);
        self.0.advance(1);
        Ok(text)
    }

    /// A `RelFileNode`: tablespace, database, relfilenode. The fork is Main.
    pub(crate) fn relation(&mut self) -> Result<RelTag, Rule> {
        Ok(RelTag {
            spcnode: self.u32()?,
            dbnode: self.u32()?,
            relnode: self.u32()?,
            fork: ForkNumber::Main,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses bytes that nobody asked for.
    pub(crate) fn end(self) -> Result<(), Rule> {
        if self.is_empty() {
            Ok(())
        } else {
            Err("its main data is longer than its contents")
        }
    }
}
