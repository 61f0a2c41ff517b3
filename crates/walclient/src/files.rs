//! Files of a base backup, as they stream in, to the shards that need them.
//!
//! A relation's pages go to the shard that owns them: a piece of a file is at most 1 MiB, begins at a multiple of that,
//! and so lies in one stripe. Shard 0 gets everything else and the size of every file. Memory: one piece, and the queues
//! of the uploads.
//!
//! A tablespace comes as an archive of its own. Its files go where they would be below the data directory, behind the
//! link `pg_tblspc/OID`, and the link goes to shard 0: computes make a directory of it.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use lakebed_controller::bootstrap::{ImportTarget, ShardUpload};
use lakebed_pgwire::tar::{MemberKind, TarItem};
use lakebed_proto::v1::import_message::Message;
use lakebed_proto::v1::{FileChunk, ImportResponse, ImportRunning};
use lakebed_types::data_directory::{FileKind, RELATION_SEGMENT_BLOCKS, classify, tablespace_of};
use lakebed_types::shard::shard_of;
use lakebed_types::{PAGE_SIZE, PageKey, ShardCount};
use tokio::task::JoinSet;

use crate::server::WrongServer;

/// Bytes of a piece: half of a shard's stripe of 256 blocks.
const PIECE_BYTES: usize = 1 << 20;
/// Largest file that is kept in memory: `backup_label` and the control file are small.
const MAX_KEPT_BYTES: u64 = 64 << 10;
/// Where replay of a backup begins; a compute must not see it.
const LABEL: &str = "backup_label";
/// Places of tablespaces, which come with their archives too.
const TABLESPACE_MAP: &str = "tablespace_map";
/// The control file.
const CONTROL_FILE: &str = "global/pg_control";
/// Files that a server may keep elsewhere, and that the compute of a branch needs: content where there is none.
const DEFAULTS: [(&str, &str); 3] = [
    (
        "postgresql.conf",
        "# The protected server keeps its configuration outside of its data directory.\n",
    ),
    (
        "pg_hba.conf",
        "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n",
    ),
    ("pg_ident.conf", ""),
];
/// Settings of the server that would stop, or mislead, a compute on a branch; the last word in `postgresql.auto.conf`.
const OVERRIDES: &str = "\n# Of the branch, not of the protected server:\nsynchronous_standby_names = ''\n";
/// Where they go.
const AUTO_CONF: &str = "postgresql.auto.conf";

/// What happens to the file that is being received.
enum Current {
    None,
    Skipped,
    /// Kept here, for this client or to be changed before it is sent.
    Kept {
        path: String,
        content: BytesMut,
    },
    Sent(Box<Sending>),
}

struct Sending {
    path: String,
    kind: FileKind,
    piece: BytesMut,
    offset: u64,
    /// Shards that got a piece.
    shards: BTreeSet<u8>,
}

/// See the module header.
pub struct Files {
    uploads: Vec<ShardUpload>,
    count: ShardCount,
    /// Where the present archive's members are, relative to the data directory: empty, or a tablespace's link and a `/`.
    below: String,
    current: Current,
    seen: BTreeSet<String>,
    label: Option<String>,
    control: Option<Bytes>,
    auto_conf: BytesMut,
}

impl Files {
    /// Begins an import on every shard.
    ///
    /// # Errors
    /// A shard's owner does not answer.
    pub async fn start(target: &ImportTarget) -> anyhow::Result<Files> {
        let count = u8::try_from(target.shards.len()).ok().and_then(ShardCount::new);
        let count = count.context("the tenant has no valid number of shards")?;
        let mut uploads = Vec::new();
        for shard in &target.shards {
            uploads.push(ShardUpload::start(target, shard).await?);
        }
        Ok(Files {
            uploads,
            count,
            below: String::new(),
            current: Current::None,
            seen: BTreeSet::new(),
            label: None,
            control: None,
            auto_conf: BytesMut::new(),
        })
    }

    /// `backup_label`, once it has come.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// The control file, once it has come.
    pub fn control(&self) -> Option<&Bytes> {
        self.control.as_ref()
    }

    /// Begins an archive: of the data directory, or of a tablespace, which is at `place` on the server.
    ///
    /// # Errors
    /// A name that is no tablespace's, or shard 0 refuses.
    pub async fn archive(&mut self, name: &str, place: &str) -> anyhow::Result<()> {
        self.below.clear();
        let Some(oid) = name.strip_suffix(".tar").filter(|stem| *stem != "base") else {
            return Ok(());
        };
        let path = format!("pg_tblspc/{oid}");
        if tablespace_of(&path).is_none() || place.is_empty() {
            bail!("the base backup has an archive `{name}` of the place `{place}`, which is no tablespace");
        }
        self.below = format!("{path}/");
        self.link(path, place).await
    }

    async fn link(&mut self, path: String, place: &str) -> anyhow::Result<()> {
        tracing::info!(path, place, "tablespace");
        let link = FileChunk {
            path,
            link_target: Bytes::copy_from_slice(place.as_bytes()),
            last: true,
            ..FileChunk::default()
        };
        send(&self.uploads, 0, Message::Chunk(link)).await
    }

    /// Takes the next item of the archive.
    ///
    /// # Errors
    /// A member that cannot be imported, or a shard that refuses.
    pub async fn take(&mut self, item: TarItem) -> anyhow::Result<()> {
        match item {
            TarItem::Member { path, kind, bytes } => {
                let path = format!("{}{path}", self.below);
                self.begin(path, kind, bytes)
            }
            TarItem::Data(data) => self.data(data).await,
            TarItem::End => self.end().await,
        }
    }

    fn begin(&mut self, path: String, kind: MemberKind, bytes: u64) -> anyhow::Result<()> {
        self.current = match kind {
            MemberKind::Directory => Current::Skipped,
            // Those of tablespaces do not come as links, but in a file (`TABLESPACE_MAP`).
            MemberKind::Link => bail!(WrongServer(format!(
                "{path} in the server's data directory is a symbolic link, which cannot be imported"
            ))),
            MemberKind::File if path == TABLESPACE_MAP => Current::Skipped,
            MemberKind::File if [LABEL, CONTROL_FILE, AUTO_CONF].contains(&path.as_str()) => {
                if bytes > MAX_KEPT_BYTES {
                    bail!("{path} has {bytes} bytes");
                }
                let content = BytesMut::new();
                Current::Kept { path, content }
            }
            MemberKind::File => match classify(&path) {
                FileKind::Transient | FileKind::Wal => Current::Skipped,
                kind => {
                    if DEFAULTS.iter().any(|(name, _)| *name == path) {
                        self.seen.insert(path.clone());
                    }
                    Current::Sent(Box::new(Sending {
                        path,
                        kind,
                        piece: BytesMut::new(),
                        offset: 0,
                        shards: BTreeSet::new(),
                    }))
                }
            },
        };
        Ok(())
    }

    async fn data(&mut self, mut data: Bytes) -> anyhow::Result<()> {
        match &mut self.current {
            Current::None => bail!("the archive has data in front of its first member"),
            Current::Skipped => {}
            Current::Kept { content, .. } => content.extend_from_slice(&data),
            Current::Sent(sending) => {
                while !data.is_empty() {
                    let room = PIECE_BYTES - sending.piece.len();
                    sending
                        .piece
                        .extend_from_slice(&data.split_to(room.min(data.len())));
                    if sending.piece.len() == PIECE_BYTES {
                        send_piece(&self.uploads, self.count, sending).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.current, Current::None) {
            Current::None | Current::Skipped => Ok(()),
            Current::Kept { path, content } => {
                self.keep(&path, content.freeze());
                Ok(())
            }
            Current::Sent(mut sending) => {
                send_piece(&self.uploads, self.count, &mut sending).await?;
                // Shard 0 keeps the sizes.
                sending.shards.insert(0);
                let last = FileChunk {
                    path: sending.path,
                    offset: sending.offset,
                    file_bytes: sending.offset,
                    last: true,
                    ..FileChunk::default()
                };
                for shard in sending.shards {
                    send(&self.uploads, shard, Message::Chunk(last.clone())).await?;
                }
                Ok(())
            }
        }
    }

    fn keep(&mut self, path: &str, content: Bytes) {
        match path {
            LABEL => self.label = Some(String::from_utf8_lossy(&content).into_owned()),
            CONTROL_FILE => self.control = Some(content),
            _ => self.auto_conf = content.into(),
        }
    }

    /// Sends what is left, the changed control file and the positions, and waits until every shard has stored its part.
    ///
    /// # Errors
    /// A shard refuses.
    pub async fn finish(
        mut self,
        control: Vec<u8>,
        running: ImportRunning,
    ) -> anyhow::Result<Vec<ImportResponse>> {
        for (path, content) in DEFAULTS {
            if !self.seen.contains(path) {
                send(
                    &self.uploads,
                    0,
                    whole(path, Bytes::from_static(content.as_bytes())),
                )
                .await?;
            }
        }
        let mut auto_conf = std::mem::take(&mut self.auto_conf);
        auto_conf.extend_from_slice(OVERRIDES.as_bytes());
        send(&self.uploads, 0, whole(AUTO_CONF, auto_conf.freeze())).await?;
        let control = Bytes::from(control);
        for shard in 0..self.count.get() {
            send(&self.uploads, shard, whole(CONTROL_FILE, control.clone())).await?;
            send(&self.uploads, shard, Message::Running(running)).await?;
        }
        let mut storing = JoinSet::new();
        for upload in self.uploads {
            storing.spawn(upload.finish());
        }
        let mut answers = Vec::new();
        while let Some(answer) = storing.join_next().await {
            answers.push(answer.context("waiting for a shard")??);
        }
        Ok(answers)
    }

    /// Why a shard does not take any more.
    pub async fn reason(self) -> Option<anyhow::Error> {
        for upload in self.uploads {
            if let Some(error) = upload.failure().await {
                return Some(error.into());
            }
        }
        None
    }
}

fn whole(path: &str, content: Bytes) -> Message {
    Message::Chunk(FileChunk {
        path: path.to_owned(),
        file_bytes: content.len() as u64,
        data: content,
        last: true,
        ..FileChunk::default()
    })
}

/// Sends the piece that has been collected to the shard that needs it, and begins the next.
async fn send_piece(uploads: &[ShardUpload], count: ShardCount, sending: &mut Sending) -> anyhow::Result<()> {
    let data = sending.piece.split().freeze();
    let offset = sending.offset;
    sending.offset += data.len() as u64;
    // Zeros are what a file has anyway where nothing is written.
    if data.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let shard = match sending.kind {
        FileKind::Relation { rel, segment } => {
            let first = u64::from(segment) * u64::from(RELATION_SEGMENT_BLOCKS) + offset / PAGE_SIZE as u64;
            let block = u32::try_from(first).with_context(|| format!("{} is too large", sending.path))?;
            shard_of(&PageKey::Rel { rel, block }, count)
        }
        _ => 0,
    };
    sending.shards.insert(shard);
    let chunk = FileChunk {
        path: sending.path.clone(),
        offset,
        data,
        ..FileChunk::default()
    };
    send(uploads, shard, Message::Chunk(chunk)).await
}

async fn send(uploads: &[ShardUpload], shard: u8, message: Message) -> anyhow::Result<()> {
    let upload = uploads
        .get(usize::from(shard))
        .context("a shard without an upload")?;
    let sent = upload.send(message).await;
    sent.map_err(|_| anyhow::anyhow!("shard {shard} takes no more of the base backup"))
}
