//! Checked reading of little-endian fields from record data.

use crate::Fault;

/// A position in bytes that came from outside; every read is checked against the end.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (head, tail) = self
            .bytes
            .split_at_checked(count)
            .ok_or("its data ends too early")?;
        self.bytes = tail;
        Ok(head)
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (head, tail) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or("its data ends too early")?;
        self.bytes = tail;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next `count` numbers of 16 bits.
    #[inline]
    pub(crate) fn numbers(&mut self, count: u16) -> Result<Numbers<'a>, Fault> {
        let bytes = self.take(usize::from(count) * 2)?;
        Ok(Numbers(bytes.as_chunks().0))
    }

    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A list of numbers of 16 bits, where it lies in a record: item numbers, mostly.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a>(&'a [[u8; 2]]);

impl<'a> Numbers<'a> {
    /// A list that is all of some data.
    #[inline]
    pub(crate) fn of(bytes: &'a [u8]) -> Result<Numbers<'a>, Fault> {
        let (numbers, rest) = bytes.as_chunks();
        if rest.is_empty() {
            Ok(Numbers(numbers))
        } else {
            Err("its list of item numbers has an odd length")
        }
    }

    #[inline]
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(crate) fn first(self) -> Option<u16> {
        self.iter().next()
    }

    #[inline]
    pub(crate) fn last(self) -> Option<u16> {
        self.iter().next_back()
    }

    #[inline]
    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + 'a {
        self.0.iter().map(|number| u16::from_le_bytes(*number))
    }
}
