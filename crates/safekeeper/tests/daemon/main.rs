//! Safekeepers as daemons: real gRPC on real ports, real disks, and the WAL of a real cluster.

mod driver;
mod durability;
mod feeding;
mod fencing;
mod hostile;
mod node;
mod sample;
mod stream;
