//! Records into WAL pages: headers, padding, `xl_prev` and `xl_crc` put in.
//!
//! What a batch leaves out because it follows from the rest. The encoder lays the records out in the same way and compares
//! with what it was given: what is not reproduced to the last byte goes as plain bytes.

use lakebed_types::Lsn;
use lakebed_wal::page::{WAL_PAGE_BYTES, WalFormat};
use lakebed_wal::parse::RECORD_HEADER_BYTES;

const RMGR_XLOG: u8 = 0;
const XLOG_SWITCH: u8 = 0x40;

/// Writes records behind each other as Postgres does.
#[derive(Debug)]
pub(crate) struct PageWriter {
    format: WalFormat,
    begin: Lsn,
    previous: Lsn,
    out: Vec<u8>,
}

impl PageWriter {
    /// Begins at a record boundary; `previous` is the start of the record that ends there.
    pub(crate) fn new(format: WalFormat, begin: Lsn, previous: Lsn, out: Vec<u8>) -> PageWriter {
        PageWriter {
            format,
            begin,
            previous,
            out,
        }
    }

    fn at(&self) -> Lsn {
        Lsn(self.begin.0 + self.out.len() as u64)
    }

    /// Bytes so far.
    pub(crate) fn written(&self) -> usize {
        self.out.len()
    }

    /// The bytes, and the start of the last record.
    pub(crate) fn finish(self) -> (Vec<u8>, Lsn) {
        (self.out, self.previous)
    }

    /// Writes a record of at least [`RECORD_HEADER_BYTES`] bytes whose `xl_prev` and `xl_crc` are filled in here. `flags`
    /// gives what a page header has beyond what follows from its place. False if more than `most` bytes would come together.
    pub(crate) fn record(&mut self, record: &mut [u8], most: usize, flags: u16) -> bool {
        let start = if self.at().0.is_multiple_of(WAL_PAGE_BYTES) {
            Lsn(self.at().0 + self.format.encode_header(self.at(), 0).len() as u64)
        } else {
            self.at()
        };
        seal(record, self.previous);
        let mut rest: &[u8] = record;
        let mut first = true;
        while !rest.is_empty() {
            let page = self.at();
            if page.0.is_multiple_of(WAL_PAGE_BYTES) {
                let remaining = if first { 0 } else { rest.len() };
                let mut header = self.format.encode_header(page, remaining as u32);
                if let Some(info) = header.get_mut(2..4) {
                    let told = u16::from_le_bytes([info[0], info[1]]) | flags;
                    info.copy_from_slice(&told.to_le_bytes());
                }
                self.out.extend(header);
            }
            first = false;
            let room = (WAL_PAGE_BYTES - self.at().0 % WAL_PAGE_BYTES) as usize;
            let (here, after) = rest.split_at(room.min(rest.len()));
            if self.out.len() + here.len() > most {
                return false;
            }
            self.out.extend_from_slice(here);
            rest = after;
        }
        let mut end = self.at().0.next_multiple_of(8);
        if is_switch(record) {
            end = end.next_multiple_of(u64::from(self.format.segment_bytes));
        }
        let length = usize::try_from(end - self.begin.0).unwrap_or(usize::MAX);
        if length > most {
            return false;
        }
        self.out.resize(length, 0);
        self.previous = start;
        true
    }
}

fn is_switch(record: &[u8]) -> bool {
    let (info, rmid) = (record.get(16), record.get(17));
    rmid == Some(&RMGR_XLOG) && info.is_some_and(|info| info & 0xf0 == XLOG_SWITCH)
}

/// Fills in `xl_prev` and `xl_crc`.
fn seal(record: &mut [u8], previous: Lsn) {
    let Some((header, body)) = record.split_at_mut_checked(RECORD_HEADER_BYTES) else {
        return;
    };
    let (told, crc) = header.split_at_mut(20);
    if let Some(field) = told.get_mut(8..16) {
        field.copy_from_slice(&previous.0.to_le_bytes());
    }
    let sum = crc32c::crc32c_append(crc32c::crc32c(body), told);
    crc.copy_from_slice(&sum.to_le_bytes());
}
