//! Layers are merged while WAL comes in and pageservers die: every page stays what stock recovery makes, and a read asks
//! no more layers than it may.

use std::process::Stdio;

use lakebed_pgtest::{Cluster, wait_until};
use lakebed_tests::comparison::{Writer, compare};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{recover, wal_directory};
use lakebed_tests::{Shape, Tier, page_cache};

use crate::workload;

/// The value of a counter.
fn counter(metrics: &str, name: &str) -> u64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a number"))
}

/// Waits until every pageserver has changed its layers so often by compaction since it started.
fn wait_for_merges(tier: &Tier, times: u64) {
    for name in tier.names("pageserver") {
        wait_until(&format!("{times} merges on {name}"), || {
            counter(&tier.metrics(&name), "pageserver_compaction_merges_total") >= times
        });
    }
}

/// Level-0 layers of the timeline that has most.
fn level0(tier: &Tier, name: &str) -> u64 {
    let status = tier.status(name);
    let timelines = status["timelines"].as_array().expect("timelines");
    let counts = timelines
        .iter()
        .filter_map(|timeline| timeline["level0_layers"].as_u64());
    counts.max().expect("a timeline")
}

/// Has all pageservers pause compaction, or go on.
fn compaction(tier: &Tier, what: &str) {
    for name in tier.names("pageserver") {
        let (code, body) = tier.put(&name, "/v1/compaction", what);
        assert_eq!(code, 200, "{name}: {body}");
        assert_eq!(tier.status(&name)["compaction_paused"], what == "pause");
    }
}

/// Whether its merges have the priority of reads.
fn is_late(tier: &Tier, name: &str) -> bool {
    let status = tier.status(name);
    let timelines = status["timelines"].as_array().expect("timelines");
    timelines
        .iter()
        .any(|timeline| timeline["merges_are_late"] == true)
}

#[test]
fn layers_are_merged_under_load_and_over_kills() {
    let base = Cluster::init();
    let shape = Shape {
        flush_bytes: 640 << 10,
        ..Shape::default()
    };
    let mut tier = Tier::start_from(&shape, Some(&base.data_dir()));
    compaction(&tier, "pause");
    let (code, refused) = tier.put("pageserver-1", "/v1/compaction", "off");
    assert!(
        code == 400 && refused.contains("`pause` or `resume`"),
        "{code} {refused}"
    );
    let compute = tier.compute_with("main", "main", &workload::SETTINGS);
    let merges = |tier: &Tier, name: &str| counter(&tier.metrics(name), "pageserver_compaction_merges_total");
    // What was on its way, of the import, is over by now.
    let names = tier.names("pageserver");
    let before: Vec<u64> = names.iter().map(|name| merges(&tier, name)).collect();
    compute.run("pgbench", &["-i", "-q", "-s", "2"]);
    let mut load = compute.program("pgbench");
    load.stdout(Stdio::null()).stderr(Stdio::null());
    let mut load = load
        .args(["-n", "-c", "2", "-T", "600"])
        .spawn()
        .expect("pgbench");
    for (name, before) in names.iter().zip(before) {
        wait_until(&format!("merges are late on {name}"), || is_late(&tier, name));
        assert_eq!(merges(&tier, name), before, "{name} was told to pause");
    }
    compaction(&tier, "resume");
    wait_for_merges(&tier, 5);
    tier.client(&["branch", "create", "b"]);
    for name in tier.names("pageserver") {
        tier.kill_role(&name);
        tier.start_role(&name);
    }
    wait_for_merges(&tier, 5);
    compute
        .sql(&["select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgbench'"]);
    load.wait().expect("pgbench");
    tier.client(&["branch", "create", "end"]);
    compute.stop();

    // Nothing is in memory or cached any more, and the histograms are those of what follows.
    for name in tier.names("pageserver") {
        tier.kill_role(&name);
        tier.start_role(&name);
    }
    // Nor in memory at all: pages are read while others wait for the disk.
    let forgotten = page_cache::forget(tier.home());
    let main = Pages::of(&tier, "main");
    let wal = wal_directory(&tier, "safekeeper-1", &main);
    for name in ["b", "end"] {
        // The first branch is in the middle of what was merged since.
        let branch = Pages::of(&tier, name);
        let mut recovered = base.copy();
        recover(&mut recovered, main.start(), &wal, branch.start());
        for pages in [&main, &branch] {
            let result = compare(pages, branch.start(), &recovered.data_dir(), &Writer::Recovery);
            result.assert_equal();
            assert!(result.relation_pages() > 3000, "{result}");
        }
    }
    for name in tier.names("pageserver") {
        let (metrics, bound) = (tier.metrics(&name), level0(&tier, &name) + 1);
        let read = counter(&metrics, "pageserver_page_layers_count");
        let within = [1, 2, 3, 4, 5, 6, 8, 12, 16].into_iter().find(|le| *le >= bound);
        let within = within.unwrap_or_else(|| panic!("{name}: {bound} layers of level 0"));
        let bucket = format!("pageserver_page_layers_bucket{{le=\"{within}.0\"}}");
        assert_eq!(counter(&metrics, &bucket), read, "{name}: {bound}\n{metrics}");
        assert!(read > 3000, "{name}: {read}");
        let from_disk = counter(&metrics, "pageserver_pages_from_disk_total");
        assert_eq!(from_disk > 0, forgotten, "{name}: {from_disk} pages from disk");
    }
}
