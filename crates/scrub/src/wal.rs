//! A timeline's WAL: a chain of objects without a gap, each of them right.

use lakebed_blobstore::{BlobError, BlobStore, Listed};
use lakebed_safekeeper::backup::objects::{WalObject, covered};
use lakebed_types::Lsn;
use lakebed_walframe::{FOOTER_BYTES, Footer, FrameError, Object};

use crate::ScrubError;
use crate::report::{Finding, Kind, Report};

/// Looks at the objects of a directory.
pub(crate) async fn look(
    store: &BlobStore,
    directory: &str,
    deep: bool,
    report: &mut Report,
) -> Result<(), ScrubError> {
    let listed = store.list_objects(directory).await?;
    let parse = |listed: Listed| Some((WalObject::parse(&listed.path)?, listed));
    let objects: Vec<(WalObject, Listed)> = listed.into_iter().filter_map(parse).collect();
    report.wal_objects += objects.len();
    for (object, listed) in &objects {
        let checked = match deep {
            true => read(store, object, listed).await,
            false => footer(store, object, listed).await,
        };
        match checked {
            Ok(bytes) => report.checked_bytes += bytes,
            Err(Failed::Damaged(error)) => {
                report.findings.push(Finding {
                    kind: Kind::Damaged,
                    path: listed.path.clone(),
                    what: error,
                });
            }
            // Parts go when a whole segment is there, which a later look would show; segments go when they are old.
            Err(Failed::Gone) => {}
            Err(Failed::Blob(error)) => return Err(error.into()),
        }
    }
    let gap = gap(&objects.iter().map(|(object, _)| *object).collect::<Vec<_>>());
    if let Some(at) = gap {
        report.findings.push(Finding {
            kind: Kind::Gap,
            path: directory.to_owned(),
            what: format!("the WAL at {at} is not there, and there is some behind it"),
        });
    }
    Ok(())
}

/// The first position that no object has and that some come after.
fn gap(objects: &[WalObject]) -> Option<Lsn> {
    let begin = objects.iter().map(|object| object.begin).min()?;
    let end = objects.iter().map(|object| object.end).max()?;
    let reached = covered(begin, objects.iter());
    (reached < end).then_some(reached)
}

enum Failed {
    Damaged(String),
    Gone,
    Blob(BlobError),
}

impl From<BlobError> for Failed {
    fn from(error: BlobError) -> Failed {
        match error {
            BlobError::NotFound(_) => Failed::Gone,
            error => Failed::Blob(error),
        }
    }
}

impl From<FrameError> for Failed {
    fn from(error: FrameError) -> Failed {
        Failed::Damaged(error.to_string())
    }
}

/// Its footer, which knows size and range of the object.
async fn footer(store: &BlobStore, object: &WalObject, listed: &Listed) -> Result<u64, Failed> {
    let Some(at) = listed.bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(FrameError::Damaged("it is shorter than a footer").into());
    };
    let bytes = store.get_range(&listed.path, at..listed.bytes).await?;
    let footer = Footer::parse(&bytes, listed.bytes)?;
    same_range((footer.begin, footer.end), object)?;
    Ok(bytes.len() as u64)
}

/// All of it.
async fn read(store: &BlobStore, object: &WalObject, listed: &Listed) -> Result<u64, Failed> {
    let opened = Object::open(store.get(&listed.path).await?)?;
    same_range((opened.header.begin, opened.header.end), object)?;
    let frames = opened.frames().try_for_each(|frame| frame.map(drop));
    frames?;
    Ok(opened.bytes())
}

fn same_range(found: (Lsn, Lsn), object: &WalObject) -> Result<(), FrameError> {
    match found == (object.begin, object.end) {
        true => Ok(()),
        false => Err(FrameError::Damaged("its name says another range")),
    }
}

#[cfg(test)]
mod tests {
    use lakebed_types::{NodeId, Term};

    use super::*;

    #[test]
    fn gaps_are_found_and_overlaps_are_none() {
        let object = |begin, end| WalObject {
            begin: Lsn(begin),
            end: Lsn(end),
            term: Term(1),
            node: NodeId(1),
            whole: true,
        };
        assert_eq!(gap(&[]), None);
        assert_eq!(gap(&[object(1, 5), object(5, 9), object(4, 6)]), None);
        assert_eq!(gap(&[object(1, 5), object(6, 9)]), Some(Lsn(5)));
    }
}
