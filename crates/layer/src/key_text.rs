//! Page keys in JSON: the stored form, in hexadecimal.

use lakebed_types::PageKey;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn text(key: &PageKey) -> String {
    key.encode().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(text: &str) -> Option<PageKey> {
    let digits = text.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let key = PageKey::decode(&bytes?)?;
    (self::text(&key) == text).then_some(key)
}

fn read<E: Error>(text: &str) -> Result<PageKey, E> {
    parse(text).ok_or_else(|| E::custom(format!("'{text}' is not the name of a page")))
}

/// A pair of keys, or none.
pub(crate) mod span {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        span: &Option<(PageKey, PageKey)>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        span.as_ref()
            .map(|(low, high)| (text(low), text(high)))
            .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<(PageKey, PageKey)>, D::Error> {
        let span: Option<(String, String)> = Option::deserialize(deserializer)?;
        span.map(|(low, high)| Ok((read(&low)?, read(&high)?)))
            .transpose()
    }
}

/// A key, or none.
pub mod maybe {
    use super::*;

    /// For `serde(with)`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(key: &Option<PageKey>, serializer: S) -> Result<S::Ok, S::Error> {
        key.as_ref().map(text).serialize(serializer)
    }

    /// For `serde(with)`.
    ///
    /// # Errors
    /// Text that names no page.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PageKey>, D::Error> {
        let key: Option<String> = Option::deserialize(deserializer)?;
        key.map(|key| read(&key)).transpose()
    }
}

/// One key.
pub(crate) mod key {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(key: &PageKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(key))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PageKey, D::Error> {
        read(&String::deserialize(deserializer)?)
    }
}

/// A set of keys.
pub(crate) mod keys {
    use std::collections::BTreeSet;

    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        keys: &BTreeSet<PageKey>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(text))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<PageKey>, D::Error> {
        let keys: Vec<String> = Vec::deserialize(deserializer)?;
        keys.iter().map(|key| read(key)).collect()
    }
}
