//! Multixacts: sets of transactions that lock one row together (`access/transam/multixact.c`).
//!
//! Creating one stores where its members begin, where the next one's begin (which tells its own length), and the
//! members themselves, each with a status. Page zero records come before a page is used. A server of an older minor
//! version does not store the next one's offset and zeroes the next page only later; its records give the same
//! deltas in the order of its WAL, and the one offset that the late zeroing wipes is stored again by the next
//! multixact's own record, or by Postgres when it starts.

use lakebed_types::SlruKind;
use lakebed_wal::record::DecodedRecord;

use crate::delta::{MAX_MEMBER_STATUS, SlruDelta};
use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;
use crate::slru::{MEMBERS_PER_PAGE, OFFSETS_PER_PAGE, PAGES_PER_SEGMENT, SlruCut, locate};

pub(crate) const ZERO_OFFSETS_PAGE: u8 = 0x00;
pub(crate) const ZERO_MEMBERS_PAGE: u8 = 0x10;
pub(crate) const CREATE_ID: u8 = 0x20;
pub(crate) const TRUNCATE_ID: u8 = 0x30;

const FIRST_MULTI: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) multi: u32,
    /// Where its members begin.
    pub(crate) offset: u32,
    /// Transaction id and status.
    pub(crate) members: Vec<(u32, u8)>,
}

impl Created {
    /// Where the next one's members may begin.
    pub(crate) fn end_offset(&self) -> u32 {
        // A record has less than 2^30 bytes.
        self.offset.wrapping_add(self.members.len() as u32)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncated {
    pub(crate) oldest_multi_db: u32,
    /// The oldest multixact that stays.
    pub(crate) oldest_multi: u32,
    first_member: u32,
    end_member: u32,
}

pub(crate) fn parse_create(record: &DecodedRecord) -> Result<Created, Rule> {
    let mut data = Reader::new(&record.main_data);
    let (multi, offset) = (data.u32()?, data.u32()?);
    if multi < FIRST_MULTI {
        return Err("a multixact id is zero");
    }
    let count = data.count(8)?;
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        let (xid, status) = (data.u32()?, data.u32()?);
        let status = u8::try_from(status)
            .ok()
            .filter(|&status| status <= MAX_MEMBER_STATUS);
        members.push((
            xid,
            status.ok_or("a multixact member has a status that does not exist")?,
        ));
    }
    data.end()?;
    Ok(Created {
        multi,
        offset,
        members,
    })
}

pub(crate) fn parse_truncate(record: &DecodedRecord) -> Result<Truncated, Rule> {
    let mut data = Reader::new(&record.main_data);
    let oldest_multi_db = data.u32()?;
    data.u32()?; // where the range of offsets begins: nobody needs it
    let truncated = Truncated {
        oldest_multi_db,
        oldest_multi: data.u32()?,
        first_member: data.u32()?,
        end_member: data.u32()?,
    };
    data.end()?;
    if truncated.oldest_multi < FIRST_MULTI {
        return Err("a multixact id is zero");
    }
    Ok(truncated)
}

pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    match record_type {
        ZERO_OFFSETS_PAGE | ZERO_MEMBERS_PAGE => {
            let kind = if record_type == ZERO_OFFSETS_PAGE {
                SlruKind::MultiXactOffsets
            } else {
                SlruKind::MultiXactMembers
            };
            let page = crate::slru_records::zeroed_page(record, kind)?;
            effects.slru.push((page, SlruDelta::ZeroPage));
        }
        CREATE_ID => {
            let created = parse_create(record)?;
            store_offsets(&created, effects);
            store_members(&created, effects);
        }
        _ => {
            let truncated = parse_truncate(record)?;
            let segment = |member: u32| u64::from(member / MEMBERS_PER_PAGE) / PAGES_PER_SEGMENT;
            effects.catalogue.push(CatalogueChange::SlruTruncated {
                kind: SlruKind::MultiXactMembers,
                cut: SlruCut::Segments {
                    first: segment(truncated.first_member),
                    end: segment(truncated.end_member),
                },
            });
            // One back, since the page of the oldest one may not exist yet; before the first comes the last.
            let before = match truncated.oldest_multi {
                FIRST_MULTI => u32::MAX,
                multi => multi - 1,
            };
            effects.catalogue.push(CatalogueChange::SlruTruncated {
                kind: SlruKind::MultiXactOffsets,
                cut: SlruCut::Before {
                    page: u64::from(before / OFFSETS_PER_PAGE),
                },
            });
        }
    }
    Ok(())
}

/// The offset of this multixact and of the next: the one after the last is the first, and offset 0 is never used.
fn store_offsets(created: &Created, effects: &mut Effects) {
    let next = created.multi.wrapping_add(1).max(FIRST_MULTI);
    let next_offset = created.end_offset().max(1);
    let (page, slot) = locate(SlruKind::MultiXactOffsets, created.multi);
    let (next_page, next_slot) = locate(SlruKind::MultiXactOffsets, next);
    let (own, next) = ((slot, created.offset), (next_slot, next_offset));
    if page == next_page {
        let entries = vec![own, next];
        effects.slru.push((page, SlruDelta::MultiOffsetsSet { entries }));
    } else {
        effects
            .slru
            .push((page, SlruDelta::MultiOffsetsSet { entries: vec![own] }));
        effects
            .slru
            .push((next_page, SlruDelta::MultiOffsetsSet { entries: vec![next] }));
    }
}

/// Members in runs of neighbours on one page.
fn store_members(created: &Created, effects: &mut Effects) {
    let (mut offset, mut rest) = (created.offset, created.members.as_slice());
    while !rest.is_empty() {
        let (page, first_slot) = locate(SlruKind::MultiXactMembers, offset);
        // The last page ends early, where the offsets begin anew.
        let room_on_page = MEMBERS_PER_PAGE - u32::from(first_slot);
        let room = u64::from(room_on_page).min((1 << 32) - u64::from(offset));
        let (run, later) = rest.split_at(rest.len().min(room as usize));
        let members = run.to_vec();
        effects
            .slru
            .push((page, SlruDelta::MembersSet { first_slot, members }));
        offset = offset.wrapping_add(run.len() as u32);
        rest = later;
    }
}

#[cfg(test)]
#[path = "multixact_tests.rs"]
mod tests;
