//! Creation and truncation of relation files (`catalog/storage.c`). Removal comes with commit and abort.
//!
//! A truncation tells the new number of heap blocks. The visibility map and the free space map shrink with it, to the
//! page that still describes a block that stays; the rest of that page is cleared in the visibility map
//! ([`VmTruncate`]). In the free space map it is not: a hint about a block that does not exist does no harm.

use lakebed_types::{ForkNumber, RelTag};
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects, VmTruncate};
use crate::error::Rule;
use crate::heap_vm::HEAP_BLOCKS_PER_VM_PAGE;
use crate::reader::Reader;

pub(crate) const CREATE: u8 = 0x10;

const TRUNCATE_HEAP: u32 = 1;
const TRUNCATE_VM: u32 = 2;
const TRUNCATE_FSM: u32 = 4;

/// Heap blocks that a leaf page of the free space map describes (`SlotsPerFSMPage`, `storage/fsm_internals.h`).
const HEAP_BLOCKS_PER_FSM_PAGE: u32 = 4069;

pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    if record_type == CREATE {
        let rel = data.relation()?;
        let fork = u8::try_from(data.u32()?).ok().and_then(ForkNumber::from_number);
        let rel = rel.with_fork(fork.ok_or("a fork does not exist")?);
        data.end()?;
        effects.catalogue.push(CatalogueChange::RelationCreated { rel });
        return Ok(());
    }
    let blocks = data.u32()?;
    let rel = data.relation()?;
    let flags = data.u32()?;
    data.end()?;
    if flags & !(TRUNCATE_HEAP | TRUNCATE_VM | TRUNCATE_FSM) != 0 {
        return Err("a truncation has a flag that Postgres does not know");
    }
    if flags & TRUNCATE_HEAP != 0 {
        truncated(effects, rel, blocks);
    }
    if flags & TRUNCATE_FSM != 0 {
        truncated(effects, rel.with_fork(ForkNumber::Fsm), fsm_blocks(blocks));
    }
    if flags & TRUNCATE_VM != 0 {
        let vm = rel.with_fork(ForkNumber::Vm);
        truncated(effects, vm, blocks.div_ceil(HEAP_BLOCKS_PER_VM_PAGE));
        if !blocks.is_multiple_of(HEAP_BLOCKS_PER_VM_PAGE) {
            effects.vm_truncates.push(VmTruncate {
                rel: vm,
                block: blocks / HEAP_BLOCKS_PER_VM_PAGE,
                first_heap_block: blocks,
            });
        }
    }
    Ok(())
}

fn truncated(effects: &mut Effects, rel: RelTag, blocks: u32) {
    effects
        .catalogue
        .push(CatalogueChange::RelationTruncated { rel, blocks });
}

/// Pages of the free space map that stay when the heap has this many blocks (`FreeSpaceMapPrepareTruncateRel`). The
/// map is a tree of three levels, stored depth first: before a leaf lie all leaves before it and, at each level above,
/// all pages up to the one that leads to it.
fn fsm_blocks(heap_blocks: u32) -> u32 {
    let leaf = heap_blocks / HEAP_BLOCKS_PER_FSM_PAGE;
    let first_page_gone = leaf + leaf / HEAP_BLOCKS_PER_FSM_PAGE + 1 + 1;
    first_page_gone + u32::from(!heap_blocks.is_multiple_of(HEAP_BLOCKS_PER_FSM_PAGE))
}

#[cfg(test)]
#[path = "smgr_tests.rs"]
mod tests;
