//! Properties, from real WAL: what goes in comes out, whatever the cuts and the methods; what was damaged on the way is
//! refused, without a panic and without more memory than a batch may have.

use lakebed_pgtest::fuzz::{Choices, Tally, u64_of};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;
use lakebed_walcodec::stream::{Decoder, Encoder, Method};

const STREAM: &[u8] = include_bytes!("../../wal/tests/corpus/stream");
const METHODS: [Method; 3] = [Method::Plain, Method::Zstd, Method::Records];

/// The WAL of the corpus from its first record on, and where its records end.
fn corpus() -> (WalFormat, Lsn, &'static [u8], Vec<Lsn>) {
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: u64_of(&STREAM[8..]),
        segment_bytes: u32::from_le_bytes(STREAM[16..20].try_into().unwrap()),
    };
    let (page, wal) = (u64_of(STREAM), &STREAM[20..]);
    let left = u32::from_le_bytes(wal[16..20].try_into().unwrap()) as usize;
    let skip = 40 + left.next_multiple_of(8);
    let (start, wal) = (Lsn(page + skip as u64), &wal[skip..]);
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    decoder.feed(wal);
    let mut ends = vec![start];
    while let Ok(Some(record)) = decoder.next_raw() {
        ends.push(record.end);
    }
    let whole = (ends.last().unwrap().0 - start.0) as usize;
    (format, start, &wal[..whole], ends)
}

/// Batches with the choices' cuts and methods, and what is in each.
fn batches<'a>(
    choices: &mut Choices<'_>,
    wal: &'a [u8],
    start: Lsn,
    ends: &[Lsn],
) -> Vec<(Lsn, &'a [u8], Vec<u8>)> {
    let (format, ..) = corpus();
    let mut encoder = Encoder::new(format, 1).unwrap();
    let mut all = Vec::new();
    let mut at = 0;
    while at < wal.len() {
        let next = match choices.below(4) {
            // In the middle of a record, or behind a few.
            0 => at + 1 + choices.below(3000),
            _ => {
                let record = ends.partition_point(|end| (end.0 - start.0) as usize <= at);
                let last = (record + choices.below(8)).min(ends.len() - 1);
                (ends[last].0 - start.0) as usize
            }
        };
        let next = if choices.is_empty() {
            wal.len()
        } else {
            next.clamp(at + 1, wal.len())
        };
        let method = if choices.is_empty() {
            Method::Records
        } else {
            choices.of(&METHODS)
        };
        let begin = Lsn(start.0 + at as u64);
        let piece = &wal[at..next];
        all.push((begin, piece, encoder.encode(begin, piece, method).unwrap()));
        at = next;
    }
    all
}

#[test]
fn what_goes_in_comes_out() {
    let (format, start, wal, ends) = corpus();
    let tally = Tally::new("walcodec::round_trip");
    bolero::check!().with_max_len(400).for_each(|input: &[u8]| {
        let mut decoder = Decoder::new(format).unwrap();
        for (begin, piece, batch) in batches(&mut Choices::new(input), wal, start, &ends) {
            assert_eq!(decoder.decode(begin, &batch).unwrap(), piece);
            assert!(
                batch.len() <= piece.len() + piece.len() / 64 + 64,
                "{} of {}",
                batch.len(),
                piece.len()
            );
        }
        tally.count(false);
    });
}

#[test]
fn damage_is_refused() {
    let (format, start, wal, ends) = corpus();
    // Every batch as large as the choices of one seed make it.
    let cuts: Vec<u8> = (0..2000u32)
        .map(|number| ((number * number * 31) >> 4) as u8)
        .collect();
    let sent = batches(&mut Choices::new(&cuts), wal, start, &ends);
    assert!(sent.len() > 5);
    let tally = Tally::new("walcodec::damage");
    bolero::check!().with_max_len(64).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let mut decoder = Decoder::new(format).unwrap();
        let victim = choices.below(sent.len());
        let mut refused = false;
        for (number, (begin, piece, batch)) in sent.iter().enumerate() {
            let mut batch = batch.clone();
            if number == victim {
                choices.damage(&mut batch);
                if choices.below(4) == 0 {
                    // Begins anew where it does not.
                    batch.first_mut().into_iter().for_each(|head| *head |= 16);
                }
            }
            match decoder.decode(*begin, &batch) {
                // Damage may have changed nothing, or only how the same comes out.
                Ok(decoded) => assert_eq!(decoded, *piece),
                Err(_) => {
                    refused = true;
                    break;
                }
            }
        }
        tally.count(refused);
    });
}

#[test]
fn anything_at_all_is_no_panic() {
    let (format, start, ..) = corpus();
    let tally = Tally::new("walcodec::anything");
    bolero::check!().with_max_len(600).for_each(|input: &[u8]| {
        let mut batch = input.to_vec();
        // A head that is right, so that the rest is looked at.
        if let Some(head) = batch.first_mut() {
            *head = *head & 15 | 16 | 1 << 5;
        }
        let mut decoder = Decoder::new(format).unwrap();
        tally.count(decoder.decode(start, &batch).is_err());
    });
}
