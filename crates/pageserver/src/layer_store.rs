//! Layers of one timeline: files on local disk, and objects of the same names in object storage.
//!
//! A layer is written as a local file, a block at a time, then uploaded. From then on the file is a cache of the
//! object: one that is missing or damaged is fetched again when the timeline is opened.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lakebed_blobstore::{BlobError, BlobStore};
use lakebed_layer::format::{LayerReader, ReadAt, ReadError};
use lakebed_layer::{LayerDesc, LayerId, LayerKind, LayerMap, NewLayers};
use lakebed_types::Generation;

/// Ends the names of files that are being written.
const UNFINISHED: &str = "new";

/// Blocks up to here are read into memory that is used again.
const SCRATCH_BYTES: usize = 128 << 10;

thread_local! {
    /// Where blocks are read to that are decoded at once into other memory.
    static SCRATCH: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

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
}

/// A local file as a source of blocks.
#[derive(Debug)]
pub struct LocalFile(File);

impl ReadAt for LocalFile {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    fn with_bytes<T>(&self, offset: u64, length: usize, look: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        if length > SCRATCH_BYTES {
            return self.read_at(offset, length).map(|bytes| look(&bytes));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < length {
                scratch.resize(length, 0);
            }
            let bytes = &mut scratch[..length];
            self.0.read_exact_at(bytes, offset)?;
            Ok(look(bytes))
        })
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
    generation: Generation,
    next_number: AtomicU64,
}

impl LayerStore {
    /// Layers in this directory, and below the timeline's directory `remote` in object storage.
    pub fn new(
        directory: PathBuf,
        store: BlobStore,
        remote: &str,
        (generation, first_number): (Generation, u64),
    ) -> LayerStore {
        LayerStore {
            directory,
            store,
            remote: format!("{remote}/layers"),
            generation,
            next_number: AtomicU64::new(first_number),
        }
    }

    fn path(&self, id: LayerId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn object(&self, id: LayerId) -> String {
        format!("{}/{id}", self.remote)
    }

    fn failed(&self, id: LayerId) -> impl Fn(io::Error) -> LayerStoreError {
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

    /// Opens the local file. Blocks are checked when they are read.
    ///
    /// # Errors
    /// See [`LayerStoreError`].
    pub fn open(&self, desc: &LayerDesc) -> Result<Arc<Layer>, LayerStoreError> {
        let failed = self.failed(desc.id);
        let file = File::open(self.path(desc.id)).map_err(&failed)?;
        let bytes = file.metadata().map_err(&failed)?.len();
        let layer = LayerReader::open(LocalFile(file), desc.id, bytes)?;
        match layer.desc() == desc {
            true => Ok(Arc::new(layer)),
            false => Err(LayerStoreError::Other(desc.id)),
        }
    }

    /// Opens the local file, or fetches the object when there is none that can be used.
    ///
    /// # Errors
    /// See [`LayerStoreError`].
    pub async fn open_or_fetch(&self, desc: &LayerDesc) -> Result<Arc<Layer>, LayerStoreError> {
        match self.open(desc) {
            Ok(layer) => return Ok(layer),
            Err(error) if self.path(desc.id).exists() => {
                tracing::warn!(%error, "local layer is unusable; fetching it again");
            }
            Err(_) => {}
        }
        let bytes = self.store.get(&self.object(desc.id)).await?;
        let failed = self.failed(desc.id);
        fs::create_dir_all(&self.directory).map_err(&failed)?;
        let beside = self.path(desc.id).with_extension(UNFINISHED);
        let mut file = File::create(&beside).map_err(&failed)?;
        file.write_all(&bytes).map_err(&failed)?;
        let file = Some(BufWriter::new(file));
        self.seal(desc.id, LayerSink { beside, file })?;
        self.open(desc)
    }

    /// Stores the local file as an object.
    ///
    /// # Errors
    /// Those of disk and object storage; repeat it.
    pub async fn upload(&self, id: LayerId) -> Result<(), LayerStoreError> {
        let path = self.path(id);
        let read = tokio::task::spawn_blocking(move || fs::read(path)).await;
        let bytes = read.map_err(io::Error::other).and_then(|read| read);
        let bytes = bytes.map_err(self.failed(id))?;
        Ok(self.store.put(&self.object(id), bytes.into()).await?)
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

impl NewLayers for &LayerStore {
    type Sink = LayerSink;

    fn create(&mut self, _: LayerKind) -> io::Result<(LayerId, LayerSink)> {
        self.begin()
    }
}
