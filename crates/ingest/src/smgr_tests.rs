use super::*;
use crate::rmgr;
use crate::testing::{REL, record, words};

fn truncate(blocks: u32, flags: u32) -> Effects {
    let record = record(rmgr::STORAGE, 0x20, words(&[blocks, 1663, 5, 16384, flags]));
    crate::interpret(&record).unwrap()
}

#[test]
fn a_truncation_cuts_each_fork_that_its_flags_name() {
    const PER_VM: u32 = HEAP_BLOCKS_PER_VM_PAGE;
    // Heap blocks; blocks of the free space map; blocks of the visibility map; the page whose tail is cleared.
    let table = [
        (0, 2, 0, None),
        (1, 3, 1, Some(0)),
        (4068, 3, 1, Some(0)),
        (4069, 3, 1, Some(0)),
        (4070, 4, 1, Some(0)),
        (PER_VM, 11, 1, None),
        (PER_VM + 1, 11, 2, Some(1)),
        (4069 * 4069, 4072, 507, Some(506)),
        (u32::MAX, 1_055_795, 131_458, Some(131_457)),
    ];
    for (blocks, fsm, vm, tail) in table {
        let effects = truncate(blocks, 7);
        let expected = [
            (ForkNumber::Main, blocks),
            (ForkNumber::Fsm, fsm),
            (ForkNumber::Vm, vm),
        ]
        .map(|(fork, blocks)| CatalogueChange::RelationTruncated {
            rel: REL.with_fork(fork),
            blocks,
        });
        assert_eq!(effects.catalogue, expected, "{blocks}");
        let cleared: Vec<_> = effects
            .vm_truncates
            .iter()
            .map(|cut| (cut.block, cut.first_heap_block))
            .collect();
        assert_eq!(
            cleared,
            Vec::from_iter(tail.map(|page| (page, blocks))),
            "{blocks}"
        );
    }
    assert_eq!(truncate(9, 1).catalogue.len(), 1);
    assert_eq!(truncate(9, 2).vm_truncates.len(), 1);
    assert_eq!(truncate(9, 0), Effects::default());
}

#[test]
fn what_no_server_writes_is_refused() {
    for (info, data) in [
        (0x20, [1, 1663, 5, 16384, 8].as_slice()),
        (0x10, &[1663, 5, 16384, 4]),
        (0x10, &[1663, 5, 16384, 256]),
    ] {
        assert!(crate::interpret(&record(rmgr::STORAGE, info, words(data))).is_err());
    }
}
