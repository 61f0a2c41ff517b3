//! At which LSNs what a layer of history has was superseded.
//!
//! A value of history is read at LSNs from its own up to the one at which the next version that stands alone took its place, or
//! the page was gone. Once the window begins there, only single LSNs may still need it. So the LSNs of the values themselves
//! say nothing about how long they are needed; these do. Few steps are kept: of neighbours that are few bytes the later one
//! stands for both, so that nothing counts as superseded before it is.

use lakebed_types::Lsn;
use serde::{Deserialize, Serialize};

/// Steps that are kept.
const MOST: usize = 16;

/// See the module header. Bytes are those of the values, before compression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Superseded {
    /// Bytes that were superseded at this LSN or after the step before; ascending.
    steps: Vec<(Lsn, u64)>,
    /// Bytes that are kept for single LSNs, and not for the window.
    pinned: u64,
}

impl Superseded {
    /// So many bytes more, superseded at `lsn`.
    pub(crate) fn add(&mut self, lsn: Lsn, bytes: u64) {
        match self.steps.binary_search_by_key(&lsn, |(lsn, _)| *lsn) {
            Ok(at) => self.steps[at].1 = self.steps[at].1.saturating_add(bytes),
            Err(at) => self.steps.insert(at, (lsn, bytes)),
        }
        if self.steps.len() > MOST {
            let sizes = self
                .steps
                .windows(2)
                .map(|pair| pair[0].1.saturating_add(pair[1].1));
            let least = (0..).zip(sizes).min_by_key(|(_, bytes)| *bytes);
            if let Some((at, bytes)) = least {
                self.steps.remove(at);
                self.steps[at].1 = bytes;
            }
        }
    }

    /// So many bytes more that only single LSNs need.
    pub(crate) fn add_pinned(&mut self, bytes: u64) {
        self.pinned = self.pinned.saturating_add(bytes);
    }

    /// Whether there are any.
    pub(crate) fn has_pinned(&self) -> bool {
        self.pinned > 0
    }

    /// Both.
    pub(crate) fn add_all(&mut self, other: &Superseded) {
        other.steps.iter().for_each(|(lsn, bytes)| self.add(*lsn, *bytes));
        self.add_pinned(other.pinned);
    }

    /// Of `bytes`, the part that was superseded after one LSN and up to another.
    pub(crate) fn part(&self, bytes: u64, (after, upto): (Lsn, Lsn)) -> u64 {
        let inside = self.steps.iter().filter(|(lsn, _)| *lsn > after && *lsn <= upto);
        let part: u128 = inside.map(|(_, bytes)| u128::from(*bytes)).sum();
        let all = self.steps.iter().map(|(_, bytes)| u128::from(*bytes));
        let all = all.sum::<u128>() + u128::from(self.pinned);
        let part = (u128::from(bytes) * part).checked_div(all).unwrap_or_default();
        u64::try_from(part).unwrap_or(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_steps_tell_most_of_it_and_nothing_too_early() {
        let mut superseded = Superseded::default();
        assert_eq!(superseded.part(100, (Lsn(0), Lsn::MAX)), 0);
        // Nearly all of it at once, and a little now and then.
        let given: Vec<(u64, u64)> = (1..=1000)
            .map(|at| (at * 10, if at == 500 { 90_000 } else { 10 }))
            .collect();
        for (lsn, bytes) in &given {
            superseded.add(Lsn(*lsn), *bytes);
        }
        superseded.add_pinned(10_000);
        assert_eq!(superseded.steps.len(), MOST);
        for upto in (0..=1100).map(|at| at * 10 + 5) {
            let exact = given
                .iter()
                .filter(|(lsn, _)| *lsn <= upto)
                .map(|(_, bytes)| bytes)
                .sum::<u64>();
            let exact = exact as f64 / 109_990.0;
            let found = superseded.part(1_000_000, (Lsn(0), Lsn(upto))) as f64 / 1_000_000.0;
            assert!(
                found <= exact + 1e-5 && found > exact - 0.02,
                "{upto}: {found} for {exact}"
            );
        }
        assert_eq!(superseded.part(100, (Lsn(5000), Lsn(5001))), 0);
        assert!(superseded.part(100, (Lsn(4999), Lsn(5000))) >= 81);
        // Together with another one it is the same as if all had been added to one.
        let mut both = Superseded::default();
        both.add(Lsn(1), 5);
        both.add_all(&superseded);
        assert_eq!(both.part(109_995, (Lsn(0), Lsn(20_000))), 99_995);
    }
}
