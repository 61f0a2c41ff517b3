//! Which waiting flushes of Postgres a commit position releases.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use lakebed_shim_abi::region::Region;
use lakebed_types::Lsn;

use crate::quorum::Committed;
use crate::shared_memory::wake;

/// WAL writes in order, with the end of the last record that is complete in them.
#[derive(Debug)]
pub struct Acks {
    region: Region,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(u64, Lsn)>,
    committed: Lsn,
}

impl Acks {
    /// None yet.
    pub fn new(region: Region) -> Acks {
        Acks {
            region,
            state: Mutex::default(),
        }
    }

    /// All writes up to `sequence` have been read, and the records in them end at `end`.
    pub fn written(&self, sequence: u64, end: Lsn) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if end <= state.committed && state.waiting.is_empty() {
            wake(self.region.wal_acked(sequence));
        } else {
            state.waiting.push_back((sequence, end));
        }
    }

    /// Writes that wait.
    pub fn waiting(&self) -> usize {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting
            .len()
    }
}

impl Committed for Acks {
    fn committed(&self, committed: Lsn) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.committed = state.committed.max(committed);
        let mut acked = None;
        while let Some((sequence, end)) = state.waiting.front().copied() {
            if end > state.committed {
                break;
            }
            acked = Some(sequence);
            state.waiting.pop_front();
        }
        if let Some(sequence) = acked {
            wake(self.region.wal_acked(sequence));
        }
    }
}
