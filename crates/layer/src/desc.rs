//! What is known of a layer without looking into it.

use std::fmt;
use std::str::FromStr;

use lakebed_types::{Generation, Lsn, PageKey};
use serde::{Deserialize, Serialize};

/// A layer's name, never used twice: the generation of the owner that wrote it, and a number that the owner counts up.
/// As text both in hexadecimal with a dash between, `1-2f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId {
    /// Generation of the writer.
    pub generation: Generation,
    /// Number among those of the writer.
    pub number: u64,
}

impl LayerId {
    /// The 16 bytes in files: both numbers, little-endian.
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.generation.0.to_le_bytes());
        out[8..].copy_from_slice(&self.number.to_le_bytes());
        out
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.generation.0, self.number)
    }
}

/// Text that is no layer's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the name of a layer: expected two hexadecimal numbers as in 1-2f")]
pub struct BadLayerId(String);

impl FromStr for LayerId {
    type Err = BadLayerId;

    fn from_str(text: &str) -> Result<LayerId, BadLayerId> {
        let parse = || {
            let (generation, number) = text.split_once('-')?;
            let id = LayerId {
                generation: Generation(u64::from_str_radix(generation, 16).ok()?),
                number: u64::from_str_radix(number, 16).ok()?,
            };
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| BadLayerId(text.to_owned()))
    }
}

impl Serialize for LayerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<LayerId, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What a layer is for. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum LayerKind {
    /// All that was ingested in a range of LSNs, of any page.
    Level0 = 1,
    /// Of a range of pages the newest image and what came after it.
    Current = 2,
    /// Of a range of pages what was before that and is still to be read.
    History = 3,
    /// No pages, only sections.
    Catalogue = 4,
}

impl LayerKind {
    /// The kind with this number, or `None`.
    pub fn from_number(number: u8) -> Option<LayerKind> {
        use LayerKind::*;
        [Level0, Current, History, Catalogue]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// A layer from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerDesc {
    /// Its name.
    pub id: LayerId,
    /// What it is for.
    pub kind: LayerKind,
    /// Level 0: every record's value is above this LSN; at it are imported images (`last` is the same then) and such of pages
    /// that did not change since. Else: no value is below it.
    pub first: Lsn,
    /// No value is above this LSN.
    pub last: Lsn,
    /// Lowest and highest page, if there are pages.
    #[serde(with = "crate::key_text::span")]
    pub pages_span: Option<(PageKey, PageKey)>,
    /// Number of pages.
    pub pages: u64,
    /// Number of values.
    pub values: u64,
    /// Size of the file.
    pub bytes: u64,
}
