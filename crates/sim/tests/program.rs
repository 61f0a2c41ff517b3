//! The program `lakebed-sim`: what it prints and how it exits.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lakebed-sim"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

#[test]
fn many_seeds_end_with_a_summary() {
    let (output, text) = sim(&["--seeds", "20", "--seed", "5", "--threads", "2"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("seeds 20, failed 0, events "), "{text}");
    assert!(text.contains(", commits "), "{text}");
}

#[test]
fn one_seed_can_be_read_step_by_step() {
    let (output, text) = sim(&["--seed", "7", "--trace"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "compute 0 starts",
        "vote for term 1",
        "wins term 1",
        "compute 0 commits",
        "seeds 1, failed 0",
    ] {
        assert!(text.contains(part), "no {part:?} in the log");
    }
}

#[test]
fn a_mutant_that_is_caught_is_success_and_one_that_is_not_is_failure() {
    let (output, text) = sim(&["--mutant", "AckBeforeFlush", "--seeds", "100"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("AckBeforeFlush is caught by seed "), "{text}");
    let (output, text) = sim(&["--mutant", "RecoverBeforeHistory", "--seeds", "1"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (output, text) = sim(&["--mutant", "NoSuchRule"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("AckBeforeFlush\n"), "the names are listed: {text}");
}

#[test]
fn a_seed_with_too_few_events_is_refused() {
    assert_eq!(sim(&["--events", "499"]).0.status.code(), Some(2));
}
