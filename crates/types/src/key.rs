//! Names of pages.
//!
//! A [`PageKey`] is stored and sent as 18 bytes whose byte order is the key order:
//!
//! | bytes | relation page | SLRU page | control state |
//! |---|---|---|---|
//! | 0 | 1 | 2 | 3 |
//! | 1..5 | tablespace oid, big-endian | kind | 0 |
//! | 5..9 | database oid | page number, high half | 0 |
//! | 9..13 | relfilenode | page number, low half | 0 |
//! | 13 | fork | 0 | 0 |
//! | 14..18 | block | 0 | 0 |

use std::fmt;

use serde::{Deserialize, Serialize};

/// A relation's fork (Postgres `ForkNumber`, `common/relpath.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ForkNumber {
    /// The relation's own pages.
    Main = 0,
    /// Free space map: a hint, hardly WAL-logged.
    Fsm = 1,
    /// Visibility map.
    Vm = 2,
    /// What an unlogged relation is reset to.
    Init = 3,
}

impl ForkNumber {
    /// All forks, in Postgres's order.
    pub const ALL: [ForkNumber; 4] = [
        ForkNumber::Main,
        ForkNumber::Fsm,
        ForkNumber::Vm,
        ForkNumber::Init,
    ];

    /// The fork with this number, or `None`.
    pub fn from_number(number: u8) -> Option<ForkNumber> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its name as SQL functions take it (`pg_relation_size`; `forkNames` of `common/relpath.c`).
    pub fn name(self) -> &'static str {
        match self {
            ForkNumber::Main => "main",
            ForkNumber::Fsm => "fsm",
            ForkNumber::Vm => "vm",
            ForkNumber::Init => "init",
        }
    }
}

/// One fork of one relation: tablespace, database and relfilenode as WAL names them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelTag {
    /// Tablespace oid (1663 `pg_default`, 1664 `pg_global`).
    pub spcnode: u32,
    /// Database oid; 0 for shared relations.
    pub dbnode: u32,
    /// Relfilenode.
    pub relnode: u32,
    /// Fork.
    pub fork: ForkNumber,
}

impl RelTag {
    /// The same relation's other fork.
    pub fn with_fork(self, fork: ForkNumber) -> RelTag {
        RelTag { fork, ..self }
    }
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = ["", "_fsm", "_vm", "_init"][self.fork as usize];
        write!(f, "{}/{}/{}{suffix}", self.spcnode, self.dbnode, self.relnode)
    }
}

impl fmt::Debug for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A "simple LRU" file family of Postgres (`access/slru.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum SlruKind {
    /// `pg_xact`: two bits of commit status per transaction.
    Clog = 0,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 1,
    /// `pg_multixact/members`.
    MultiXactMembers = 2,
    /// `pg_commit_ts`.
    CommitTs = 3,
}

impl SlruKind {
    /// All kinds.
    pub const ALL: [SlruKind; 4] = [
        SlruKind::Clog,
        SlruKind::MultiXactOffsets,
        SlruKind::MultiXactMembers,
        SlruKind::CommitTs,
    ];

    /// Directory below the data directory.
    pub fn directory(self) -> &'static str {
        match self {
            SlruKind::Clog => "pg_xact",
            SlruKind::MultiXactOffsets => "pg_multixact/offsets",
            SlruKind::MultiXactMembers => "pg_multixact/members",
            SlruKind::CommitTs => "pg_commit_ts",
        }
    }
}

/// A page-shaped thing with versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKey {
    /// A block of a relation fork.
    Rel {
        /// The relation fork.
        rel: RelTag,
        /// Block number inside the fork.
        block: u32,
    },
    /// A page of an SLRU.
    Slru {
        /// Which SLRU.
        kind: SlruKind,
        /// Page number, not segment number.
        page: u64,
    },
    /// The values that a control file's checkpoint copy is made from.
    Control,
}

impl PageKey {
    /// Length of the stored form in bytes.
    pub const ENCODED_BYTES: usize = 18;

    /// No key is lower.
    pub const LOWEST: PageKey = PageKey::Rel {
        rel: RelTag {
            spcnode: 0,
            dbnode: 0,
            relnode: 0,
            fork: ForkNumber::Main,
        },
        block: 0,
    };

    /// The stored form; see the module header.
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut out = [0; Self::ENCODED_BYTES];
        match *self {
            PageKey::Rel { rel, block } => {
                out[0] = 1;
                out[1..5].copy_from_slice(&rel.spcnode.to_be_bytes());
                out[5..9].copy_from_slice(&rel.dbnode.to_be_bytes());
                out[9..13].copy_from_slice(&rel.relnode.to_be_bytes());
                out[13] = rel.fork as u8;
                out[14..18].copy_from_slice(&block.to_be_bytes());
            }
            PageKey::Slru { kind, page } => {
                out[0] = 2;
                out[1..5].copy_from_slice(&u32::from(kind as u8).to_be_bytes());
                out[5..13].copy_from_slice(&page.to_be_bytes());
            }
            PageKey::Control => out[0] = 3,
        }
        out
    }

    /// Reads the stored form. `None` when the bytes are not exactly one that [`PageKey::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Option<PageKey> {
        let bytes: &[u8; Self::ENCODED_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let key = match bytes[0] {
            1 => {
                let fork = ForkNumber::from_number(bytes[13])?;
                let rel = RelTag {
                    spcnode: word(1),
                    dbnode: word(5),
                    relnode: word(9),
                    fork,
                };
                PageKey::Rel { rel, block: word(14) }
            }
            2 => {
                let kind = SlruKind::ALL.get(usize::try_from(word(1)).ok()?).copied()?;
                PageKey::Slru {
                    kind,
                    page: u64::from(word(5)) << 32 | u64::from(word(9)),
                }
            }
            3 => PageKey::Control,
            _ => return None,
        };
        (key.encode() == *bytes).then_some(key)
    }
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageKey::Rel { rel, block } => write!(f, "{rel} block {block}"),
            PageKey::Slru { kind, page } => write!(f, "{} page {page}", kind.directory()),
            PageKey::Control => write!(f, "control state"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_round_trips_keeps_order_and_refuses_junk() {
        let rel = RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Vm,
        };
        let keys = [
            PageKey::LOWEST,
            PageKey::Rel {
                rel: rel.with_fork(ForkNumber::Main),
                block: 7,
            },
            PageKey::Rel { rel, block: 0 },
            PageKey::Rel { rel, block: u32::MAX },
            PageKey::Slru {
                kind: SlruKind::Clog,
                page: 1 << 33,
            },
            PageKey::Slru {
                kind: SlruKind::CommitTs,
                page: 0,
            },
            PageKey::Control,
        ];
        for pair in keys.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].encode() < pair[1].encode());
        }
        for key in keys {
            assert_eq!(PageKey::decode(&key.encode()), Some(key));
        }
        let mut junk = PageKey::Control.encode();
        junk[17] = 1;
        assert_eq!(PageKey::decode(&junk), None);
        assert_eq!(PageKey::decode(&[]), None);
    }
}
