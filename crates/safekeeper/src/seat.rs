//! The thread that a timeline has while a proposer is connected to it.
//!
//! Its runtime is this thread alone. The streams, the owner and the disk take turns on it, so that what a commit waits
//! for never waits for another thread to wake: what is in the socket is read, written, flushed and answered. The disk
//! blocks the thread, and nobody but this timeline. When the last proposer has gone the owner goes back to the threads
//! that all timelines share: one without a proposer costs none.

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::owner::{Leave, Owner};
use crate::propose::Newcomer;

/// Lets an owner work on a thread of its own until the last stream has ended. `None` when it has ended there.
pub(crate) async fn take(owner: Owner, newcomer: Newcomer, end: CancellationToken) -> Option<Owner> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(owner, &error),
    };
    let (give, given) = oneshot::channel::<(Owner, Newcomer)>();
    let (back, returned) = oneshot::channel();
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new().name("timeline".to_owned());
    let spawned = thread.spawn(move || {
        let worked = runtime.block_on(
            async move {
                let (mut owner, newcomer) = given.await.ok()?;
                owner.sit_down(newcomer);
                let leave = owner.work(&end).await;
                owner.stand_up(&leave).await;
                matches!(leave, Leave::FromThread).then_some(owner)
            }
            .instrument(span),
        );
        // The timeline's end waits for it.
        let _ = back.send(worked);
    });
    if let Err(error) = spawned {
        return refuse(owner, &error);
    }
    // Nobody but the thread has the other end.
    let _ = give.send((owner, newcomer));
    returned.await.ok().flatten()
}

/// The proposer comes again; there may be a thread then.
fn refuse(owner: Owner, error: &std::io::Error) -> Option<Owner> {
    tracing::error!(%error, "a proposer is sent away: there is no thread for it");
    Some(owner)
}
