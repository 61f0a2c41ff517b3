//! The controller: the control plane's replicated memory, and the hand that drives nodes toward it.
//!
//! ```text
//!  gRPC ─► service ─► branch_point, placement::choose ─► Command ─► raft_node ─► State
//!                                                                                  │
//!  safekeepers, pageservers ◄─ nodes ◄─ reconciler ◄─ placement::plan ◄────────────┘
//! ```
//!
//! * [`server`]: start, service and end. [`config`]: what an operator says.
//! * [`raft_node`]: one member of the raft group, with its durable log.
//! * `service`: the gRPC service; `wire`: its messages from and to domain values.
//! * `branch_point`: which position a new branch starts from, asked of safekeepers and pageservers.
//! * `reconciler`: calls on nodes until they are what the state says. `nodes`: connections.
//! * `history`: lets go what is older than a tenant's window, and branches whose time is over. `in_use`: whether a compute is
//!   connected.
//! * [`registration`]: how a daemon tells the controllers that it is there.
//! * [`bootstrap`]: a client that makes the output of `initdb` a tenant. [`rfc3339`]: times of people.
//!
//! Nothing on the data path comes through here: computes, safekeepers and pageservers go on while every controller
//! is down.
#![forbid(unsafe_code)]

pub mod bootstrap;
mod branch_point;
pub mod config;
mod history;
mod in_use;
pub mod metrics;
mod nodes;
pub mod raft_node;
mod random;
mod reconciler;
pub mod registration;
pub mod rfc3339;
pub mod server;
mod service;
mod wire;

pub use config::ControllerConfig;
pub use server::{Controller, run};
