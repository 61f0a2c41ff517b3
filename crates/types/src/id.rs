//! Identities and fencing numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text or bytes that are not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} '{given}' is not valid: expected {expected}")]
pub struct InvalidId {
    what: &'static str,
    given: String,
    expected: &'static str,
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads the 16 raw bytes that the wire carries.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId {
                    what: $what,
                    given: format!("{} bytes", bytes.len()),
                    expected: "16 bytes",
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let bad =
                    || InvalidId { what: $what, given: text.to_owned(), expected: "32 hexadecimal digits" };
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| bad())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id128!(
    /// One customer's Postgres clusters: the unit of isolation and placement. 32 hexadecimal digits as text.
    TenantId,
    "tenant id"
);
id128!(
    /// One history of WAL. A branch is a timeline with a parent. 32 hexadecimal digits as text.
    TimelineId,
    "timeline id"
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// A proposer's Paxos ballot. Zero means that no proposer was ever elected.
    Term
);
number!(
    /// The fencing number that the controller hands out with an ownership; higher fences lower.
    Generation
);
number!(
    /// A safekeeper or pageserver, as registered with the controller.
    NodeId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_bad_ones_are_refused() {
        let id = TenantId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(TenantId::from_slice(&id.0), Ok(id));
        assert!(TenantId::from_slice(&id.0[1..]).is_err());
        for text in [
            "",
            "00",
            "+0000000000000000000000000000000",
            "zz000000000000000000000000000000",
        ] {
            assert!(text.parse::<TimelineId>().is_err(), "{text:?} must be refused");
        }
    }
}
