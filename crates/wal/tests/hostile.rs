//! Bytes that Postgres did not write: an error or "feed more", never a panic, never a record that was not there.

use bytes::Bytes;
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::parse::parse_record;
use lakebed_wal::stream::{StreamError, WalDecoder};

const FORMAT: WalFormat = WalFormat {
    version: PgVersion::V15,
    timeline: 1,
    system_identifier: 0x7777,
    segment_bytes: 1 << 24,
};
const START: Lsn = Lsn(1 << 24);

/// A small generator (splitmix64): the same seed gives the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// One record with a block that has an image with a hole and data, a second block of the same relation, an origin, a
/// top-level transaction and main data.
fn record_bytes(prev: Lsn, main_data: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0x30];
    body.extend(3u16.to_le_bytes()); // data length
    body.extend(92u16.to_le_bytes()); // image length
    body.extend(60u16.to_le_bytes()); // hole offset
    body.push(0x01 | 0x02); // hole, apply
    for word in [1663u32, 5, 16384, 7] {
        body.extend(word.to_le_bytes());
    }
    body.extend([1, 0x80, 0, 0]);
    body.extend(9u32.to_le_bytes());
    body.push(253);
    body.extend(1u16.to_le_bytes());
    body.push(252);
    body.extend(700u32.to_le_bytes());
    body.push(254);
    body.extend((main_data.len() as u32).to_le_bytes());
    body.extend([0xaa; 92]);
    body.extend(b"dat");
    body.extend(main_data);

    let mut record = Vec::new();
    record.extend((24 + body.len() as u32).to_le_bytes());
    record.extend(701u32.to_le_bytes());
    record.extend(prev.0.to_le_bytes());
    record.extend([0x00, 10, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
    record.extend(crc.to_le_bytes());
    record.extend(body);
    record
}

/// WAL from [`START`] on that holds records with main data of these lengths, and where each begins.
fn wal(lengths: &[usize]) -> (Vec<u8>, Vec<Lsn>) {
    let (mut out, mut starts, mut prev) = (Vec::new(), Vec::new(), Lsn::INVALID);
    for &length in lengths {
        let record = record_bytes(prev, &vec![0x55; length]);
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            let at = Lsn(START.0 + out.len() as u64);
            if at.0.is_multiple_of(8192) {
                let continued = if rest.len() == record.len() {
                    0
                } else {
                    rest.len() as u32
                };
                out.extend(FORMAT.encode_header(at, continued));
            }
            if rest.len() == record.len() {
                prev = Lsn(START.0 + out.len() as u64);
                starts.push(prev);
            }
            let room = 8192 - out.len() % 8192;
            let (now, later) = rest.split_at(room.min(rest.len()));
            out.extend(now);
            rest = later;
        }
        out.resize(out.len().next_multiple_of(8), 0);
    }
    (out, starts)
}

fn decode(bytes: &[u8]) -> (Vec<Lsn>, Option<StreamError>) {
    let mut decoder = WalDecoder::new(FORMAT, START, Lsn::INVALID);
    decoder.feed(bytes);
    let mut starts = Vec::new();
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => {
                assert_eq!(
                    (decoder.position(), decoder.last_record_start()),
                    (record.end, record.start)
                );
                starts.push(record.start);
            }
            Ok(None) => return (starts, None),
            Err(error) => {
                assert_eq!(decoder.next_record(), Err(error.clone()), "an error must stay");
                return (starts, Some(error));
            }
        }
    }
}

#[test]
fn records_of_every_length_around_a_page_border_are_found() {
    for first in (7_700..8_300).step_by(8).chain([20_000, 100_000]) {
        let lengths = [first, 3, 8_100, 1];
        let (bytes, starts) = wal(&lengths);
        assert_eq!(decode(&bytes), (starts.clone(), None), "first record {first}");
        // With the last byte of the last record missing, that record is not there yet.
        assert_eq!(decode(&bytes[..bytes.len() - 8]).0.len(), starts.len() - 1);
    }
}

#[test]
fn zeros_are_the_end_where_nothing_that_follows_them_counts() {
    let (bytes, starts) = wal(&[10, 7_700, 40, 20_000, 5]);
    for end in (0..bytes.len()).step_by(8) {
        let mut decoder = WalDecoder::new(FORMAT, START, Lsn::INVALID);
        decoder.feed(&bytes[..end]);
        let more = |decoder: &mut WalDecoder| {
            let records = std::iter::from_fn(|| decoder.next_raw().ok().flatten());
            records.count()
        };
        more(&mut decoder);
        assert!(!decoder.is_at_zeros(), "what is not there yet, at {end}");
        decoder.feed(&[0; 64]);
        assert_eq!(more(&mut decoder), 0, "at {end}");
        let at = Lsn(START.0 + end as u64);
        if at.0.is_multiple_of(8192) || starts.contains(&at) {
            assert!(decoder.is_at_zeros(), "at {end}");
        }
        // Elsewhere zeros may be part of a record, whose checksum tells, or reach the header of the next page.
        if decoder.is_at_zeros() {
            decoder.feed(&bytes[end..]);
            assert_eq!(more(&mut decoder), 0, "at {end}");
            assert!(decoder.is_at_zeros());
        }
    }
}

#[test]
fn a_half_written_tail_is_decoded_after_rewinding_once_it_is_whole() {
    let (bytes, starts) = wal(&[10, 5_000, 9_000]);
    let mut half = bytes.clone();
    let torn = (starts[2].0 - START.0) as usize + 300;
    half[torn..].fill(0);
    let mut decoder = WalDecoder::new(FORMAT, START, Lsn::INVALID);
    decoder.feed(&half);
    let mut found = 0;
    while let Ok(Some(_)) = decoder.next_record() {
        found += 1;
    }
    assert_eq!(found, 2);
    decoder.rewind();
    assert_eq!(decoder.fed_to(), decoder.position());
    decoder.feed(&bytes[(decoder.position().0 - START.0) as usize..]);
    assert_eq!(decoder.next_record().unwrap().unwrap().start, starts[2]);
}

#[test]
fn a_record_of_another_history_is_refused_by_its_link() {
    let (bytes, starts) = wal(&[10, 20]);
    let at = (starts[1].0 - START.0) as usize;
    let other = record_bytes(Lsn(starts[0].0 + 8), &[0x55; 20]);
    let mut forged = bytes.clone();
    forged[at..at + other.len()].copy_from_slice(&other);
    let (found, error) = decode(&forged);
    assert_eq!(found, starts[..1]);
    assert!(
        matches!(error, Some(StreamError::Previous { lsn, .. }) if lsn == starts[1]),
        "{error:?}"
    );
}

#[test]
fn changed_bytes_never_yield_another_record() {
    let (bytes, starts) = wal(&[10, 5_000, 9_000, 40, 40]);
    let mut random = Random(1);
    for _ in 0..3_000 {
        let mut bad = bytes.clone();
        let at = random.below(bad.len());
        bad[at] ^= 1 << random.below(8);
        let (found, _) = decode(&bad);
        // Padding is the only thing that no checksum covers.
        assert!(starts.starts_with(&found), "byte {at}");
        let position = START.0 + at as u64;
        let intact = starts
            .iter()
            .filter(|start| start.0 <= position)
            .count()
            .saturating_sub(1);
        assert!(found.len() >= intact, "byte {at} destroyed a record before it");
    }
}

#[test]
fn a_record_with_a_right_checksum_and_wrong_inside_is_an_error_not_a_panic() {
    let good = record_bytes(Lsn(1), &[1; 60]);
    let parse = |bytes: &[u8]| parse_record(PgVersion::V15, Lsn(8), Lsn(16), Bytes::copy_from_slice(bytes));
    assert_eq!(parse(&good).unwrap().blocks.len(), 2);
    for length in 0..good.len() {
        assert!(parse(&good[..length]).is_err(), "cut to {length}");
    }
    let mut random = Random(2);
    for _ in 0..100_000 {
        let mut bad = good.clone();
        for _ in 0..=random.below(4) {
            let at = 24 + random.below(bad.len() - 24);
            bad[at] = random.next() as u8;
        }
        if let Ok(record) = parse(&bad) {
            let parts: usize = record
                .blocks
                .iter()
                .map(|block| {
                    block.data.as_ref().map_or(0, |d| d.len())
                        + block.image.as_ref().map_or(0, |i| i.bytes.len())
                })
                .sum();
            assert!(parts + record.main_data.len() < bad.len());
        }
    }
}

/// Postgres flushes up to the end of a commit record, and writes no further: were the header of the next page awaited, a
/// commit that fills its page would be taken for unfinished.
#[test]
fn a_record_that_fills_its_page_needs_no_byte_of_the_next() {
    use lakebed_wal::boot::shutdown_checkpoint;
    use lakebed_wal::control::Checkpoint;
    let format = lakebed_wal::page::WalFormat {
        version: lakebed_types::PgVersion::V15,
        timeline: 1,
        system_identifier: 5,
        segment_bytes: 1 << 20,
    };
    let border = 0x204000;
    // Within a page, and across a border with its second part filling the page.
    for begin in [border - 120, border - 8192 - 96 + 24] {
        let state = Checkpoint::decode(&[0; lakebed_wal::control::CHECKPOINT_BYTES], format.version);
        let wal = shutdown_checkpoint(format, lakebed_types::Lsn(begin), lakebed_types::Lsn(8), state);
        let mut decoder =
            lakebed_wal::stream::WalDecoder::new(format, lakebed_types::Lsn(begin), lakebed_types::Lsn(8));
        decoder.feed(&wal.bytes);
        let record = decoder.next_raw().unwrap().expect("complete");
        assert_eq!((record.end, decoder.position()), (wal.end, wal.end));
        if begin == border - 120 {
            assert_eq!(record.end, lakebed_types::Lsn(border));
        }
    }
}

#[test]
fn a_start_across_whose_page_a_length_would_lie_is_refused() {
    for back in 1..4 {
        let start = Lsn(START.0 + 8192 - back);
        let mut decoder = WalDecoder::new(FORMAT, start, Lsn(0));
        // A believable length, however little of it was before the page's end.
        decoder.feed(&64u32.to_le_bytes().repeat(4096));
        let found = decoder.next_raw();
        assert!(
            matches!(found, Err(StreamError::Unaligned { lsn }) if lsn == start),
            "{found:?}"
        );
    }
}
