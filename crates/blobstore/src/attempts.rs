//! How often and how long something is tried.
//!
//! An operation has a deadline; within it are attempts, each with a time limit of its own and a pause before the next
//! that grows. How many retries all operations of a store may make together is bounded by a [`Budget`]: a store that
//! is down gets about one attempt per operation instead of many times the load that it could not bear.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bounds of what one store is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long one operation may take, all attempts and the wait for its turn included.
    pub deadline: Duration,
    /// How long one attempt may take.
    pub attempt: Duration,
    /// Most attempts of one operation.
    pub attempts: u32,
    /// Most attempts under way at the same time.
    pub concurrency: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            deadline: Duration::from_secs(60),
            attempt: Duration::from_secs(20),
            attempts: 8,
            concurrency: 16,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pause after failed attempt number `failed` (from 1). `random` spreads clients that failed together: it takes
/// away up to a half, for any value.
pub(crate) fn pause(failed: u32, random: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failed.saturating_sub(1).min(16));
    let full = doubled.min(LONGEST_PAUSE);
    full - full.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// What is kept for retries, in retries.
const MOST: f64 = 40.0;
/// What a success adds.
const EARNED: f64 = 0.5;

/// Retries that all operations of one store may make, earned by successes.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<f64>);

impl Default for Budget {
    fn default() -> Budget {
        Budget(Mutex::new(MOST))
    }
}

impl Budget {
    /// Takes one retry; false when there is none left.
    pub(crate) fn take(&self) -> bool {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = *left >= 1.0;
        if enough {
            *left -= 1.0;
        }
        enough
    }

    /// An attempt succeeded.
    pub(crate) fn earn(&self) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = (*left + EARNED).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        assert_eq!(pause(1, 0), FIRST_PAUSE);
        assert_eq!(pause(2, 0), FIRST_PAUSE * 2);
        assert_eq!(pause(u32::MAX, 0), LONGEST_PAUSE);
        assert_eq!(pause(1, u32::MAX), FIRST_PAUSE / 2);
    }

    #[test]
    fn a_store_that_only_fails_is_soon_asked_once_per_operation() {
        let budget = Budget::default();
        let retries = (0..1000).filter(|_| budget.take()).count();
        assert_eq!(retries, MOST as usize);
        budget.earn();
        assert!(!budget.take());
        budget.earn();
        assert!(budget.take() && !budget.take());
    }
}
