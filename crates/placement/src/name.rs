//! Names that people give to tenants, branches and leases.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// A name of 1 to 63 letters, digits, `.`, `_` and `-`, starting with a letter or digit. It needs no quoting in a
/// connection string, a path or a shell, and is never mistaken for an id (32 hexadecimal digits).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Text that is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' is not a valid name: {reason}")]
pub struct InvalidName {
    given: String,
    reason: &'static str,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bad = |reason| InvalidName {
            given: text.chars().take(MAX_NAME_BYTES + 1).collect(),
            reason,
        };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(bad("it is longer than 63 characters"));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(bad("it must start with a letter or a digit"));
        }
        if !text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            return Err(bad("only letters, digits, '.', '_' and '-' are allowed"));
        }
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("it looks like an id"));
        }
        Ok(Name(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_need_no_quoting_are_accepted() {
        let long = "x".repeat(64);
        for good in ["main", "a", "0", "feature-1_b.2", "A", &long[..63]] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let id = "0123456789abcdef0123456789ABCDEF";
        for bad in ["", "-a", ".", "..", "a/b", "a b", "ä", "a\n", &long, id] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} must be refused");
        }
        assert!(serde_json::from_str::<Name>("\"a/b\"").is_err());
    }
}
