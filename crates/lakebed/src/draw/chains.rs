//! How many values pages are built from.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::chart::{Panel, Series, draw as chart};

/// The picture of the first reading of all pages in `bench getpage`, a line for each result.
///
/// # Errors
/// There is no such result.
pub fn draw(results: &[Value]) -> anyhow::Result<String> {
    let mut series = Vec::new();
    for result in results.iter().filter(|result| result["bench"] == "getpage") {
        let shards = result["chain_lengths_by_shard"].as_array();
        for (number, shard) in shards.into_iter().flatten().enumerate() {
            series.push(Series {
                name: format!("shard {number}"),
                points: points(shard).context("a list of chain lengths")?,
            });
        }
    }
    ensure!(
        !series.is_empty(),
        "there is no result of `lakebed bench getpage` with chain lengths"
    );
    let panel = Panel {
        title: "pages by the number of values that each was built from".to_owned(),
        series,
    };
    Ok(chart(&[panel], "values, at most"))
}

/// `[["4.0", pages], …]`; the last bound is infinite and the first is 0, which has no place on the axis.
fn points(shard: &Value) -> Option<Vec<(f64, f64)>> {
    let mut points = Vec::new();
    for bucket in shard.as_array()? {
        let bound: f64 = bucket[0].as_str()?.parse().ok()?;
        let pages = bucket[1].as_f64()?;
        if bound.is_finite() && bound > 0.0 {
            points.push((bound, pages));
        }
    }
    Some(points)
}
