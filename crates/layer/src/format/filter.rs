//! Whether a page may be in a layer: a split block Bloom filter, as the Parquet format has it.
//!
//! 32 bytes make a block of eight 32-bit words. A page's hash (XXH3, 64 bits, of its stored key) chooses a block with
//! its high half; the low half, multiplied with eight odd constants, chooses one bit of each word. At
//! [`BITS_PER_PAGE`] bits the filter says "maybe" for one absent page in about 200, which then costs a look at a cached
//! index block and no read of data. It never says no for a page that is there.

use bytes::Bytes;
use lakebed_types::PageKey;

const BITS_PER_PAGE: usize = 12;
const BLOCK_BYTES: usize = 32;
const WORDS: usize = 8;
/// The constants of Parquet's filter.
const SALT: [u32; WORDS] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

/// The hash of a page with this stored key.
pub(super) fn hash(key: &[u8; PageKey::ENCODED_BYTES]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The filter's bytes for the pages with these hashes.
pub(super) fn build(hashes: &[u64]) -> Vec<u8> {
    let blocks = (hashes.len() * BITS_PER_PAGE).div_ceil(BLOCK_BYTES * 8).max(1);
    let mut bytes = vec![0; blocks * BLOCK_BYTES];
    for hash in hashes {
        let start = block_of(*hash, blocks) * BLOCK_BYTES;
        for (bit, word) in bits(*hash).zip(bytes[start..start + BLOCK_BYTES].chunks_exact_mut(4)) {
            word[bit / 8] |= 1 << (bit % 8);
        }
    }
    bytes
}

fn block_of(hash: u64, blocks: usize) -> usize {
    // The high half scaled to the number of blocks; below it, so it fits.
    (((hash >> 32) * blocks as u64) >> 32) as usize
}

/// One bit number below 32 for each word.
fn bits(hash: u64) -> impl Iterator<Item = usize> {
    SALT.into_iter()
        .map(move |salt| ((hash as u32).wrapping_mul(salt) >> 27) as usize)
}

/// A filter that was read.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    bytes: Bytes,
}

impl Filter {
    /// Takes over a filter's bytes; `None` when they are no whole blocks.
    pub(super) fn new(bytes: Bytes) -> Option<Filter> {
        let whole = !bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES);
        whole.then_some(Filter { bytes })
    }

    /// Whether the page with this hash may be there.
    pub(super) fn may_have(&self, hash: u64) -> bool {
        let start = block_of(hash, self.bytes.len() / BLOCK_BYTES) * BLOCK_BYTES;
        let (words, _) = self.bytes[start..start + BLOCK_BYTES].as_chunks::<4>();
        // All words are looked at: they are in one cache line, and a branch for each would cost more.
        let missing = |(bit, word): (usize, &[u8; 4])| !u32::from_le_bytes(*word) >> bit & 1;
        bits(hash).zip(words).map(missing).fold(0, |all, one| all | one) == 0
    }

    /// Bytes in memory.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}
