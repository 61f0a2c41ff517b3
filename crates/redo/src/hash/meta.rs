//! The metapage of a hash index (`HashMetaPageData` in `access/hash.h`), after the page header:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4, 4..8 | magic number, version |
//! | 8..16 | number of tuples, as a double |
//! | 16..18, 18..20 | tuples per bucket that are aimed at, bytes of a page that are not header |
//! | 20..22, 22..24 | bytes of a bitmap, logarithm of its bits |
//! | 24..28, 28..32, 32..36 | highest bucket, high mask, low mask |
//! | 36..40 | current split point |
//! | 40..44, 44..48 | first overflow page that may be free, number of bitmap pages |
//! | 48..52 | hash function |
//! | 52..444 | overflow pages before each of 98 split points |
//! | 444..4540 | blocks of up to 1024 bitmap pages |

use super::{NONE, OPAQUE, check, flag, init};
use crate::page::{self, HEADER_BYTES, get_u32, put_u16, put_u32};
use crate::reader::Reader;
use crate::{Fault, PageBytes};

const MAGIC: usize = HEADER_BYTES;
const VERSION: usize = HEADER_BYTES + 4;
const TUPLES: usize = HEADER_BYTES + 8;
const FILL_FACTOR: usize = HEADER_BYTES + 16;
const PAGE_BYTES: usize = HEADER_BYTES + 18;
const BITMAP_BYTES: usize = HEADER_BYTES + 20;
const BITMAP_SHIFT: usize = HEADER_BYTES + 22;
const MAX_BUCKET: usize = HEADER_BYTES + 24;
const HIGH_MASK: usize = HEADER_BYTES + 28;
const LOW_MASK: usize = HEADER_BYTES + 32;
const SPLIT_POINT: usize = HEADER_BYTES + 36;
const FIRST_FREE: usize = HEADER_BYTES + 40;
const BITMAPS: usize = HEADER_BYTES + 44;
const FUNCTION: usize = HEADER_BYTES + 48;
const SPARES: usize = HEADER_BYTES + 52;
const MAPS: usize = HEADER_BYTES + 444;
const END: usize = HEADER_BYTES + 4544;

const SPLIT_POINTS: u32 = 98;
const MAX_BITMAPS: u32 = 1024;
/// Split point groups from here on are allocated in four phases.
const ONE_PHASE_GROUPS: u32 = 10;

/// `XLH_SPLIT_META_UPDATE_MASKS`: a new bucket makes the masks one bit wider.
const NEW_MASKS: u8 = 1;
/// `XLH_SPLIT_META_UPDATE_SPLITPOINT`.
const NEW_SPLIT_POINT: u8 = 2;

/// `_hash_init_metabuffer`. Main data: expected number of tuples, hash function, tuples per bucket.
pub(super) fn init_page(mut main: Reader, page: &mut PageBytes) -> Result<(), Fault> {
    let (tuples, function, fill_factor) = (f64::from_bits(main.u64()?), main.u32()?, main.u16()?);
    let buckets = initial_buckets(tuples, fill_factor)?;
    let split_point = split_point_of(buckets);
    init(page, NONE, NONE, flag::META);
    put_u32(page, MAGIC, 0x0644_0640);
    put_u32(page, VERSION, 4);
    put_u16(page, FILL_FACTOR, fill_factor);
    let page_bytes = OPAQUE - HEADER_BYTES;
    let shift = page_bytes.ilog2();
    put_u16(page, PAGE_BYTES, page_bytes as u16);
    put_u16(page, BITMAP_BYTES, 1 << shift);
    put_u16(page, BITMAP_SHIFT, shift as u16 + 3);
    put_u32(page, FUNCTION, function);
    put_u32(page, MAX_BUCKET, buckets - 1);
    let high_mask = (buckets + 1).next_power_of_two() - 1;
    put_u32(page, HIGH_MASK, high_mask);
    put_u32(page, LOW_MASK, high_mask >> 1);
    put_u32(page, spare_at(split_point)?, 1);
    put_u32(page, SPLIT_POINT, split_point);
    page::set_lower(page, END);
    Ok(())
}

/// The whole number of split points' buckets that holds the expected tuples.
fn initial_buckets(tuples: f64, fill_factor: u16) -> Result<u32, Fault> {
    let buckets = tuples / f64::from(fill_factor);
    if buckets.is_nan() {
        return Err("its fill factor is damaged");
    }
    Ok(if buckets <= 2.0 {
        2
    } else if buckets >= f64::from(0x4000_0000) {
        0x4000_0000
    } else {
        buckets_until(split_point_of(buckets as u32))
    })
}

/// `_hash_spareindex`: the split point with which the index got its `buckets`-th bucket.
fn split_point_of(buckets: u32) -> u32 {
    let before = buckets.saturating_sub(1);
    let group = before.checked_ilog2().map_or(0, |log| log + 1);
    if group < ONE_PHASE_GROUPS {
        group
    } else {
        ONE_PHASE_GROUPS + (group - ONE_PHASE_GROUPS) * 4 + (before >> (group - 3) & 3)
    }
}

/// `_hash_get_totalbuckets`: all buckets up to a split point.
fn buckets_until(split_point: u32) -> u32 {
    if split_point < ONE_PHASE_GROUPS {
        return 1 << split_point;
    }
    let (groups, phase) = (
        (split_point - ONE_PHASE_GROUPS) / 4,
        (split_point - ONE_PHASE_GROUPS) % 4,
    );
    let before = 1 << (ONE_PHASE_GROUPS + groups - 1);
    before + before / 4 * (phase + 1)
}

fn spare_at(split_point: u32) -> Result<usize, Fault> {
    if split_point < SPLIT_POINTS {
        Ok(SPARES + split_point as usize * 4)
    } else {
        Err("a split point is outside the metapage")
    }
}

fn add_bitmap(page: &mut PageBytes, block: u32) -> Result<(), Fault> {
    let maps = get_u32(page, BITMAPS);
    if maps >= MAX_BITMAPS {
        return Err("more bitmap pages than the metapage holds");
    }
    put_u32(page, MAPS + maps as usize * 4, block);
    put_u32(page, BITMAPS, maps + 1);
    Ok(())
}

/// The first bitmap page follows the initial buckets, which follow the metapage.
pub(super) fn add_first_bitmap(page: &mut PageBytes) -> Result<(), Fault> {
    check(page)?;
    let block = get_u32(page, MAX_BUCKET).wrapping_add(2);
    add_bitmap(page, block)
}

/// The number of tuples.
pub(super) fn tuples(page: &PageBytes) -> Result<f64, Fault> {
    check(page)?;
    let (low, high) = (get_u32(page, TUPLES), get_u32(page, TUPLES + 4));
    Ok(f64::from_bits(u64::from(high) << 32 | u64::from(low)))
}

pub(super) fn set_tuples(page: &mut PageBytes, tuples: f64) -> Result<(), Fault> {
    check(page)?;
    page[TUPLES..TUPLES + 8].copy_from_slice(&tuples.to_bits().to_le_bytes());
    Ok(())
}

pub(super) fn add_tuple(page: &mut PageBytes) -> Result<(), Fault> {
    let tuples = tuples(page)? + 1.0;
    set_tuples(page, tuples)
}

pub(super) fn set_first_free(page: &mut PageBytes, number: u32) -> Result<(), Fault> {
    check(page)?;
    put_u32(page, FIRST_FREE, number);
    Ok(())
}

/// Counts an overflow page at the end of the index, and a bitmap page with it if there is one.
pub(super) fn add_overflow_pages(page: &mut PageBytes, bitmap: Option<u32>) -> Result<(), Fault> {
    check(page)?;
    let at = spare_at(get_u32(page, SPLIT_POINT))?;
    let mut spares = get_u32(page, at).wrapping_add(1);
    if let Some(block) = bitmap {
        add_bitmap(page, block)?;
        spares = spares.wrapping_add(1);
    }
    put_u32(page, at, spares);
    Ok(())
}

/// Counts a new bucket. Data: low and high mask if they change, then the split point and the number of overflow pages
/// before it if it changes.
pub(super) fn add_bucket(page: &mut PageBytes, bucket: u32, changes: u8, data: &[u8]) -> Result<(), Fault> {
    check(page)?;
    let mut data = Reader::new(data);
    put_u32(page, MAX_BUCKET, bucket);
    if changes & NEW_MASKS != 0 {
        put_u32(page, LOW_MASK, data.u32()?);
        put_u32(page, HIGH_MASK, data.u32()?);
    }
    if changes & NEW_SPLIT_POINT != 0 {
        let split_point = data.u32()?;
        put_u32(page, spare_at(split_point)?, data.u32()?);
        put_u32(page, SPLIT_POINT, split_point);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_come_in_powers_of_two_and_from_512_on_in_quarters() {
        for (tuples, buckets) in [
            (0.0, 2),
            (614.0, 2),
            (900.0, 2), // 2.9 buckets: the fraction does not count
            (921.0, 4),
            (512.0 * 307.0, 512),
            (513.0 * 307.0, 640),
            (640.0 * 307.0, 640),
            (641.0 * 307.0, 768),
            (1024.0 * 307.0, 1024),
            (1025.0 * 307.0, 1280),
            (1e300, 0x4000_0000),
        ] {
            assert_eq!(initial_buckets(tuples, 307), Ok(buckets), "{tuples}");
        }
        assert!(initial_buckets(0.0, 0).is_err());
        assert!(split_point_of(0x4000_0000) < SPLIT_POINTS);
        for split_point in 1..SPLIT_POINTS - 8 {
            assert_eq!(split_point_of(buckets_until(split_point)), split_point);
        }
    }
}
