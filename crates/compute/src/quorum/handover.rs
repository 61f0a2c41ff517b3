//! Where this compute's WAL meets the core.
//!
//! Each flush of Postgres waits for the quorum, so that every wake-up on this way is paid by all who commit. Hence the
//! thread that has new WAL does not wake the driver's task: it locks the core, and writes into the sockets itself. The
//! task is woken only for what follows from it and is not WAL.

use std::sync::{Arc, Mutex, PoisonError};

use lakebed_quorum::proposer::Input;
use lakebed_types::Lsn;
use tokio::sync::Notify;

use super::executor::{Core, Executor};

/// An attempt at a term, or the term.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) executor: Executor,
    pub(super) core: Core,
}

#[derive(Debug, Default)]
struct State {
    end: Lsn,
    closed: bool,
    running: Option<Running>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The task has something to look after.
    changed: Notify,
}

/// The end of whoever has the WAL. The driver ends with it.
#[derive(Debug)]
pub struct Written(Arc<Shared>);

/// The driver's end.
#[derive(Debug)]
pub struct Taken(Arc<Shared>);

/// Both ends.
pub fn written() -> (Written, Taken) {
    let shared = Arc::new(Shared::default());
    (Written(shared.clone()), Taken(shared))
}

impl Shared {
    /// None after a panic with the core locked: it may be in any state, and nothing is given to it any more.
    fn with<T>(&self, body: impl FnOnce(&mut State) -> T) -> Option<T> {
        self.state.lock().ok().map(|mut state| body(&mut state))
    }
}

impl Written {
    /// WAL up to here is in the [`LocalWal`](crate::local_wal::LocalWal). Sends it, as far as the quorum's state and
    /// the sockets let it.
    pub fn advance(&self, end: Lsn) {
        let look_after = self.0.with(|state| {
            state.end = end;
            state.running.as_mut().is_some_and(|Running { executor, core }| {
                let due = core.notices_due;
                let since = executor.spans.taken();
                executor.input(core, Input::LocalWal { end });
                executor.spans.sent_since(since, end);
                core.ended.is_some() || core.notices_due != due
            })
        });
        if look_after != Some(false) {
            self.0.changed.notify_one();
        }
    }

    /// What was told last.
    pub fn end(&self) -> Lsn {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.end
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.0.with(|state| state.closed = true);
        self.0.changed.notify_one();
    }
}

impl Taken {
    /// Begins an attempt, with the WAL that there is. False after a panic.
    pub(super) fn run(&self, mut running: Running) -> bool {
        let begun = self.0.with(|state| {
            let Running { executor, core } = &mut running;
            executor.input(core, Input::LocalWal { end: state.end });
            state.running = Some(running);
        });
        begun.is_some()
    }

    /// Ends it. None if there is none, or after a panic.
    pub(super) fn take_running(&self) -> Option<Running> {
        self.0.with(|state| state.running.take()).flatten()
    }

    /// Does something with the core. None as for [`Taken::take_running`].
    pub(super) fn with<T>(&self, body: impl FnOnce(&mut Running) -> T) -> Option<T> {
        self.0.with(|state| state.running.as_mut().map(body)).flatten()
    }

    /// Nobody writes any more.
    pub(super) fn is_closed(&self) -> bool {
        self.0.with(|state| state.closed).unwrap_or(true)
    }

    /// There is something to look after.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}
