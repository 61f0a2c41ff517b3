//! What the processes of the tier count.

use std::collections::BTreeMap;

use super::admin;

/// The counters of the process whose admin service has this port, as it tells them.
///
/// # Errors
/// It does not answer.
pub async fn text(port: u16) -> anyhow::Result<String> {
    admin::get(port, "/metrics").await
}

/// The same as numbers by name, those without labels.
///
/// # Errors
/// As of [`text`].
pub async fn values(port: u16) -> anyhow::Result<BTreeMap<String, f64>> {
    let text = text(port).await?;
    let value = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(value).collect())
}
