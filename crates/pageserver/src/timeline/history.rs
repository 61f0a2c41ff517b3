//! What of a timeline's history is kept, and which LSNs may be read.
//!
//! ```text
//!   LSN ──┬─────●──────────●─────────┬──────────────────────────────►
//!       start  branch    lease    horizon     every LSN can be read
//! ```
//!
//! The controllers say how far the horizon may rise ([`Kept`]), and every branch that must be there before it does. A *lease*
//! keeps one LSN, for whom it is granted to, as long as it is renewed: a compute reads at the LSN at which it booted, for as
//! long as it runs. In order:
//! 1. the horizon rises in memory: from now on reads, leases and branches below it are refused, but at LSNs that are kept;
//! 2. the manifest has it, and with it the leases below it;
//! 3. merges give up what nobody reads ([`super::compaction`]).
//!
//! A read asks before it begins, and once more when it has collected its values: so whatever a merge gave up in between, no
//! page is ever built of less than it needs. Leases end by this process's own monotonic clock. After a start the
//! horizon does not rise and no lease ends before a whole lease's time is over, so that everybody who held one can renew it.
//!
//! A shard that is split off is not asked for leases before it is in force. Until then the controllers allow it nothing, and what
//! is kept below its horizon stays; when they begin to, there is a lease's time once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakebed_layer::ReadPoints;
use lakebed_types::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::commit::Said;
use super::{Timeline, TimelineError};
use crate::catalogue::Catalogue;
use crate::manifest::KeptLease;

/// Leases of one timeline: computes of one branch are one, but for those that are being superseded.
const MAX_LEASES: usize = 1000;

/// How far the horizon may rise, as the controllers say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// To here.
    pub horizon: Lsn,
    /// Every branch that was made below it: before it rises they must be there.
    pub branches: BTreeSet<TimelineId>,
}

/// What is kept, as of one moment.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Zero as long as nothing was given up.
    horizon: Lsn,
    branches: BTreeMap<TimelineId, Lsn>,
    /// When each ends.
    leases: BTreeMap<(Lsn, String), Instant>,
    allowed: Kept,
    /// Nothing is given up before.
    quiet_until: Option<Instant>,
    deleted: bool,
}

/// Why a lease is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// The LSN is not kept any more.
    NotKept,
    /// There are too many.
    TooMany,
}

impl History {
    /// As a manifest had it. Nothing is given up and no lease ends before `quiet_until`.
    pub fn restored(
        horizon: Lsn,
        branches: BTreeMap<TimelineId, Lsn>,
        leases: Vec<KeptLease>,
        quiet_until: Instant,
    ) -> History {
        let lease = |lease: KeptLease| ((lease.lsn, lease.holder), quiet_until);
        History {
            horizon,
            branches,
            leases: leases.into_iter().map(lease).collect(),
            quiet_until: Some(quiet_until),
            ..History::default()
        }
    }

    pub fn set_branches(&mut self, branches: BTreeMap<TimelineId, Lsn>) {
        self.branches = branches;
    }

    /// Whether a read at `lsn` finds all that it needs.
    pub fn is_readable(&self, lsn: Lsn) -> bool {
        let from = (lsn, String::new());
        lsn >= self.horizon
            || self.branches.values().any(|branch| *branch == lsn)
            || self
                .leases
                .range(from..)
                .next()
                .is_some_and(|((at, _), _)| *at == lsn)
    }

    /// Grants or renews a lease.
    pub fn grant(&mut self, lsn: Lsn, holder: &str, until: Instant) -> Result<(), NoLease> {
        if !self.is_readable(lsn) {
            return Err(NoLease::NotKept);
        }
        let lease = (lsn, holder.to_owned());
        if self.leases.len() >= MAX_LEASES && !self.leases.contains_key(&lease) {
            return Err(NoLease::TooMany);
        }
        self.leases.insert(lease, until);
        Ok(())
    }

    pub fn release(&mut self, lsn: Lsn, holder: &str) {
        self.leases.remove(&(lsn, holder.to_owned()));
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }

    /// Forgets leases that are over, and raises the horizon as far as it may.
    fn advance(&mut self, now: Instant, stored: Lsn) {
        if self.is_quiet(now) {
            return;
        }
        self.quiet_until = None;
        let (allowed, horizon) = (self.allowed.horizon, self.horizon);
        self.leases
            .retain(|(lsn, _), until| *until > now || is_held(*lsn, horizon, allowed));
        let there = |branch: &TimelineId| self.branches.contains_key(branch);
        if self.allowed.branches.iter().all(there) {
            // Not beyond what is stored: then a page's newest version is always in the window.
            self.horizon = self.horizon.max(self.allowed.horizon.min(stored));
        }
    }

    /// When [`History::advance`] may do something that it did not do before.
    fn next_change(&self) -> Option<Instant> {
        let ends = self.leases.iter();
        let ends = ends.filter(|((lsn, _), _)| !is_held(*lsn, self.horizon, self.allowed.horizon));
        self.quiet_until
            .into_iter()
            .chain(ends.map(|(_, until)| *until))
            .min()
    }

    /// Leases that a manifest with this horizon must have.
    pub fn leases_below(&self, horizon: Lsn) -> Vec<KeptLease> {
        let below = self.leases.keys().filter(|(lsn, _)| *lsn < horizon);
        let kept = below.map(|(lsn, holder)| KeptLease {
            lsn: *lsn,
            holder: holder.clone(),
        });
        kept.collect()
    }

    /// What merges keep for, with a horizon that is durable.
    fn points(&self, horizon: Lsn) -> ReadPoints {
        let singles = self.branches.values().copied();
        let singles = singles.chain(self.leases.keys().map(|(lsn, _)| *lsn));
        ReadPoints::new(singles.map(|lsn| (lsn, lsn)).chain([(horizon, Lsn::MAX)]))
    }
}

/// Whether a lease stays although its time is over: the controllers allow nothing yet, and what it keeps would be gone.
fn is_held(lsn: Lsn, horizon: Lsn, allowed: Lsn) -> bool {
    !allowed.is_valid() && lsn < horizon
}

/// What is kept, and the LSNs of databases that were copied as far as the copies are read there: a page of a copy begins as
/// its template's was. `copies` are from when to when each is there.
fn with_copies(kept: ReadPoints, mut copies: Vec<(Lsn, Option<Lsn>)>) -> ReadPoints {
    // Newest first: a copy may be a template itself.
    copies.sort_unstable();
    let mut points = kept;
    for (born, gone) in copies.into_iter().rev() {
        if points.newest_in(born, gone.unwrap_or(Lsn::MAX)).is_some() {
            points = points.and(born);
        }
    }
    points
}

/// A lease, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What can be read.
    pub lsn: Lsn,
    /// By whom.
    pub holder: String,
    /// For so long.
    pub left: Duration,
}

/// What is kept, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptHistory {
    /// From here on every LSN can be read.
    pub horizon: Lsn,
    /// To here it may rise.
    pub allowed: Lsn,
    /// Branch points.
    pub branches: BTreeMap<TimelineId, Lsn>,
    /// Leases.
    pub leases: Vec<Lease>,
}

impl Timeline {
    pub(super) fn history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.history.read().expect("the history's lock is poisoned"))
    }

    pub(super) fn history_mut<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.history.write().expect("the history's lock is poisoned"))
    }

    /// Reads at `lsn` if all that it needs is kept: before the read, and still after it. What it says in between, an error too,
    /// is of no account otherwise.
    pub(super) fn if_kept<T>(
        &self,
        lsn: Lsn,
        read: impl FnOnce() -> Result<T, TimelineError>,
    ) -> Result<T, TimelineError> {
        self.check_kept(lsn)?;
        let read = read();
        self.check_kept(lsn)?;
        read
    }

    /// Refuses an LSN at which not all that a read needs is kept.
    ///
    /// # Errors
    /// [`TimelineError::NotKept`], [`TimelineError::Deleted`].
    pub fn check_kept(&self, lsn: Lsn) -> Result<(), TimelineError> {
        self.history(|history| match history.is_readable(lsn) {
            _ if history.deleted => Err(TimelineError::Deleted(self.identity.timeline)),
            true => Ok(()),
            false => Err(TimelineError::NotKept {
                asked: lsn,
                horizon: history.horizon,
            }),
        })
    }

    /// Tells how far the horizon may rise.
    pub fn allow(&self, kept: Kept) {
        let comes_into_force = self.read(|state| state.layers.map.is_of_split());
        let quiet_until = Instant::now() + self.thresholds.lease;
        let changed = self.history_mut(|history| {
            let changed = history.allowed != kept;
            if comes_into_force && !history.allowed.horizon.is_valid() {
                history.quiet_until = history.quiet_until.max(Some(quiet_until));
            }
            history.allowed = kept;
            changed
        });
        if changed {
            self.history_news.notify_one();
        }
    }

    /// Keeps `lsn` readable for a holder, for as long as is returned; or renews that.
    ///
    /// # Errors
    /// It is not kept any more, or there are too many leases.
    pub fn lease(&self, lsn: Lsn, holder: &str) -> Result<Duration, TimelineError> {
        let time = self.thresholds.lease;
        self.check_kept(lsn)?;
        let granted = self.history_mut(|history| {
            let granted = history.grant(lsn, holder, Instant::now() + time);
            (granted, history.horizon)
        });
        match granted {
            (Ok(()), _) => Ok(time),
            (Err(NoLease::NotKept), horizon) => Err(TimelineError::NotKept { asked: lsn, horizon }),
            (Err(NoLease::TooMany), _) => Err(TimelineError::TooManyLeases(MAX_LEASES)),
        }
    }

    /// Gives a lease back.
    pub fn release(&self, lsn: Lsn, holder: &str) {
        self.history_mut(|history| history.release(lsn, holder));
        self.history_news.notify_one();
    }

    /// From now on nothing of it is read or stored: a branch that is deleted must not be read while its parent gives up what
    /// it needs. Returns when nothing is being stored any more.
    pub async fn end(&self) {
        self.history_mut(|history| history.deleted = true);
        self.commits.lock().await.deleted = true;
    }

    /// Returns when more of history may be given up than before, or when that may be so by the clock.
    pub async fn history_may_have_changed(&self) {
        let next = self.history(History::next_change);
        let clock = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.history_news.notified() => {}
            () = clock => {}
        }
    }

    /// Forgets leases that are over, and raises the horizon as far as it may, durably.
    ///
    /// # Errors
    /// See [`TimelineError`]. Nothing is given up then.
    pub async fn advance_history(self: &Arc<Self>) -> Result<(), TimelineError> {
        let mut commits = self.commits.lock().await;
        let stored = self.disk_consistent();
        let horizon = self.history_mut(|history| {
            history.advance(Instant::now(), stored);
            history.horizon
        });
        if horizon <= commits.said.horizon || !commits.stored() {
            return Ok(());
        }
        let said = Said {
            horizon,
            ..commits.said.clone()
        };
        self.commit_saying(&mut commits, None, &[], (stored, said), |_| {})
            .await
    }

    /// LSNs that merges keep.
    pub(super) async fn read_points(&self) -> ReadPoints {
        let commits = self.commits.lock().await;
        let kept = self.history(|history| history.points(commits.said.horizon));
        with_copies(kept, self.catalogue(Catalogue::copies))
    }

    /// For status.
    pub fn kept_history(&self) -> KeptHistory {
        let now = Instant::now();
        self.history(|history| KeptHistory {
            horizon: history.horizon.max(self.identity.consistent),
            allowed: history.allowed.horizon,
            branches: history.branches.clone(),
            leases: history
                .leases
                .iter()
                .map(|((lsn, holder), until)| Lease {
                    lsn: *lsn,
                    holder: holder.clone(),
                    left: until.saturating_duration_since(now),
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn branch(number: u8) -> TimelineId {
        TimelineId([number; 16])
    }

    fn allowed(horizon: u64, branches: &[u8]) -> Kept {
        Kept {
            horizon: Lsn(horizon),
            branches: branches.iter().map(|number| branch(*number)).collect(),
        }
    }

    fn readable(history: &History) -> Vec<u64> {
        (0..10)
            .map(|ten| ten * 10)
            .filter(|lsn| history.is_readable(Lsn(*lsn)))
            .collect()
    }

    #[test]
    fn the_horizon_rises_past_what_is_held() {
        let now = Instant::now();
        let mut history = History::default();
        assert_eq!(readable(&history).len(), 10);
        history.grant(Lsn(20), "a", now + LEASE).unwrap();
        history.set_branches([(branch(1), Lsn(40))].into());
        history.allowed = allowed(60, &[1]);
        history.advance(now, Lsn(90));
        assert_eq!(readable(&history), [20, 40, 60, 70, 80, 90]);
        assert_eq!(history.points(Lsn(60)), {
            ReadPoints::new([20, 40].map(|lsn| (Lsn(lsn), Lsn(lsn)))).and_since(Lsn(60))
        });
        // What is kept may be leased by others too, what is not may not.
        assert_eq!(history.grant(Lsn(20), "b", now + LEASE * 2), Ok(()));
        assert_eq!(history.grant(Lsn(21), "b", now + LEASE), Err(NoLease::NotKept));
        let below = |history: &History| -> Vec<_> {
            let kept = history.leases_below(Lsn(60)).into_iter();
            kept.map(|lease| (lease.lsn.0, lease.holder)).collect()
        };
        assert_eq!(below(&history), [(20, "a".to_owned()), (20, "b".to_owned())]);
        assert_eq!(history.next_change(), Some(now + LEASE));
        history.advance(now + LEASE, Lsn(90));
        assert_eq!(below(&history), [(20, "b".to_owned())]);
        history.release(Lsn(20), "b");
        assert_eq!(history.grant(Lsn(20), "a", now + LEASE), Err(NoLease::NotKept));
        // It never falls, and never passes what is stored.
        history.allowed = allowed(50, &[]);
        history.advance(now + LEASE, Lsn(90));
        assert_eq!(readable(&history), [40, 60, 70, 80, 90]);
        history.allowed = allowed(90, &[]);
        history.advance(now + LEASE, Lsn(75));
        assert_eq!(readable(&history), [40, 80, 90]);
    }

    #[test]
    fn nothing_is_given_up_before_every_branch_is_there() {
        let now = Instant::now();
        let mut history = History {
            allowed: allowed(60, &[1, 2]),
            ..History::default()
        };
        history.set_branches([(branch(1), Lsn(10))].into());
        history.advance(now, Lsn(90));
        assert_eq!(readable(&history).len(), 10);
        history.set_branches([(branch(1), Lsn(10)), (branch(2), Lsn(30)), (branch(3), Lsn(50))].into());
        history.advance(now, Lsn(90));
        assert_eq!(readable(&history), [10, 30, 50, 60, 70, 80, 90]);
    }

    #[test]
    fn after_a_start_everybody_has_time_to_come_back() {
        let now = Instant::now();
        let lease = KeptLease {
            lsn: Lsn(20),
            holder: "a".to_owned(),
        };
        let mut history = History::restored(Lsn(50), BTreeMap::new(), vec![lease], now + LEASE);
        history.allowed = allowed(80, &[]);
        history.advance(now + LEASE / 2, Lsn(90));
        assert_eq!(readable(&history), [20, 50, 60, 70, 80, 90]);
        // One that had a lease above the horizon of then, which no manifest has.
        history.grant(Lsn(60), "b", now + LEASE * 2).unwrap();
        history.advance(now + LEASE, Lsn(90));
        assert_eq!(readable(&history), [60, 80, 90]);
    }

    #[test]
    fn what_is_leased_stays_until_something_is_allowed() {
        let now = Instant::now();
        let lease = |lsn| KeptLease {
            lsn: Lsn(lsn),
            holder: "a".to_owned(),
        };
        let mut history = History::restored(Lsn(50), BTreeMap::new(), vec![lease(20)], now + LEASE);
        history.grant(Lsn(60), "b", now + LEASE).unwrap();
        assert_eq!(history.next_change(), Some(now + LEASE));
        history.advance(now + LEASE, Lsn(90));
        // Nothing of the other one is given up, whether it is leased or not.
        assert_eq!(readable(&history), [20, 50, 60, 70, 80, 90]);
        assert_eq!((history.leases.len(), history.next_change()), (1, None));
        history.allowed = allowed(70, &[]);
        history.advance(now + LEASE, Lsn(90));
        assert_eq!(readable(&history), [70, 80, 90]);
    }

    #[test]
    fn a_template_is_kept_as_it_was_as_long_as_a_copy_is_read() {
        let kept = ReadPoints::new([(Lsn(35), Lsn(35))]).and_since(Lsn(80));
        type Copies = &'static [(u64, Option<u64>)];
        let rows: [(Copies, &[u64]); 6] = [
            (&[(10, None)], &[10]),
            (&[(10, Some(30))], &[]),
            (&[(10, Some(36))], &[10]),
            (&[(40, Some(80))], &[]),
            (&[(50, Some(81))], &[50]),
            // A copy of a copy that is gone.
            (&[(20, Some(30)), (25, None)], &[20, 25]),
        ];
        for (copies, expected) in rows {
            let copies = copies
                .iter()
                .map(|(born, gone)| (Lsn(*born), gone.map(Lsn)))
                .collect();
            let points = with_copies(kept.clone(), copies);
            let found: Vec<u64> = (1..35)
                .chain(36..80)
                .filter(|lsn| points.contains(Lsn(*lsn)))
                .collect();
            assert_eq!(found, expected);
        }
    }
}
