//! Small bounds, every state of them; and broken rules, which the checker must find.

use lakebed_model::{Change, Scenario};
use lakebed_quorum::mutation::Mutation;
use stateright::{Checker, HasDiscoveries, Model};

/// One proposer, every order of its messages and their doubles, under each change of membership.
#[test]
fn one_proposer_and_every_change() {
    for (change, states) in [
        (Change::None, 500),
        (Change::Move, 1_700),
        (Change::Replace, 3_000),
        (Change::Remove, 30_000),
    ] {
        let scenario = Scenario {
            attempts: [1, 0],
            ..Scenario::small(change)
        };
        let checker = scenario.checker().spawn_bfs().join();
        println!(
            "{change:?}: {} states, depth {}",
            checker.unique_state_count(),
            checker.max_depth()
        );
        checker.assert_no_discovery(Scenario::SAFETY);
        checker.assert_any_discovery(Scenario::PROGRESS);
        assert!(
            checker.unique_state_count() > states,
            "{change:?} is not explored"
        );
        if change != Change::None {
            checker.assert_any_discovery(Scenario::CHANGED);
        }
    }
}

/// Two attempts at a term, the second after the first ended at any point; requests and answers delayed, requests doubled.
#[test]
fn two_attempts_one_after_the_other() {
    for (change, states) in [
        (Change::None, 34_000),
        (Change::Move, 100_000),
        (Change::Replace, 130_000),
    ] {
        let scenario = Scenario {
            attempts: [2, 0],
            ..Scenario::small(change)
        };
        let checker = scenario.checker().spawn_bfs().join();
        let (found, depth) = (checker.unique_state_count(), checker.max_depth());
        println!("{change:?}: {found} states, depth {depth}");
        checker.assert_no_discovery(Scenario::SAFETY);
        checker.assert_any_discovery(Scenario::TWO_TERMS);
        assert!(found > states, "{change:?} is not explored");
    }
}

/// Two proposers at the same time, every order of delayed and doubled requests; answers are heard at once.
#[test]
fn two_proposers_at_the_same_time() {
    let scenario = Scenario {
        slow_answers: false,
        ..Scenario::small(Change::None)
    };
    let checker = scenario.checker().spawn_bfs().join();
    let (found, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{found} states, depth {depth}");
    checker.assert_no_discovery(Scenario::SAFETY);
    checker.assert_any_discovery(Scenario::TWO_TERMS);
    assert!(found > 50_000, "they are not explored");
}

/// Two proposers whose answers take any time as well, as many states as a test can afford.
#[test]
fn two_proposers_with_slow_answers_in_part() {
    let scenario = Scenario::small(Change::None);
    let checker = scenario.checker().target_state_count(400_000).spawn_bfs().join();
    println!(
        "{} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_no_discovery(Scenario::SAFETY);
}

/// The checker and the model are not blind.
#[test]
fn broken_rules_are_found() {
    let table = [
        (Mutation::VoteTwice, Change::None),
        (Mutation::AppendBeforeElected, Change::None),
        (Mutation::DonorByTermAlone, Change::None),
        (Mutation::NoTruncation, Change::None),
        (Mutation::NewSetAlone, Change::Move),
        (Mutation::SkipJoint, Change::Move),
        (Mutation::NewSetBeforeSettled, Change::Move),
    ];
    for (rule, change) in table {
        let scenario = Scenario {
            slow_answers: false,
            sabotage: Some(rule),
            ..Scenario::small(change)
        };
        let checker = scenario
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let path = checker.assert_any_discovery(Scenario::SAFETY);
        println!(
            "{rule:?}: {:?} after {} steps",
            path.last_state().violation,
            path.clone().into_actions().len()
        );
    }
}
