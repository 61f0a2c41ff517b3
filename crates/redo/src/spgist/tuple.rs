//! Tuples of SP-GiST pages (`access/spgist_private.h`). All kinds share the low two bits of the first byte, their state.
//!
//! | bytes | leaf | dead | inner |
//! |---|---|---|---|
//! | 0..4 | state (2 bits), size (30) | the same | state (2), all the same (1), nodes (13), prefix size (16) |
//! | 4..6 | next item of the chain (14), two flags | unused | size |
//! | 6..12 | heap TID | where a redirect leads | unused (6..8), then prefix and nodes |
//! | 12..16 | datum from 16 on | transaction of a redirect | |
//!
//! A node begins like an index tuple: TID (6 bytes), then a word whose low 13 bits are its size.

use super::Place;
use crate::Fault;
use crate::reader::Reader;

/// `tupstate`: a real tuple.
pub(super) const LIVE: u8 = 0;
/// Leads to where the tuple went.
pub(super) const REDIRECT: u8 = 1;
/// Head of a chain without entries.
pub(super) const DEAD: u8 = 2;
/// Keeps item numbers; may be replaced.
pub(super) const PLACEHOLDER: u8 = 3;

/// Bytes of a dead tuple.
const DEAD_BYTES: usize = 16;
const INNER_HEADER: usize = 8;
const NODE_HEADER: usize = 8;
const NEXT_MASK: u16 = 0x3FFF;

const BROKEN: Fault = "an SP-GiST tuple is damaged";

/// The state of the tuple that fills an item.
pub(super) fn state(item: &[u8]) -> Result<u8, Fault> {
    Ok(item.first().ok_or(BROKEN)? & 3)
}

/// Takes a leaf tuple from the record.
pub(super) fn take_leaf<'a>(data: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let size = data.clone().u32()? >> 2;
    let size = usize::try_from(size).map_err(|_| BROKEN)?;
    if size < DEAD_BYTES {
        return Err(BROKEN);
    }
    data.take(size)
}

/// Takes an inner tuple from the record.
pub(super) fn take_inner<'a>(data: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let mut header = *data;
    let (_, size) = (header.u32()?, usize::from(header.u16()?));
    if size < INNER_HEADER {
        return Err(BROKEN);
    }
    data.take(size)
}

fn put_place(bytes: &mut [u8], place: Place) -> Result<(), Fault> {
    let target = bytes.first_chunk_mut::<6>().ok_or(BROKEN)?;
    target[0..2].copy_from_slice(&((place.block >> 16) as u16).to_le_bytes());
    target[2..4].copy_from_slice(&(place.block as u16).to_le_bytes());
    target[4..6].copy_from_slice(&place.number.to_le_bytes());
    Ok(())
}

/// What stands where a TID is invalid.
const NOWHERE: Place = Place {
    block: u32::MAX,
    number: 0,
};

/// `spgFormDeadTuple`; `target` is used by redirects only.
pub(super) fn dead(state: u8, target: Place, xid: u32) -> Result<[u8; DEAD_BYTES], Fault> {
    let mut tuple = [0; DEAD_BYTES];
    tuple[0] = state | (DEAD_BYTES as u8) << 2;
    if state == REDIRECT {
        put_place(&mut tuple[6..], target)?;
        tuple[12..16].copy_from_slice(&xid.to_le_bytes());
    } else {
        put_place(&mut tuple[6..], NOWHERE)?;
    }
    Ok(tuple)
}

/// Turns a redirect into a placeholder. Its transaction id stays, as in Postgres.
pub(super) fn make_placeholder(item: &mut [u8]) -> Result<(), Fault> {
    if state(item)? != REDIRECT || item.len() < DEAD_BYTES {
        return Err("a tuple to become a placeholder is not a redirect");
    }
    item[0] |= PLACEHOLDER;
    put_place(&mut item[6..], NOWHERE)
}

/// Links a leaf tuple to the next item of its chain.
pub(super) fn set_next(item: &mut [u8], next: u16) -> Result<(), Fault> {
    let field = item.get_mut(4..6).ok_or(BROKEN)?;
    let old = u16::from_le_bytes([field[0], field[1]]);
    field.copy_from_slice(&(old & !NEXT_MASK | next & NEXT_MASK).to_le_bytes());
    Ok(())
}

/// `spgUpdateNodeLink`: lets the `wanted`-th node of an inner tuple lead to `target`.
pub(super) fn set_node_link(item: &mut [u8], wanted: u16, target: Place) -> Result<(), Fault> {
    let mut header = Reader::new(item);
    let (first, prefix) = (header.u16()?, usize::from(header.u16()?));
    if wanted >= first >> 3 {
        return Err("an inner tuple does not have the node that gets a new link");
    }
    let mut nodes = item.get_mut(INNER_HEADER + prefix..).ok_or(BROKEN)?;
    for _ in 0..wanted {
        let info = nodes.get(6..8).ok_or(BROKEN)?;
        let size = usize::from(u16::from_le_bytes([info[0], info[1]]) & 0x1FFF);
        if size < NODE_HEADER {
            return Err(BROKEN);
        }
        nodes = nodes.get_mut(size..).ok_or(BROKEN)?;
    }
    put_place(nodes, target)
}
