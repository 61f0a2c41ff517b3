//! Redo of the first heap resource manager (`heap_redo` in `access/heap/heapam.c`): insert, delete, update, lock,
//! confirm of a speculative insertion, in-place update.
//!
//! Visibility-map bits that these records clear are on another page; see the module `vm`.

use lakebed_types::ForkNumber;

use crate::page::{self, ItemState, Place};
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes, vm};

/// Fields of a tuple header (`access/htup_details.h`), offsets in bytes from the tuple's start.
pub(crate) mod tuple {
    /// Transaction that inserted.
    pub const XMIN: usize = 0;
    /// Transaction that deleted or locked.
    pub const XMAX: usize = 4;
    /// Command id, or `t_xvac`.
    pub const FIELD3: usize = 8;
    /// TID of the next version: block high half, block low half, item number.
    pub const CTID: usize = 12;
    /// Attribute count and flags.
    pub const INFOMASK2: usize = 18;
    /// Flags.
    pub const INFOMASK: usize = 20;
    /// Offset of the user data.
    pub const HOFF: usize = 22;
    /// Bytes of the fixed header.
    pub const HEADER: usize = 23;

    /// `t_infomask`: command id is a combo.
    pub const COMBOCID: u16 = 0x0020;
    const KEYSHR_LOCK: u16 = 0x0010;
    const EXCL_LOCK: u16 = 0x0040;
    const LOCK_ONLY: u16 = 0x0080;
    const LOCK_MASK: u16 = KEYSHR_LOCK | EXCL_LOCK;
    const IS_MULTI: u16 = 0x1000;
    const XMAX_COMMITTED: u16 = 0x0400;
    const XMAX_INVALID: u16 = 0x0800;
    const MOVED: u16 = 0xC000;
    const XMAX_BITS: u16 = XMAX_COMMITTED | XMAX_INVALID | IS_MULTI | LOCK_MASK | LOCK_ONLY;
    /// `t_infomask2`: key columns changed, or the tuple was deleted.
    const KEYS_UPDATED: u16 = 0x2000;
    /// `t_infomask2`: the next version is on the same page, without index entries of its own.
    const HOT_UPDATED: u16 = 0x4000;

    /// A tuple's bytes, at least its fixed header long.
    pub struct Tuple<'a>(&'a mut [u8]);

    impl<'a> Tuple<'a> {
        /// Checks the length.
        #[inline]
        pub fn new(bytes: &'a mut [u8]) -> Result<Tuple<'a>, crate::Fault> {
            if bytes.len() < HEADER {
                Err("a heap tuple is shorter than its header")
            } else {
                Ok(Tuple(bytes))
            }
        }

        /// A 16-bit field.
        #[inline]
        pub fn u16(&self, at: usize) -> u16 {
            u16::from_le_bytes([self.0[at], self.0[at + 1]])
        }

        /// Writes a 16-bit field.
        #[inline]
        pub fn put_u16(&mut self, at: usize, value: u16) {
            self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }

        /// Writes a 32-bit field.
        #[inline]
        pub fn put_u32(&mut self, at: usize, value: u32) {
            self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }

        /// Writes `t_ctid`.
        #[inline]
        pub fn set_ctid(&mut self, block: u32, number: u16) {
            self.put_u16(CTID, (block >> 16) as u16);
            self.put_u16(CTID + 2, block as u16);
            self.put_u16(CTID + 4, number);
        }

        /// `HeapTupleHeaderSetCmin` or `SetCmax` with the first command id and no combo.
        #[inline]
        pub fn reset_command(&mut self) {
            self.put_u32(FIELD3, 0);
            self.put_u16(INFOMASK, self.u16(INFOMASK) & !COMBOCID);
        }

        /// Replaces all xmax and lock bits by those that a record's `infobits` byte tells
        /// (`fix_infomask_from_infobits`).
        #[inline]
        pub fn set_infobits(&mut self, infobits: u8) {
            let pairs = [
                (0x01, IS_MULTI),
                (0x02, LOCK_ONLY),
                (0x04, EXCL_LOCK),
                (0x08, KEYSHR_LOCK),
            ];
            let mut mask = self.u16(INFOMASK) & !(XMAX_BITS | MOVED);
            for (bit, flag) in pairs {
                if infobits & bit != 0 {
                    mask |= flag;
                }
            }
            self.put_u16(INFOMASK, mask);
            let mut mask2 = self.u16(INFOMASK2) & !KEYS_UPDATED;
            if infobits & 0x10 != 0 {
                mask2 |= KEYS_UPDATED;
            }
            self.put_u16(INFOMASK2, mask2);
        }

        /// Sets or clears the mark of a HOT update.
        #[inline]
        pub fn set_hot_updated(&mut self, hot: bool) {
            let mask2 = self.u16(INFOMASK2) & !HOT_UPDATED;
            self.put_u16(INFOMASK2, if hot { mask2 | HOT_UPDATED } else { mask2 });
        }

        /// `HEAP_XMAX_IS_LOCKED_ONLY`.
        #[inline]
        pub fn is_locked_only(&self) -> bool {
            let mask = self.u16(INFOMASK);
            mask & LOCK_ONLY != 0 || mask & (IS_MULTI | LOCK_MASK) == EXCL_LOCK
        }
    }
}

use tuple::Tuple;

/// `XLOG_HEAP_OPMASK`.
pub(crate) const OPERATION: u8 = 0x70;
/// `MaxHeapTupleSize`.
const MAX_TUPLE_BYTES: usize = 8160;

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    if record.own.rel.fork == ForkNumber::Vm {
        return vm::clear_named(record, page);
    }
    match record.info & OPERATION {
        0x00 => insert(record, page)?,
        0x10 => delete(record, page)?,
        0x20 => update(record, page, false)?,
        0x40 => update(record, page, true)?,
        0x50 => confirm(record, page)?,
        0x60 => lock(record, page)?,
        0x70 => inplace(record, page)?,
        _ => return Err("a record of this type names no page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// The tuple of a normal line pointer.
pub(crate) fn tuple_of(page: &mut PageBytes, number: u16) -> Result<Tuple<'_>, Fault> {
    if page::item_id(page, number)?.state != ItemState::Normal {
        return Err("it needs a tuple at a line pointer that is not normal");
    }
    Tuple::new(page::item_mut(page, number)?)
}

/// `xl_heap_header`, followed by what comes after the fixed header in the tuple.
pub(crate) struct TupleHeader {
    infomask2: u16,
    infomask: u16,
    pub(crate) hoff: u8,
}

impl TupleHeader {
    pub(crate) fn read(data: &mut Reader<'_>) -> Result<TupleHeader, Fault> {
        Ok(TupleHeader {
            infomask2: data.u16()?,
            infomask: data.u16()?,
            hoff: data.u8()?,
        })
    }

    /// Writes the fixed part of the tuple that redo inserts, at the start of its place on the page.
    pub(crate) fn write(
        &self,
        xmin: u32,
        xmax: u32,
        ctid: (u32, u16),
        place: &mut [u8],
    ) -> Result<(), Fault> {
        place.get_mut(..tuple::HEADER).unwrap_or_default().fill(0);
        let mut new = Tuple::new(place)?;
        new.put_u16(tuple::INFOMASK2, self.infomask2);
        new.put_u16(tuple::INFOMASK, self.infomask);
        new.put_u32(tuple::XMIN, xmin);
        new.put_u32(tuple::XMAX, xmax);
        new.reset_command();
        new.set_ctid(ctid.0, ctid.1);
        place[tuple::HOFF] = self.hoff;
        Ok(())
    }

    /// Adds a tuple to a page: this header, then `body`, everything after the 23 bytes.
    pub(crate) fn add(
        &self,
        page: &mut PageBytes,
        number: u16,
        xmin: u32,
        block: u32,
        body: &[u8],
    ) -> Result<(), Fault> {
        let place = reserve(page, number, body.len())?;
        self.write(xmin, 0, (block, number), place)?;
        place[tuple::HEADER..].copy_from_slice(body);
        Ok(())
    }
}

/// Room for a tuple with so many bytes after its fixed header.
fn reserve(page: &mut PageBytes, number: u16, body: usize) -> Result<&mut [u8], Fault> {
    let length = tuple::HEADER + body;
    if length > MAX_TUPLE_BYTES {
        return Err("its tuple is larger than a page");
    }
    page::reserve_item(page, length, number, Place::HeapSlot)
}

fn insert(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (number, flags) = (main.u16()?, main.u8()?);
    if record.own.will_init {
        page::init(page, 0);
    }
    let mut data = Reader::new(record.own.needed_data()?);
    let header = TupleHeader::read(&mut data)?;
    header.add(page, number, record.xid, record.own.block, data.rest())?;
    if flags & 0x01 != 0 {
        page::clear_flags(page, page::ALL_VISIBLE);
    }
    Ok(())
}

fn delete(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (xmax, number, infobits, flags) = (main.u32()?, main.u16()?, main.u8()?, main.u8()?);
    let mut old = tuple_of(page, number)?;
    old.set_infobits(infobits);
    old.set_hot_updated(false);
    // A "super" deletion takes back a speculative insertion: as if it had never been.
    if flags & 0x08 == 0 {
        old.put_u32(tuple::XMAX, xmax);
    } else {
        old.put_u32(tuple::XMIN, 0);
    }
    old.reset_command();
    if flags & 0x10 != 0 {
        // Moved to another partition (ItemPointerSetMovedPartitions).
        old.set_ctid(u32::MAX, 0xFFFD);
    } else {
        old.set_ctid(record.own.block, number);
    }
    page::set_prunable(page, record.xid);
    if flags & 0x01 != 0 {
        page::clear_flags(page, page::ALL_VISIBLE);
    }
    Ok(())
}

/// Block 0 holds the new version, block 1 the old one when it is on another page.
fn update(record: &PageRecord<'_>, page: &mut PageBytes, hot: bool) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (old_xmax, old_number) = (main.u32()?, main.u16()?);
    let (old_infobits, flags) = (main.u8()?, main.u8()?);
    let (new_xmax, new_number) = (main.u32()?, main.u16()?);
    let new_block = record.needed_block(0)?;
    let same_page = record.block(1).is_none();
    if record.own.id == 1 || same_page {
        let mut old = tuple_of(page, old_number)?;
        old.set_infobits(old_infobits);
        old.set_hot_updated(hot);
        old.put_u32(tuple::XMAX, old_xmax);
        old.reset_command();
        old.set_ctid(new_block, new_number);
        page::set_prunable(page, record.xid);
        if flags & 0x01 != 0 {
            page::clear_flags(page, page::ALL_VISIBLE);
        }
    }
    if record.own.id != 0 {
        return Ok(());
    }
    if record.own.will_init {
        page::init(page, 0);
    }
    let mut data = Reader::new(record.own.needed_data()?);
    let prefix = if flags & 0x20 != 0 {
        usize::from(data.u16()?)
    } else {
        0
    };
    let suffix = if flags & 0x40 != 0 {
        usize::from(data.u16()?)
    } else {
        0
    };
    if prefix + suffix > 0 && !same_page {
        return Err("it takes bytes from an old version on another page");
    }
    let header = TupleHeader::read(&mut data)?;
    // The old version's bytes are on the page; they are copied from there into the new one.
    let (prefix_at, suffix_at) = if same_page {
        let id = page::item_id(page, old_number)?;
        let old = page::item(page, old_number)?;
        let start = usize::from(
            *old.get(tuple::HOFF)
                .ok_or("a heap tuple is shorter than its header")?,
        );
        let outside = "it takes bytes from outside the old version";
        old.get(start..start + prefix).ok_or(outside)?;
        let suffix_at = old.len().checked_sub(suffix).ok_or(outside)?;
        (usize::from(id.offset) + start, usize::from(id.offset) + suffix_at)
    } else {
        (0, 0)
    };
    // The null bitmap comes before the common prefix.
    let bitmap = if prefix > 0 {
        data.take(
            usize::from(header.hoff)
                .checked_sub(tuple::HEADER)
                .ok_or("its tuple header is too short")?,
        )?
    } else {
        &[]
    };
    let middle = data.rest();
    let place = reserve(page, new_number, bitmap.len() + prefix + middle.len() + suffix)?;
    header.write(record.xid, new_xmax, (new_block, new_number), place)?;
    let (bitmap_place, rest) = place[tuple::HEADER..].split_at_mut(bitmap.len());
    bitmap_place.copy_from_slice(bitmap);
    rest[prefix..prefix + middle.len()].copy_from_slice(middle);
    // A new item is where the free space ended.
    let body = page::upper(page) + tuple::HEADER + bitmap.len();
    page.copy_within(prefix_at..prefix_at + prefix, body);
    page.copy_within(suffix_at..suffix_at + suffix, body + prefix + middle.len());
    if flags & 0x02 != 0 {
        page::clear_flags(page, page::ALL_VISIBLE);
    }
    Ok(())
}

fn confirm(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let number = Reader::new(record.main).u16()?;
    tuple_of(page, number)?.set_ctid(record.own.block, number);
    Ok(())
}

fn lock(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (xid, number, infobits) = (main.u32()?, main.u16()?, main.u8()?);
    let mut locked = tuple_of(page, number)?;
    locked.set_infobits(infobits);
    if locked.is_locked_only() {
        locked.set_hot_updated(false);
        locked.set_ctid(record.own.block, number);
    }
    locked.put_u32(tuple::XMAX, xid);
    locked.reset_command();
    Ok(())
}

fn inplace(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let number = Reader::new(record.main).u16()?;
    tuple_of(page, number)?;
    let new = record.own.needed_data()?;
    let old = page::item_mut(page, number)?;
    let start = usize::from(old[tuple::HOFF]);
    let target = old.get_mut(start..).filter(|target| target.len() == new.len());
    target
        .ok_or("the in-place update has another length than the tuple")?
        .copy_from_slice(new);
    Ok(())
}
