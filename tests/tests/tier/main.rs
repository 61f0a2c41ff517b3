//! The tier as its users rely on it: real processes, real Postgres, real disks.

mod branches;
mod campaign;
mod compaction;
mod comparison;
mod detach;
mod disk_faults;
mod durability;
mod explain;
mod faults;
mod fencing;
mod full_page_writes;
mod group_commit;
mod history;
mod load;
mod membership;
mod pageserver_loss;
mod regression_suite;
mod state;
mod unreplayable;
mod up;
mod versions;
mod wal_chain;
mod wal_client;
mod wal_client_tls;
mod wal_restore;
mod workload;
