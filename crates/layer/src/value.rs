//! One version of one page.

use bytes::Bytes;

/// What a value's bytes are. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ValueKind {
    /// A whole page of 8192 bytes; empty stands for a page of zeros.
    Image = 1,
    /// A stored record that builds the page from nothing.
    Base = 2,
    /// A stored record that changes the page.
    Delta = 3,
    /// Visibility bits to clear: heap block (4 bytes, little-endian), bits (1 byte).
    VmClear = 4,
    /// Visibility bits to clear from a heap block on (4 bytes, little-endian).
    VmTruncate = 5,
    /// A change of an SLRU page.
    Slru = 6,
    /// A state that is not a page, whole.
    State = 7,
}

impl ValueKind {
    /// By their numbers, which begin at 1.
    const ALL: [ValueKind; 7] = [
        ValueKind::Image,
        ValueKind::Base,
        ValueKind::Delta,
        ValueKind::VmClear,
        ValueKind::VmTruncate,
        ValueKind::Slru,
        ValueKind::State,
    ];

    /// The kind with this number, or `None`.
    pub fn from_number(number: u8) -> Option<ValueKind> {
        let kind = Self::ALL.get(usize::from(number).checked_sub(1)?)?;
        debug_assert_eq!(*kind as u8, number);
        Some(*kind)
    }

    /// Whether older values do not matter.
    pub fn stands_alone(self) -> bool {
        matches!(self, ValueKind::Image | ValueKind::Base | ValueKind::State)
    }
}

/// One version of one page, or the step from the version before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What the bytes are.
    pub kind: ValueKind,
    /// The bytes.
    pub body: Bytes,
}
