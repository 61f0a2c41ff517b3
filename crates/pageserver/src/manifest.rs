//! The manifest: what a shard's timeline consists of, as a small immutable object.
//!
//! Each change writes a new one, `<generation>-<sequence>`, created with put-if-absent; the highest is current. An
//! owner with a lower generation can still write, but nobody reads what it writes.

use lakebed_blobstore::{BlobError, BlobStore, paths};
use lakebed_types::{Generation, Lsn, PgVersion, ShardIdentity, TenantId, TimelineId};
use serde::{Deserialize, Serialize};

/// Newest format that this version writes and reads.
pub const FORMAT: u32 = 1;

/// The WAL's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// `system_identifier` of the control file.
    pub system_identifier: u64,
    /// Major version of Postgres.
    pub postgres_major: PgVersion,
    /// Bytes of a WAL segment.
    pub wal_segment_bytes: u32,
    /// Its pages carry checksums. A manifest from before there was this field is of a cluster without.
    #[serde(default)]
    pub data_checksums: bool,
}

/// Where a branch hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent timeline.
    pub timeline: TimelineId,
    /// The branch point: a record boundary of the parent.
    pub lsn: Lsn,
}

/// One layer object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry {
    /// Name in `layers/`.
    pub name: String,
    /// Values are above this LSN.
    pub first: Lsn,
    /// Values are at or below this LSN.
    pub last: Lsn,
    /// Size of the object.
    pub bytes: u64,
}

/// A shard's timeline as object storage knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// Parent of a branch.
    pub parent: Option<Parent>,
    /// First LSN of the timeline's own history.
    pub start: Lsn,
    /// First LSN that may be read, when that is after the start; a manifest from before there was this field is of a
    /// timeline that can be read from its start.
    #[serde(default)]
    pub consistent: Lsn,
    /// Everything up to here is in the layers.
    pub disk_consistent: Lsn,
    /// Layers, oldest first.
    pub layers: Vec<LayerEntry>,
}

/// Why there is no usable manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Object storage failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Another node owns the shard now.
    #[error(
        "generation {found} has written a manifest of {directory}; this node has generation {own} and must not go on"
    )]
    Superseded {
        /// The timeline's directory.
        directory: String,
        /// Generation of the newest manifest.
        found: Generation,
        /// Own generation.
        own: Generation,
    },
    /// The object is not what it should be.
    #[error("manifest {path}: {reason}")]
    Damaged {
        /// The object.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads the current manifest; `None` when the timeline was never stored. Also its sequence number.
///
/// # Errors
/// See [`ManifestError`].
pub async fn read_current(
    store: &BlobStore,
    tenant: TenantId,
    shard: ShardIdentity,
    timeline: TimelineId,
    own: Generation,
) -> Result<Option<(Manifest, u64)>, ManifestError> {
    let directory = paths::timeline(tenant, shard, timeline);
    let names = store.list(&format!("{directory}/manifests")).await?;
    let newest = names
        .iter()
        .filter_map(|path| Some((paths::parse_manifest(path)?, path)))
        .max();
    let Some(((generation, sequence), path)) = newest else {
        return Ok(None);
    };
    if generation > own {
        return Err(ManifestError::Superseded {
            directory,
            found: generation,
            own,
        });
    }
    let manifest = parse(path, &store.get(path).await?)?;
    Ok(Some((manifest, if generation == own { sequence } else { 0 })))
}

/// Reads what the object at `path` holds.
///
/// # Errors
/// [`ManifestError::Damaged`].
pub fn parse(path: &str, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let damaged = |reason: String| ManifestError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let (crc, json) = bytes
        .split_at_checked(9)
        .ok_or_else(|| damaged("it is too short".to_owned()))?;
    if crc != format!("{:08x}\n", crc32c::crc32c(json)).as_bytes() {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    #[derive(Deserialize)]
    struct OnlyFormat {
        format: u32,
    }
    let OnlyFormat { format } = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if format > FORMAT {
        return Err(damaged(format!(
            "it has format {format}; this version reads up to {FORMAT}. Use a newer lakebed"
        )));
    }
    serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))
}

/// Stores a manifest as the next one of this generation.
///
/// # Errors
/// See [`BlobError`]; `Exists` means that another process uses the same generation.
pub async fn write(
    store: &BlobStore,
    tenant: TenantId,
    shard: ShardIdentity,
    timeline: TimelineId,
    (generation, sequence): (Generation, u64),
    manifest: &Manifest,
) -> Result<(), ManifestError> {
    let path = paths::timeline(tenant, shard, timeline);
    let path = format!("{path}/manifests/{}", paths::manifest_name(generation, sequence));
    let json = serde_json::to_vec_pretty(manifest).map_err(|error| ManifestError::Damaged {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    let mut bytes = format!("{:08x}\n", crc32c::crc32c(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(store.put_if_absent(&path, bytes.into()).await?)
}
