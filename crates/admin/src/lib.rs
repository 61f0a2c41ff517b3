//! What every daemon shows to its operator: logs, and a small HTTP service.
//!
//! | path | answer |
//! |---|---|
//! | `GET /healthz` | 200 `ok` while the daemon can do its work, else 503 with the reason |
//! | `GET /metrics` | the daemon's own registry in the OpenMetrics text format |
//! | `GET /v1/status` | JSON of the daemon's own making |
//!
//! * [`server`]: the HTTP service, with orderly shutdown.
//! * [`error`]: the one form of error answers.
//! * [`telemetry`]: structured logs on standard error.
//!
//! Registries and status are handed in, never global: several daemons run in one test process. Authentication is
//! deliberately absent until it exists for the whole tier; bind the port to an address that only operators reach.
#![forbid(unsafe_code)]

pub mod error;
pub mod server;
pub mod telemetry;

pub use axum;
pub use error::ApiError;
pub use server::{AdminServer, Health, StatusSource};
