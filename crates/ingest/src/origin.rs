//! Progress of replication origins when it is set by hand or forgotten (`replication/logical/origin.c`). In normal
//! operation it comes with commits.

use lakebed_types::Lsn;
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;

const SET: u8 = 0x00;

pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    let change = if record_type == SET {
        let (remote, origin, force) = (Lsn(data.u64()?), data.u16()?, data.bool()?);
        data.skip(5)?; // padding of the C structure
        CatalogueChange::OriginAdvanced {
            origin,
            remote,
            local: record.end,
            force,
        }
    } else {
        CatalogueChange::OriginDropped { origin: data.u16()? }
    };
    data.end()?;
    effects.catalogue.push(change);
    Ok(())
}
