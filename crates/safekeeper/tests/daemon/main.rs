//! Safekeepers as daemons: real gRPC on real ports, real disks, and the WAL of a real cluster.

mod acknowledge;
mod backup;
mod batches;
mod driver;
mod durability;
mod failing_disk;
mod feeding;
mod fencing;
mod full_disk;
mod hostile;
mod malformed;
mod membership;
mod node;
mod removal;
mod rot;
mod sample;
mod scrub;
mod stream;
