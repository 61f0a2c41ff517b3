//! Creation and removal of tablespaces (`commands/tablespace.c`).

use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;

const CREATE: u8 = 0x00;

pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    let oid = data.u32()?;
    let change = if record_type == CREATE {
        let path = data.c_string()?;
        CatalogueChange::TablespaceCreated { oid, path }
    } else {
        CatalogueChange::TablespaceDropped { oid }
    };
    data.end()?;
    effects.catalogue.push(change);
    Ok(())
}
