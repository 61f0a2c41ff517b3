//! Relation maps: which relfilenode the system tables have that cannot look themselves up
//! (`utils/cache/relmapper.c`). A record carries the whole file, which recovery writes with its magic number and CRC
//! set anew. The file is magic number, number of entries, room for 62 entries of 8 bytes (since Postgres 16 for 64) and
//! the CRC32C of all before it; in 15 four bytes of padding follow.

use bytes::{Bytes, BytesMut};
use lakebed_types::PgVersion;
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;

/// Bytes of a `pg_filenode.map` of this version.
pub fn relation_map_bytes(version: PgVersion) -> usize {
    match version {
        PgVersion::V15 => 512,
        PgVersion::V16 | PgVersion::V17 | PgVersion::V18 => 524,
    }
}

/// Entries that the file has room for (`MAX_MAPPINGS`).
fn max_mappings(version: PgVersion) -> u32 {
    match version {
        PgVersion::V15 => 62,
        PgVersion::V16 | PgVersion::V17 | PgVersion::V18 => 64,
    }
}

const MAGIC: u32 = 0x0059_2717;
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;

pub(crate) fn effects(record: &DecodedRecord, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    let (db, tablespace) = (data.u32()?, data.u32()?);
    let expected = relation_map_bytes(record.version);
    if data.count(1)? != expected {
        return Err("a relation map does not have its version's length");
    }
    let bytes = file(&data.take(expected)?, max_mappings(record.version))?;
    data.end()?;
    effects.catalogue.push(CatalogueChange::RelationMapUpdated {
        db,
        tablespace,
        bytes,
    });
    Ok(())
}

/// `write_relmap_file`.
fn file(logged: &Bytes, max_mappings: u32) -> Result<Bytes, Rule> {
    let mut file = BytesMut::from(&logged[..]);
    file[..4].copy_from_slice(&MAGIC.to_le_bytes());
    let mappings = u32::from_le_bytes([file[4], file[5], file[6], file[7]]);
    if mappings > max_mappings {
        return Err("a relation map has more entries than room");
    }
    let crc_at = HEADER_BYTES + ENTRY_BYTES * max_mappings as usize;
    let crc = crc32c::crc32c(&file[..crc_at]);
    file[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(file.freeze())
}
