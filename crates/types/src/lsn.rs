//! WAL positions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in the WAL of one timeline (Postgres `XLogRecPtr`). Zero is invalid.
///
/// Displayed and parsed as Postgres does: two hexadecimal halves, `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Zero, which Postgres calls `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
    /// Greater than every position; in a page request it means "the latest".
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Whether this is a position at all.
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position `bytes` further on, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to this position, or `None` when `earlier` is later.
    pub fn checked_sub(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Number of the segment that holds this position, for segments of `segment_bytes`.
    pub fn segment_number(self, segment_bytes: u64) -> u64 {
        self.0 / segment_bytes
    }

    /// Offset of this position inside its segment.
    pub fn segment_offset(self, segment_bytes: u64) -> u64 {
        self.0 % segment_bytes
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an LSN: expected two hexadecimal numbers as in 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |part: &str| {
            let plain = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            if plain {
                u32::from_str_radix(part, 16).map_err(|_| bad())
            } else {
                Err(bad())
            }
        };
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_bad_text_is_refused() {
        for value in [0, 1, 0x1_0000_0000, 0x16_B374_D848, u64::MAX] {
            assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
        for text in [
            "",
            "1",
            "/",
            "1/",
            "/1",
            "1/123456789",
            "+1/2",
            "g/0",
            "1/2/3",
            " 1/2",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} must be refused");
        }
    }
}
