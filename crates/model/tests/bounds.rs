//! Small bounds, every state of them; and broken rules, which the checker must find.

use lakebed_model::{Change, Scenario};
use lakebed_quorum::mutation::Mutation;
use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

/// One proposer, every order of its messages and their doubles, under each change of membership. Here the nodes are told the
/// commit position, and no proposer is given up as idle.
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
            plain: true,
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

/// Two attempts at a term, the second after the first ended at any point; requests and answers delayed, requests doubled. Also
/// here no proposer is given up as idle.
#[test]
fn two_attempts_one_after_the_other() {
    for (change, states) in [(Change::None, 30_000), (Change::Move, 90_000)] {
        let scenario = Scenario {
            attempts: [2, 0],
            plain: true,
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

/// Two proposers at the same time, every order of delayed and doubled requests and of delayed answers.
#[test]
fn two_proposers_at_the_same_time() {
    let checker = Scenario::small(Change::None).checker().spawn_bfs().join();
    let (found, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{found} states, depth {depth}");
    checker.assert_no_discovery(Scenario::SAFETY);
    checker.assert_any_discovery(Scenario::TWO_TERMS);
    assert!(found > 40_000, "they are not explored");
}

/// Two proposers at the same time, and every node but one is another afterwards: every order of delayed and doubled requests,
/// answers heard at once.
#[test]
fn two_proposers_and_a_move() {
    two_proposers_and(Change::Move, true, 250_000);
}

/// The same with one node replaced; here requests are delayed only.
#[test]
fn two_proposers_and_a_replacement() {
    two_proposers_and(Change::Replace, false, 200_000);
}

fn two_proposers_and(change: Change, duplicates: bool, states: usize) {
    let scenario = Scenario {
        slow_answers: false,
        duplicates,
        ..Scenario::small(change)
    };
    let checker = scenario.checker().spawn_dfs().join();
    let (found, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{change:?}: {found} states, depth {depth}");
    checker.assert_no_discovery(Scenario::SAFETY);
    checker.assert_any_discovery(Scenario::TWO_TERMS);
    checker.assert_any_discovery(Scenario::CHANGED);
    assert!(found > states, "{change:?} is not explored");
}

/// The checker and the model are not blind, and what counts as one state hides none of these: each is found with and
/// without the reductions that take idle proposers for gone.
#[test]
fn broken_rules_are_found() {
    let table = [
        (Mutation::VoteTwice, Change::None),
        (Mutation::AppendBeforeElected, Change::None),
        (Mutation::DonorByTermAlone, Change::None),
        (Mutation::NoTruncation, Change::None),
        (Mutation::TruncateBelowCommit, Change::None),
        (Mutation::NewSetAlone, Change::Move),
        (Mutation::SkipJoint, Change::Move),
        (Mutation::NewSetBeforeSettled, Change::Move),
    ];
    for ((rule, change), plain) in table.into_iter().flat_map(|row| [(row, false), (row, true)]) {
        let scenario = Scenario {
            slow_answers: false,
            plain,
            ..Scenario::small(change)
        };
        let checker = broken(rule, scenario).spawn_bfs().join();
        found(rule, plain, &checker);
    }
}

/// These do harm in the third term only.
#[test]
fn broken_rules_are_found_in_a_third_term() {
    for rule in [Mutation::DonorByFlushAlone, Mutation::CountFlushFromVote] {
        let scenario = Scenario {
            attempts: [2, 1],
            slow_answers: false,
            duplicates: false,
            ..Scenario::small(Change::None)
        };
        // Depth first, as it takes many steps.
        let checker = broken(rule, scenario).spawn_dfs().join();
        found(rule, false, &checker);
    }
}

fn broken(rule: Mutation, scenario: Scenario) -> CheckerBuilder<Scenario> {
    let sabotage = Some(rule);
    let scenario = Scenario { sabotage, ..scenario };
    scenario.checker().finish_when(HasDiscoveries::AnyFailures)
}

fn found(rule: Mutation, plain: bool, checker: &impl Checker<Scenario>) {
    let path = checker.assert_any_discovery(Scenario::SAFETY);
    println!(
        "{rule:?}, plain {plain}: {:?} after {} steps, {} states",
        path.last_state().violation,
        path.clone().into_actions().len(),
        checker.unique_state_count(),
    );
}
