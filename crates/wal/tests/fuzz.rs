//! Fuzz targets of the WAL decoder, from real records and real WAL. No panic, no allocation beyond what is there. A
//! plain `cargo test` runs a bounded number; `tests/fuzz-campaign` as long as one wants. The corpus: `tests/fuzz-corpus`.

use bytes::Bytes;
use lakebed_pgtest::fuzz::{Choices, Tally, entries, u64_of};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::control::{Checkpoint, ControlFile};
use lakebed_wal::page::WalFormat;
use lakebed_wal::parse::parse_record;
use lakebed_wal::stream::WalDecoder;

const RECORDS: &[u8] = include_bytes!("corpus/records");
const STREAM: &[u8] = include_bytes!("corpus/stream");
const CONTROL: &[u8] = include_bytes!("corpus/control");

/// The inner structure of one record, with a length in its header that is right (else it is the only fault).
#[test]
fn record() {
    let samples = entries(RECORDS, 20, 0);
    let tally = Tally::new("wal::record");
    bolero::check!().with_max_len(256).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let (head, record, _) = choices.of(&samples);
        let mut bytes = record.to_vec();
        for _ in 0..choices.below(5) {
            choices.damage(&mut bytes);
        }
        let length = bytes.len() as u32;
        if let Some(told) = bytes.first_chunk_mut::<4>().filter(|_| choices.below(16) != 0) {
            *told = length.to_le_bytes();
        }
        let version = choices.of(&PgVersion::ALL);
        let parsed = parse_record(
            version,
            Lsn(u64_of(head)),
            Lsn(u64_of(&head[8..])),
            Bytes::from(bytes),
        );
        if let Ok(record) = &parsed {
            let parts = record.blocks.iter().map(|block| {
                block.data.as_ref().map_or(0, Bytes::len)
                    + block.image.as_ref().map_or(0, |image| image.bytes.len())
            });
            assert!(parts.sum::<usize>() + record.main_data.len() <= length as usize);
        }
        tally.count(parsed.is_err());
    });
}

fn stream() -> (WalFormat, Lsn, &'static [u8]) {
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: u64_of(&STREAM[8..]),
        segment_bytes: u32::from_le_bytes(STREAM[16..20].try_into().unwrap()),
    };
    (format, Lsn(u64_of(STREAM)), &STREAM[20..])
}

/// Where records begin, told by a walk from the first page header that says where it continues.
fn first_record(wal: &[u8], start: Lsn) -> Lsn {
    let left = u32::from_le_bytes(wal[16..20].try_into().unwrap()) as usize;
    // Long enough for what the corpus has: the continued record ends on the first page.
    assert!(left < 8000);
    Lsn(start.0 + (40 + left.next_multiple_of(8)) as u64)
}

/// Feeds WAL in pieces that the choices tell; how many records came before the end or the first error.
fn decode(choices: &mut Choices<'_>, wal: &[u8], start: Lsn, whole: bool) -> (usize, bool) {
    let (format, ..) = stream();
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let (mut rest, mut records) = (wal, 0);
    while !rest.is_empty() {
        let most = choices.of(&[1, 8, 24, 100, 8192, 1 << 20]);
        let size = if choices.is_empty() || whole {
            rest.len()
        } else {
            1 + choices.below(most)
        };
        let (piece, after) = rest.split_at(size.min(rest.len()));
        decoder.feed(piece);
        rest = after;
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => {
                    assert!(record.end <= decoder.position() && record.start < record.end);
                    records += 1;
                }
                Ok(None) => break,
                Err(_) => {
                    // Still an error, not a panic.
                    assert!(decoder.next_record().is_err());
                    decoder.rewind();
                    return (records, true);
                }
            }
        }
    }
    (records, false)
}

/// A stream of WAL in pieces of any size, damaged or not.
#[test]
fn pages() {
    let (_, page, wal) = stream();
    let start = first_record(wal, page);
    let wal = &wal[(start.0 - page.0) as usize..];
    let whole = decode(&mut Choices::new(&[]), wal, start, true);
    assert!(whole.0 >= 10 && !whole.1, "{whole:?}");
    let tally = Tally::new("wal::stream");
    bolero::check!().with_max_len(512).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let mut damaged = wal.to_vec();
        let changes = choices.below(3);
        for _ in 0..changes {
            // Page headers are 8192 apart; else anything.
            if choices.below(2) == 0 {
                let at = (8192 - (start.0 % 8192) as usize) + 8192 * choices.below(5);
                choices.overwrite(&mut damaged, at, at + 24);
            } else {
                choices.overwrite(&mut damaged, 0, wal.len());
            }
        }
        let (records, failed) = decode(&mut choices, &damaged, start, false);
        assert!(records <= whole.0);
        if changes == 0 {
            assert_eq!((records, failed), whole, "the pieces matter");
        }
        tally.count(failed);
    });
}

/// Page headers alone.
#[test]
fn page_header() {
    let (format, start, wal) = stream();
    let tally = Tally::new("wal::page_header");
    bolero::check!().with_max_len(64).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let page = 8192 * choices.below(5);
        let mut header = wal[page..page + 40].to_vec();
        for _ in 0..choices.below(3) {
            choices.damage(&mut header);
        }
        tally.count(format.check_header(Lsn(start.0 + page as u64), &header).is_err());
    });
}

/// Control files with a CRC that is right, and the checkpoint in them.
#[test]
fn control_file() {
    let tally = Tally::new("wal::control_file");
    bolero::check!().with_max_len(64).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let mut file = CONTROL.to_vec();
        for _ in 0..choices.below(4) {
            choices.damage(&mut file);
        }
        if choices.below(4) != 0
            && let Some((checked, crc)) = file.split_at_mut_checked(288)
            && let Some(crc) = crc.first_chunk_mut::<4>()
        {
            *crc = crc32c::crc32c(checked).to_le_bytes();
        }
        let control = ControlFile::decode(&file);
        if let Ok(control) = &control {
            let checkpoint = control.checkpoint();
            assert_eq!(
                Checkpoint::decode(&checkpoint.encode(), control.version()),
                checkpoint
            );
            assert_eq!(ControlFile::decode(&control.encode()).as_ref(), Ok(control));
        }
        tally.count(control.is_err());
    });
}
