//! `lakebed scrub`: whether object storage has all that it should, and what it has that nobody needs. What is looked at, and the
//! proof on which something is deleted, say `lakebed_scrub`.

use std::time::Duration;

use anyhow::bail;
use lakebed_blobstore::BlobStore;
use lakebed_scrub::{Options, Report, State, scrub};

use crate::cli::ScrubArgs;

/// Runs the command; an error also when something is found.
pub async fn run(args: ScrubArgs, as_json: bool) -> anyhow::Result<()> {
    let store = BlobStore::open(&args.store)?;
    let options = Options {
        tenant: args.tenant,
        deep: args.deep,
        delete_orphans: args.delete_orphans,
        grace: Duration::from_secs(args.grace_s),
    };
    let report = scrub(&store, &options).await?;
    match as_json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(&report, args.deep),
    }
    let (wrong, orphans) = (report.findings.len(), report.leftovers_of(State::Orphan).count());
    match (wrong, orphans) {
        (0, 0) => Ok(()),
        (0, _) => bail!("{orphans} objects are of no use to anybody: --delete-orphans deletes them"),
        _ => bail!("{wrong} things are wrong"),
    }
}

fn print(report: &Report, deep: bool) {
    println!(
        "{} objects, {} bytes: {} timelines with {} manifests and {} layers, {} objects of WAL",
        report.objects, report.bytes, report.timelines, report.manifests, report.layers, report.wal_objects
    );
    if deep {
        println!("{} bytes were read and checked", report.checked_bytes);
    }
    for finding in &report.findings {
        let kind = serde_json::to_value(finding.kind).unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default();
        println!("{kind}: {}: {}", finding.path, finding.what);
    }
    for leftover in &report.leftovers {
        let state = serde_json::to_value(leftover.state).unwrap_or_default();
        println!(
            "{}: {}, {} bytes, {} s old: {}",
            state.as_str().unwrap_or_default(),
            leftover.path,
            leftover.bytes,
            leftover.age_s,
            leftover.why
        );
    }
    if report.is_clean() {
        println!("all that is referred to is there, and right");
    }
}
