//! Requests to the admin services of the tier's processes.

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The body of what `GET` of a path answers.
///
/// # Errors
/// Nobody answers at this port, or refuses.
pub async fn get(port: u16, path: &str) -> anyhow::Result<String> {
    request(port, "GET", path, "").await
}

/// The body of what `PUT` of this body answers.
///
/// # Errors
/// Nobody answers at this port, or refuses; what was said.
pub async fn put(port: u16, path: &str, body: &str) -> anyhow::Result<String> {
    request(port, "PUT", path, body).await
}

async fn request(port: u16, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without an end")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!(
            "{method} {path}: {} {body}",
            head.lines().next().unwrap_or_default()
        );
    }
    Ok(body.to_owned())
}
