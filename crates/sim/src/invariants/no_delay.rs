//! A commit waits for nobody beyond a quorum: what a quorum is known to have flushed is committed, wherever learners and
//! slow members are.

use super::{Checked, ensure};
use lakebed_quorum::proposer::Proposer;
use lakebed_types::Lsn;

/// After any input of a proposer.
pub(crate) fn check(core: &Proposer) -> Checked {
    let Some(history) = core.history() else {
        return Ok(());
    };
    let (start, members) = (history.last().1, core.membership());
    let flush = |id| core.progress(id).and_then(|(_, flush)| flush);
    let all = members.old.iter().chain(members.new.iter().flatten());
    let on_quorum = |at: &Lsn| members.is_quorum(|id| flush(id) >= Some(*at));
    let reached = all.filter_map(|id| flush(*id)).filter(on_quorum).max();
    let due = reached.filter(|at| *at >= start && !core.is_stopped());
    ensure(due <= Some(core.commit()), "no_delay", || {
        format!(
            "{due:?} is on a quorum of {members:?}, committed is {}",
            core.commit()
        )
    })
}
