//! How a daemon tells the controllers that it is there, and goes on telling.
//!
//! A registration is repeated every few seconds, so that a controller that lost touch, or a new one, hears of the node
//! without anybody asking. The *incarnation* tells processes and data directories apart: see [`fresh_incarnation`]
//! and [`stored_incarnation`].

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use lakebed_proto::v1::RegisterNodeRequest;
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::{connect, v1};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::random;

/// The pause between two registrations.
const REPEAT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How long a controller may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a daemon tells about itself.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Addresses of the controllers, `host:port`; each is tried in turn.
    pub controllers: Vec<String>,
    /// Unique over safekeepers and pageservers, not zero.
    pub node_id: u64,
    /// What it does.
    pub role: v1::NodeRole,
    /// `host:port` at which others reach its gRPC service.
    pub address: String,
    /// Safekeeper: [`stored_incarnation`]. Pageserver: [`fresh_incarnation`].
    pub incarnation: u64,
}

/// Why a registration cannot succeed, however often it is repeated: the daemon should stop.
#[derive(Debug, thiserror::Error)]
#[error("the controllers refuse node {node_id}: {reason}")]
pub struct Refused {
    /// The node.
    pub node_id: u64,
    /// What a controller said.
    pub reason: String,
}

/// A number for one start of a pageserver.
///
/// # Errors
/// The operating system gave no random numbers.
pub fn fresh_incarnation() -> io::Result<u64> {
    random::number()
}

/// The number of a safekeeper's data directory, kept in the file at `path` inside it. Drawn and made durable when
/// the file is not there.
///
/// # Errors
/// The file cannot be read or made, or it does not hold a number.
pub fn stored_incarnation(path: &Path) -> io::Result<u64> {
    match fs::read_to_string(path) {
        Ok(text) => u64::from_str_radix(text.trim_end(), 16).map_err(|_| {
            let reason = format!("{} does not hold a hexadecimal number", path.display());
            io::Error::new(ErrorKind::InvalidData, reason)
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let number = random::number()?;
            let beside = path.with_extension("new");
            let mut file = File::create(&beside)?;
            file.write_all(format!("{number:016x}\n").as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(number)
        }
        Err(error) => Err(error),
    }
}

/// Registers, and again every few seconds, until `stop`. Calls `on_registered` after the first success. Unreachable
/// controllers are waited for: nothing on the data path needs them.
///
/// # Errors
/// A controller refused the node for good.
pub async fn keep_registered(
    registration: Registration,
    stop: CancellationToken,
    on_registered: impl FnOnce() + Send,
) -> Result<(), Refused> {
    let mut on_registered = Some(on_registered);
    let (mut pause, mut troubled) = (FIRST_PAUSE, false);
    loop {
        let registered = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            registered = register(&registration) => registered,
        };
        match registered {
            Ok(()) => {
                if troubled {
                    tracing::info!(
                        node_id = registration.node_id,
                        "registered with the controllers again"
                    );
                }
                (pause, troubled) = (REPEAT, false);
                if let Some(tell) = on_registered.take() {
                    tell();
                }
            }
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument) => {
                return Err(Refused {
                    node_id: registration.node_id,
                    reason: status.message().to_owned(),
                });
            }
            Err(status) => {
                if !troubled {
                    let error = status.message();
                    tracing::warn!(
                        node_id = registration.node_id,
                        error,
                        "no controller took the registration; trying on"
                    );
                }
                pause = if troubled {
                    (pause * 2).min(REPEAT)
                } else {
                    FIRST_PAUSE
                };
                troubled = true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Registers once, with the first controller that takes it.
///
/// # Errors
/// What the last controller said. `FailedPrecondition` and `InvalidArgument` are final.
pub async fn register(registration: &Registration) -> Result<(), Status> {
    let mut last = Status::invalid_argument("no controller is configured");
    for address in &registration.controllers {
        let request = RegisterNodeRequest {
            node_id: registration.node_id,
            role: registration.role.into(),
            address: registration.address.clone(),
            incarnation: registration.incarnation,
        };
        let asked = tokio::time::timeout(PATIENCE, async {
            let channel = connect(address)
                .await
                .map_err(|error| Status::unavailable(format!("cannot connect to {address}: {error}")))?;
            ControllerClient::new(channel).register_node(request).await
        });
        match asked.await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument) => {
                return Err(status);
            }
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::unavailable(format!("{address} did not answer within {PATIENCE:?}")),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_incarnation_stays_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("incarnation");
        let first = stored_incarnation(&path).unwrap();
        assert_eq!(stored_incarnation(&path).unwrap(), first);
        let other = stored_incarnation(&dir.path().join("other")).unwrap();
        assert_ne!(other, first);
        fs::write(&path, "hello\n").unwrap();
        let error = stored_incarnation(&path).unwrap_err().to_string();
        assert!(error.contains("incarnation does not hold"), "{error}");
    }
}
