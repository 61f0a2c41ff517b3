use lakebed_types::PageKey;

use super::*;
use crate::rmgr;
use crate::testing::{record, words};

fn create(multi: u32, offset: u32, members: &[(u32, u32)]) -> DecodedRecord {
    let mut data = words(&[multi, offset, members.len() as u32]);
    members
        .iter()
        .for_each(|&(xid, status)| data.extend(words(&[xid, status])));
    record(rmgr::MULTIXACT, CREATE_ID, data)
}

fn offsets(page: u64, entries: &[(u16, u32)]) -> (PageKey, SlruDelta) {
    let kind = SlruKind::MultiXactOffsets;
    let entries = entries.to_vec();
    (
        PageKey::Slru { kind, page },
        SlruDelta::MultiOffsetsSet { entries },
    )
}

fn members(page: u64, first_slot: u16, members: &[(u32, u8)]) -> (PageKey, SlruDelta) {
    let kind = SlruKind::MultiXactMembers;
    let members = members.to_vec();
    (
        PageKey::Slru { kind, page },
        SlruDelta::MembersSet { first_slot, members },
    )
}

#[test]
fn creation_stores_both_offsets_and_the_members_over_page_and_number_ends() {
    let pair = [(700, 1), (701, 5)];
    let stored = [(700, 1), (701, 5)];
    let last_offsets_page = u64::from(u32::MAX / 2048);
    let last_members_page = u64::from(u32::MAX / 1636);
    let last_slot = (u32::MAX % 1636) as u16;
    let table = [
        (
            create(10, 30, &pair),
            vec![offsets(0, &[(10, 30), (11, 32)]), members(0, 30, &stored)],
        ),
        (
            create(2047, 1635, &pair),
            vec![
                offsets(0, &[(2047, 1635)]),
                offsets(1, &[(0, 1637)]),
                members(0, 1635, &stored[..1]),
                members(1, 0, &stored[1..]),
            ],
        ),
        // The last multixact is followed by the first, and offset 0 is skipped.
        (
            create(u32::MAX, u32::MAX - 1, &pair),
            vec![
                offsets(last_offsets_page, &[(2047, u32::MAX - 1)]),
                offsets(0, &[(1, 1)]),
                members(last_members_page, last_slot - 1, &stored),
            ],
        ),
        (
            create(10, u32::MAX, &pair),
            vec![
                offsets(0, &[(10, u32::MAX), (11, 1)]),
                members(last_members_page, last_slot, &stored[..1]),
                members(0, 0, &stored[1..]),
            ],
        ),
    ];
    for (record, expected) in table {
        assert_eq!(crate::interpret(&record).unwrap().slru, expected);
    }
    let many = vec![(9, 2); 4000];
    let effects = crate::interpret(&create(10, 30, &many)).unwrap();
    assert_eq!(effects.slru.len(), 1 + 3);
}

#[test]
fn truncation_keeps_the_page_before_the_oldest() {
    let truncate = |oldest: u32, first: u32, end: u32| {
        let record = record(rmgr::MULTIXACT, TRUNCATE_ID, words(&[5, 1, oldest, first, end]));
        crate::interpret(&record).unwrap().catalogue
    };
    let expected = |first, end, page| {
        [
            CatalogueChange::SlruTruncated {
                kind: SlruKind::MultiXactMembers,
                cut: SlruCut::Segments { first, end },
            },
            CatalogueChange::SlruTruncated {
                kind: SlruKind::MultiXactOffsets,
                cut: SlruCut::Before { page },
            },
        ]
    };
    assert_eq!(truncate(2048 * 40, 1, 1636 * 32 * 3), expected(0, 3, 39));
    assert_eq!(
        truncate(2048 * 40 + 1, 1636 * 32, 1636 * 64 - 1),
        expected(1, 1, 40)
    );
    assert_eq!(truncate(1, 1, 1), expected(0, 0, u64::from(u32::MAX / 2048)));
}

#[test]
fn what_no_server_writes_is_refused() {
    let table = [
        (create(0, 30, &[(700, 1)]), "a multixact id is zero"),
        (
            create(1, 30, &[(700, 6)]),
            "a multixact member has a status that does not exist",
        ),
        (
            create(1, 30, &[(700, 256)]),
            "a multixact member has a status that does not exist",
        ),
        (
            record(rmgr::MULTIXACT, CREATE_ID, words(&[1, 1, u32::MAX])),
            "a count in its main data is negative",
        ),
        (
            record(rmgr::MULTIXACT, CREATE_ID, words(&[1, 1, 2, 3, 4])),
            "its main data is too short",
        ),
        (
            record(rmgr::MULTIXACT, TRUNCATE_ID, words(&[5, 1, 0, 1, 1])),
            "a multixact id is zero",
        ),
        (
            record(rmgr::MULTIXACT, ZERO_OFFSETS_PAGE, words(&[u32::MAX])),
            "an SLRU page number is negative",
        ),
    ];
    for (record, rule) in table {
        let error = crate::interpret(&record).unwrap_err().to_string();
        assert!(error.ends_with(rule), "{error} instead of {rule}");
    }
}
