//! Names of record types as `pg_waldump` prints them (`access/rmgrdesc/*.c`).

use std::borrow::Cow;

use crate::rmgr;
use lakebed_types::PgVersion;

/// Bits of `xl_info` that tell the record type, flags that `pg_waldump` shows in the name included.
pub fn type_bits(rmid: u8, info: u8) -> u8 {
    // The highest bit of a transaction record says whether a word of flags follows.
    let mask = if rmid == rmgr::TRANSACTION { 0x70 } else { 0xF0 };
    info & mask
}

/// Name of a built-in record type, or for one that does not exist in this version the bits that tell it: `0x30`.
pub fn operation_or_bits(version: PgVersion, rmid: u8, info: u8) -> Cow<'static, str> {
    match operation(version, rmid, info) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("{:#04x}", info & 0xF0)),
    }
}

/// Name of a built-in record type; `None` for one that does not exist in this version.
pub fn operation(version: PgVersion, rmid: u8, info: u8) -> Option<&'static str> {
    let newer = version >= PgVersion::V17;
    let number = usize::from(type_bits(rmid, info) >> 4);
    let by_number = |names: &[&'static str]| names.get(number).copied().filter(|name| !name.is_empty());
    match rmid {
        0 => by_number(&[
            "CHECKPOINT_SHUTDOWN",
            "CHECKPOINT_ONLINE",
            "NOOP",
            "NEXTOID",
            "SWITCH",
            "BACKUP_END",
            "PARAMETER_CHANGE",
            "RESTORE_POINT",
            "FPW_CHANGE",
            "END_OF_RECOVERY",
            "FPI_FOR_HINT",
            "FPI",
            "",
            "OVERWRITE_CONTRECORD",
            if newer { "CHECKPOINT_REDO" } else { "" },
        ]),
        1 => by_number(&[
            "COMMIT",
            "PREPARE",
            "ABORT",
            "COMMIT_PREPARED",
            "ABORT_PREPARED",
            "ASSIGNMENT",
            "INVALIDATION",
        ]),
        2 => by_number(&["", "CREATE", "TRUNCATE"]),
        3 | 18 => by_number(&["ZEROPAGE", "TRUNCATE"]),
        4 => by_number(&["CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"]),
        5 => by_number(&["CREATE", "DROP"]),
        6 => by_number(&["ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"]),
        7 => by_number(&["UPDATE"]),
        8 => by_number(&["LOCK", "RUNNING_XACTS", "INVALIDATIONS"]),
        9 => by_number(&[
            "REWRITE",
            if newer { "PRUNE_ON_ACCESS" } else { "PRUNE" },
            if newer { "PRUNE_VACUUM_SCAN" } else { "VACUUM" },
            if newer {
                "PRUNE_VACUUM_CLEANUP"
            } else {
                "FREEZE_PAGE"
            },
            "VISIBLE",
            "MULTI_INSERT",
            "LOCK_UPDATED",
            "NEW_CID",
            "",
            "",
            "",
            "",
            "",
            "MULTI_INSERT+INIT",
        ]),
        10 => by_number(&[
            "INSERT",
            "DELETE",
            "UPDATE",
            "TRUNCATE",
            "HOT_UPDATE",
            "HEAP_CONFIRM",
            "LOCK",
            "INPLACE",
            "INSERT+INIT",
            "",
            "UPDATE+INIT",
            "",
            "HOT_UPDATE+INIT",
        ]),
        11 => by_number(&[
            "INSERT_LEAF",
            "INSERT_UPPER",
            "INSERT_META",
            "SPLIT_L",
            "SPLIT_R",
            "INSERT_POST",
            "DEDUP",
            "DELETE",
            "UNLINK_PAGE",
            "UNLINK_PAGE_META",
            "NEWROOT",
            "MARK_PAGE_HALFDEAD",
            "VACUUM",
            "REUSE_PAGE",
            "META_CLEANUP",
        ]),
        12 => by_number(&[
            "INIT_META_PAGE",
            "INIT_BITMAP_PAGE",
            "INSERT",
            "ADD_OVFL_PAGE",
            "SPLIT_ALLOCATE_PAGE",
            "SPLIT_PAGE",
            "SPLIT_COMPLETE",
            "MOVE_PAGE_CONTENTS",
            "SQUEEZE_PAGE",
            "DELETE",
            "SPLIT_CLEANUP",
            "UPDATE_META_PAGE",
            "VACUUM_ONE_PAGE",
        ]),
        13 => by_number(&[
            "",
            "CREATE_PTREE",
            "INSERT",
            "SPLIT",
            "VACUUM_PAGE",
            "DELETE_PAGE",
            "UPDATE_META_PAGE",
            "INSERT_LISTPAGE",
            "DELETE_LISTPAGE",
            "VACUUM_DATA_LEAF_PAGE",
        ]),
        14 => by_number(&[
            "PAGE_UPDATE",
            "DELETE",
            "PAGE_REUSE",
            "PAGE_SPLIT",
            "",
            "",
            "PAGE_DELETE",
            "ASSIGN_LSN",
        ]),
        15 => by_number(&["LOG"]),
        16 => by_number(&[
            "",
            "ADD_LEAF",
            "MOVE_LEAFS",
            "ADD_NODE",
            "SPLIT_TUPLE",
            "PICKSPLIT",
            "VACUUM_LEAF",
            "VACUUM_ROOT",
            "VACUUM_REDIRECT",
        ]),
        17 => by_number(&[
            "CREATE_INDEX",
            "INSERT",
            "UPDATE",
            "SAMEPAGE_UPDATE",
            "REVMAP_EXTEND",
            "DESUMMARIZE",
            "",
            "",
            "",
            "INSERT+INIT",
            "UPDATE+INIT",
        ]),
        19 => by_number(&["SET", "DROP"]),
        20 => by_number(&["Generic"]),
        21 => by_number(&["MESSAGE"]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_pg_waldump() {
        let table = [
            (0, 0xB0, Some("FPI")),
            (0, 0xC0, None),
            (1, 0x80, Some("COMMIT")),
            (9, 0xD0, Some("MULTI_INSERT+INIT")),
            (9, 0x10, Some("PRUNE")),
            (10, 0x80, Some("INSERT+INIT")),
            (10, 0xC0, Some("HOT_UPDATE+INIT")),
            (13, 0x00, None),
            (17, 0xA0, Some("UPDATE+INIT")),
            (20, 0x00, Some("Generic")),
            (22, 0x00, None),
        ];
        for (rmid, info, name) in table {
            assert_eq!(operation(PgVersion::V15, rmid, info), name, "{rmid} {info:#x}");
        }
        assert_eq!(operation(PgVersion::V17, 9, 0x10), Some("PRUNE_ON_ACCESS"));
        assert_eq!(operation(PgVersion::V16, 0, 0xE0), None);
    }
}
