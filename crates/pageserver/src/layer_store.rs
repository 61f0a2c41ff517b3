//! Layers of one timeline: files on local disk, and objects of the same names in object storage.
//!
//! A layer is written as a local file, a block at a time, then uploaded in parts. From then on the file is a cache of the
//! object, which may go and come again: [`crate::layer_handle`] knows when. What is fetched is written beside, fsynced, opened
//! with all that an open layer has in memory checked, and only then gets its name; blocks are checked by those who read them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use lakebed_blobstore::{BlobError, BlobStore, paths};
use lakebed_layer::format::{LayerReader, ReadAt, ReadError};
use lakebed_layer::{LayerDesc, LayerId, LayerKind, LayerMap, NewLayers};
use lakebed_types::Generation;

use crate::layer_disk::LayerDisk;
use crate::layer_handle::Fetched;
use crate::local_file::{self, LocalFile};

/// Ends the names of files that are being written.
const UNFINISHED: &str = "new";
/// The same, of those that are being fetched; a number comes after it.
const FETCHED: &str = "fetched";

/// Why a layer could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerStoreError {
    /// The operating system refused.
    #[error("layer {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A new one cannot be made.
    #[error("making a layer: {0}")]
    Create(io::Error),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is whole, and not what the manifest says.
    #[error("layer {0} is not the one that the manifest describes")]
    Other(LayerId),
    /// Object storage failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// It did not come in time; it may yet.
    #[error("layer {0} did not come from object storage in time")]
    Slow(LayerId),
    /// The node stops.
    #[error("layer {0} is not fetched any more: this node stops")]
    Closing(LayerId),
    /// The local file is damaged, and object storage has it no better.
    #[error("{local}; and object storage has no good copy: {object}")]
    BeyondRepair {
        /// What is wrong with the file.
        local: Arc<LayerStoreError>,
        /// What is wrong with the object.
        object: Arc<LayerStoreError>,
    },
}

impl LayerStoreError {
    /// Whether bytes are wrong or gone, so that trying again cannot help.
    pub fn is_damage(&self) -> bool {
        match self {
            LayerStoreError::Read(ReadError::Damaged(_))
            | LayerStoreError::Other(_)
            | LayerStoreError::BeyondRepair { .. }
            | LayerStoreError::Blob(BlobError::NotFound(_) | BlobError::Short { .. }) => true,
            LayerStoreError::Read(ReadError::Io { .. })
            | LayerStoreError::Io { .. }
            | LayerStoreError::Create(_)
            | LayerStoreError::Blob(_)
            | LayerStoreError::Slow(_)
            | LayerStoreError::Closing(_) => false,
        }
    }

    /// Whether the object is not there: lost, or deleted by an owner of a higher generation.
    pub fn is_missing_object(&self) -> bool {
        match self {
            LayerStoreError::Blob(BlobError::NotFound(_)) => true,
            LayerStoreError::BeyondRepair { object, .. } => object.is_missing_object(),
            _ => false,
        }
    }
}

/// An open layer.
pub type Layer = LayerReader<LocalFile>;

/// A layer that is being written. Its file goes with it, unless it is sealed.
#[derive(Debug)]
pub struct LayerSink {
    beside: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Write for LayerSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for LayerSink {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Where a timeline's layers are. Names are given out once: `first_number` is above all that were given out before.
#[derive(Debug)]
pub struct LayerStore {
    directory: PathBuf,
    store: BlobStore,
    /// Prefix of the objects.
    remote: String,
    /// Object with the layers that were read lately.
    recent: String,
    generation: Generation,
    next_number: AtomicU64,
    next_fetched: AtomicU64,
    disk: Arc<LayerDisk>,
}

impl LayerStore {
    /// Layers in this directory, and below the timeline's directory `remote` in object storage.
    pub fn new(
        (directory, disk): (PathBuf, Arc<LayerDisk>),
        store: BlobStore,
        remote: &str,
        (generation, first_number): (Generation, u64),
    ) -> LayerStore {
        LayerStore {
            directory,
            store,
            remote: format!("{remote}/{}", paths::LAYERS),
            recent: format!("{remote}/{}", paths::RECENT),
            generation,
            next_number: AtomicU64::new(first_number),
            next_fetched: AtomicU64::new(0),
            disk,
        }
    }

    /// The disk that the directory is on.
    pub fn disk(&self) -> &Arc<LayerDisk> {
        &self.disk
    }

    fn path(&self, id: LayerId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn object(&self, id: LayerId) -> String {
        format!("{}/{id}", self.remote)
    }

    fn failed(&self, id: LayerId) -> impl Fn(io::Error) -> LayerStoreError + use<> {
        let path = self.path(id);
        move |source| LayerStoreError::Io {
            path: path.clone(),
            source,
        }
    }

    /// Begins a new layer.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&self) -> io::Result<(LayerId, LayerSink)> {
        fs::create_dir_all(&self.directory)?;
        let id = LayerId {
            generation: self.generation,
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
        };
        let beside = self.path(id).with_extension(UNFINISHED);
        let file = Some(BufWriter::with_capacity(256 << 10, File::create(&beside)?));
        Ok((id, LayerSink { beside, file }))
    }

    /// Makes a layer that was written completely durable under its name, on local disk.
    ///
    /// # Errors
    /// The disk's; nothing is left then.
    pub fn seal(&self, id: LayerId, mut sink: LayerSink) -> Result<(), LayerStoreError> {
        let failed = self.failed(id);
        let Some(mut file) = sink.file.take() else {
            return Ok(());
        };
        let sealed = file
            .flush()
            .and_then(|()| file.get_ref().sync_all())
            .and_then(|()| fs::rename(&sink.beside, self.path(id)))
            .and_then(|()| File::open(&self.directory)?.sync_all());
        sealed.map_err(|error| {
            let _ = fs::remove_file(&sink.beside);
            failed(error)
        })
    }

    /// Whether there is a local file of the right size.
    pub fn has_file(&self, desc: &LayerDesc) -> bool {
        let found = fs::metadata(self.path(desc.id));
        found.is_ok_and(|found| found.is_file() && found.len() == desc.bytes)
    }

    /// Opens the local file. Blocks are checked when they are read.
    ///
    /// # Errors
    /// See [`LayerStoreError`].
    pub fn open(&self, desc: &LayerDesc) -> Result<Arc<Layer>, LayerStoreError> {
        // What an open layer has in memory is read once; a file that cannot be opened counts as damaged.
        local_file::waiting(|| open(&self.path(desc.id), desc))
    }

    /// Fetches the object into a file without a name of its own, and opens it. With `completely` every byte of it is checked,
    /// which is the second result.
    ///
    /// # Errors
    /// See [`LayerStoreError`]; nothing is left then.
    pub async fn download(
        self: &Arc<Self>,
        desc: &LayerDesc,
        completely: bool,
    ) -> Result<(Fetched, Result<(), LayerStoreError>), LayerStoreError> {
        let number = self.next_fetched.fetch_add(1, Ordering::Relaxed);
        let beside = self.path(desc.id).with_extension(format!("{FETCHED}{number}"));
        let failed = self.failed(desc.id);
        let (files, bytes, path) = (self.clone(), desc.bytes, beside.clone());
        let begin = move || {
            files.disk.make_room(bytes);
            fs::create_dir_all(&files.directory)?;
            Ok(LayerSink {
                file: Some(BufWriter::with_capacity(0, File::create(&path)?)),
                beside: path,
            })
        };
        let mut sink = blocking(begin).await.map_err(&failed)?;
        let object = self.object(desc.id);
        let mut parts = std::pin::pin!(self.store.parts(&object, desc.bytes));
        while let Some(part) = parts.next().await {
            let part = part?;
            let write = move || sink.write_all(&part).map(|()| sink);
            sink = blocking(write).await.map_err(&failed)?;
        }
        let (desc, layer_failed) = (*desc, self.failed(desc.id));
        let finish = move || {
            let synced = sink
                .file
                .as_ref()
                .map_or(Ok(()), |file| file.get_ref().sync_all());
            synced.map_err(layer_failed)?;
            let layer = open(&beside, &desc)?;
            let whole = match completely {
                true => layer.verify().map_err(LayerStoreError::from),
                false => Ok(()),
            };
            // From here on the result removes it, unless it gets its name.
            drop(sink.file.take());
            Ok((Fetched { beside, layer }, whole))
        };
        let done = tokio::task::spawn_blocking(finish).await;
        done.map_err(|error| failed(io::Error::other(error)))?
    }

    /// Gives a file that was fetched its name.
    ///
    /// # Errors
    /// The disk's.
    pub async fn place(
        self: &Arc<Self>,
        desc: &LayerDesc,
        fetched: Fetched,
    ) -> Result<Arc<Layer>, LayerStoreError> {
        let (path, directory) = (self.path(desc.id), self.directory.clone());
        let name = move || {
            fs::rename(&fetched.beside, path)?;
            File::open(directory)?.sync_all()?;
            Ok(fetched.layer.clone())
        };
        blocking(name).await.map_err(self.failed(desc.id))
    }

    /// Stores the local file as an object.
    ///
    /// # Errors
    /// Those of disk and object storage; repeat it.
    pub async fn upload(&self, desc: &LayerDesc) -> Result<(), LayerStoreError> {
        let path = self.path(desc.id);
        let file = blocking(move || File::open(path)).await;
        let file = LocalFile::from(file.map_err(self.failed(desc.id))?);
        let read = move |range: std::ops::Range<u64>| {
            // A part fits into memory.
            file.read_at(range.start, (range.end - range.start) as usize)
        };
        let object = self.object(desc.id);
        Ok(self.store.put_large(&object, desc.bytes, read).await?)
    }

    /// The names that [`LayerStore::set_recent`] stored last.
    ///
    /// # Errors
    /// Those of object storage, or there is no such list.
    pub async fn recent(&self) -> Result<Vec<LayerId>, BlobError> {
        let bytes = self.store.get(&self.recent).await?;
        let (crc, json) = bytes.split_at_checked(9).unwrap_or_default();
        let known = match crc == format!("{:08x}\n", crc32c::crc32c(json)).as_bytes() {
            true => serde_json::from_slice(json).ok(),
            false => None,
        };
        known.ok_or_else(|| BlobError::NotFound(format!("{}, whole,", self.recent)))
    }

    /// Stores names of layers, as advice to who opens the timeline next.
    ///
    /// # Errors
    /// Those of object storage.
    pub async fn set_recent(&self, ids: &[LayerId]) -> Result<(), BlobError> {
        let json = serde_json::to_vec(ids).unwrap_or_default();
        let mut bytes = format!("{:08x}\n", crc32c::crc32c(&json)).into_bytes();
        bytes.extend_from_slice(&json);
        self.store.put(&self.recent, bytes.into()).await
    }

    /// Deletes local files. Whoever reads one goes on.
    pub fn remove_local(&self, ids: &[LayerId]) {
        for id in ids {
            let _ = fs::remove_file(self.path(*id));
        }
    }

    /// Deletes objects that no manifest names.
    ///
    /// # Errors
    /// Object storage's; repeat it.
    pub async fn remove_objects(&self, ids: &[LayerId]) -> Result<(), BlobError> {
        match ids.is_empty() {
            true => Ok(()),
            false => {
                let objects = ids.iter().map(|id| self.object(*id)).collect();
                self.store.delete_all(objects).await
            }
        }
    }

    /// Deletes local files that the map does not name: what a process left that ended in the middle of something.
    pub fn remove_strangers(&self, map: &LayerMap) {
        let named = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.parse().ok());
            id.is_some_and(|id| map.get(id).is_some())
        };
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if !named(&path) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn open(path: &Path, desc: &LayerDesc) -> Result<Arc<Layer>, LayerStoreError> {
    let failed = |source| LayerStoreError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let layer = LayerReader::open(LocalFile::from(file), desc.id, bytes)?;
    match layer.desc() == desc {
        true => Ok(Arc::new(layer)),
        false => Err(LayerStoreError::Other(desc.id)),
    }
}

/// Runs what works with files where it may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).and_then(|done| done)
}

impl NewLayers for &LayerStore {
    type Sink = LayerSink;

    fn create(&mut self, _: LayerKind) -> io::Result<(LayerId, LayerSink)> {
        self.begin()
    }
}
