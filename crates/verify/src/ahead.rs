//! Bits of visibility maps that a server cleared before the record that says so was in the WAL.
//!
//! A release whose heap records do not name the map page clears its bit without keeping the map locked until the record
//! is inserted (`heap_update` and others in `access/heap/heapam.c`). Another backend's record of the same map page may
//! come between; its image then lacks a bit that the WAL up to there still has. That is right if the record follows: so
//! the bit is *owed* until a record clears it in passing. These show that the record never comes:
//!
//! - the map's bit is set again for the same heap block,
//! - a record that names the map page clears it (such releases do keep the page locked),
//! - the WAL ends or the server starts anew, and the image was not near that point ([`NEAR_BYTES`]).

use std::collections::BTreeMap;

use lakebed_redo::PageBytes;
use lakebed_types::{Lsn, PAGE_SIZE, RelTag};

use crate::report::Mismatch;

/// A debt that is younger than this many bytes of WAL may be open when the WAL or the server's life ends: the server
/// writes the record at once, only others' records can come between.
const NEAR_BYTES: u64 = 64 << 20;

/// Images of one page that lack bits which the replayed page has, counted by record type, with the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    /// The owed bits, by byte of the page.
    bits: BTreeMap<usize, u8>,
    /// Images, by the index of their record type.
    pub images: BTreeMap<usize, u64>,
    /// What is to be reported if the debt is not paid.
    pub first: Mismatch,
}

/// The debts of all map pages.
#[derive(Debug, Default)]
pub struct ClearedAhead(BTreeMap<(RelTag, u32), Debt>);

impl ClearedAhead {
    /// Takes note of an image that lacks bits of the replayed page; `mismatch` says how.
    pub fn owe(&mut self, page: (RelTag, u32), bits: &[(usize, u8)], type_index: usize, mismatch: Mismatch) {
        let debt = self.0.entry(page).or_insert_with(|| Debt {
            bits: BTreeMap::new(),
            images: BTreeMap::new(),
            first: mismatch,
        });
        for (at, mask) in bits {
            *debt.bits.entry(*at).or_default() |= mask;
        }
        *debt.images.entry(type_index).or_default() += 1;
    }

    /// Whether nothing is owed of a page, which is the usual case.
    pub fn is_clear(&self, page: (RelTag, u32)) -> bool {
        !self.0.contains_key(&page)
    }

    /// The replayed page, without the bits that are owed: as the server has it.
    pub fn as_on_server(&self, page: (RelTag, u32), replayed: &PageBytes) -> PageBytes {
        let mut cleared = *replayed;
        for (at, mask) in self.0.get(&page).into_iter().flat_map(|debt| &debt.bits) {
            cleared[*at] &= !mask;
        }
        cleared
    }

    /// A record cleared bits of the page in passing, or an image took the page's place: what it now lacks is paid.
    pub fn pay(&mut self, page: (RelTag, u32), replayed: &PageBytes) {
        if let Some(debt) = self.0.get_mut(&page) {
            for (at, mask) in &mut debt.bits {
                *mask &= replayed[*at];
            }
            debt.bits.retain(|_, mask| *mask != 0);
            if debt.bits.is_empty() {
                self.0.remove(&page);
            }
        }
    }

    /// A record that names the page was replayed: `after` is what it made of the replayed page, `server_after` what it made
    /// of the page as the server had it ([`ClearedAhead::as_on_server`]). The debt, if it can no longer be paid.
    pub fn broken_by(
        &mut self,
        page: (RelTag, u32),
        after: &PageBytes,
        server_after: &PageBytes,
    ) -> Option<Debt> {
        let debt = self.0.get(&page)?;
        let broken = debt
            .bits
            .iter()
            .any(|(at, mask)| after[*at] & mask != *mask || server_after[*at] & mask != 0);
        if broken { self.0.remove(&page) } else { None }
    }

    /// What is still owed where the WAL or the server's life ends and cannot be excused by that.
    pub fn unpaid_at(self, end: Lsn) -> impl Iterator<Item = Debt> {
        self.0
            .into_values()
            .filter(move |debt| end.0.saturating_sub(debt.first.lsn.0) >= NEAR_BYTES)
    }
}

/// The bits that `ours` has and `expected` lacks, if they differ in nothing else behind LSN and checksum.
pub fn bits_missing(ours: &PageBytes, expected: &PageBytes) -> Option<Vec<(usize, u8)>> {
    const CONTENT: usize = lakebed_redo::page::HEADER_BYTES;
    if ours[10..CONTENT] != expected[10..CONTENT] {
        return None;
    }
    let mut bits = Vec::new();
    for at in CONTENT..PAGE_SIZE {
        if expected[at] & !ours[at] != 0 {
            return None;
        }
        if ours[at] != expected[at] {
            bits.push((at, ours[at] & !expected[at]));
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use lakebed_types::ForkNumber;

    use super::*;

    const PAGE: (RelTag, u32) = (
        RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Vm,
        },
        0,
    );

    fn mismatch() -> Mismatch {
        Mismatch {
            lsn: Lsn(1000),
            rmgr: "Heap2".to_owned(),
            operation: "VISIBLE".to_owned(),
            relation: String::new(),
            fork: "vm",
            block: 0,
            stricter_than_postgres: true,
            fields: Vec::new(),
        }
    }

    /// Two images that lack the bits 1 and 2 of byte 30 while the replayed page has the bits 1, 2 and 4.
    fn owing() -> (ClearedAhead, PageBytes) {
        let mut replayed = [0; PAGE_SIZE];
        replayed[30] = 7;
        let mut ahead = ClearedAhead::default();
        for bit in [1, 2] {
            let mut image = replayed;
            image[30] &= !bit;
            let bits = bits_missing(&replayed, &image).unwrap();
            assert_eq!(bits, [(30, bit)]);
            ahead.owe(PAGE, &bits, 3, mismatch());
        }
        assert_eq!(ahead.as_on_server(PAGE, &replayed)[30], 4);
        (ahead, replayed)
    }

    #[test]
    fn only_missing_bits_can_be_owed() {
        let mut ours = [0; PAGE_SIZE];
        let mut theirs = ours;
        theirs[30] = 1;
        assert_eq!(bits_missing(&ours, &theirs), None);
        theirs[30] = 0;
        ours[12] = 1;
        assert_eq!(bits_missing(&ours, &theirs), None);
    }

    #[test]
    fn a_debt_is_paid_when_all_its_bits_are_cleared() {
        let (mut ahead, mut replayed) = owing();
        replayed[30] &= !2;
        ahead.pay(PAGE, &replayed);
        assert!(!ahead.is_clear(PAGE));
        replayed[30] &= !1;
        ahead.pay(PAGE, &replayed);
        assert!(ahead.is_clear(PAGE));
        assert_eq!(ahead.unpaid_at(Lsn::MAX).count(), 0);
    }

    #[test]
    fn a_debt_that_cannot_be_paid_any_more_is_a_mismatch() {
        // Another heap block's bit: nothing is said of the owed ones.
        let (mut ahead, replayed) = owing();
        let mut after = replayed;
        let mut server = ahead.as_on_server(PAGE, &replayed);
        after[31] = 1;
        server[31] = 1;
        assert_eq!(ahead.broken_by(PAGE, &after, &server), None);
        // The same one is set again.
        server[30] |= 2;
        let debt = ahead.broken_by(PAGE, &after, &server).unwrap();
        assert_eq!(debt.images, BTreeMap::from([(3, 2)]));
        assert!(ahead.is_clear(PAGE));
        // Cleared by a record that names the page.
        let (mut ahead, mut after) = owing();
        let server = ahead.as_on_server(PAGE, &after);
        after[30] &= !1;
        assert!(ahead.broken_by(PAGE, &after, &server).is_some());
    }

    #[test]
    fn the_end_of_the_wal_excuses_only_what_is_near_it() {
        assert_eq!(owing().0.unpaid_at(Lsn(2000)).count(), 0);
        assert_eq!(owing().0.unpaid_at(Lsn(1000 + NEAR_BYTES)).count(), 1);
    }
}
