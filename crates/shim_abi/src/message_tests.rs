use super::*;
use crate::SEGMENT_BLOCKS;
use crate::frame::{HEADER_BYTES, Header, MAX_BODY_BYTES, MAX_FRAME_BYTES};
use crate::path::MAX_PATH_BYTES;

const OF: SlotRef = SlotRef {
    slot: 7,
    generation: 0x0102_0304,
};

fn questions() -> Vec<Question<'static>> {
    let blocks = Blocks {
        of: OF,
        first: SEGMENT_BLOCKS - 2,
        count: 2,
    };
    let (magic, version) = (crate::MAGIC, crate::VERSION);
    let path = b"base/5/1259".as_slice();
    let create = true;
    let (from, to) = (
        b"postgresql.auto.conf.tmp".as_slice(),
        b"postgresql.auto.conf".as_slice(),
    );
    vec![
        Question::Hello {
            magic,
            version,
            pid: 99,
        },
        Question::Open { create, path },
        Question::Fill(blocks),
        Question::Prefetch(blocks),
        Question::ListDir { path: b"base/5" },
        Question::Unlink { path },
        Question::Renamed { from, to },
    ]
}

fn answers() -> Vec<Answer<'static>> {
    let opened = |outcome| Answer::Opened { outcome, of: OF };
    vec![
        Answer::Done,
        opened(Outcome::Missing),
        opened(Outcome::Existing),
        opened(Outcome::Created),
        Answer::Removed { existed: true },
        Answer::Retry { after_ms: 50 },
        Answer::Refused { text: b"no" },
    ]
}

fn split(frame: &Frame) -> (Header, &[u8]) {
    let (header, body) = frame
        .bytes()
        .split_first_chunk::<HEADER_BYTES>()
        .expect("a header");
    let header = Header::decode(header).expect("a good header");
    assert_eq!(header.body_bytes, body.len());
    (header, body)
}

#[test]
fn every_message_survives_and_every_other_length_is_refused() {
    for question in questions() {
        let frame = question.encode(42);
        let (header, body) = split(&frame);
        assert_eq!(header.number, 42);
        assert_eq!(Question::decode(header.kind, body), Ok(question));
        for len in 0..body.len() {
            assert!(
                Question::decode(header.kind, &body[..len]).is_err(),
                "{question:?} cut to {len}"
            );
        }
        let longer = [body, &[0]].concat();
        assert_eq!(Question::decode(header.kind, &longer), Err(DecodeError::Body));
    }
    for answer in answers() {
        let frame = answer.encode(u64::MAX);
        let (header, body) = split(&frame);
        assert_eq!(header.number, u64::MAX);
        assert_eq!(Answer::decode(header.kind, body), Ok(answer));
        for len in 0..body.len() {
            assert!(
                Answer::decode(header.kind, &body[..len]).is_err(),
                "{answer:?} cut to {len}"
            );
        }
    }
}

#[test]
fn paths_that_leave_the_data_directory_are_refused() {
    for path in [b"".as_slice(), b"/etc/passwd", b"base/../../x", b"..", b"a\0b"] {
        let frame = Question::Unlink { path }.encode(1);
        let (header, body) = split(&frame);
        assert_eq!(
            Question::decode(header.kind, body),
            Err(DecodeError::Body),
            "{path:?}"
        );
    }
}

#[test]
fn blocks_beyond_a_segment_are_refused() {
    for (first, count) in [(0, 0), (SEGMENT_BLOCKS, 1), (u32::MAX, 1), (1, SEGMENT_BLOCKS)] {
        let frame = Question::Fill(Blocks { of: OF, first, count }).encode(1);
        let (header, body) = split(&frame);
        assert_eq!(
            Question::decode(header.kind, body),
            Err(DecodeError::Body),
            "{first} {count}"
        );
    }
}

#[test]
fn headers_are_checked() {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&(MAX_BODY_BYTES as u32 + 1).to_le_bytes());
    assert_eq!(Header::decode(&bytes), Err(DecodeError::TooLong));
    assert_eq!(Question::decode(99, &[]), Err(DecodeError::Kind));
    assert_eq!(Answer::decode(1, &[]), Err(DecodeError::Kind));
}

#[test]
fn the_longest_question_fits() {
    let path = [b'x'; MAX_PATH_BYTES];
    let question = Question::Renamed {
        from: &path,
        to: &path,
    };
    let frame = question.encode(1);
    assert_eq!(frame.bytes().len(), MAX_FRAME_BYTES);
    let (header, body) = split(&frame);
    assert_eq!(Question::decode(header.kind, body), Ok(question));
}
