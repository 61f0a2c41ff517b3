//! A TCP proxy that counts what passes, for each connection and direction: the bytes of the application, as the two
//! ends write them to their sockets, without headers of TCP and IP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of one connection.
#[derive(Debug, Default)]
pub struct Counted {
    /// From the one that connected.
    pub to_server: AtomicU64,
    /// To the one that connected.
    pub to_client: AtomicU64,
}

/// A running proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Arc<Counted>>>>,
}

impl Proxy {
    /// Forwards to a port of this machine.
    ///
    /// # Errors
    /// There is no port to listen on.
    pub async fn start(port: u16) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.context("listening for a proxy")?;
        let proxy = Proxy {
            address: listener.local_addr()?,
            connections: Arc::default(),
        };
        let connections = proxy.connections.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counted = Arc::new(Counted::default());
                let mut all = connections.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(counted.clone());
                drop(all);
                tokio::spawn(forward(client, port, counted));
            }
        });
        Ok(proxy)
    }

    /// Bytes so far, `(to the server, to the client)`, of each connection in the order of their beginnings.
    pub fn counts(&self) -> Vec<(u64, u64)> {
        let all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |counted: &Arc<Counted>| {
            (
                counted.to_server.load(Ordering::Relaxed),
                counted.to_client.load(Ordering::Relaxed),
            )
        };
        all.iter().map(read).collect()
    }
}

async fn forward(client: TcpStream, port: u16, counted: Arc<Counted>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        copy(from_client, to_server, &counted.to_server),
        copy(from_server, to_client, &counted.to_client)
    );
}

/// Until either end is gone; the other learns of it, because its half is dropped.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(bytes as u64, Ordering::Relaxed);
        let piece = buffer.get(..bytes).unwrap_or_default();
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}
