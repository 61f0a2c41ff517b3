//! Objects round trip, keep their format, and withstand any bytes.

use bytes::Bytes;

use lakebed_types::{Lsn, PgVersion};
use lakebed_walframe::build::cuts;
use lakebed_walframe::frame::{self, FRAME_HEADER_BYTES};
use lakebed_walframe::{
    FOOTER_BYTES, Footer, FrameError, HEADER_BYTES, Header, Index, MAX_FRAME_BYTES, Object, ObjectBuilder,
    read_frame,
};

const BEGIN: Lsn = Lsn(0x0155_4d60);
const STATE: &[u8] = b"what its writer knew";

/// Bytes without a pattern, from a fixed seed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn header(wal: &[u8]) -> Header {
    Header {
        pg_version: PgVersion::V15,
        segment_bytes: 16 << 20,
        system_id: 0x1234_5678_9abc_def0,
        begin: BEGIN,
        end: Lsn(BEGIN.0 + wal.len() as u64),
    }
}

/// An object of this WAL, whose records end at multiples of `record`.
fn object(wal: &[u8], record: usize, target: usize) -> Vec<u8> {
    let ends: Vec<Lsn> = (1..=wal.len())
        .filter(|end| end.is_multiple_of(record) || *end == wal.len())
        .map(|end| Lsn(BEGIN.0 + end as u64))
        .collect();
    let mut builder = ObjectBuilder::new(header(wal));
    for cut in cuts(BEGIN, &ends, target) {
        let from = (cut.range.start.0 - BEGIN.0) as usize;
        let to = (cut.range.end.0 - BEGIN.0) as usize;
        builder.frame(&cut, &wal[from..to]);
    }
    builder.finish(STATE)
}

fn content(object: &Object) -> Result<Vec<u8>, FrameError> {
    let mut wal = Vec::new();
    for frame in object.frames() {
        wal.extend(frame?.wal);
    }
    Ok(wal)
}

fn all(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    content(&Object::open(Bytes::copy_from_slice(bytes))?)
}

#[test]
fn what_goes_in_comes_out() {
    for wal in [Vec::new(), noise(1), noise(100_000), vec![7; 100_000]] {
        let bytes = object(&wal, 512, 4096);
        let object = Object::open(Bytes::from(bytes)).unwrap();
        assert_eq!(object.header, header(&wal));
        assert_eq!(object.index.state, STATE);
        assert_eq!(object.index.entries.len(), wal.len().div_ceil(4096));
        assert_eq!(content(&object).unwrap(), wal);
    }
    let patterned = object(&[7; 100_000], 512, 4096).len();
    assert!(patterned < 10_000, "{patterned} bytes: compressed");
    let random = object(&noise(100_000), 512, 4096).len();
    assert!(
        random < 100_000 + 25 * 100 + 200,
        "{random} bytes: never much larger"
    );
}

/// A record longer than a frame may be.
#[test]
fn a_long_record_goes_in_pieces() {
    let wal = noise(MAX_FRAME_BYTES + 1000);
    let object = Object::open(Bytes::from(object(&wal, wal.len(), 4096))).unwrap();
    let inside: Vec<bool> = object.frames().map(|f| f.unwrap().header.inside_record).collect();
    assert_eq!(inside, [false, true]);
    assert_eq!(content(&object).unwrap(), wal);
}

/// As a reader of a few records does it: three ranges of the object.
#[test]
fn frames_are_found_by_lsn_and_read_alone() {
    let wal = noise(50_000);
    let bytes = object(&wal, 100, 1000);
    let footer = Footer::parse(&bytes[bytes.len() - FOOTER_BYTES..], bytes.len() as u64).unwrap();
    let index = &bytes[footer.index_offset as usize..bytes.len() - FOOTER_BYTES];
    let index = Index::parse(index, &footer).unwrap();
    let lsn = |offset: u64| Lsn(BEGIN.0 + offset);
    for (from, to, expected) in [
        (0, 1, 0..1),
        (999, 1001, 0..2),
        (1000, 1001, 1..2),
        (49_999, 60_000, 49..50),
    ] {
        let found = index.frames(lsn(from), lsn(to));
        assert_eq!(found, &index.entries[expected.clone()], "{from}..{to}");
        for entry in found {
            let part = &bytes[entry.offset as usize..][..entry.bytes as usize];
            let frame = read_frame(entry, part).unwrap();
            let at = (entry.begin.0 - BEGIN.0) as usize;
            assert_eq!(frame.wal, wal[at..at + frame.wal.len()]);
        }
    }
    assert!(index.frames(lsn(0), lsn(0)).is_empty());
}

/// Version 1, as it was first written. Whatever comes later must read it.
#[test]
fn version_1_stays_readable() {
    let digits: Vec<u8> = include_str!("version-1.hex")
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .collect();
    let golden: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    // A frame that zstd makes smaller, and one that it does not.
    let mut wal = vec![0x42; 300];
    wal.extend(noise(60));
    assert_eq!(all(&golden).unwrap(), wal);
    let object = Object::open(Bytes::from(golden)).unwrap();
    assert_eq!(
        (object.header, object.index.state.as_slice()),
        (header(&wal), STATE)
    );
    assert_eq!(object.index.entries.len(), 2);
}

#[test]
fn any_flipped_bit_is_noticed() {
    let mut wal = vec![0x42; 300];
    wal.extend(noise(60));
    let good = object(&wal, 300, 300);
    assert_eq!(all(&good).unwrap(), wal);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(all(&bad).is_err(), "bit {bit}");
    }
    for length in 0..good.len() {
        assert!(all(&good[..length]).is_err(), "cut to {length}");
    }
}

/// Recomputes the checksum of a header or footer, so that a claim gets past it.
fn seal(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Right checksums around wrong claims.
#[test]
fn hostile_claims_are_refused() {
    let wal = vec![0x42; 300];
    let good = object(&wal, 300, 300);
    let frame_at = HEADER_BYTES;
    let claims: [(usize, &[u8], FrameError); 7] = [
        (4, &[2, 0], FrameError::Newer { found: 2 }),
        (6, &[2], FrameError::Codec(2)),
        (6, &[99], FrameError::Codec(99)),
        (7, &[2], FrameError::Damaged("unknown flags of a frame")),
        (8, &[1, 0, 0, 0], FrameError::Encrypted(1)),
        (32, &[0xff; 8], FrameError::Damaged("lengths of a frame")),
        (40, &[0xff; 4], FrameError::Damaged("lengths of a frame")),
    ];
    for (at, claim, error) in claims {
        let mut bad = good.clone();
        bad[frame_at + at..][..claim.len()].copy_from_slice(claim);
        seal(&mut bad[frame_at..], 60);
        assert_eq!(all(&bad), Err(error));
    }
    // Far more WAL than is there.
    let mut bad = good.clone();
    let end = BEGIN.0 + MAX_FRAME_BYTES as u64;
    bad[frame_at + 32..][..8].copy_from_slice(&end.to_le_bytes());
    bad[frame_at + 40..][..4].copy_from_slice(&(MAX_FRAME_BYTES as u32).to_le_bytes());
    seal(&mut bad[frame_at..], 60);
    assert_eq!(all(&bad), Err(FrameError::Damaged("checksum of a frame's WAL")));
    // A footer that claims a huge index, and one whose offset overflows.
    let footer_at = good.len() - FOOTER_BYTES;
    for (at, claim) in [
        (8, [0xff; 4].as_slice()),
        (12, &[0xff; 4]),
        (0, &[0xff; 8]),
        (16, &[0xff; 8]),
    ] {
        let mut bad = good.clone();
        bad[footer_at + at..][..claim.len()].copy_from_slice(claim);
        seal(&mut bad[footer_at..], 52);
        assert!(matches!(all(&bad), Err(FrameError::Damaged(_))), "{at}");
    }
}

#[test]
fn noise_is_refused_without_a_panic() {
    let noise = noise(20_000);
    for length in (0..200).chain([1000, 20_000]) {
        assert!(all(&noise[..length]).is_err());
        assert!(frame::decode(&noise[..length]).is_err());
    }
    // With a good head and tail.
    let good = object(&[0x42; 300], 300, 300);
    let middle = HEADER_BYTES + FRAME_HEADER_BYTES;
    let mut bad = good.clone();
    bad[HEADER_BYTES..middle].copy_from_slice(&noise[..FRAME_HEADER_BYTES]);
    assert!(all(&bad).is_err());
}
