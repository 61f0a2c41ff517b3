//! In which order a change becomes durable.
//!
//! New layers are stored, then a manifest that names them, then layers that it does not name any more are removed. A
//! crash between two steps leaves layers that nobody names, and nothing else: the manifest before or the one after
//! holds, and what it names is there.

use crate::{Edit, LayerDesc, LayerId, LayerMap, MapError};

/// One step. They are done one after the other, each durable before the next begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durable {
    /// Store the layer's object, under a name that was never used.
    Store(LayerId),
    /// Store a manifest with this map. An owner that was superseded must stop here.
    Commit(Box<LayerMap>),
    /// Remove the object: no manifest that may become current names it, as long as the commit before is the newest.
    Remove(LayerId),
}

/// The steps of an edit that adds `new` layers.
///
/// # Errors
/// See [`MapError`]; nothing is to be done then but to remove `new`.
pub fn durable_steps(map: &LayerMap, edit: &Edit, new: &[LayerDesc]) -> Result<Vec<Durable>, MapError> {
    let (next, gone) = map.apply(edit)?;
    if let Some(lost) = new.iter().find(|desc| next.get(desc.id).is_none()) {
        return Err(MapError::Unknown(lost.id));
    }
    let store = new.iter().map(|desc| Durable::Store(desc.id));
    let commit = std::iter::once(Durable::Commit(Box::new(next)));
    Ok(store
        .chain(commit)
        .chain(gone.into_iter().map(Durable::Remove))
        .collect())
}
