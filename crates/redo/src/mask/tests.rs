use super::*;

const TUPLE: usize = 32;
const TUPLES: u16 = 90;

/// A heap page of tuples of 30 bytes, two of padding behind each.
fn heap_page() -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    page::init(&mut page, 0);
    let lower = page::HEADER_BYTES + 4 * usize::from(TUPLES);
    let upper = PAGE_SIZE - TUPLE * usize::from(TUPLES);
    page[12..14].copy_from_slice(&(lower as u16).to_le_bytes());
    page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
    for number in 0..usize::from(TUPLES) {
        let offset = (upper + number * TUPLE) as u32;
        put_u32(
            &mut page,
            page::HEADER_BYTES + 4 * number,
            offset | 1 << 15 | 30 << 17,
        );
    }
    page
}

fn equal(mask: impl Fn(&mut PageBytes, &mut PageBytes), ours: &PageBytes, theirs: &PageBytes) -> bool {
    let (mut ours, mut theirs) = (*ours, *theirs);
    mask(&mut ours, &mut theirs);
    ours == theirs
}

fn pair(ours: &PageBytes, theirs: &PageBytes) -> bool {
    equal(
        |ours, theirs| both_for_record(rmgr::HEAP, ours, theirs, 7),
        ours,
        theirs,
    )
}

fn each(ours: &PageBytes, theirs: &PageBytes) -> bool {
    let mask = |ours: &mut PageBytes, theirs: &mut PageBytes| {
        for_record(rmgr::HEAP, ours, 7);
        for_record(rmgr::HEAP, theirs, 7);
    };
    equal(mask, ours, theirs)
}

fn random() -> impl FnMut() -> usize {
    let mut random = 88_172_645_463_325_252_u64;
    move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    }
}

/// Flips one to three bits on either page: mostly in tuples' headers, sometimes anywhere.
fn change(next: &mut impl FnMut() -> usize, ours: &mut PageBytes, theirs: &mut PageBytes) {
    for _ in 0..=next() % 3 {
        let at = match next() % 4 {
            0 => next() % PAGE_SIZE,
            _ => PAGE_SIZE - TUPLE * (1 + next() % usize::from(TUPLES)) + 18 + next() % 14,
        };
        let side = if next().is_multiple_of(2) {
            &mut *ours
        } else {
            &mut *theirs
        };
        side[at] ^= 1 << (next() % 8);
    }
}

#[test]
fn masking_both_hides_hints_and_padding_and_nothing_else() {
    let page = heap_page();
    let tuple = PAGE_SIZE - 40 * TUPLE;
    // Place in the page, what it is, whether the masks hide it.
    let table = [
        (3, "LSN", true),
        (11, "header flags that mean something", false),
        (21, "pd_prune_xid", true),
        (25, "a line pointer", false),
        (500, "free space", true),
        (tuple, "xmin", false),
        (tuple + tuple::FIELD3, "command id", true),
        (tuple + tuple::INFOMASK + 1, "hint bits and others", false),
        (tuple + 30, "padding", true),
        (PAGE_SIZE - 1, "padding of the last tuple", true),
    ];
    for (at, what, hidden) in table {
        let mut other = page;
        other[at] ^= 0xFF;
        assert_eq!(pair(&page, &other), hidden, "{what}");
        assert_eq!(each(&page, &other), hidden, "{what}");
    }
    let mut hinted = page;
    hinted[tuple + tuple::INFOMASK + 1] ^= 0x05;
    assert!(pair(&page, &hinted));
}

#[test]
fn masking_both_finds_equal_what_masking_each_finds_equal() {
    let page = heap_page();
    let mut next = random();
    let mut found = [0, 0];
    for _ in 0..20_000 {
        let mut ours = page;
        let mut theirs = page;
        change(&mut next, &mut ours, &mut theirs);
        let expected = each(&ours, &theirs);
        assert_eq!(pair(&ours, &theirs), expected);
        found[usize::from(expected)] += 1;
    }
    assert!(found.iter().all(|count| *count > 1000), "{found:?}");
}

/// Against the masks themselves, on pages that differ in tuple headers mostly, have their items in any order, unused
/// line pointers, overlapping items and gaps.
#[test]
fn surely_equal_is_never_said_of_pages_that_differ_under_the_masks() {
    let mut next = random();
    let mut found = [[0; 2]; 2];
    for _ in 0..40_000 {
        let mut page = heap_page();
        let upper = page::upper(&page);
        if next().is_multiple_of(8) {
            let number = next() % usize::from(TUPLES);
            let offset = (upper + TUPLE * (next() % usize::from(TUPLES))) as u32;
            let id = [0, offset | 1 << 15 | 30 << 17, offset | 3 << 15][next() % 3];
            put_u32(&mut page, page::HEADER_BYTES + 4 * number, id);
        }
        let (mut ours, mut theirs) = (page, page);
        change(&mut next, &mut ours, &mut theirs);
        let (before, after) = (
            page::lower(&theirs).min(PAGE_SIZE),
            page::upper(&theirs).min(PAGE_SIZE),
        );
        let quick = before <= after && heap_surely_equal(&ours, &theirs[..before], &theirs[after..]);
        let masked = each(&ours, &theirs);
        assert!(masked || !quick);
        found[usize::from(quick)][usize::from(masked)] += 1;
    }
    let [[different, unsure], [_, equal]] = found;
    assert!(different > 1000 && equal > 1000 && unsure > 100, "{found:?}");
}
