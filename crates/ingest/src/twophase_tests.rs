use super::*;
use crate::testing::prepare;

#[test]
fn a_prepare_gives_its_file_and_its_transactions() {
    for version in PgVersion::ALL {
        check_prepare(prepare(version));
    }
}

fn check_prepare(record: DecodedRecord) {
    let parsed = parse(&record).unwrap();
    assert_eq!((parsed.xid, &parsed.subxids[..]), (700, &[701][..]));
    let effects = crate::interpret(&record).unwrap();
    let [CatalogueChange::TwoPhasePrepared { xid: 700, file }] = &effects.catalogue[..] else {
        panic!("{effects:?}")
    };
    let (data, crc) = file.split_at(record.main_data.len());
    assert_eq!(data, record.main_data);
    assert_eq!(crc, crc32c::crc32c(data).to_le_bytes());
    assert!(effects.slru.is_empty());

    let record = DecodedRecord {
        origin: Some(3),
        ..record
    };
    let advanced = CatalogueChange::OriginAdvanced {
        origin: 3,
        remote: Lsn(0x99),
        local: record.end,
        force: false,
    };
    assert_eq!(crate::interpret(&record).unwrap().catalogue[1], advanced);
}

#[test]
fn where_the_file_is() {
    let next = 7 << 32 | 800;
    let path = |version, xid| two_phase_path(version, xid, next);
    assert_eq!(path(PgVersion::V16, 700), "pg_twophase/000002BC");
    assert_eq!(path(PgVersion::V17, 700), "pg_twophase/00000007000002BC");
    // Prepared before the ids wrapped around.
    assert_eq!(path(PgVersion::V18, 0xfff0_0000), "pg_twophase/00000006FFF00000");
}

#[test]
fn what_no_server_writes_is_refused() {
    let table: [(usize, &[u8], &str); 8] = [
        (0, &[0], "a two-phase file does not begin with its magic number"),
        (
            4,
            &[0],
            "a two-phase file's length differs from what its header tells",
        ),
        (8, &[0; 4], "a transaction id is zero"),
        (28, &[255; 4], "a count in its main data is negative"),
        (28, &[0, 0, 0, 1], "its main data is too short"),
        (
            54,
            &[0, 0],
            "a prepared transaction's name does not have the length that is told",
        ),
        (
            54,
            &[3],
            "a prepared transaction's name does not have the length that is told",
        ),
        (80, &[0; 4], "a transaction id is zero"),
    ];
    for (at, bytes, rule) in table {
        let mut record = prepare(PgVersion::V15);
        let mut data = record.main_data.to_vec();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        record.main_data = data.into();
        let error = crate::interpret(&record).unwrap_err().to_string();
        assert!(error.ends_with(rule), "{error} instead of {rule}");
    }
}
