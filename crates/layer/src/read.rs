//! A read: from the newest layer to the oldest, until the chain is complete.

use std::sync::Arc;

use lakebed_types::PageKey;

use crate::format::{IndexCache, LayerReader, ReadAt, ReadCount, ReadError, Sought};
use crate::{Chain, LayerDesc, LayerId, LayerKind, LayerMap};

/// Offers `chain` what the layers of `map` have of the page. `open` gives the reader of a layer, for instance from the
/// caller's table of open files.
///
/// # Errors
/// What `open` said, or [`ReadError`].
pub fn read<R: ReadAt, E: From<ReadError>>(
    map: &LayerMap,
    key: &PageKey,
    chain: &mut Chain,
    cache: &IndexCache,
    count: &mut ReadCount,
    open: impl FnMut(LayerId) -> Result<Arc<LayerReader<R>>, E>,
) -> Result<(), E> {
    read_watched(map, key, chain, cache, count, open, |_, _, _| {})
}

/// As [`read`]; `asked` is told of each layer after it was asked.
///
/// # Errors
/// As [`read`].
pub fn read_watched<R: ReadAt, E: From<ReadError>>(
    map: &LayerMap,
    key: &PageKey,
    chain: &mut Chain,
    cache: &IndexCache,
    count: &mut ReadCount,
    mut open: impl FnMut(LayerId) -> Result<Arc<LayerReader<R>>, E>,
    mut asked: impl FnMut(&LayerDesc, &Chain, &ReadCount),
) -> Result<(), E> {
    let page = Sought::new(key);
    for desc in map.read_order(key, chain.upto()) {
        // Every value above this layer's end was seen. It is not so for merged layers: those that come later in the
        // order are older page by page, and may have later values of other pages.
        if desc.kind == LayerKind::Level0 {
            chain.reached(desc.last);
        }
        if chain.is_complete() {
            return Ok(());
        }
        open(desc.id)?.read(&page, chain, cache, count)?;
        asked(desc, chain, count);
    }
    Ok(())
}
