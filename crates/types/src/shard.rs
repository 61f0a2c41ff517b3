//! Which shard owns a page.
//!
//! Relation pages are hashed on relfilenode and stripe alone: database and tablespace stay out, so that a database
//! copied file by file keeps every page on the shard where its template's page lies. Everything that is not a
//! relation page belongs to shard 0, which also keeps the catalogue.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::key::PageKey;

/// Blocks of one fork that lie together on one shard: 256 blocks, 2 MiB.
pub const STRIPE_BLOCKS: u32 = 256;

/// Number of shards of a tenant, 1 to 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct ShardCount(u8);

impl ShardCount {
    /// The most shards a tenant can have.
    pub const MAX: u8 = 128;

    /// A count of 1 to 128, else `None`.
    pub fn new(count: u8) -> Option<ShardCount> {
        (1..=Self::MAX).contains(&count).then_some(ShardCount(count))
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for ShardCount {
    type Error = String;

    fn try_from(count: u8) -> Result<Self, String> {
        Self::new(count).ok_or_else(|| format!("shard count {count} is not between 1 and {}", Self::MAX))
    }
}

impl From<ShardCount> for u8 {
    fn from(count: ShardCount) -> u8 {
        count.0
    }
}

/// Index of a shard, below the tenant's shard count.
pub type ShardIndex = u8;

/// One shard of a tenant: index and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardIdentity {
    count: ShardCount,
    index: ShardIndex,
}

impl ShardIdentity {
    /// Shard `index` of `count`, or `None` when the index is not below the count.
    pub fn new(index: ShardIndex, count: ShardCount) -> Option<ShardIdentity> {
        (index < count.get()).then_some(ShardIdentity { index, count })
    }

    /// This shard's index.
    pub fn index(self) -> ShardIndex {
        self.index
    }

    /// The tenant's shard count.
    pub fn count(self) -> ShardCount {
        self.count
    }

    /// Whether this shard keeps the catalogue: relation sizes, SLRUs, control state.
    pub fn keeps_catalogue(self) -> bool {
        self.index == 0
    }

    /// Whether all that this shard owns is owned by `other`, a shard of fewer: then this one can be split off it.
    pub fn is_part_of(self, other: ShardIdentity) -> bool {
        let (own, others) = (self.count.get(), other.count.get());
        own > others && own % others == 0 && self.index % others == other.index
    }

    /// Whether this shard owns the page.
    pub fn owns(self, key: &PageKey) -> bool {
        shard_of(key, self.count) == self.index
    }
}

impl fmt::Display for ShardIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}of{}", self.index, self.count.get())
    }
}

/// The shard that owns a page. Stored layers depend on this function: it never changes.
pub fn shard_of(key: &PageKey, count: ShardCount) -> ShardIndex {
    let PageKey::Rel { rel, block } = key else {
        return 0;
    };
    // What the remainder would be.
    if count.get() == 1 {
        return 0;
    }
    // The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit affects every output bit.
    let mut hash = u64::from(rel.relnode) << 32 | u64::from(block / STRIPE_BLOCKS);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    // The remainder is below 128, so it fits.
    (hash % u64::from(count.get())) as ShardIndex
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{ForkNumber, RelTag};

    fn page(dbnode: u32, relnode: u32, block: u32) -> PageKey {
        PageKey::Rel {
            rel: RelTag {
                spcnode: 1663,
                dbnode,
                relnode,
                fork: ForkNumber::Main,
            },
            block,
        }
    }

    #[test]
    fn a_page_has_one_owner_that_no_database_copy_changes() {
        let count = ShardCount::new(4).unwrap();
        let mut pages = [0u32; 4];
        for relnode in 16384..16484 {
            for stripe in 0..20 {
                let first = page(5, relnode, stripe * STRIPE_BLOCKS);
                let owner = shard_of(&first, count);
                assert_eq!(
                    owner,
                    shard_of(&page(5, relnode, stripe * STRIPE_BLOCKS + 255), count)
                );
                assert_eq!(owner, shard_of(&page(77, relnode, stripe * STRIPE_BLOCKS), count));
                pages[usize::from(owner)] += 1;
            }
        }
        assert!(
            pages.iter().all(|&n| (400..600).contains(&n)),
            "uneven: {pages:?}"
        );
        assert_eq!(shard_of(&PageKey::Control, count), 0);
    }

    #[test]
    fn a_part_owns_nothing_that_the_whole_does_not() {
        let shard = |index, count| ShardIdentity::new(index, ShardCount::new(count).unwrap()).unwrap();
        let parts: Vec<u8> = (0..6)
            .filter(|index| shard(*index, 6).is_part_of(shard(1, 2)))
            .collect();
        assert_eq!(parts, [1, 3, 5]);
        for relnode in 16384..16484 {
            for stripe in 0..20 {
                let key = page(5, relnode, stripe * STRIPE_BLOCKS);
                let owned = parts.iter().filter(|index| shard(**index, 6).owns(&key)).count();
                assert_eq!(owned, usize::from(shard(1, 2).owns(&key)));
            }
        }
        assert!(
            !shard(1, 3).is_part_of(shard(1, 2)),
            "three is no multiple of two"
        );
        assert!(!shard(1, 2).is_part_of(shard(1, 2)));
        assert!(shard(1, 2).is_part_of(shard(0, 1)));
    }

    #[test]
    fn the_hash_is_frozen() {
        let count = ShardCount::new(128).unwrap();
        let owners: Vec<_> = [(1259, 0), (16384, 0), (16384, 256), (16385, 512)]
            .map(|(rel, block)| shard_of(&page(5, rel, block), count))
            .into();
        assert_eq!(owners, FROZEN);
    }

    const FROZEN: [u8; 4] = [62, 94, 62, 77];
}
