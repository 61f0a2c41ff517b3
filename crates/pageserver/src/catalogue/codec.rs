//! Entries of the catalogue as bytes, and as sections of layers.

use bytes::{Buf, BufMut, Bytes};
use lakebed_types::{ForkNumber, Lsn, RelTag, SlruKind};

use super::{CatalogueError, DatabasePlace, Entry};

const FORMAT: u8 = 1;

/// Entries as bytes: a format byte, then per entry LSN (8), kind (1) and fields, little-endian; texts and contents with
/// their length (4) before them.
pub fn encode(entries: &[(Lsn, Entry)]) -> Vec<u8> {
    let mut out = vec![FORMAT];
    for (lsn, entry) in entries {
        out.put_u64_le(lsn.0);
        match entry {
            Entry::Size(rel, blocks) => {
                out.put_u8(1);
                put_rel(&mut out, rel);
                out.put_u32_le(*blocks);
            }
            Entry::Dropped(rel) => {
                out.put_u8(2);
                put_rel(&mut out, rel);
            }
            Entry::Reset(rel, from) => {
                out.put_u8(3);
                put_rel(&mut out, rel);
                out.put_u32_le(*from);
            }
            Entry::DatabaseCopied { to, from } => {
                out.put_u8(4);
                [to.0, to.1, from.0, from.1]
                    .into_iter()
                    .for_each(|field| out.put_u32_le(field));
            }
            Entry::DatabaseGone(place) => {
                out.put_u8(5);
                [place.0, place.1]
                    .into_iter()
                    .for_each(|field| out.put_u32_le(field));
            }
            Entry::File(path, content) => {
                out.put_u8(if content.is_some() { 6 } else { 7 });
                put_bytes(&mut out, path.as_bytes());
                content.iter().for_each(|content| put_bytes(&mut out, content));
            }
            Entry::SlruPage(kind, page, exists) => {
                out.put_u8(8);
                out.put_u8(*kind as u8);
                out.put_u64_le(*page);
                out.put_u8(u8::from(*exists));
            }
            Entry::Time(micros) => {
                out.put_u8(9);
                out.put_i64_le(*micros);
            }
        }
    }
    out
}

/// Bytes of a section, but for the last of a run. A layer takes no section of any size.
const SECTION_BYTES: usize = 8 << 20;

/// Entries as sections of a layer: a byte that says whether the next section goes on with these (1) or not (0), then a
/// part of what [`encode`] gives. Sections of several layers may follow each other.
pub fn to_sections(entries: &[(Lsn, Entry)]) -> Vec<Bytes> {
    let encoded = encode(entries);
    let mut parts = encoded.chunks(SECTION_BYTES).peekable();
    let mut sections = Vec::new();
    while let Some(part) = parts.next() {
        let mut section = vec![u8::from(parts.peek().is_some())];
        section.extend_from_slice(part);
        sections.push(section.into());
    }
    sections
}

/// Reads what [`to_sections`] gave, of one layer or several.
///
/// # Errors
/// See [`CatalogueError`].
pub fn from_sections(sections: Vec<Bytes>) -> Result<Vec<(Lsn, Entry)>, CatalogueError> {
    let (mut entries, mut open) = (Vec::new(), Vec::new());
    for mut section in sections {
        let more = section.try_get_u8();
        let more = more.map_err(|_| CatalogueError("a section is empty"))?;
        open.extend_from_slice(&section);
        match more {
            0 => entries.extend(decode(std::mem::take(&mut open).into())?),
            1 => {}
            _ => return Err(CatalogueError("a section is of unknown kind")),
        }
    }
    match open.is_empty() {
        true => Ok(entries),
        false => Err(CatalogueError("the last section is missing")),
    }
}

fn put_rel(out: &mut Vec<u8>, rel: &RelTag) {
    [rel.spcnode, rel.dbnode, rel.relnode]
        .into_iter()
        .for_each(|field| out.put_u32_le(field));
    out.put_u8(rel.fork as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.extend_from_slice(bytes);
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// See [`CatalogueError`].
pub fn decode(mut input: Bytes) -> Result<Vec<(Lsn, Entry)>, CatalogueError> {
    let cut = |_| CatalogueError("an entry is cut");
    if input.try_get_u8().map_err(cut)? != FORMAT {
        return Err(CatalogueError("unknown version"));
    }
    let mut entries = Vec::new();
    while input.has_remaining() {
        let lsn = Lsn(input.try_get_u64_le().map_err(cut)?);
        let kind = input.try_get_u8().map_err(cut)?;
        let input = &mut input;
        let entry = match kind {
            1 => Entry::Size(get_rel(input)?, input.try_get_u32_le().map_err(cut)?),
            2 => Entry::Dropped(get_rel(input)?),
            3 => Entry::Reset(get_rel(input)?, input.try_get_u32_le().map_err(cut)?),
            4 => Entry::DatabaseCopied {
                to: get_place(input)?,
                from: get_place(input)?,
            },
            5 => Entry::DatabaseGone(get_place(input)?),
            6 | 7 => {
                let path = String::from_utf8(get_bytes(input)?.to_vec());
                let path = path.map_err(|_| CatalogueError("a path is not UTF-8"))?;
                Entry::File(path, if kind == 6 { Some(get_bytes(input)?) } else { None })
            }
            8 => {
                let number = usize::from(input.try_get_u8().map_err(cut)?);
                let kind = *SlruKind::ALL.get(number).ok_or(CatalogueError("unknown SLRU"))?;
                let page = input.try_get_u64_le().map_err(cut)?;
                Entry::SlruPage(kind, page, input.try_get_u8().map_err(cut)? != 0)
            }
            9 => Entry::Time(input.try_get_i64_le().map_err(cut)?),
            _ => return Err(CatalogueError("unknown kind of entry")),
        };
        entries.push((lsn, entry));
    }
    Ok(entries)
}

fn get_place(input: &mut Bytes) -> Result<DatabasePlace, CatalogueError> {
    let cut = |_| CatalogueError("an entry is cut");
    Ok((
        input.try_get_u32_le().map_err(cut)?,
        input.try_get_u32_le().map_err(cut)?,
    ))
}

fn get_rel(input: &mut Bytes) -> Result<RelTag, CatalogueError> {
    let cut = |_| CatalogueError("an entry is cut");
    let (spcnode, dbnode) = get_place(input)?;
    let relnode = input.try_get_u32_le().map_err(cut)?;
    let fork =
        ForkNumber::from_number(input.try_get_u8().map_err(cut)?).ok_or(CatalogueError("unknown fork"))?;
    Ok(RelTag {
        spcnode,
        dbnode,
        relnode,
        fork,
    })
}

fn get_bytes(input: &mut Bytes) -> Result<Bytes, CatalogueError> {
    let length = input
        .try_get_u32_le()
        .map_err(|_| CatalogueError("an entry is cut"))? as usize;
    if length > input.len() {
        Err(CatalogueError("an entry is cut"))
    } else {
        Ok(input.split_to(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::tests::rel;

    #[test]
    fn entries_round_trip_and_cuts_are_refused() {
        let entries = vec![
            (Lsn(1), Entry::Size(rel(5, 9), 7)),
            (Lsn(2), Entry::Dropped(rel(5, 9))),
            (Lsn(3), Entry::Reset(rel(5, 9), 4)),
            (
                Lsn(4),
                Entry::DatabaseCopied {
                    to: (1663, 7),
                    from: (1663, 1),
                },
            ),
            (Lsn(5), Entry::DatabaseGone((1663, 7))),
            (
                Lsn(6),
                Entry::File("a/b".to_owned(), Some(Bytes::from_static(b"x"))),
            ),
            (Lsn(7), Entry::File("a/b".to_owned(), None)),
            (Lsn(8), Entry::SlruPage(SlruKind::MultiXactMembers, 12, true)),
            (Lsn(9), Entry::Time(-5)),
        ];
        let bytes = Bytes::from(encode(&entries));
        assert_eq!(decode(bytes.clone()).unwrap(), entries);
        assert!(decode(bytes.slice(..bytes.len() - 1)).is_err());
    }
}
