//! How long history is kept, and branches whose time is over.

use lakebed_types::{TenantId, TimelineId};

use super::{Applied, changed};
use crate::command::{Outcome, Rejection};
use crate::retention::{Horizon, Retention};
use crate::state::{State, TenantState, TimelineState};

impl State {
    pub(super) fn set_retention(&mut self, id: TenantId, retention: Retention) -> Applied {
        let tenant = self.tenant_mut(id)?;
        if tenant.state == TenantState::Deleting {
            return Err(Rejection::TenantIs {
                name: tenant.name.clone(),
                state: tenant.state,
            });
        }
        let before = std::mem::replace(&mut tenant.retention, retention);
        Ok(changed(before != retention))
    }

    pub(super) fn raise_horizon(&mut self, id: TenantId, timeline_id: TimelineId, to: Horizon) -> Applied {
        let tenant = self.tenant_mut(id)?;
        // The window may have been lifted while nodes were asked.
        if tenant.retention.keeps_all() {
            return Ok(Outcome::Unchanged);
        }
        let timeline = tenant
            .timelines
            .get_mut(&timeline_id)
            .ok_or(Rejection::NoTimeline(timeline_id))?;
        if timeline.state != TimelineState::Active {
            return Err(Rejection::TimelineIs {
                timeline: timeline_id,
                state: timeline.state,
            });
        }
        if to.lsn <= timeline.horizon.lsn || to.lsn <= timeline.start_lsn {
            return Ok(Outcome::Unchanged);
        }
        timeline.horizon = to;
        Ok(Outcome::Applied)
    }

    pub(super) fn expire_branch(&mut self, id: TenantId, timeline_id: TimelineId) -> Applied {
        let now = self.clock_unix_micros;
        let tenant = self.tenant_mut(id)?;
        let Some(timeline) = tenant.timelines.get(&timeline_id) else {
            return Ok(Outcome::Unchanged);
        };
        if timeline.expires_unix_micros.is_none_or(|at| at > now) {
            return Err(Rejection::NotExpired(timeline_id));
        }
        match tenant.name_of(timeline_id).cloned() {
            Some(name) => self.delete_branch(id, &name),
            None => Ok(Outcome::Unchanged),
        }
    }
}

#[cfg(test)]
mod tests {
    use lakebed_types::Lsn;

    use super::*;
    use crate::command::{Command, Stamped};
    use crate::fixture::{active, apply, branch, detach, detached, make_ready, tenant_id, timeline_id};
    use crate::state::Timeline;

    fn raise(timeline: u8, lsn: u64) -> Command {
        Command::RaiseHorizon {
            tenant: tenant_id(1),
            timeline: timeline_id(timeline),
            horizon: Horizon {
                lsn: Lsn(lsn),
                unix_micros: 7,
            },
        }
    }

    fn retain(retention: Retention) -> Command {
        Command::SetRetention {
            tenant: tenant_id(1),
            retention,
        }
    }

    fn timeline(state: &State, number: u8) -> &Timeline {
        &state.tenants[&tenant_id(1)].timelines[&timeline_id(number)]
    }

    #[test]
    fn below_the_horizon_no_branch_is_made_and_it_only_rises() {
        let mut state = active();
        assert_eq!(
            apply(&mut state, raise(1, 1000)),
            Ok(Outcome::Unchanged),
            "the start"
        );
        apply(&mut state, branch("old", 2, 1, 1500)).unwrap();
        assert_eq!(apply(&mut state, raise(1, 2000)), Ok(Outcome::Applied));
        assert_eq!(apply(&mut state, raise(1, 1900)), Ok(Outcome::Unchanged));
        let refused = apply(&mut state, branch("b", 3, 1, 1999));
        let (lsn, horizon) = (Lsn(1999), Lsn(2000));
        assert_eq!(refused, Err(Rejection::NotKept { lsn, horizon }));
        apply(&mut state, branch("b", 3, 1, 2000)).unwrap();
        // One that is not there yet has no history to give up.
        assert!(apply(&mut state, raise(2, 1600)).is_err());
        make_ready(&mut state, 2);
        assert_eq!(apply(&mut state, raise(2, 1600)), Ok(Outcome::Applied));
        // A window that was lifted gives nothing up any more.
        assert_eq!(
            apply(&mut state, retain(Retention::default())),
            Ok(Outcome::Applied)
        );
        assert_eq!(apply(&mut state, raise(1, 3000)), Ok(Outcome::Unchanged));
        assert_eq!(timeline(&state, 1).horizon.lsn, Lsn(2000));
    }

    /// Makes branch `short`, timeline 2, of the first one. When its time is over.
    fn short_branch(state: &mut State) -> i64 {
        let until = state.clock_unix_micros + 1000;
        let mut command = branch("short", 2, 1, 1500);
        if let Command::CreateBranch {
            expires_unix_micros, ..
        } = &mut command
        {
            *expires_unix_micros = Some(until);
        }
        apply(state, command).unwrap();
        make_ready(state, 2);
        until
    }

    #[test]
    fn a_branch_goes_when_its_time_is_over_and_nothing_hangs_on_it() {
        let mut state = active();
        let until = short_branch(&mut state);
        apply(&mut state, branch("child", 3, 2, 1600)).unwrap();
        let expire = |timeline: u8| Command::ExpireBranch {
            tenant: tenant_id(1),
            timeline: timeline_id(timeline),
        };
        assert_eq!(
            apply(&mut state, expire(1)),
            Err(Rejection::NotExpired(timeline_id(1)))
        );
        assert_eq!(
            apply(&mut state, expire(2)),
            Err(Rejection::NotExpired(timeline_id(2)))
        );
        let late = |command| Stamped {
            at_unix_micros: until,
            command,
        };
        assert!(matches!(
            state.apply(&late(expire(2))),
            Err(Rejection::HasChildren { .. })
        ));
        let gone = Command::DeleteBranch {
            tenant: tenant_id(1),
            name: "child".parse().unwrap(),
        };
        apply(&mut state, gone).unwrap();
        assert_eq!(state.apply(&late(expire(2))), Ok(Outcome::Applied));
        assert_eq!(timeline(&state, 2).state, TimelineState::Deleting);
        assert_eq!(state.apply(&late(expire(2))), Ok(Outcome::Unchanged));
        assert_eq!(state.apply(&late(expire(9))), Ok(Outcome::Unchanged));
    }

    #[test]
    fn the_last_branch_stays_when_its_time_is_over() {
        let mut state = active();
        let until = short_branch(&mut state);
        apply(&mut state, detach("short")).unwrap();
        apply(&mut state, detached(2)).unwrap();
        let gone = Command::DeleteBranch {
            tenant: tenant_id(1),
            name: "main".parse().unwrap(),
        };
        apply(&mut state, gone).unwrap();
        let expire = Stamped {
            at_unix_micros: until,
            command: Command::ExpireBranch {
                tenant: tenant_id(1),
                timeline: timeline_id(2),
            },
        };
        let refused = state.apply(&expire);
        assert_eq!(refused, Err(Rejection::LastBranch("short".parse().unwrap())));
        assert_eq!(timeline(&state, 2).state, TimelineState::Active);
        apply(&mut state, branch("other", 3, 2, 1600)).unwrap();
        make_ready(&mut state, 3);
        apply(&mut state, detach("other")).unwrap();
        apply(&mut state, detached(3)).unwrap();
        assert_eq!(state.apply(&expire), Ok(Outcome::Applied));
    }

    #[test]
    fn a_restored_branch_keeps_its_head_under_another_name() {
        let mut state = active();
        let restore = |of: u8, keep_as: &str, timeline: u8, lsn: u64| Command::RestoreBranch {
            tenant: tenant_id(1),
            name: "main".parse().unwrap(),
            of: timeline_id(of),
            keep_as: keep_as.parse().unwrap(),
            timeline: timeline_id(timeline),
            parent: timeline_id(1),
            lsn: Lsn(lsn),
            last_record: Lsn(lsn - 50),
            safekeepers: None,
        };
        apply(&mut state, branch("taken", 2, 1, 1500)).unwrap();
        assert!(matches!(
            apply(&mut state, restore(1, "taken", 3, 1800)),
            Err(Rejection::BranchExists(_))
        ));
        assert!(matches!(
            apply(&mut state, restore(2, "before", 3, 1800)),
            Err(Rejection::OtherTimeline(_))
        ));
        apply(&mut state, raise(1, 1700)).unwrap();
        assert!(matches!(
            apply(&mut state, restore(1, "before", 3, 1600)),
            Err(Rejection::NotKept { .. })
        ));
        apply(&mut state, restore(1, "before", 3, 1800)).unwrap();
        let tenant = &state.tenants[&tenant_id(1)];
        let named: Vec<_> = tenant
            .branches
            .iter()
            .map(|(name, id)| (name.as_str(), *id))
            .collect();
        let expected = [("before", 1), ("main", 3), ("taken", 2)].map(|(name, id)| (name, timeline_id(id)));
        assert_eq!(named, expected);
        let new = timeline(&state, 3);
        assert_eq!(
            (new.parent, new.start_lsn, new.state),
            (Some(timeline_id(1)), Lsn(1800), TimelineState::Creating)
        );
        // Late, of the timeline before.
        assert!(apply(&mut state, restore(1, "again", 4, 1900)).is_err());
    }
}
