//! The control plane as a pure state machine: what exists, who owns it, and what must be done next.
//!
//! ```text
//!  request ─► choose (placement policy) ─► Command ─► raft log ─► State::apply ─► Outcome | Rejection
//!                                                                     │
//!                                  State + Observed ─► plan ─► Intent ┴─► calls on nodes, further commands
//! ```
//!
//! * [`command`]: what the raft log holds. A command carries every choice already made (ids, nodes, the time), so that
//!   each member, in whatever version, reaches the same state.
//! * [`state`] and [`apply`](mod@apply): the state, and the one function that changes it. A rejected command changes
//!   nothing. Nothing here panics on a command, however odd.
//! * [`choose`]: placement policy, run once by the member that proposes; its result is validated by `apply`.
//! * [`branch_point`]: which timeline holds a position, and how far a quorum has committed.
//! * [`retention`]: how long history is kept.
//! * [`plan`](mod@plan): what has to be called so that the nodes become what the state says.
//!
//! No clock, no random numbers and no IO: those belong to the controller's daemon.
#![forbid(unsafe_code)]

pub mod apply;
pub mod branch_point;
pub mod choose;
pub mod command;
pub mod name;
pub mod plan;
pub mod retention;
pub mod state;

#[cfg(test)]
mod fixture;

pub use command::{Command, Outcome, Rejection, RejectionKind, Stamped};
pub use name::Name;
pub use plan::{Call, Intent, Observed, plan};
pub use retention::{Horizon, Retention};
pub use state::{
    ClusterIdentity, Joining, Node, NodeRole, SafekeeperSet, ShardPlacement, State, Tenant, TenantState,
    Timeline, TimelineState,
};
