//! The controller: the control plane's replicated memory, and the hand that drives nodes toward it.
#![forbid(unsafe_code)]

pub mod raft_node;

mod random;
