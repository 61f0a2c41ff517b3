//! What must hold after every step. One file for each; a violation names the file that found it.

pub(crate) mod commit_on_quorum;
pub(crate) mod histories;
pub(crate) mod joiners;
pub(crate) mod no_delay;
pub(crate) mod no_rejection;
pub(crate) mod one_committer;
pub(crate) mod positions;
pub(crate) mod progress;
pub(crate) mod promises;
pub(crate) mod readable;
pub(crate) mod removal;
pub(crate) mod survivors;
pub(crate) mod uploads;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which: the name of its file.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

/// The result of a step.
pub(crate) type Checked = Result<(), Violation>;

/// Fails with `detail` unless `holds`.
pub(crate) fn ensure(holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) -> Checked {
    if holds {
        return Ok(());
    }
    Err(Violation {
        invariant,
        detail: detail(),
    })
}
