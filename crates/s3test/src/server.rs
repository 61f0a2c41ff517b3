//! moto, an S3 server in one process and in memory. `tests/moto` provides it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lakebed_pgtest::{run, temp_dir, wait_until};
use tempfile::TempDir;

/// The bucket that every server has.
pub const BUCKET: &str = "lakebed";
/// What its clients find in their environment.
pub const CREDENTIALS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "tests"),
    ("AWS_SECRET_ACCESS_KEY", "no secret"),
];

/// Runs a program until there is nothing more to read, which is so when the process at the other end is gone too, in whatever way.
const UNTIL_CLOSED: &str =
    r#""$0" "$@" </dev/null & server=$!; cat >/dev/null; kill "$server"; wait "$server""#;

/// A running server with one empty bucket. Ends, and forgets everything, when dropped, or with this process: one in a `static` is
/// never dropped.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    /// `host:port`.
    pub address: String,
    _home: TempDir,
}

impl S3Server {
    /// Starts one.
    pub fn start() -> S3Server {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/moto");
        let program = run(&mut Command::new(script));
        let home = temp_dir();
        let log = File::create(home.path().join("log")).expect("a log file");
        // Should another process take it in between, the server ends and the wait below says so.
        let chosen = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = chosen.local_addr().expect("its address").port();
        drop(chosen);
        let mut command = Command::new("sh");
        command
            .args(["-c", UNTIL_CLOSED, program.trim()])
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let server = S3Server {
            child,
            address: format!("127.0.0.1:{port}"),
            _home: home,
        };
        wait_until("the S3 server to have a bucket", || {
            create_bucket(&server.address)
        });
        server
    }

    /// Address of a prefix in the bucket, for a configuration; through `endpoint` (`host:port`), which is this server's
    /// or a proxy's.
    pub fn store(endpoint: &str, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?region=us-east-1&endpoint=http://{endpoint}")
    }
}

fn create_bucket(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let mut answer = String::new();
    let request = format!(
        "PUT /{BUCKET} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_to_string(&mut answer))
        .is_ok_and(|_| answer.starts_with("HTTP/1.1 200"))
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
