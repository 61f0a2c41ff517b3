//! The operations that do two of Postgres's steps in one leave what the two steps leave, to the byte.

use super::*;

/// A page with items of lengths that differ, which lie in another order than their numbers.
fn index_page(items: u16) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    init(&mut page, 8);
    for number in 1..=items {
        let length = 16 + usize::from(number * 7 % 40);
        let place = 1 + number * 5 % item_count(&page).max(1);
        add_item(&mut page, &vec![number as u8; length], place, Place::Insert).unwrap();
    }
    page
}

#[test]
fn replacing_is_deleting_and_adding() {
    let items = 20;
    for number in 0..=items + 1 {
        for length in [0, 1, 16, 24, 55, 100, 7000] {
            let (mut at_once, mut in_steps) = (index_page(items), index_page(items));
            let bytes = vec![0xEE; length];
            let one = index_replace(&mut at_once, number, &bytes);
            let two = index_delete(&mut in_steps, number)
                .and_then(|()| add_item(&mut in_steps, &bytes, number, Place::Insert));
            assert_eq!(one.is_ok(), two.is_ok(), "item {number}, {length} bytes");
            if one.is_ok() {
                assert_eq!(at_once, in_steps, "item {number}, {length} bytes");
            }
        }
    }
}

#[test]
fn replacing_several_is_packing_and_adding() {
    let lists: [&[u16]; 7] = [
        &[1, 2, 3],
        &[2, 9, 20],
        &[18, 19, 20],
        &[1, 5, 6, 7, 13, 20],
        &[5, 5, 6],
        &[19, 20, 21],
        &[0, 1, 2],
    ];
    let all: Vec<u16> = (1..=20).collect();
    for numbers in lists.into_iter().chain([&all[..]]) {
        let (mut at_once, mut in_steps) = (index_page(20), index_page(20));
        let bytes = |number: u16| {
            if number.is_multiple_of(2) {
                &[1; 16][..]
            } else {
                &[2; 40]
            }
        };
        let one = index_multi_replace(&mut at_once, numbers, bytes);
        let two = index_multi_delete(&mut in_steps, numbers.iter().copied()).and_then(|()| {
            let mut numbers = numbers.iter();
            numbers.try_for_each(|&number| add_item(&mut in_steps, bytes(number), number, Place::Insert))
        });
        assert_eq!(one.is_ok(), two.is_ok(), "{numbers:?}");
        if one.is_ok() {
            assert_eq!(at_once, in_steps, "{numbers:?}");
        }
    }
}

#[test]
fn line_pointers_that_would_leave_their_bits_are_refused() {
    // Both have storage at or below the end of what moves; one of them leads to 0x7FF0.
    for offset in [0, 8, 0x7FF0] {
        let mut page = index_page(3);
        let id = ItemId {
            offset,
            ..item_id(&page, 2).unwrap()
        };
        set_item_id(&mut page, 2, id).unwrap();
        let end = special(&page);
        set_upper(&mut page, end - 100);
        let up = shift_items(&mut page.clone(), end - 50, 50);
        // It is above what moves, or is moved where there is room.
        assert_eq!(up, Ok(()), "{offset}");
        let down = shift_items(&mut page, end - 50, -16);
        assert_eq!(down.is_err(), offset < 16, "{offset}");
    }
}

/// Items keep their bytes and numbers, and lie against the special area in the order of their numbers, whether they lay in
/// that order before or not.
#[test]
fn repairing_packs_items_in_the_order_of_their_numbers() {
    for (items, replaced) in [
        (20u16, &[][..]),
        (20, &[1]),
        (20, &[7, 8]),
        (20, &[20, 3]),
        (5, &[5, 4, 3, 2, 1]),
    ] {
        for gone in 0..=items {
            let mut page = [0; PAGE_SIZE];
            init(&mut page, 0);
            let bytes = |number: u16| vec![number as u8; 16 + usize::from(number * 7 % 40)];
            for number in 1..=items {
                add_item(&mut page, &bytes(number), number, Place::HeapSlot).unwrap();
            }
            // Removed and added again, an item lies below all others.
            for &number in replaced {
                set_item_id(&mut page, number, ItemId::UNUSED).unwrap();
                add_item(&mut page, &bytes(number), number, Place::HeapSlot).unwrap();
            }
            if gone > 0 {
                set_item_id(&mut page, gone, ItemId::UNUSED).unwrap();
            }
            repair_fragmentation(&mut page).unwrap();
            let mut end = PAGE_SIZE;
            for number in (1..=items).filter(|number| *number != gone) {
                let id = item_id(&page, number).unwrap();
                assert_eq!(usize::from(id.offset) + max_align(usize::from(id.length)), end);
                assert_eq!(
                    item(&page, number).unwrap(),
                    bytes(number),
                    "{items}, without {gone}"
                );
                end = usize::from(id.offset);
            }
            assert_eq!(upper(&page), end);
            assert_eq!(item_count(&page), if gone == items { items - 1 } else { items });
        }
    }
}
