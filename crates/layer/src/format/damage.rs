//! What is wrong with a layer, and where.

use std::fmt;

use lakebed_types::{Lsn, PageKey};

use crate::LayerId;

/// Bytes that are not what they should be. The layer must be fetched again from object storage; if that copy is
/// damaged too, an operator must act. Nothing of the part that is named was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The layer.
    pub layer: LayerId,
    /// Bytes from the file's start: where the damaged part begins.
    pub offset: u64,
    /// Which part it is.
    pub part: &'static str,
    /// The first page that the part concerns, and the LSN that was asked for or, in a scan, of its first value. `None`:
    /// the part concerns every page of the layer.
    pub page: Option<(PageKey, Lsn)>,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage {
            layer,
            offset,
            part,
            what,
            ..
        } = self;
        write!(f, "layer {layer} is damaged: the {part} at byte {offset}")?;
        match &self.page {
            Some((key, lsn)) => write!(f, " (page {key} at {lsn}): {what}"),
            None => write!(f, ": {what}"),
        }
    }
}

impl std::error::Error for Damage {}

/// Why a layer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes are wrong.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// They could not be had; reading may succeed later.
    #[error("layer {layer}: {source}")]
    Io {
        /// The layer.
        layer: LayerId,
        /// What the operating system said.
        source: std::io::Error,
    },
}
