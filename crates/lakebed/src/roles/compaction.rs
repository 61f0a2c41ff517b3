//! `PUT /v1/compaction` of a pageserver, with `pause` or `resume` as its body.

use std::sync::Arc;

use lakebed_admin::ApiError;
use lakebed_admin::axum::extract::State;
use lakebed_admin::axum::routing::put;
use lakebed_admin::axum::{Json, Router};
use lakebed_admin::error::ErrorCode;
use lakebed_pageserver::node::Node;
use serde_json::{Value, json};

/// The route.
pub fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/compaction", put(change))
        .with_state(node)
}

async fn change(State(node): State<Arc<Node>>, body: String) -> Result<Json<Value>, ApiError> {
    let pause = match body.trim() {
        "pause" => true,
        "resume" => false,
        other => {
            let what = format!("the body is `pause` or `resume`, not `{other}`");
            return Err(ApiError::new(ErrorCode::InvalidRequest, what));
        }
    };
    node.turns.pause(pause);
    tracing::warn!(paused = pause, "compaction was told to pause or to go on");
    Ok(Json(json!({ "paused": pause })))
}
