//! Whose turn it is to compact: one merge works at a time on a node, and none while an operator has it pause.

use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// See the module header.
#[derive(Debug)]
pub struct Turns {
    one: Semaphore,
    paused: watch::Sender<bool>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            one: Semaphore::new(1),
            paused: watch::Sender::new(false),
        }
    }
}

impl Turns {
    /// Waits for the turn; it is over when what is returned is dropped.
    pub async fn next(&self) -> Option<SemaphorePermit<'_>> {
        let mut paused = self.paused.subscribe();
        loop {
            // Neither is ever closed.
            paused.wait_for(|paused| !*paused).await.ok()?;
            let turn = self.one.acquire().await.ok()?;
            if !self.is_paused() {
                return Some(turn);
            }
        }
    }

    /// From now on, until this process ends or it is told otherwise: nobody gets a turn, or again somebody does.
    pub fn pause(&self, pause: bool) {
        self.paused.send_replace(pause);
    }

    /// Whether nobody gets a turn.
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn one_at_a_time_and_none_while_it_pauses() {
        let turns = Turns::default();
        let turn = turns.next().now_or_never().flatten().expect("nobody else has it");
        assert!(turns.next().now_or_never().is_none(), "it is taken");
        let mut waiting = Box::pin(turns.next());
        assert!(waiting.as_mut().now_or_never().is_none());
        turns.pause(true);
        drop(turn);
        assert!(
            waiting.as_mut().now_or_never().is_none(),
            "it was told to pause meanwhile"
        );
        turns.pause(false);
        assert!(waiting.now_or_never().flatten().is_some());
    }
}
