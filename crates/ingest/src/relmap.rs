//! Relation maps: which relfilenode the system tables have that cannot look themselves up
//! (`utils/cache/relmapper.c`). A record carries the whole file, which recovery writes with its magic number and CRC
//! set anew.

use bytes::{Bytes, BytesMut};
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;

/// Bytes of a `pg_filenode.map`.
pub const RELATION_MAP_BYTES: usize = 512;

const MAGIC: u32 = 0x0059_2717;
const MAX_MAPPINGS: u32 = 62;
const CRC_AT: usize = 504;

pub(crate) fn effects(record: &DecodedRecord, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    let (db, tablespace) = (data.u32()?, data.u32()?);
    if data.count(1)? != RELATION_MAP_BYTES {
        return Err("a relation map does not have 512 bytes");
    }
    let bytes = file(&data.take(RELATION_MAP_BYTES)?)?;
    data.end()?;
    effects.catalogue.push(CatalogueChange::RelationMapUpdated {
        db,
        tablespace,
        bytes,
    });
    Ok(())
}

/// `write_relmap_file`.
fn file(logged: &Bytes) -> Result<Bytes, Rule> {
    let mut file = BytesMut::from(&logged[..]);
    file[..4].copy_from_slice(&MAGIC.to_le_bytes());
    let mappings = u32::from_le_bytes([file[4], file[5], file[6], file[7]]);
    if mappings > MAX_MAPPINGS {
        return Err("a relation map has more than 62 entries");
    }
    let crc = crc32c::crc32c(&file[..CRC_AT]);
    file[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(file.freeze())
}
