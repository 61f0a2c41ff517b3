//! The door: one address for gRPC and for proposers, told apart by the first byte that arrives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lakebed_proto::propose as wire;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::propose;
use crate::server::Safekeeper;

/// Connections that were accepted and have not said yet what they are; further ones are closed.
const MAX_UNKNOWN: usize = 1024;
/// How long a connection may take to say what it is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that wait for the gRPC server.
const WAITING: usize = 64;
/// Pause after an accept that failed: there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the safekeeper ends, and serves those of proposers. Returns the others.
pub(crate) fn open(
    safekeeper: &Arc<Safekeeper>,
    listener: TcpListener,
) -> ReceiverStream<io::Result<TcpStream>> {
    let (grpc, others) = mpsc::channel(WAITING);
    safekeeper.serve_stream(accept(safekeeper.clone(), listener, grpc));
    ReceiverStream::new(others)
}

async fn accept(
    safekeeper: Arc<Safekeeper>,
    listener: TcpListener,
    grpc: mpsc::Sender<io::Result<TcpStream>>,
) {
    let unknown = Arc::new(Semaphore::new(MAX_UNKNOWN));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = safekeeper.ending().cancelled() => return,
        };
        let (socket, peer) = match accepted {
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
        let (safekeeper, grpc) = (safekeeper.clone(), grpc.clone());
        let serving = safekeeper.clone();
        safekeeper.serve_stream(async move {
            let told = tokio::select! {
                told = tokio::time::timeout(PATIENCE, tell_apart(&socket)) => told,
                () = serving.ending().cancelled() => return,
            };
            drop(one);
            match told {
                Ok(Ok(true)) => propose::greet(serving, socket).await,
                // The server has ended when it takes none.
                Ok(Ok(false)) => drop(grpc.send(Ok(socket)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection ended before it began"),
                Err(_) => tracing::debug!(%peer, "a connection said nothing"),
            }
        });
    }
}

/// Whether it is a proposer's.
async fn tell_apart(socket: &TcpStream) -> io::Result<bool> {
    wire::settle(socket)?;
    let mut first = [0];
    match socket.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(wire::begins_with(first[0])),
    }
}
