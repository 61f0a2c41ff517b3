//! Who has the bytes that rotted here: another member of the timeline, or object storage.
//!
//! What is committed is the same everywhere. What lies above is compared by its history first ([`mend`]): only where that
//! is the same did the same term write the same bytes. Object storage holds committed WAL only, each object with the
//! history of its writer, so it is asked like a member. Whatever comes is decoded before it is written ([`super::heal`]).

use lakebed_proto::quorum;
use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::acceptor::mend::{Copy, Mend, mend};
use lakebed_quorum::history::TermHistory;
use lakebed_types::{Lsn, NodeId, Term};

use crate::backup::archive::{Archive, Reader};
use crate::data_dir::Name;
use crate::server::Safekeeper;

/// WAL that is fetched to heal one place, at most. A record that is longer is not healed.
const HEAL_BYTES: u64 = 16 << 20;

/// What takes the place of damaged WAL.
#[derive(Debug)]
pub(crate) enum Remedy {
    /// These bytes, from the last good boundary on.
    Wal(Vec<u8>),
    /// Nothing: what is behind the last good boundary was given up by all.
    Cut,
}

/// A remedy for WAL of `own` that is damaged behind the boundary `after` and was durable up to `below`; and who has it.
/// `accept` takes what a source has: the first that it takes is the one.
///
/// # Errors
/// Why nobody could help, in words.
pub(crate) async fn find<Accepted: Future<Output = Result<(), String>>>(
    safekeeper: &Safekeeper,
    name: Name,
    own: &Durable,
    (after, below): (Lsn, Lsn),
    mut accept: impl FnMut(Remedy) -> Accepted,
) -> Result<String, String> {
    let mut reasons = Vec::new();
    for node in others(safekeeper, own) {
        let asked = match from_member(safekeeper, node, name, own, (after, below)).await {
            Ok(remedy) => accept(remedy).await,
            Err(why) => Err(why),
        };
        match asked {
            Ok(()) => return Ok(format!("safekeeper {node}")),
            Err(why) => reasons.push(format!("safekeeper {node}: {why}")),
        }
    }
    let asked = match from_archive(safekeeper.archive(name), own, (after, below)).await {
        Ok(remedy) => accept(remedy).await,
        Err(why) => Err(why),
    };
    match asked {
        Ok(()) => Ok("object storage".to_owned()),
        Err(why) => {
            reasons.push(format!("object storage: {why}"));
            Err(reasons.join("; "))
        }
    }
}

/// Every other member of either set.
fn others(safekeeper: &Safekeeper, own: &Durable) -> Vec<NodeId> {
    let sets = [Some(&own.membership.old), own.membership.new.as_ref()];
    let mut members: std::collections::BTreeSet<_> = sets.into_iter().flatten().flatten().copied().collect();
    members.remove(&NodeId(safekeeper.config().node_id));
    members.into_iter().collect()
}

async fn from_member(
    safekeeper: &Safekeeper,
    node: NodeId,
    name: Name,
    own: &Durable,
    (after, below): (Lsn, Lsn),
) -> Result<Remedy, String> {
    let peers = safekeeper.peers();
    let look = async || {
        let status = peers.status(node, name).await.ok_or("it does not answer")?;
        if !status.stopped_reason.is_empty() {
            return Err("it is stopped itself".to_owned());
        }
        let history = quorum::history(&status.history).map_err(|error| error.to_string())?;
        let copy = Copy {
            history: &history,
            commit: Lsn(status.commit_lsn),
            end: Lsn(status.flush_lsn),
        };
        Ok((mend(own, (after, below), copy), copy.commit, Term(status.term)))
    };
    let (found, commit, term) = look().await?;
    let end = match found {
        Mend::Wal { end } => end.min(Lsn(after.0.saturating_add(HEAL_BYTES))),
        Mend::Cut => return Ok(Remedy::Cut),
        Mend::Nothing => return Err("it has nothing that fits".to_owned()),
    };
    if end <= commit || commit > after {
        let range = (after, end.min(commit));
        return Ok(Remedy::Wal(peers.read(node, name, range, Term(0)).await?));
    }
    // Not committed as far as it knows. On behalf of its own term it serves what it flushed; its WAL may be cut while it
    // reads, and written anew under another history and then a higher term.
    let wal = peers.read(node, name, (after, end), term).await?;
    match look().await? {
        (Mend::Wal { end: still }, ..) if still >= end => Ok(Remedy::Wal(wal)),
        _ => Err("its WAL changed meanwhile".to_owned()),
    }
}

async fn from_archive(
    archive: Option<Archive>,
    own: &Durable,
    (after, below): (Lsn, Lsn),
) -> Result<Remedy, String> {
    let archive = archive.ok_or("none is configured")?;
    let mut reader = Reader::default();
    let (state, reach) = archive
        .state_at(&mut reader, after)
        .await
        .map_err(|error| error.to_string())?;
    let history: &TermHistory = &state.term_history;
    let copy = Copy {
        history,
        commit: reach,
        end: reach,
    };
    let end = match mend(own, (after, below), copy) {
        Mend::Wal { end } => end.min(Lsn(after.0.saturating_add(HEAL_BYTES))),
        Mend::Cut => return Ok(Remedy::Cut),
        Mend::Nothing => return Err("it has nothing that fits".to_owned()),
    };
    let wanted = usize::try_from(end.0 - after.0).map_err(|error| error.to_string())?;
    let mut wal = Vec::new();
    while wal.len() < wanted {
        let at = Lsn(after.0 + wal.len() as u64);
        let bytes = archive.read(&mut reader, at).await;
        wal.extend_from_slice(&bytes.map_err(|error| error.to_string())?);
    }
    wal.truncate(wanted);
    Ok(Remedy::Wal(wal))
}
