//! One HTTP request, for admin pages.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The body of a successful answer.
pub fn get(address: &str, path: &str) -> String {
    let (status, body) = answer(address, path);
    assert!(status == 200, "{address}{path}: {status} {body}");
    body
}

/// Status code and body of any answer.
pub fn answer(address: &str, path: &str) -> (u16, String) {
    request(address, "GET", path, "")
}

/// Status code and body of the answer to a PUT.
pub fn put(address: &str, path: &str, body: &str) -> (u16, String) {
    request(address, "PUT", path, body)
}

/// Status code and body of the answer to a POST without a body.
pub fn post(address: &str, path: &str) -> (u16, String) {
    request(address, "POST", path, "")
}

fn request(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a timeout");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{address}{path}: {answer}"));
    (status, body.to_owned())
}
