//! Data checksums of pages (`storage/checksum_impl.h`), which a cluster may have switched on.
//!
//! The page is taken as 64 rows of 32 little-endian words. Each column is hashed by itself, a variant of FNV-1a that
//! also feeds back its high bits, so that a compiler can hash the columns side by side; two rounds of zeros mix the
//! last rows in. The columns' hashes and the number of the block within its fork are combined by exclusive or, and the
//! result is brought into 1..=65535. A page that was never written (all zeros, or at least without an upper bound) has
//! none: its field is left alone.

use lakebed_types::PAGE_SIZE;

use crate::PageBytes;
use crate::page::is_new;

const COLUMNS: usize = 32;
const ROW_BYTES: usize = 4 * COLUMNS;
/// `FNV_PRIME`.
const PRIME: u32 = 16_777_619;
/// Where `pd_checksum` is.
const FIELD: std::ops::Range<usize> = 8..10;

/// `checksumBaseOffsets`: what each column's hash begins with.
const BASE: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

fn round(hash: u32, value: u32) -> u32 {
    let mixed = hash ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// The checksum that a page should have as this block of its fork (not of its segment file). What its checksum field
/// holds does not matter.
pub fn of_page(page: &PageBytes, block: u32) -> u16 {
    const _: () = assert!(PAGE_SIZE.is_multiple_of(ROW_BYTES));
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    let mut sums = BASE;
    for (number, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        for (column, (sum, word)) in sums.iter_mut().zip(words).enumerate() {
            let mut word = u32::from_le_bytes(*word);
            if (number, column) == (0, FIELD.start / 4) {
                word &= 0xFFFF_0000;
            }
            *sum = round(*sum, word);
        }
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ round(round(*sum, 0), 0));
    // At most 65535.
    ((folded ^ block) % 65_535 + 1) as u16
}

/// Stores the checksum in a page, unless it is new (`PageSetChecksumCopy`).
pub fn set(page: &mut PageBytes, block: u32) {
    if !is_new(page) {
        let checksum = of_page(page, block);
        page[FIELD].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Whether a page passes as this block: its checksum is right, or it is new (`PageIsVerifiedExtended`).
pub fn is_right(page: &PageBytes, block: u32) -> bool {
    is_new(page) || page[FIELD] == of_page(page, block).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterned() -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = (at * 7 + at / 256) as u8;
        }
        page
    }

    #[test]
    fn a_set_checksum_is_right_at_its_own_block_alone() {
        let mut page = patterned();
        assert!(!is_right(&page, 5));
        set(&mut page, 5);
        assert!(is_right(&page, 5));
        assert!(!is_right(&page, 6));
        for at in [0, 9, 10, 100, PAGE_SIZE - 1] {
            page[at] ^= 1;
            assert!(!is_right(&page, 5), "byte {at}");
            page[at] ^= 1;
        }
    }

    #[test]
    fn a_new_page_is_left_alone() {
        let mut page = [0; PAGE_SIZE];
        set(&mut page, 3);
        assert_eq!(page, [0; PAGE_SIZE]);
        assert!(is_right(&page, 3));
    }
}
