//! What goes over a connection in streaming mode, inside `CopyData`.
//!
//! Times are microseconds since 2000-01-01 (`TimestampTz`).

use bytes::{Buf, BufMut, Bytes};
use lakebed_types::Lsn;

/// Microseconds from 1970 to 2000.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A message of the walsender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Walsender {
    /// WAL bytes.
    Wal {
        /// Position of the first byte.
        begin: Lsn,
        /// End of what the server has flushed.
        server_end: Lsn,
        /// The server's clock, in microseconds since 1970.
        sent_unix_micros: i64,
        /// The bytes.
        bytes: Bytes,
    },
    /// It is alive.
    Keepalive {
        /// End of what the server has sent or has nothing to send behind.
        server_end: Lsn,
        /// The server's clock, in microseconds since 1970.
        sent_unix_micros: i64,
        /// The server wants a status update now.
        reply: bool,
    },
}

/// Why a message in streaming mode is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamingError {
    /// Shorter than its fixed part.
    #[error("a message of the walsender of {0} bytes is cut short")]
    Short(usize),
    /// An unknown type.
    #[error("a message of the walsender of the unknown type '{}'", .0.escape_ascii())]
    Unknown(u8),
}

/// Reads one.
///
/// # Errors
/// See [`StreamingError`].
pub fn parse(mut data: Bytes) -> Result<Walsender, StreamingError> {
    let length = data.len();
    let short = StreamingError::Short(length);
    let unix = |time: i64| time.saturating_add(POSTGRES_EPOCH_MICROS);
    match data.try_get_u8().map_err(|_| short)? {
        b'w' if data.len() >= 24 => Ok(Walsender::Wal {
            begin: Lsn(data.get_u64()),
            server_end: Lsn(data.get_u64()),
            sent_unix_micros: unix(data.get_i64()),
            bytes: data,
        }),
        b'k' if data.len() >= 17 => Ok(Walsender::Keepalive {
            server_end: Lsn(data.get_u64()),
            sent_unix_micros: unix(data.get_i64()),
            reply: data.get_u8() != 0,
        }),
        b'w' | b'k' => Err(short),
        kind => Err(StreamingError::Unknown(kind)),
    }
}

/// A standby status update that says: written, flushed and applied up to `committed`. All three are the same position,
/// since each `synchronous_commit` level must wait for the quorum. `reply`: the server is to answer at once.
pub fn status_update(committed: Lsn, unix_micros: i64, reply: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(34);
    out.put_u8(b'r');
    for _ in 0..3 {
        out.put_u64(committed.0);
    }
    out.put_i64(unix_micros.saturating_sub(POSTGRES_EPOCH_MICROS));
    out.put_u8(u8::from(reply));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_walsender_are_read_and_cut_ones_refused() {
        let mut wal = vec![b'w'];
        wal.extend(0x10_u64.to_be_bytes());
        wal.extend(0x20_u64.to_be_bytes());
        wal.extend(5_i64.to_be_bytes());
        wal.extend(b"abc");
        let parsed = parse(wal.clone().into());
        let expected = Walsender::Wal {
            begin: Lsn(0x10),
            server_end: Lsn(0x20),
            sent_unix_micros: POSTGRES_EPOCH_MICROS + 5,
            bytes: Bytes::from_static(b"abc"),
        };
        assert_eq!(parsed, Ok(expected));
        assert_eq!(parse(wal[..24].to_vec().into()), Err(StreamingError::Short(24)));
        assert_eq!(parse(Bytes::new()), Err(StreamingError::Short(0)));
        assert_eq!(
            parse(Bytes::from_static(b"x")),
            Err(StreamingError::Unknown(b'x'))
        );
    }

    #[test]
    fn a_status_update_says_one_position_three_times() {
        let update = status_update(Lsn(7), POSTGRES_EPOCH_MICROS + 9, true);
        let mut expected = vec![b'r'];
        (0..3).for_each(|_| expected.extend(7_u64.to_be_bytes()));
        expected.extend(9_i64.to_be_bytes());
        expected.push(1);
        assert_eq!(update, expected);
    }
}
