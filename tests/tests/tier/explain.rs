//! A page that is changed all the time is found, and what its reads cost is explained.

use lakebed_pgtest::wait_until;
use lakebed_tests::pages::Pages;
use lakebed_tests::{Shape, Tier};
use lakebed_types::data_directory::{FileKind, classify};
use lakebed_types::{Lsn, PageKey};
use serde_json::Value;

/// More than there is room for in a page.
const UPDATES: usize = 300;

fn explain(tier: &Tier, path: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["--json", "explain", "page", "test", "main", path, "0"];
    arguments.extend(more);
    let answer = tier.client(&arguments);
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// How many of the replayed records are of this type.
fn records(explained: &Value, record: &str) -> usize {
    let values = explained["values"].as_array().expect("values");
    values.iter().filter(|value| value["record"] == record).count()
}

#[test]
fn the_page_that_is_changed_all_the_time_is_named_and_explained() {
    let tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "main");
    compute.sql(&[
        "create table counter (n int) with (autovacuum_enabled = off)",
        "create table other as select generate_series(1, 1000) n",
        "insert into counter values (0)",
    ]);
    let path = compute.sql(&["select pg_relation_filepath('counter')"]);
    let before = compute.sql(&["select pg_current_wal_insert_lsn()"]);
    compute.sql(&["update counter set n = n + 1"; UPDATES]);
    let lsn: Lsn = compute
        .sql(&["select pg_current_wal_flush_lsn()"])
        .parse()
        .expect("an LSN");
    let FileKind::Relation { rel, .. } = classify(&path) else {
        panic!("{path} is not the file of a relation");
    };

    let at = lsn.to_string();
    let explained = explain(&tier, &path, &["--lsn", &at]);
    let text = tier.client(&["explain", "page", "test", "main", &path, "0", "--lsn", &at]);

    // The compute still has the page; who reads it next finds what follows.
    let key = PageKey::Rel { rel, block: 0 };
    let pages = Pages::of(&tier, "main").get(lsn, &[key]);
    assert!(pages[0].is_ok(), "{pages:?}");
    let tops: Vec<Value> = tier
        .names("pageserver")
        .iter()
        .map(|name| tier.admin(name, "/v1/pages/hot?order=chain&limit=1")["pages"][0].clone())
        .collect();
    let longest = tops.iter().max_by_key(|top| top["longest_chain"].as_u64());
    let longest = longest.expect("a pageserver");
    assert_eq!(longest["relation"], rel.to_string(), "{tops:?}");
    assert_eq!((&longest["fork"], &longest["block"]), (&"main".into(), &0.into()));
    assert!(
        longest["longest_chain"].as_u64() >= Some(UPDATES as u64),
        "{longest}"
    );
    assert!(longest["redo_us"].as_u64() > Some(0), "{longest}");

    assert_eq!(explained["lsn"], at);
    assert_eq!(records(&explained, "Heap/HOT_UPDATE"), UPDATES, "{explained:#}");
    assert!(records(&explained, "Heap2/PRUNE") > 0, "{explained:#}");
    let values = explained["values"].as_array().expect("values").len();
    assert_eq!(explained["deltas"], values - 1);
    assert_eq!(explained["base_lsn"], explained["values"][0]["lsn"]);
    assert_eq!(explained["values"][0]["record"], "Heap/INSERT+INIT");
    assert_eq!(longest["longest_chain"], values);
    let steps = explained["steps"].as_array().expect("steps");
    let found: u64 = steps.iter().filter_map(|step| step["values"].as_u64()).sum();
    assert_eq!(found, values as u64);

    // Before all that there was one record, and the text for people says the same as the JSON.
    let explained = explain(&tier, &path, &["--lsn", &before]);
    assert_eq!(explained["values"].as_array().expect("values").len(), 1);
    assert!(text.contains("Heap/HOT_UPDATE"), "{text}");
    assert!(text.contains(&format!("{} changes", values - 1)), "{text}");
    // That read had an image made of the page.
    wait_until("an image of it", || {
        explain(&tier, &path, &["--lsn", &at])["deltas"] == 0
    });
    let refused = tier.refused_client(&["explain", "page", "test", "main", "counter", "0"]);
    assert!(refused.contains("pg_relation_filepath"), "{refused}");
    compute.stop();
}
