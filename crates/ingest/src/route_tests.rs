use lakebed_types::shard::STRIPE_BLOCKS;

use super::*;
use crate::testing::{REL, full_commit, prepare, record, with_blocks, words};
use crate::{interpret, rmgr};
use lakebed_types::{ForkNumber, PgVersion};

fn routed(record: &DecodedRecord, shards: u8) -> Route {
    route(
        record,
        &interpret(record).unwrap(),
        ShardCount::new(shards).unwrap(),
    )
}

fn owner(block: u32, fork: ForkNumber) -> ShardIndex {
    let rel = REL.with_fork(fork);
    shard_of(&PageKey::Rel { rel, block }, ShardCount::new(8).unwrap())
}

fn set(shards: &[ShardIndex]) -> ShardSet {
    let mut set = ShardSet::default();
    shards.iter().for_each(|&shard| set.insert(shard));
    set
}

/// First blocks of stripes whose owner is not shard 0.
fn elsewhere() -> Vec<u32> {
    (0..50)
        .map(|stripe| stripe * STRIPE_BLOCKS)
        .filter(|&block| owner(block, ForkNumber::Main) != 0)
        .collect()
}

#[test]
fn page_records_go_to_the_owners_and_hints_to_shard_0() {
    let blocks = elsewhere();
    let (a, b) = (blocks[0], blocks[blocks.len() - 1]);
    let insert = with_blocks(record(11, 0x00, []), &[(REL, b), (REL, a)]);
    let expected = Route {
        shards: set(&[owner(a, ForkNumber::Main), owner(b, ForkNumber::Main)]),
        extents: vec![(REL, b + 1)],
        xid: Some(700),
    };
    assert_eq!(routed(&insert, 8), expected);
    // Shard 0 gets no hints for what it gets.
    let alone = routed(&insert, 1);
    assert_eq!(
        (alone.shards, alone.extents.len(), alone.xid),
        (set(&[0]), 0, None)
    );
}

#[test]
fn custom_records_go_to_the_owners_and_to_shard_0() {
    let block = elsewhere()[0];
    let named = with_blocks(record(200, 0x30, [1]), &[(REL, block)]);
    let expected = |shards: &[ShardIndex]| Route {
        shards: set(shards),
        ..Route::default()
    };
    assert_eq!(routed(&named, 8), expected(&[0, owner(block, ForkNumber::Main)]));
    // Nothing to replay, but who has no plug-in cannot know that.
    assert_eq!(routed(&record(200, 0x30, [1]), 8), expected(&[0]));
}

#[test]
fn a_cleared_bit_reaches_the_owner_of_the_map() {
    let map = (1u32..).find(|&map| owner(map, ForkNumber::Vm) != owner(map * 32_672, ForkNumber::Main));
    let map = map.unwrap();
    let (heap, vm) = (owner(map * 32_672, ForkNumber::Main), owner(map, ForkNumber::Vm));
    let delete = with_blocks(
        record(rmgr::HEAP, 0x10, [0, 0, 0, 0, 0, 0, 0, 1]),
        &[(REL, map * 32_672)],
    );
    assert_eq!(routed(&delete, 8).shards, set(&[heap, vm]));
}

#[test]
fn effects_for_every_shard_and_for_shard_0() {
    let all = ShardSet::all(ShardCount::new(8).unwrap());
    assert_eq!(all, set(&[0, 1, 2, 3, 4, 5, 6, 7]));
    let plain_commit = record(rmgr::TRANSACTION, 0x00, 0i64.to_le_bytes());
    let table = [
        (full_commit(PgVersion::V15), all),
        (record(rmgr::STORAGE, 0x20, words(&[9, 1663, 5, 16384, 1])), all),
        (record(rmgr::DATABASE, 0x00, words(&[1, 2, 3, 4])), all),
        (record(rmgr::DATABASE, 0x10, words(&[1, 2])), all),
        (record(rmgr::DATABASE, 0x20, words(&[1, 0])), all),
        (plain_commit, set(&[0])),
        (prepare(PgVersion::V15), set(&[0])),
        (
            record(rmgr::STORAGE, 0x10, words(&[1663, 5, 16384, 0])),
            set(&[0]),
        ),
        (record(rmgr::XLOG, 0x30, words(&[1])), set(&[0])),
        (record(rmgr::COMMIT_TS, 0x00, words(&[1])), set(&[0])),
        (record(rmgr::TRANSACTION, 0x50, words(&[700, 1, 701])), set(&[0])),
        (record(rmgr::XLOG, 0x40, []), set(&[])),
        (record(8, 0x00, []), set(&[])),
    ];
    for (record, shards) in table {
        assert_eq!(routed(&record, 8).shards, shards, "{record:?}");
    }
    assert_eq!(routed(&record(8, 0x00, []), 8).xid, Some(700));
}

#[test]
fn sets_hold_128_shards() {
    let all = ShardSet::all(ShardCount::new(128).unwrap());
    assert_eq!(
        (all.iter().count(), all.contains(127), all.contains(128)),
        (128, true, false)
    );
    assert!(set(&[200]).is_empty());
    assert_eq!(ShardSet::all(ShardCount::new(1).unwrap()), set(&[0]));
}
