//! WAL segments that are not local: what a logical slot or a standby reads may be older than this compute.
//!
//! A segment comes whole from any safekeeper, committed bytes only. WAL before the branch's own start belongs to its
//! parent; a segment that lies before it does not exist here, and Postgres says that it was removed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_shim_abi::path::WalSegment;
use lakebed_types::Lsn;
use lakebed_wal::boot::preamble;
use tokio::sync::watch;

use crate::branch::Branch;
use crate::data_dir::{Owner, give};
use crate::quorum::Safekeepers;

/// How long one safekeeper may take for a segment.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module header.
#[derive(Clone, Debug)]
pub struct OldWal {
    branch: Branch,
    safekeepers: watch::Receiver<Safekeepers>,
    owner: Owner,
}

impl OldWal {
    /// Reads WAL of this branch from its safekeepers of the moment, for files of this owner.
    pub fn new(branch: Branch, safekeepers: watch::Receiver<Safekeepers>, owner: Owner) -> OldWal {
        OldWal {
            branch,
            safekeepers,
            owner,
        }
    }

    /// Position of a segment's first byte.
    pub fn begin(&self, segment: WalSegment) -> Option<Lsn> {
        if segment.timeline != self.branch.format().timeline {
            return None;
        }
        let bytes = u64::from(self.branch.segment_bytes);
        let number = u64::from(segment.log) * (0x1_0000_0000 / bytes) + u64::from(segment.segment);
        number.checked_mul(bytes).map(Lsn)
    }

    /// Makes the file of a segment below `pg_wal`. False when the branch has no such WAL.
    ///
    /// # Errors
    /// No safekeeper answers, or the disk is full.
    pub async fn fetch(&self, pg_wal: &Path, segment: WalSegment) -> anyhow::Result<bool> {
        let Some(begin) = self.begin(segment) else {
            return Ok(false);
        };
        let size = u64::from(self.branch.segment_bytes);
        let end = Lsn(begin.0 + size);
        if end <= self.branch.start {
            return Ok(false);
        }
        let bytes = self.read(begin.max(self.branch.start), end).await?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let name = self.branch.format().segment_file_name(begin.0 / size);
        let (beside, path) = (pg_wal.join(format!("lakebed-{name}")), pg_wal.join(&name));
        let file = File::create(&beside)?;
        file.set_len(size)?;
        self.write(&file, begin, &bytes)?;
        give(&beside, self.owner)?;
        // A link fails when the file has come into being meanwhile, which then is the better one.
        match std::fs::hard_link(&beside, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => std::fs::remove_file(&beside)?,
        }
        Ok(true)
    }

    /// Puts what was before `boot` into the segment that a compute boots in.
    ///
    /// # Errors
    /// No safekeeper answers, or the disk is full.
    pub async fn complete_boot_segment(&self, pg_wal: &Path, boot: Lsn) -> anyhow::Result<()> {
        let size = u64::from(self.branch.segment_bytes);
        let begin = Lsn(boot.0 - boot.0 % size);
        let from = begin.max(self.branch.start);
        if from >= boot {
            return Ok(());
        }
        let bytes = self.read(from, boot).await?;
        if from.0 + bytes.len() as u64 != boot.0 {
            bail!(
                "the safekeepers have WAL only up to {}",
                Lsn(from.0 + bytes.len() as u64)
            );
        }
        let name = self.branch.format().segment_file_name(begin.0 / size);
        let file = File::options().write(true).open(pg_wal.join(name))?;
        self.write(&file, begin, &bytes)?;
        Ok(())
    }

    /// Writes bytes that begin at the segment's start, or at the branch's if that is later.
    fn write(&self, file: &File, begin: Lsn, bytes: &[u8]) -> io::Result<()> {
        let from = begin.max(self.branch.start);
        if from > begin {
            for (at, header) in preamble(self.branch.format(), from) {
                file.write_all_at(&header, at.0 - begin.0)?;
            }
        }
        file.write_all_at(bytes, from.0 - begin.0)
    }

    /// Committed bytes from `from` on, up to `to` if there are as many.
    async fn read(&self, from: Lsn, to: Lsn) -> anyhow::Result<Vec<u8>> {
        let mut trouble = Vec::new();
        let addresses = self.safekeepers.borrow().addresses.clone();
        for address in addresses.values() {
            match tokio::time::timeout(PATIENCE, self.read_from(address, from, to)).await {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(error)) => trouble.push(format!("{address}: {error:#}")),
                Err(_) => trouble.push(format!("{address}: no answer in time")),
            }
        }
        bail!("no safekeeper gives WAL from {from}: {}", trouble.join("; "))
    }

    async fn read_from(&self, address: &str, from: Lsn, to: Lsn) -> anyhow::Result<Vec<u8>> {
        let mut client = SafekeeperClient::new(connect(address).await?);
        let request = v1::ReadWalRequest {
            timeline: Some(convert::timeline_ref(self.branch.tenant, self.branch.timeline)),
            begin_lsn: from.0,
            end_lsn: to.0,
            committed_only: true,
            term: 0,
        };
        let mut chunks = client.read_wal(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            if chunk.begin_lsn != from.0 + bytes.len() as u64 {
                bail!("a chunk at {} is out of order", Lsn(chunk.begin_lsn));
            }
            bytes.extend_from_slice(&chunk.wal);
        }
        Ok(bytes)
    }
}
