//! A base backup through the replication protocol, as the first images of a timeline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lakebed_controller::bootstrap::{BootstrapError, ImportSource, ImportTarget};
use lakebed_pgwire::backup::{BackupLabel, BackupMessage};
use lakebed_pgwire::tar::TarReader;
use lakebed_pgwire::{Backend, Target, backup};
use lakebed_proto::v1::{ImportResponse, ImportRunning};
use lakebed_types::Lsn;
use lakebed_wal::control::ControlFile;

use crate::checkpoint;
use crate::connection::{Connection, ConnectionError, MAX_ROWS, Rows};
use crate::files::Files;
use crate::progress::{Phase, Progress};
use crate::server::{Server, WrongServer, make_slot};

/// Options of every base backup.
const OPTIONS: &str = "LABEL 'lakebed', PROGRESS true, CHECKPOINT 'fast', WAIT false, MANIFEST 'no', TARGET 'client', TABLESPACE_MAP true";

/// How often the log says how far a base backup is.
const TELL: Duration = Duration::from_secs(10);

/// The running server whose files a new tenant gets.
#[derive(Debug)]
pub struct RunningServer {
    /// Where it is.
    pub target: Target,
    /// What this client calls itself.
    pub name: String,
    /// The slot that keeps WAL from the backup's start on.
    pub slot: String,
    /// Most KiB that it sends in a second.
    pub rate_kib: Option<u32>,
    /// Where it is told how far it is.
    pub progress: Arc<Progress>,
}

impl ImportSource for RunningServer {
    async fn import(&self, target: &ImportTarget) -> Result<ImportResponse, BootstrapError> {
        let answers = match self.back_up(target).await {
            Ok(answers) => answers,
            Err(error) => {
                let hopeless = error.chain().any(|cause| cause.is::<WrongServer>());
                if hopeless {
                    self.forget_slot().await;
                }
                return Err(BootstrapError::Source {
                    reason: format!("the base backup: {error:#}"),
                    hopeless,
                });
            }
        };
        target.agreed(&answers)
    }
}

impl RunningServer {
    /// A slot that nobody will read must not keep WAL on the server for ever.
    async fn forget_slot(&self) {
        let dropped = async {
            let mut connection = Connection::open(&self.target, &self.name).await?;
            connection
                .query(&format!("DROP_REPLICATION_SLOT \"{}\" WAIT", self.slot))
                .await
        };
        if let Err(error) = dropped.await {
            tracing::warn!(slot = self.slot, %error, "the replication slot could not be dropped: drop it by hand");
        }
    }

    async fn back_up(&self, target: &ImportTarget) -> anyhow::Result<Vec<ImportResponse>> {
        let (mut connection, server) = Server::connect(&self.target, &self.name).await?;
        make_slot(&mut connection, &self.slot).await?;
        let mut files = Files::start(target).await?;
        self.progress.enter(Phase::BaseBackup);
        self.progress.backup_done.store(0, Ordering::Relaxed);
        let rate = self.rate_kib.map(|kib| format!(", MAX_RATE {kib}"));
        let command = format!("BASE_BACKUP ({OPTIONS}{})", rate.unwrap_or_default());
        connection.send_command(&command).await?;
        self.announced(&mut connection).await?;
        if let Err(error) = self.archive(&mut connection, &mut files).await {
            // What the shard says tells more than that it is gone.
            return Err(files.reason().await.unwrap_or(error));
        }
        let end = backup_end(&mut connection).await?;
        let label = files.label().context("the base backup has no backup_label")?;
        let label = BackupLabel::parse(label)?;
        if label.from_standby || label.timeline != server.format.timeline {
            bail!(WrongServer(
                "the server is itself a standby: connect to its primary".to_owned()
            ));
        }
        let begin = checkpoint::find(&self.target, &self.name, server.format, &label).await?;
        let control = files
            .control()
            .context("the base backup has no global/pg_control")?;
        let mut control = ControlFile::decode(control)?;
        if control.system_identifier() != server.format.system_identifier {
            bail!("the control file in the base backup is of another cluster");
        }
        control.shut_down_at(label.checkpoint, &begin.checkpoint);
        let running = ImportRunning {
            start_lsn: begin.start.0,
            last_record_start: begin.last_record_start.0,
            consistent_lsn: end.0,
        };
        tracing::info!(start = %begin.start, consistent = %end, "base backup received");
        self.progress.enter(Phase::Storing);
        self.progress.consistent.store(end.0, Ordering::Relaxed);
        files.finish(control.encode(), running).await
    }

    /// The answers in front of the archives: where the backup begins, and a row for each tablespace, the main one too.
    async fn announced(&self, connection: &mut Connection) -> anyhow::Result<()> {
        let mut results: Vec<Rows> = Vec::new();
        loop {
            match connection.receive_soon("a base backup's start").await? {
                Backend::RowDescription(columns) if results.len() < 2 => results.push(Rows {
                    columns,
                    rows: Vec::new(),
                }),
                Backend::DataRow(row) => {
                    let rows = &mut results.last_mut().context("a row without its description")?.rows;
                    if rows.len() >= MAX_ROWS {
                        bail!(WrongServer(format!(
                            "the server has more than {MAX_ROWS} tablespaces"
                        )));
                    }
                    rows.push(row);
                }
                Backend::CommandComplete => {}
                Backend::CopyOut => break,
                _ => return Err(ConnectionError::Unexpected("at the start of a base backup").into()),
            }
        }
        let spaces = results.get(1).context("the server listed no tablespaces")?;
        let kib = spaces.texts("size").filter_map(|text| text.parse::<u64>().ok());
        self.progress
            .backup_total
            .store(kib.sum::<u64>().saturating_mul(1024), Ordering::Relaxed);
        Ok(())
    }

    async fn archive(&self, connection: &mut Connection, files: &mut Files) -> anyhow::Result<()> {
        let mut tar = TarReader::default();
        let mut has_base = false;
        let mut told = Instant::now();
        loop {
            let data = match connection.receive_soon("a base backup").await? {
                Backend::CopyData(data) => data,
                Backend::CopyDone if tar.is_between() && has_base => return Ok(()),
                Backend::CopyDone => bail!("the base backup ended in the middle of a file"),
                _ => return Err(ConnectionError::Unexpected("in a base backup").into()),
            };
            if told.elapsed() > TELL {
                told = Instant::now();
                self.progress.tell_backup();
            }
            match backup::parse(data)? {
                BackupMessage::Archive { name, location } => {
                    if !tar.is_between() || has_base {
                        bail!("an archive begins where none may, in the base backup");
                    }
                    tar = TarReader::default();
                    // Comes last: the control file in it is to be newer than everything else.
                    has_base = location.is_empty();
                    files.archive(&name, &location).await?;
                }
                BackupMessage::Data(mut data) => {
                    self.progress
                        .backup_done
                        .fetch_add(data.len() as u64, Ordering::Relaxed);
                    while let Some(item) = tar.next(&mut data)? {
                        files.take(item).await?;
                    }
                }
                BackupMessage::Progress(_) => {}
                BackupMessage::Manifest => {
                    return Err(ConnectionError::Unexpected("a backup manifest").into());
                }
            }
        }
    }
}

/// The last answer: where the backup ends.
async fn backup_end(connection: &mut Connection) -> anyhow::Result<Lsn> {
    let mut end = Rows::default();
    loop {
        match connection.receive_soon("a base backup's end").await? {
            Backend::RowDescription(columns) => end.columns = columns,
            Backend::DataRow(row) if end.rows.is_empty() => end.rows.push(row),
            Backend::CommandComplete => {}
            Backend::Ready => break,
            _ => return Err(ConnectionError::Unexpected("at the end of a base backup").into()),
        }
    }
    let lsn = end.text("recptr").and_then(|text| text.parse().ok());
    lsn.context("the server told no end of the base backup")
}
