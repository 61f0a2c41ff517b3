//! Resource managers and the record types that each has (`access/rmgrlist.h` and the `*_xlog.h` of each). A record that
//! is not in this table cannot be replayed. From 15 to 18 the managers are the same, and one type was added; that
//! Heap2's types 0x10 to 0x30 mean something else since 17 does not show here. Extensions' managers, from 128 on, have
//! whatever types they like.

use lakebed_types::PgVersion;
use lakebed_wal::record::FIRST_CUSTOM_MANAGER;

/// Checkpoints, oid counter, page images.
pub const XLOG: u8 = 0;
/// Commit, abort, prepare.
pub const TRANSACTION: u8 = 1;
/// Creation and truncation of relation files.
pub const STORAGE: u8 = 2;
/// `pg_xact` pages.
pub const CLOG: u8 = 3;
/// Creation and removal of databases.
pub const DATABASE: u8 = 4;
/// Creation and removal of tablespaces.
pub const TABLESPACE: u8 = 5;
/// `pg_multixact`.
pub const MULTIXACT: u8 = 6;
/// `pg_filenode.map`.
pub const RELMAP: u8 = 7;
/// Help for hot standby.
pub const STANDBY: u8 = 8;
/// Heap, second half.
pub const HEAP2: u8 = 9;
/// Heap, first half.
pub const HEAP: u8 = 10;
/// `pg_commit_ts`.
pub const COMMIT_TS: u8 = 18;
/// Progress of logical replication.
pub const REPLICATION_ORIGIN: u8 = 19;

/// The resource manager's own bits of `xl_info`.
pub const INFO_MASK: u8 = 0xf0;

struct Manager {
    name: &'static str,
    /// Bits of `xl_info` that tell the type; other bits of the upper half are flags.
    type_mask: u8,
    /// Bit *n* is set when `n << 4` is a type.
    types: u16,
}

const fn manager(name: &'static str, type_mask: u8, types: u16) -> Manager {
    Manager {
        name,
        type_mask,
        types,
    }
}

const MANAGERS: [Manager; 22] = [
    manager("XLOG", 0xf0, 0b0110_1111_1111_1111),
    manager("Transaction", 0x70, 0b0111_1111),
    manager("Storage", 0xf0, 0b0000_0110),
    manager("CLOG", 0xf0, 0b0000_0011),
    manager("Database", 0xf0, 0b0000_0111),
    manager("Tablespace", 0xf0, 0b0000_0011),
    manager("MultiXact", 0xf0, 0b0000_1111),
    manager("RelMap", 0xf0, 0b0000_0001),
    manager("Standby", 0xf0, 0b0000_0111),
    manager("Heap2", 0x70, 0b1111_1111),
    manager("Heap", 0x70, 0b1111_1111),
    manager("Btree", 0xf0, 0b0111_1111_1111_1111),
    manager("Hash", 0xf0, 0b0001_1111_1111_1111),
    manager("Gin", 0xf0, 0b0000_0011_1111_1110),
    manager("Gist", 0xf0, 0b1100_1111),
    manager("Sequence", 0xf0, 0b0000_0001),
    manager("SPGist", 0xf0, 0b0000_0001_1111_1110),
    manager("BRIN", 0x70, 0b0011_1111),
    manager("CommitTs", 0xf0, 0b0000_0011),
    manager("ReplicationOrigin", 0xf0, 0b0000_0011),
    manager("Generic", 0xf0, 0b0000_0001),
    manager("LogicalMessage", 0xf0, 0b0000_0001),
];

/// What is known about a pair of resource manager and info bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The record type exists; these bits of `xl_info` name it.
    Type(u8),
    /// The resource manager has no such type.
    NoSuchType,
    /// There is no such resource manager.
    NoSuchManager,
}

/// `XLOG_CHECKPOINT_REDO`, which Postgres 17 brought.
const CHECKPOINT_REDO: (u8, u8) = (XLOG, 0xe0);

/// Looks up a record's `xl_rmid` and `xl_info`, as this version means them.
pub fn known(version: PgVersion, rmid: u8, info: u8) -> Known {
    if rmid >= FIRST_CUSTOM_MANAGER {
        return Known::Type(info & INFO_MASK);
    }
    let Some(manager) = MANAGERS.get(usize::from(rmid)) else {
        return Known::NoSuchManager;
    };
    let record_type = info & manager.type_mask;
    let later = (rmid, record_type) == CHECKPOINT_REDO && version < PgVersion::V17;
    if later || manager.types & (1 << (record_type >> 4)) == 0 {
        return Known::NoSuchType;
    }
    Known::Type(record_type)
}

/// Name of a resource manager as `pg_waldump` prints it.
pub fn name(rmid: u8) -> &'static str {
    match MANAGERS.get(usize::from(rmid)) {
        Some(manager) => manager.name,
        None if rmid >= FIRST_CUSTOM_MANAGER => "custom",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_from_flags_and_unknown_ones_refused() {
        let table = [
            (XLOG, 0xb0, Known::Type(0xb0)),
            (XLOG, 0xd2, Known::Type(0xd0)),
            (XLOG, 0xc0, Known::NoSuchType),
            (XLOG, 0xe0, Known::NoSuchType),
            (TRANSACTION, 0x80, Known::Type(0)),
            (TRANSACTION, 0xb0, Known::Type(0x30)),
            (TRANSACTION, 0x70, Known::NoSuchType),
            (STORAGE, 0x00, Known::NoSuchType),
            (STORAGE, 0x20, Known::Type(0x20)),
            (HEAP, 0x80, Known::Type(0)),
            (HEAP2, 0x50, Known::Type(0x50)),
            (11, 0xe0, Known::Type(0xe0)),
            (11, 0xf0, Known::NoSuchType),
            (12, 0xc0, Known::Type(0xc0)),
            (13, 0x00, Known::NoSuchType),
            (13, 0x90, Known::Type(0x90)),
            (14, 0x40, Known::NoSuchType),
            (14, 0x70, Known::Type(0x70)),
            (16, 0x80, Known::Type(0x80)),
            (17, 0xa0, Known::Type(0x20)),
            (17, 0x60, Known::NoSuchType),
            (21, 0x00, Known::Type(0)),
            (22, 0x00, Known::NoSuchManager),
            (127, 0x00, Known::NoSuchManager),
            (128, 0x00, Known::Type(0)),
            (255, 0xf7, Known::Type(0xf0)),
        ];
        for (rmid, info, expected) in table {
            let found = known(PgVersion::V15, rmid, info);
            assert_eq!(found, expected, "{} {info:#04x}", name(rmid));
        }
        for version in PgVersion::ALL {
            let expected = if version < PgVersion::V17 {
                Known::NoSuchType
            } else {
                Known::Type(0xe0)
            };
            assert_eq!(known(version, XLOG, 0xe0), expected, "{version}");
        }
    }
}
