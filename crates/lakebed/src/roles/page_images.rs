//! `PUT /v1/full_page_writes` of a compute, with `on` or `off` as its body.

use lakebed_admin::ApiError;
use lakebed_admin::axum::extract::State;
use lakebed_admin::axum::routing::put;
use lakebed_admin::axum::{Json, Router};
use lakebed_admin::error::ErrorCode;
use lakebed_compute::full_page_writes::{Switch, SwitchError};
use serde_json::{Value, json};

/// The route.
pub fn routes(switch: Switch) -> Router {
    Router::new()
        .route("/v1/full_page_writes", put(change))
        .with_state(switch)
}

async fn change(State(switch): State<Switch>, body: String) -> Result<Json<Value>, ApiError> {
    let on = match body.trim() {
        "on" => true,
        "off" => false,
        other => {
            let what = format!("the body is `on` or `off`, not `{other}`");
            return Err(ApiError::new(ErrorCode::InvalidRequest, what));
        }
    };
    let told = switch.set(on).await.map_err(|error| {
        let code = match error {
            SwitchError::Write { .. } => ErrorCode::Internal,
            SwitchError::NotTold { .. } => ErrorCode::Conflict,
            SwitchError::Ended => ErrorCode::Unavailable,
        };
        ApiError::new(code, error)
    })?;
    Ok(Json(json!({ "on": told.on, "since_lsn": told.at.to_string() })))
}
