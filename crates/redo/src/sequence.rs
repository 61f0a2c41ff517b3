//! Redo of sequences (`seq_redo` in `commands/sequence.c`): the page is built anew each time, with one tuple.

use crate::page::{self, Place};
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

/// `SEQ_MAGIC`, in the page's special area.
const MAGIC: u32 = 0x1717;

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    if record.info & 0xF0 != 0 {
        return Err("an unknown type of sequence record");
    }
    let mut main = Reader::new(record.main);
    main.take(12)?; // tablespace, database, relfilenode: the block reference has them too
    page::init(page, 4);
    let special = page::special(page);
    page::put_u32(page, special, MAGIC);
    page::add_item(page, main.rest(), 1, Place::Insert)?;
    page::set_lsn(page, record.end);
    Ok(())
}
