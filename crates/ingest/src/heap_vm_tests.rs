use lakebed_types::RelTag;

use super::*;
use crate::rmgr;
use crate::testing::{REL, record, with_blocks};

const VM: RelTag = RelTag {
    fork: ForkNumber::Vm,
    ..REL
};

fn clear(heap_block: u32, flags: u8) -> VmClear {
    VmClear {
        rel: VM,
        block: heap_block / 32_672,
        heap_block,
        flags,
    }
}

#[test]
fn flags_of_each_record_type() {
    const FAR: u32 = 32_672 * 3 + 5;
    let at_7 = |flags: u8| vec![0, 0, 0, 0, 0, 0, 0, flags, 0, 0, 0, 0, 0, 0];
    let one: &[_] = &[(REL, FAR)];
    let two: &[_] = &[(REL, 1), (REL, FAR)];
    let named: &[_] = &[(REL, FAR), (VM, 3)];
    let table = [
        (rmgr::HEAP, 0x00, vec![1, 0, 1], one, vec![clear(FAR, 3)]),
        (rmgr::HEAP, 0x80, vec![1, 0, 0xfe], one, vec![]),
        (rmgr::HEAP, 0x10, at_7(1), one, vec![clear(FAR, 3)]),
        (rmgr::HEAP, 0x10, at_7(0xfe), one, vec![]),
        (rmgr::HEAP, 0x20, at_7(1), two, vec![clear(FAR, 3)]),
        (rmgr::HEAP, 0x20, at_7(2), two, vec![clear(1, 3)]),
        (rmgr::HEAP, 0xa0, at_7(3), two, vec![clear(FAR, 3), clear(1, 3)]),
        (rmgr::HEAP, 0x40, at_7(1), one, vec![clear(FAR, 3)]),
        (rmgr::HEAP, 0x40, at_7(3), one, vec![clear(FAR, 3)]),
        (rmgr::HEAP, 0x60, at_7(1), one, vec![clear(FAR, 2)]),
        (rmgr::HEAP, 0x70, at_7(1), one, vec![]),
        (rmgr::HEAP2, 0x50, vec![1, 0, 0, 0], one, vec![clear(FAR, 3)]),
        (rmgr::HEAP2, 0x50, vec![0x20, 0, 0, 0], one, vec![]),
        (rmgr::HEAP2, 0x60, at_7(1), one, vec![clear(FAR, 2)]),
        (rmgr::HEAP2, 0x10, at_7(1), one, vec![]),
        // A record that names a map page leaves all to redo: an update's other page had no bit set.
        (rmgr::HEAP, 0x10, at_7(1), named, vec![]),
        (
            rmgr::HEAP,
            0x20,
            at_7(3),
            &[(REL, 1), (REL, FAR), (VM, 0)],
            vec![],
        ),
    ];
    for (row, (rmid, info, data, blocks, expected)) in table.into_iter().enumerate() {
        let effects = crate::interpret(&with_blocks(record(rmid, info, data), blocks)).unwrap();
        assert_eq!(effects.vm_clears, expected, "row {row}");
    }
}

#[test]
fn a_flag_without_a_heap_page_is_refused() {
    let data = [0, 0, 0, 0, 0, 0, 0, 1];
    assert!(crate::interpret(&record(rmgr::HEAP, 0x10, data)).is_err());
    let fsm = REL.with_fork(ForkNumber::Fsm);
    let on_fsm = with_blocks(record(rmgr::HEAP, 0x10, data), &[(fsm, 0)]);
    assert!(crate::interpret(&on_fsm).is_err());
    assert!(crate::interpret(&with_blocks(record(rmgr::HEAP, 0x10, [0; 7]), &[(REL, 0)])).is_err());
}
