//! Full page writes, switched while Postgres runs.
//!
//! They are off: torn pages cannot exist, since pages are rebuilt from WAL and the local ones are dropped with the compute.
//! Who reads this compute's WAL with other tools may need them for a while (`pg_basebackup` forces them by itself). The
//! setting is in the file that the sidecar owns ([`OWN_CONFIG`]), so that nothing but a reload is needed, and it lasts
//! until the compute ends. Whether it holds is told by Postgres alone, in its WAL ([`lakebed_wal::full_page_writes`]).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lakebed_types::Lsn;
use serde_json::json;
use tokio::sync::{Mutex, watch};

use crate::data_dir::OWN_CONFIG;
use crate::own_config::OwnConfig;

/// How long a change may take to be seen in WAL. An idle server leaves the record in its buffer until its background
/// writer logs running transactions, every 15 seconds (`LOG_SNAPSHOT_INTERVAL_MS` of `postmaster/bgwriter.c`).
const PATIENCE: Duration = Duration::from_secs(40);

/// The mode that WAL told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Pages that are changed for the first time after a checkpoint are logged as images.
    pub on: bool,
    /// End of the record that told it first.
    pub at: Lsn,
}

/// Why the mode did not change.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The file cannot be written.
    #[error("writing {OWN_CONFIG} in {data}: {source}")]
    Write {
        /// The data directory.
        data: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Postgres did not say so.
    #[error(
        "{OWN_CONFIG} says full_page_writes = {wanted}, and within {PATIENCE:?} WAL did not tell that it holds: the setting may be \
         overridden by ALTER SYSTEM, by `settings` of the compute, or by a later line of postgresql.conf; ask the \
         server: select * from pg_file_settings where name = 'full_page_writes'"
    )]
    NotTold {
        /// `on` or `off`.
        wanted: &'static str,
    },
    /// The compute is ending.
    #[error("the compute has ended")]
    Ended,
}

/// Switches one compute.
#[derive(Clone, Debug)]
pub struct Switch {
    own: Arc<OwnConfig>,
    told: watch::Receiver<Option<Told>>,
    /// Held from a change until WAL tells of it.
    changing: Arc<Mutex<()>>,
}

impl Switch {
    pub(crate) fn new(own: Arc<OwnConfig>, told: watch::Receiver<Option<Told>>) -> Switch {
        Switch {
            own,
            told,
            changing: Arc::default(),
        }
    }

    /// Turns them on or off, and returns when WAL tells that they are.
    ///
    /// # Errors
    /// See [`SwitchError`]. After [`SwitchError::NotTold`] the file stays as asked for, and the mode follows once what
    /// overrides it is gone.
    pub async fn set(&self, on: bool) -> Result<Told, SwitchError> {
        let _changing = self.changing.lock().await;
        let written = self.own.change(|settings| settings.full_page_writes = on);
        written.map_err(|source| SwitchError::Write {
            data: self.own.data().to_owned(),
            source,
        })?;
        let mut told = self.told.clone();
        let holds = |told: &Option<Told>| told.is_some_and(|told| told.on == on);
        let wanted = if on { "on" } else { "off" };
        match tokio::time::timeout(PATIENCE, told.wait_for(holds)).await {
            Ok(Ok(told)) => {
                let told = told.ok_or(SwitchError::Ended)?;
                tracing::info!(at = %told.at, "full_page_writes is {wanted}");
                Ok(told)
            }
            Ok(Err(_)) => Err(SwitchError::Ended),
            Err(_) => Err(SwitchError::NotTold { wanted }),
        }
    }

    /// For the status page: the mode, and from where on.
    pub fn status_json(&self) -> serde_json::Value {
        let told = *self.told.borrow();
        json!({
            "on": told.map(|told| told.on),
            "since_lsn": told.map(|told| told.at.to_string()),
        })
    }
}
