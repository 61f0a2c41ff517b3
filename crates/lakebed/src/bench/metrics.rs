//! What the processes of the tier count.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The counters of the process whose admin service has this port, as it tells them.
///
/// # Errors
/// It does not answer.
pub async fn text(port: u16) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// The same as numbers by name, those without labels.
///
/// # Errors
/// As of [`text`].
pub async fn values(port: u16) -> anyhow::Result<BTreeMap<String, f64>> {
    let text = text(port).await?;
    let value = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(value).collect())
}
