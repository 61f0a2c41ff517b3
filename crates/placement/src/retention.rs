//! How long history is kept.
//!
//! A tenant has a *window*: so much time, or so many bytes of WAL, or both; then the shorter one counts, so that the bound
//! in bytes is a bound on what history costs. What follows from it is each timeline's [`Horizon`]: from there on every LSN can be
//! read. It only rises. The state machine refuses branches below it, and pageservers are told of it together with the branches
//! that were made below it before, so nothing is given up that a branch needs.

use lakebed_types::Lsn;
use serde::{Deserialize, Serialize};

/// The window of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Retention {
    /// Seconds; none: no bound in time.
    pub seconds: Option<u64>,
    /// Bytes of WAL; none: no bound in bytes.
    pub bytes: Option<u64>,
}

impl Retention {
    /// Of a tenant whose creator does not say: a week.
    pub const USUAL: Retention = Retention {
        seconds: Some(7 * 86_400),
        bytes: None,
    };

    /// Whether nothing is ever given up.
    pub fn keeps_all(&self) -> bool {
        self.seconds.is_none() && self.bytes.is_none()
    }
}

/// Where the history begins that is kept of a timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Horizon {
    /// From here on every LSN can be read. Invalid: from the timeline's start on.
    pub lsn: Lsn,
    /// Time of the last commit at or before it, in microseconds since 1970.
    pub unix_micros: i64,
}
