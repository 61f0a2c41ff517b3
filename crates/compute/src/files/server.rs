//! The shim's socket: a task for each process of Postgres, one question at a time.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_shim_abi::frame::{HEADER_BYTES, Header};
use lakebed_shim_abi::message::{Answer, Question};
use lakebed_shim_abi::{MAGIC, VERSION};
use lakebed_types::data_directory::is_inside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{FileError, Files};
use crate::data_dir::{Owner, give};
use crate::pages::PageError;

/// How long a process may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);

/// Binds the socket, open to Postgres alone.
///
/// # Errors
/// The directory cannot be written, or the path is too long for a socket.
pub fn bind(path: &Path, owner: Owner) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode)?;
    give(path, owner)?;
    Ok(listener)
}

/// Answers until stopped. `connected` is rung at each connection.
pub async fn serve(
    listener: UnixListener,
    files: Arc<Files>,
    connected: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (files, connected) = (files.clone(), connected.clone());
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &files, &connected).await {
                        tracing::warn!(%error, "connection of a Postgres process");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "accepting a Postgres process");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    connections.shutdown().await;
}

/// Reads one frame; none at the end of the connection.
async fn receive(stream: &mut UnixStream, body: &mut Vec<u8>) -> io::Result<Option<Header>> {
    let mut header = [0; HEADER_BYTES];
    match stream.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    }
    let header =
        Header::decode(&header).map_err(|error| io::Error::other(format!("a bad frame: {error:?}")))?;
    body.resize(header.body_bytes, 0);
    stream.read_exact(body).await?;
    Ok(Some(header))
}

async fn converse(mut stream: UnixStream, files: &Arc<Files>, connected: &Notify) -> io::Result<()> {
    let bad = |what: &str| io::Error::other(what.to_owned());
    let mut body = Vec::new();
    let hello = tokio::time::timeout(HELLO, receive(&mut stream, &mut body)).await;
    let hello = hello.map_err(|_| bad("no greeting in time"))??;
    let Some(hello) = hello else { return Ok(()) };
    match Question::decode(hello.kind, &body) {
        Ok(Question::Hello { magic, version, .. }) if (magic, version) == (MAGIC, VERSION) => {}
        _ => return Err(bad("the shim is of another build")),
    }
    connected.notify_one();
    while let Some(header) = receive(&mut stream, &mut body).await? {
        let question = Question::decode(header.kind, &body);
        let question = question.map_err(|error| io::Error::other(format!("a bad question: {error:?}")))?;
        let refused;
        let answer = match answer(files, question).await {
            Ok(Some(answer)) => answer,
            Ok(None) => continue,
            // The process is about to be stopped; let it see that.
            Err(FileError::Page(PageError::Stopping)) => return Ok(()),
            Err(error) => {
                tracing::error!(%error, "refusing a question of Postgres");
                refused = error.to_string();
                Answer::Refused {
                    text: refused.as_bytes(),
                }
            }
        };
        match stream.write_all(answer.encode(header.number).bytes()).await {
            Ok(()) => {}
            Err(_) => return Ok(()), // The process died.
        }
    }
    Ok(())
}

fn text(path: &[u8]) -> Result<&str, FileError> {
    let path = std::str::from_utf8(path).ok().filter(|path| is_inside(path));
    path.ok_or_else(|| FileError::Protocol("a path that is none inside the data directory".to_owned()))
}

async fn answer<'a>(files: &Arc<Files>, question: Question<'a>) -> Result<Option<Answer<'a>>, FileError> {
    Ok(Some(match question {
        Question::Hello { .. } => return Err(FileError::Protocol("a second greeting".to_owned())),
        Question::Open { create, path } => {
            let (outcome, of) = files.open(text(path)?, create).await?;
            Answer::Opened { outcome, of }
        }
        Question::Fill(blocks) => {
            files.fill(blocks).await?;
            Answer::Done
        }
        Question::Prefetch(blocks) => {
            files.prefetch(blocks);
            return Ok(None);
        }
        Question::ListDir { path } => {
            files.list_dir(text(path)?).await?;
            Answer::Done
        }
        Question::Unlink { path } => {
            let existed = files.unlink(text(path)?).await?;
            Answer::Removed { existed }
        }
        Question::Renamed { from, to } => {
            files.renamed(text(from)?, text(to)?).await?;
            Answer::Done
        }
    }))
}
