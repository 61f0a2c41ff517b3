//! A tar archive as it streams in, in the ustar form that Postgres writes (`port/tar.c`).
//!
//! A member is a header of 512 bytes and its content, filled up with zeros to a multiple of 512. Nothing is kept but the
//! header being read: content is handed on in the pieces in which it comes.

use bytes::{Bytes, BytesMut};

/// Bytes of a header, and what members are rounded up to.
const BLOCK: usize = 512;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// What the archive consists of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarItem {
    /// A member begins.
    Member {
        /// Path, without a leading `./` and without a `/` at its end.
        path: String,
        /// What it is.
        kind: MemberKind,
        /// Bytes of content that follow.
        bytes: u64,
    },
    /// Content of the last member.
    Data(Bytes),
    /// The last member is complete.
    End,
}

/// Why it is no archive of Postgres.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The header's sum is wrong.
    #[error("a header in the base backup's archive has a wrong checksum")]
    Checksum,
    /// A number or a name does not parse.
    #[error("a header in the base backup's archive has no valid {0}")]
    Field(&'static str),
    /// A kind of member that Postgres does not write.
    #[error("the base backup's archive has a member of the unknown type '{}'", .0.escape_ascii())]
    Kind(u8),
}

/// See the module header.
#[derive(Debug, Default)]
pub struct TarReader {
    header: BytesMut,
    /// Content still to come of the member, and the fill behind it.
    content: u64,
    fill: u64,
    inside: bool,
}

impl TarReader {
    /// Whether the archive may end here: not inside a member.
    pub fn is_between(&self) -> bool {
        !self.inside && self.header.is_empty()
    }

    /// The next item; takes from `input` what it consumed. `None`: more input is needed.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<TarItem>, TarError> {
        loop {
            if self.content > 0 {
                let now = take(input, self.content);
                self.content -= now.len() as u64;
                return Ok((!now.is_empty()).then_some(TarItem::Data(now)));
            }
            if self.inside {
                self.inside = false;
                return Ok(Some(TarItem::End));
            }
            if self.fill > 0 {
                self.fill -= take(input, self.fill).len() as u64;
                if self.fill > 0 {
                    return Ok(None);
                }
            }
            let wanted = BLOCK - self.header.len();
            let now = take(input, wanted as u64);
            self.header.extend_from_slice(&now);
            let Some(header) = self.header.first_chunk::<BLOCK>() else {
                return Ok(None);
            };
            let member = parse_header(header)?;
            self.header.clear();
            // Two blocks of zeros end an archive; nothing follows them.
            let Some((path, kind, bytes)) = member else {
                continue;
            };
            self.inside = true;
            self.content = bytes;
            self.fill = (BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64;
            return Ok(Some(TarItem::Member { path, kind, bytes }));
        }
    }
}

fn take(input: &mut Bytes, at_most: u64) -> Bytes {
    let now = usize::try_from(at_most).unwrap_or(usize::MAX).min(input.len());
    input.split_to(now)
}

type Member = (String, MemberKind, u64);

fn parse_header(header: &[u8; BLOCK]) -> Result<Option<Member>, TarError> {
    if header.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    // The sum of all bytes, with blanks in place of itself.
    let sum: u64 = (0..)
        .zip(header)
        .map(|(at, &byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(byte),
        })
        .sum();
    if octal(&header[148..156]) != Some(sum) {
        return Err(TarError::Checksum);
    }
    let name = header[..100].split(|&byte| byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).map_err(|_| TarError::Field("name"))?;
    let path = name
        .strip_prefix("./")
        .unwrap_or(name)
        .trim_end_matches('/')
        .to_owned();
    let kind = match header[156] {
        b'0' | 0 => MemberKind::File,
        b'5' => MemberKind::Directory,
        b'2' => MemberKind::Link,
        other => return Err(TarError::Kind(other)),
    };
    let bytes = number(&header[124..136]).ok_or(TarError::Field("size"))?;
    match kind {
        MemberKind::File => Ok(Some((path, kind, bytes))),
        MemberKind::Directory | MemberKind::Link => Ok(Some((path, kind, 0))),
    }
}

/// Octal digits, or for what does not fit them binary with the first bit set.
fn number(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, rest @ ..] => rest.iter().try_fold(0u64, |value, &byte| {
            value.checked_mul(256).map(|value| value + u64::from(byte))
        }),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8)
        .ok()
        .filter(|_| !digits.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, bytes: usize) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{bytes:011o} ").as_bytes());
        header[148..156].fill(b' ');
        header[156] = kind;
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    fn archive() -> Vec<u8> {
        let mut all = header("./base/", b'5', 0);
        all.extend(header("base/PG_VERSION", b'0', 3));
        all.extend(b"15\n");
        all.resize(all.len().next_multiple_of(BLOCK), 0);
        all.extend(header("empty", b'0', 0));
        all.extend(header("pg_tblspc/16400", b'2', 0));
        all.extend([0; 2 * BLOCK]);
        all
    }

    fn read(pieces: &[&[u8]]) -> Result<Vec<TarItem>, TarError> {
        let mut reader = TarReader::default();
        let mut items: Vec<TarItem> = Vec::new();
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(item) = reader.next(&mut input)? {
                match (items.last_mut(), item) {
                    (Some(TarItem::Data(before)), TarItem::Data(now)) => {
                        *before = [&before[..], &now[..]].concat().into();
                    }
                    (_, item) => items.push(item),
                }
            }
            assert!(input.is_empty());
        }
        assert!(reader.is_between());
        Ok(items)
    }

    #[test]
    fn an_archive_is_the_same_in_pieces_of_any_size() {
        let all = archive();
        let member = |path: &str, kind, bytes| TarItem::Member {
            path: path.to_owned(),
            kind,
            bytes,
        };
        let expected = [
            member("base", MemberKind::Directory, 0),
            TarItem::End,
            member("base/PG_VERSION", MemberKind::File, 3),
            TarItem::Data(Bytes::from_static(b"15\n")),
            TarItem::End,
            member("empty", MemberKind::File, 0),
            TarItem::End,
            member("pg_tblspc/16400", MemberKind::Link, 0),
            TarItem::End,
        ];
        for size in [1, 7, 511, 512, 513, 4096] {
            let pieces: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(read(&pieces).unwrap(), expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_found() {
        let good = header("f", b'0', 3);
        for at in 0..BLOCK {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(&[&bad, b"abc"]).is_err(), "byte {at}");
        }
        assert_eq!(read(&[&header("f", b'x', 0)]), Err(TarError::Kind(b'x')));
    }
}
