//! A proposer that writes nothing: it brings a change of safekeepers into force while no compute runs on the branch.
//!
//! It wins a term as a compute does, brings a quorum of every set up to the term's start, which holds everything that was
//! committed, and reports each generation that is in force, until it is told to end. A compute that runs on the
//! branch is fenced by it: whoever starts one looks for that first.

use std::sync::Arc;
use std::time::Duration;

use lakebed_types::Lsn;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{ProposerConfig, WireWal};
use crate::control_plane::{Follower, Named};
use crate::local_wal::LocalWal;
use crate::quorum::{Committed, Driver, Standing, Written, written};
use crate::sidecar::{start_driver, win};

/// Longer than a command that waits has patience for single steps.
const LEASE: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Room for WAL of its own, of which there is none.
const LOCAL_WAL_BYTES: usize = 1 << 20;

/// Nobody waits for a commit.
#[derive(Debug)]
struct Nobody;

impl Committed for Nobody {
    fn committed(&self, _: Lsn) {}
}

/// A caretaker that has won its term; dropped, it ends.
#[derive(Debug)]
pub struct Caretaker {
    standing: watch::Receiver<Standing>,
    /// Kept open: its end would end the driver.
    _written: Written,
    _end: DropGuard,
}

impl Caretaker {
    /// Wins a term.
    ///
    /// # Errors
    /// No controller or no quorum answers, or a compute wins.
    pub async fn start(named: Named) -> anyhow::Result<Caretaker> {
        let branch = named.first_answer().await?;
        let stop = CancellationToken::new();
        let end = stop.clone().drop_guard();
        let (follower, _, members) = Follower::new(named, &branch);
        tokio::spawn(follower.run(stop.clone()));
        let (written, written_to) = written();
        let (tell, mut standing) = watch::channel(Standing::default());
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        start_driver(Driver {
            branch,
            config: ProposerConfig {
                lease_ms: millis(LEASE),
                heartbeat_ms: millis(HEARTBEAT),
                wire_wal: WireWal::Plain,
            },
            local: Arc::new(LocalWal::new(LOCAL_WAL_BYTES)),
            acks: Arc::new(Nobody),
            written: written_to,
            spans: Arc::default(),
            standing: tell,
            members,
            stop,
        })?;
        let won = win(&mut standing).await?;
        tracing::info!(term = won.term.0, start = %won.start, "taking care of a branch without a compute");
        Ok(Caretaker {
            standing,
            _written: written,
            _end: end,
        })
    }

    /// Why it is of no more use; none while it is.
    pub fn trouble(&self) -> Option<String> {
        let standing = self.standing.borrow();
        standing.lost.as_ref().map(|lost| format!("{lost:?}"))
    }
}
