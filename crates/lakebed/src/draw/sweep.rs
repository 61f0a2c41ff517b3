//! What images cost and what they give, by the number of deltas that makes one.

use anyhow::ensure;
use serde_json::Value;

use super::chart::{Panel, Series, draw as chart};

/// The picture of the sweep of `bench images`.
///
/// # Errors
/// There is no such result.
pub fn draw(results: &[Value]) -> anyhow::Result<String> {
    let sweep = |result: &&Value| result["bench"] == "images" && result["kind"] == "sweep";
    let mut sweep: Vec<&Value> = results.iter().filter(sweep).collect();
    ensure!(
        !sweep.is_empty(),
        "there is no result of `lakebed bench images` with a sweep"
    );
    let deltas = |result: &Value| result["image_deltas"].as_f64().unwrap_or(1.0).max(1.0);
    sweep.sort_by(|a, b| deltas(a).total_cmp(&deltas(b)));
    let series = |name: &str, field: &str| Series {
        name: name.to_owned(),
        points: sweep
            .iter()
            .filter_map(|result| Some((deltas(result), result[field].as_f64()?)))
            .collect(),
    };
    let panels = [
        Panel {
            title: "a read of a page, microseconds".to_owned(),
            series: vec![series("p50", "read_p50_us"), series("p99", "read_p99_us")],
        },
        Panel {
            title: "values that a read replays".to_owned(),
            series: vec![series("mean", "chain_mean"), series("p99", "chain_p99")],
        },
        Panel {
            title: "bytes written for each byte of WAL".to_owned(),
            series: vec![
                series("flushed", "flushed_per_wal_byte"),
                series("merged", "merged_per_wal_byte"),
                series("kept", "kept_per_wal_byte"),
            ],
        },
    ];
    Ok(chart(&panels, "deltas that make an image"))
}
