//! A layer file on local disk: written once, then read by position.
//!
//! The local copy is a cache of the object of the same name; a damaged one is deleted and fetched again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakebed_layer::Value;
use lakebed_layer::file::{FOOTER_BYTES, Footer, HEADER_BYTES, Index, LayerError, check_header};
use lakebed_types::{Lsn, PageKey};

/// Why a layer could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerFileError {
    /// The operating system refused.
    #[error("layer {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The bytes are wrong.
    #[error("layer {path}: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LayerError,
    },
}

/// An open layer with its index in memory.
#[derive(Debug)]
pub struct LayerFile {
    path: PathBuf,
    file: File,
    footer: Footer,
    index: Index,
}

impl LayerFile {
    /// Writes a layer's bytes durably under its final name and opens it.
    ///
    /// # Errors
    /// See [`LayerFileError`]; nothing is left under the final name then.
    pub fn create(path: &Path, bytes: &[u8]) -> Result<LayerFile, LayerFileError> {
        let failed = |source| LayerFileError::Io {
            path: path.to_owned(),
            source,
        };
        let beside = path.with_extension("new");
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = File::create(&beside).map_err(failed)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
        LayerFile::open(path)
    }

    /// Opens a layer and checks header, footer and index. Chains are checked when they are read.
    ///
    /// # Errors
    /// See [`LayerFileError`].
    pub fn open(path: &Path) -> Result<LayerFile, LayerFileError> {
        let failed = |source| LayerFileError::Io {
            path: path.to_owned(),
            source,
        };
        let damaged = |source| LayerFileError::Damaged {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(damaged(LayerError("it is shorter than a layer can be")));
        }
        let read = |at: u64, length: usize| {
            let mut part = vec![0; length];
            file.read_exact_at(&mut part, at).map(|()| Bytes::from(part))
        };
        check_header(&read(0, HEADER_BYTES).map_err(failed)?).map_err(damaged)?;
        let footer = read(bytes - FOOTER_BYTES as u64, FOOTER_BYTES).map_err(failed)?;
        let footer = Footer::decode(&footer, bytes).map_err(damaged)?;
        let index = read(footer.index_offset, footer.index_bytes() as usize).map_err(failed)?;
        let index = footer.index(index).map_err(damaged)?;
        Ok(LayerFile {
            path: path.to_owned(),
            file,
            footer,
            index,
        })
    }

    /// Values are above this LSN (or at it, for imported images) and at or below [`LayerFile::last`].
    pub fn first(&self) -> Lsn {
        self.footer.first
    }

    /// The layer's end.
    pub fn last(&self) -> Lsn {
        self.footer.last
    }

    /// Pages with values here.
    pub fn page_count(&self) -> usize {
        self.index.len()
    }

    /// The page's values, oldest first.
    ///
    /// # Errors
    /// See [`LayerFileError`].
    pub fn read(&self, key: &PageKey) -> Result<Vec<(Lsn, Value)>, LayerFileError> {
        let Some(place) = self.index.find(key) else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; place.length as usize];
        let read = self.file.read_exact_at(&mut bytes, place.offset);
        read.map_err(|source| LayerFileError::Io {
            path: self.path.clone(),
            source,
        })?;
        place
            .decode(bytes.into())
            .map_err(|source| LayerFileError::Damaged {
                path: self.path.clone(),
                source,
            })
    }

    /// The catalogue section.
    ///
    /// # Errors
    /// See [`LayerFileError`].
    pub fn catalogue(&self) -> Result<Bytes, LayerFileError> {
        let mut bytes = vec![0; self.footer.catalogue_bytes as usize];
        let read = self.file.read_exact_at(&mut bytes, self.footer.catalogue_offset);
        read.map_err(|source| LayerFileError::Io {
            path: self.path.clone(),
            source,
        })?;
        let checked = self.footer.catalogue(bytes.into());
        checked.map_err(|source| LayerFileError::Damaged {
            path: self.path.clone(),
            source,
        })
    }

    /// The keys, ascending, in their stored form.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.index.keys()
    }
}
