//! The service over real HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lakebed_admin::{AdminServer, Health};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn health_metrics_and_status_are_served_until_shutdown() {
    let well = Arc::new(AtomicBool::new(true));
    let mut registry = Registry::default();
    let pages = Counter::<u64>::default();
    registry.register("pages_read", "Pages read", pages.clone());
    let source = {
        let well = well.clone();
        let health = move || match well.load(Ordering::Relaxed) {
            true => Health::Ok,
            false => Health::Unavailable("no quorum".to_owned()),
        };
        (health, || json!({"role": "test", "pages": 3}))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(AdminServer::new(source, registry).serve(listener, shutdown.clone()));

    pages.inc_by(7);
    let health = get(address, "/healthz").await;
    assert!(
        health.starts_with("HTTP/1.1 200") && health.ends_with("ok\n"),
        "{health}"
    );
    well.store(false, Ordering::Relaxed);
    let health = get(address, "/healthz").await;
    assert!(
        health.starts_with("HTTP/1.1 503") && health.ends_with("no quorum\n"),
        "{health}"
    );
    assert!(get(address, "/metrics").await.contains("pages_read_total 7\n"));
    let status = get(address, "/v1/status").await;
    assert!(status.ends_with(r#"{"pages":3,"role":"test"}"#), "{status}");
    let missing = get(address, "/nothing").await;
    assert!(
        missing.starts_with("HTTP/1.1 404") && missing.contains(r#""code":"not_found""#),
        "{missing}"
    );

    // An idle connection does not hold up the shutdown.
    let _idle = TcpStream::connect(address).await.unwrap();
    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), server)
        .await
        .unwrap();
    ended.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
