//! Work that readers must not notice: merges, as long as there are not too many layers to read from.
//!
//! It runs on threads that leave the processor to any other that wants it ([`NICE`]), a slice of work on each: a thread
//! cannot get its priority back without a privilege, and starting one costs little beside a slice. Where all processors are
//! busy it hardly gets on, so nothing that others come to wait for belongs here.

use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Nice value of such a thread, the last: of a processor that another thread wants as well it gets a seventieth
/// (`sched(7)`).
const NICE: i32 = 19;

/// Runs what reads and writes files and computes, where it takes nobody's time. It goes on when nobody waits for it any
/// more.
///
/// # Errors
/// It panicked, or there is no thread for it; in words.
pub async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = oneshot::channel();
    let (runtime, span) = (Handle::current(), tracing::Span::current());
    let body = move || {
        let _runtime = runtime.enter();
        let _span = span.enter();
        let lowered = rustix::process::setpriority_process(None, NICE);
        if let Err(error) = lowered {
            tracing::debug!(%error, "a thread of the background has the priority of all others");
        }
        // Nobody waits for it when its timeline is gone.
        let _ = done.send(work());
    };
    // The kernel keeps 15 bytes of a thread's name.
    let thread = thread::Builder::new().name("background".to_owned()).spawn(body);
    thread.map_err(|error| format!("{name}: no thread: {error}"))?;
    result.await.map_err(|_| format!("{name} panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_has_a_lower_priority_and_tells_what_became_of_it() {
        let here = rustix::process::getpriority_process(None).unwrap();
        let there = run("looking", || rustix::process::getpriority_process(None).unwrap()).await;
        assert_eq!(there, Ok(NICE));
        assert_eq!(
            rustix::process::getpriority_process(None),
            Ok(here),
            "others keep theirs"
        );
        let panicked: Result<(), String> = run("failing", || panic!("as it should")).await;
        assert_eq!(panicked, Err("failing panicked".to_owned()));
        let on_the_runtime = run("waiting", || Handle::current().block_on(async { 7 })).await;
        assert_eq!(on_the_runtime, Ok(7));
    }
}
