//! Structured logs on standard error; standard output is for data.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The environment variable that selects what is logged, in the syntax of `tracing_subscriber::EnvFilter`, such as
/// `info,lakebed_controller=debug`.
pub const FILTER_VARIABLE: &str = "LAKEBED_LOG";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, with its spans.
    Json,
}

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter has a syntax error.
    #[error("{FILTER_VARIABLE} or the configured log filter '{filter}' is not valid: {reason}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process has a subscriber already.
    #[error("logs are set up already: {0}")]
    AlreadySet(#[from] TryInitError),
}

/// Sets up the logs of this process; once, first thing in `main`. The environment overrides `default_filter`.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| default_filter.to_owned());
    let parsed = EnvFilter::try_new(&filter).map_err(|error| TelemetryError::Filter {
        filter,
        reason: error.to_string(),
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        // A log on a full disk must not end the process that could say so.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.finish().try_init()?,
        LogFormat::Json => lines.json().with_span_list(true).finish().try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named_and_logs_are_set_up_once() {
        let error = init(LogFormat::Text, "info,=,x=nonsense").unwrap_err();
        assert!(error.to_string().contains("x=nonsense"), "{error}");
        init(LogFormat::Json, "info").unwrap();
        assert!(matches!(
            init(LogFormat::Text, "info"),
            Err(TelemetryError::AlreadySet(_))
        ));
    }
}
