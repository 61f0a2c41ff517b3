//! The threads that serve streams of pages.
//!
//! As many as there are processors, each with a runtime of its own and the streams that were given to it: a request is read,
//! its pages are built and its answer is written without another thread being woken, which costs as much as building a page, and
//! without a turn behind ingest and compaction, whose tasks have the process's other threads. A new stream goes where the
//! fewest are. Long requests give others of their thread a turn in between.

use std::net;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::Node;
use crate::service::page_stream;

/// Streams on their way to a thread.
const ARRIVING: usize = 64;
/// How long streams may take to end after they were told to.
const END_GRACE: Duration = Duration::from_secs(5);

/// See the module header; cheap to clone.
#[derive(Clone)]
pub(crate) struct Readers {
    threads: Arc<[Reader]>,
}

struct Reader {
    arrivals: mpsc::Sender<net::TcpStream>,
    /// Streams that it has, and those on their way.
    streams: Arc<AtomicUsize>,
}

/// Tells when all threads have ended.
pub(crate) struct Ended(Vec<oneshot::Receiver<()>>);

impl Readers {
    /// Starts the threads; they end with `ending`.
    ///
    /// # Errors
    /// There are no more threads to be had.
    pub(crate) fn start(node: &Arc<Node>, ending: &CancellationToken) -> anyhow::Result<(Readers, Ended)> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let (mut threads, mut ended) = (Vec::new(), Vec::new());
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("a runtime for readers of pages")?;
            let (arrivals, arriving) = mpsc::channel(ARRIVING);
            let (tell, told) = oneshot::channel();
            let streams = Arc::new(AtomicUsize::new(0));
            let work = work(node.clone(), arriving, streams.clone(), ending.clone());
            let thread = thread::Builder::new().name(format!("pages-{number}"));
            let spawned = thread.spawn(move || {
                runtime.block_on(work);
                // What is left reads from disk, and nobody waits for it.
                runtime.shutdown_background();
                // Nobody may want to know.
                let _ = tell.send(());
            });
            spawned.context("a thread for readers of pages")?;
            threads.push(Reader { arrivals, streams });
            ended.push(told);
        }
        let threads = threads.into();
        Ok((Readers { threads }, Ended(ended)))
    }

    /// Gives a stream to a thread.
    pub(crate) async fn take(self, socket: TcpStream) {
        let fewest = self.threads.iter();
        let fewest = fewest.min_by_key(|reader| reader.streams.load(Ordering::Relaxed));
        let (Some(reader), Ok(socket)) = (fewest, socket.into_std()) else {
            return;
        };
        reader.streams.fetch_add(1, Ordering::Relaxed);
        // It is gone when the pageserver ends.
        let _ = reader.arrivals.send(socket).await;
    }
}

impl Ended {
    /// Waits for them.
    pub(crate) async fn wait(self) {
        for ended in self.0 {
            // One that panicked has ended too.
            let _ = ended.await;
        }
    }
}

async fn work(
    node: Arc<Node>,
    mut arriving: mpsc::Receiver<net::TcpStream>,
    count: Arc<AtomicUsize>,
    ending: CancellationToken,
) {
    let streams = TaskTracker::new();
    loop {
        let socket = tokio::select! {
            Some(socket) = arriving.recv() => socket,
            () = ending.cancelled() => break,
        };
        let (node, ending, count) = (node.clone(), ending.clone(), count.clone());
        streams.spawn(async move {
            match TcpStream::from_std(socket) {
                Ok(socket) => page_stream::serve(node, socket, ending).await,
                Err(error) => tracing::warn!(%error, "a reader\'s connection is lost"),
            }
            count.fetch_sub(1, Ordering::Relaxed);
        });
    }
    streams.close();
    if tokio::time::timeout(END_GRACE, streams.wait()).await.is_err() {
        tracing::warn!("streams of pages do not end, and are cut");
    }
}
