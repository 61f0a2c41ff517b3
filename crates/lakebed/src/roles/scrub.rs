//! `POST /v1/scrub` of a safekeeper: looks through all its WAL now.

use std::sync::Arc;

use lakebed_admin::axum::extract::State;
use lakebed_admin::axum::http::StatusCode;
use lakebed_admin::axum::routing::post;
use lakebed_admin::axum::{Json, Router};
use lakebed_safekeeper::Safekeeper;
use serde_json::{Value, json};

/// The route.
pub fn routes(safekeeper: Arc<Safekeeper>) -> Router {
    Router::new()
        .route("/v1/scrub", post(start))
        .with_state(safekeeper)
}

/// Answers at once with the number of the pass, which has ended when `scrub.passes_ended` of the status is as high.
async fn start(State(safekeeper): State<Arc<Safekeeper>>) -> (StatusCode, Json<Value>) {
    let pass = safekeeper.scrub_passes().start();
    (StatusCode::ACCEPTED, Json(json!({ "pass": pass })))
}
