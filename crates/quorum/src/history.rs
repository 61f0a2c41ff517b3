//! Term history: which term wrote which range of the WAL.

use lakebed_types::{Lsn, Term};

/// Terms and the LSN at which each starts; never empty, terms strictly rising, starts not falling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TermHistory(Vec<(Term, Lsn)>);

/// Entries that are not a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("term history is empty or its terms or positions do not rise (entry {0})")]
pub struct BadHistory(pub usize);

impl TermHistory {
    /// A history from entries that came from outside.
    pub fn new(entries: Vec<(Term, Lsn)>) -> Result<Self, BadHistory> {
        if entries.is_empty() {
            return Err(BadHistory(0));
        }
        for (index, pair) in entries.windows(2).enumerate() {
            if let [a, b] = pair
                && (a.0 >= b.0 || a.1 > b.1)
            {
                return Err(BadHistory(index + 1));
            }
        }
        Ok(Self(entries))
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[(Term, Lsn)] {
        &self.0
    }

    /// The newest entry's term and start.
    pub fn last(&self) -> (Term, Lsn) {
        self.0.last().copied().unwrap_or((Term(0), Lsn::INVALID))
    }

    /// The term of the last byte below `flush`: the highest entry that starts at or before it.
    pub fn last_log_term(&self, flush: Lsn) -> Term {
        self.0
            .iter()
            .rev()
            .find(|e| e.1 <= flush)
            .map_or(Term(0), |e| e.0)
    }

    /// The terms that wrote what lies below `end`; the first entry stays even if it starts there.
    pub fn below(&self, end: Lsn) -> TermHistory {
        let written = self.0.iter().skip(1).take_while(|e| e.1 < end);
        Self(self.0.iter().take(1).chain(written).copied().collect())
    }

    /// Up to where a log that ends at `end` under this history equals the log of `other`, whose owner has all
    /// its WAL. `None` when the two have no entry in common.
    pub fn common_point(&self, end: Lsn, other: &TermHistory) -> Option<Lsn> {
        let shared = self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count();
        if shared == 0 {
            return None;
        }
        let mine = self.0.get(shared).map_or(end, |e| e.1.min(end));
        Some(other.0.get(shared).map_or(mine, |e| e.1.min(mine)))
    }
}
