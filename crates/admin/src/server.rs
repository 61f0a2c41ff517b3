//! The HTTP service.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, ErrorCode};

/// How long requests under way may take once shutdown began, in milliseconds.
pub const DRAIN_MS: u64 = 2_000;

/// Whether the daemon can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ok,
    /// It cannot, for this reason.
    Unavailable(String),
}

/// What a daemon tells about itself. Both methods are called on the runtime: they must not block.
pub trait StatusSource: Send + Sync + 'static {
    /// Whether it can do its work.
    fn health(&self) -> Health;
    /// Everything an operator may want to know.
    fn status(&self) -> serde_json::Value;
}

/// Any pair of closures is a source.
impl<H, S> StatusSource for (H, S)
where
    H: Fn() -> Health + Send + Sync + 'static,
    S: Fn() -> serde_json::Value + Send + Sync + 'static,
{
    fn health(&self) -> Health {
        self.0()
    }

    fn status(&self) -> serde_json::Value {
        self.1()
    }
}

/// The service of one daemon, before it listens.
pub struct AdminServer {
    shared: Arc<Shared>,
    more: Router,
}

struct Shared {
    source: Box<dyn StatusSource>,
    registry: Registry,
}

impl AdminServer {
    /// A service for one daemon and its metrics.
    pub fn new(source: impl StatusSource, registry: Registry) -> AdminServer {
        let source = Box::new(source);
        AdminServer {
            shared: Arc::new(Shared { source, registry }),
            more: Router::new(),
        }
    }

    /// Adds the daemon's own paths.
    pub fn with_routes(self, more: Router) -> AdminServer {
        AdminServer {
            more: self.more.merge(more),
            ..self
        }
    }

    /// Serves until `shutdown`, then lets requests under way finish for at most [`DRAIN_MS`].
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/metrics", get(metrics))
            .route("/v1/status", get(status))
            .with_state(self.shared)
            .merge(self.more)
            .fallback(no_such_path);
        let drained = {
            let shutdown = shutdown.clone();
            async move {
                shutdown.cancelled().await;
                tokio::time::sleep(Duration::from_millis(DRAIN_MS)).await;
            }
        };
        let serving =
            axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.cancelled().await });
        tokio::select! {
            result = serving.into_future() => result,
            () = drained => Ok(()),
        }
    }
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    match shared.source.health() {
        Health::Ok => "ok\n".into_response(),
        Health::Unavailable(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(error) => {
            ApiError::new(ErrorCode::Internal, format!("encoding metrics: {error}")).into_response()
        }
    }
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    Json(shared.source.status())
}

async fn no_such_path() -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        "no such path; there are /healthz, /metrics and /v1/status",
    )
}
