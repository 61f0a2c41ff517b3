//! Creation and removal of databases (`commands/dbcommands.c`).

use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;

const CREATE_FILE_COPY: u8 = 0x00;
const CREATE_WAL_LOG: u8 = 0x10;

pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    let db = data.u32()?;
    let change = match record_type {
        CREATE_FILE_COPY => CatalogueChange::DatabaseCreatedByCopy {
            db,
            tablespace: data.u32()?,
            source_db: data.u32()?,
            source_tablespace: data.u32()?,
        },
        CREATE_WAL_LOG => CatalogueChange::DatabaseCreatedWalLog {
            db,
            tablespace: data.u32()?,
        },
        _ => {
            let count = data.count(4)?;
            CatalogueChange::DatabaseDropped {
                db,
                tablespaces: data.u32s(count)?,
            }
        }
    };
    data.end()?;
    effects.catalogue.push(change);
    Ok(())
}
