//! The door: one address for gRPC and for a stream, told apart by the first byte that arrives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::{Preamble, end, settle};

/// Connections that were accepted and have not said yet what they are; further ones are closed.
const MAX_UNKNOWN: usize = 1024;
/// How long a connection may take to say what it is.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that wait for the gRPC server.
const WAITING: usize = 64;
/// Pause after an accept that failed: there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What a door is opened with.
#[derive(Clone, Debug)]
pub struct Door {
    /// Of the streams that are served here.
    pub stream: Preamble,
    /// When nobody is let in any more.
    pub ending: CancellationToken,
    /// Where its tasks, and those that serve streams, are waited for.
    pub tasks: TaskTracker,
}

/// What a connection is.
enum Told {
    Stream,
    Grpc,
    /// The peer was wrong, and is to hear why.
    Neither(Status),
}

impl Door {
    /// Accepts connections until the end. `serve` gets each stream behind its preamble, in a task of its own; the others are
    /// returned.
    pub fn open<F>(
        self,
        listener: TcpListener,
        serve: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
    ) -> ReceiverStream<io::Result<TcpStream>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (grpc, others) = mpsc::channel(WAITING);
        self.tasks.spawn(self.clone().accept(listener, grpc, serve));
        ReceiverStream::new(others)
    }

    async fn accept<F>(
        self,
        listener: TcpListener,
        grpc: mpsc::Sender<io::Result<TcpStream>>,
        serve: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let unknown = Arc::new(Semaphore::new(MAX_UNKNOWN));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ending.cancelled() => return,
            };
            let (mut socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(one) = unknown.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "too many connections that say nothing: one is closed");
                continue;
            };
            let (grpc, serve) = (grpc.clone(), serve.clone());
            let (stream, ending) = (self.stream, self.ending.clone());
            self.tasks.spawn(async move {
                let told = tokio::select! {
                    told = tokio::time::timeout(PATIENCE, tell_apart(&mut socket, &stream)) => told,
                    () = ending.cancelled() => return,
                };
                drop(one);
                match told {
                    Ok(Ok(Told::Stream)) => serve(socket).await,
                    // The server has ended when it takes none.
                    Ok(Ok(Told::Grpc)) => drop(grpc.send(Ok(socket)).await),
                    Ok(Ok(Told::Neither(status))) => {
                        tracing::info!(%peer, %status, "a connection is refused");
                        end(&mut socket, &status).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection ended before it began"),
                    Err(_) => tracing::debug!(%peer, "a connection said nothing"),
                }
            });
        }
    }
}

async fn tell_apart(socket: &mut TcpStream, stream: &Preamble) -> io::Result<Told> {
    settle(socket)?;
    let mut first = [0];
    match socket.peek(&mut first).await? {
        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
        _ if !stream.begins_with(first[0]) => return Ok(Told::Grpc),
        _ => {}
    }
    let mut preamble = [0; 8];
    socket.read_exact(&mut preamble).await?;
    Ok(stream
        .check(preamble)
        .map_or_else(Told::Neither, |()| Told::Stream))
}
