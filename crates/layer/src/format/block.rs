//! One checksummed block. The table of its bytes is in the parent module's header.

use bytes::{Buf, BufMut, Bytes};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::{LayerId, LayerKind};

/// Bytes of a block's header.
pub(super) const HEADER_BYTES: usize = 32;
/// The most that one value may have, so that no file makes a reader allocate without bound. Postgres's records that
/// change pages are far smaller.
pub const MAX_VALUE_BYTES: usize = 32 << 20;
/// The most that a block may decode to: a value, and what was before it.
const MAX_DECODED_BYTES: usize = MAX_VALUE_BYTES + (1 << 20);
const CHECKSUM_AT: usize = 28;
const ZSTD_LEVEL: i32 = 1;

/// How a block's bytes are compressed. The numbers are part of the format.
///
/// Measured with `examples/codecs.rs` on 9,905 pages of a pgbench database (two runs): bytes in percent of the pages',
/// then processor time of a read of one page out of memory. Plain 101 %, 2.4 and 2.1 us; LZ4 18.1 %, 3.6 and 3.3 us;
/// zstd 10.0 %, 8.2 and 8.6 us. Hence LZ4 where reads at recent LSNs go, zstd for history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    Plain = 0,
    /// LZ4: decodes several times as fast as zstd. For layers that reads at recent LSNs go through.
    Lz4 = 1,
    /// zstd: smaller. For history.
    Zstd = 2,
}

impl Codec {
    /// What layers of a kind are written with.
    pub fn of(kind: LayerKind) -> Codec {
        match kind {
            LayerKind::History => Codec::Zstd,
            LayerKind::Level0 | LayerKind::Current | LayerKind::Catalogue => Codec::Lz4,
        }
    }
}

/// What a block holds. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BlockKind {
    Data = 1,
    Index = 2,
    Top = 3,
    Filter = 4,
    Section = 5,
}

impl BlockKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            BlockKind::Data => "data block",
            BlockKind::Index => "index block",
            BlockKind::Top => "top of the index",
            BlockKind::Filter => "filter",
            BlockKind::Section => "section",
        }
    }
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockPlace {
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes of the block, with its header.
    pub length: u32,
}

impl BlockPlace {
    /// Where the next block begins.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// Makes blocks of one layer. What compression needs is made once: making it takes as long as compressing a page, or longer.
pub(super) struct Encoder {
    layer: LayerId,
    codec: Codec,
    lz4: Lz4,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

/// LZ4's tables and its output, used again. Which of the tables depends on the block alone, so that its bytes do too.
#[derive(Default)]
struct Lz4 {
    small: CompressTable,
    large: Option<CompressTable>,
    packed: Vec<u8>,
}

impl Lz4 {
    /// As `lz4_flex::block::compress`. `None` if it did not fit where anything fits.
    fn compress(&mut self, decoded: &[u8]) -> Option<&[u8]> {
        let room = get_maximum_output_size(decoded.len());
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let table = match decoded.len() < usize::from(u16::MAX) {
            true => &mut self.small,
            false => self.large.get_or_insert_with(CompressTable::large),
        };
        let packed = compress_into_with_table(decoded, &mut self.packed, table).ok()?;
        self.packed.get(..packed)
    }
}

impl Encoder {
    /// Data blocks get this codec.
    pub(super) fn new(layer: LayerId, codec: Codec) -> std::io::Result<Encoder> {
        let zstd = match codec {
            Codec::Zstd => Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            _ => None,
        };
        let lz4 = Lz4::default();
        Ok(Encoder {
            layer,
            codec,
            lz4,
            zstd,
        })
    }

    /// Appends the block to `out`; it will be at `offset` of the file. Compression that does not make it smaller is left
    /// out. A filter is not compressed, its bits are random; indexes are read often, so they get LZ4.
    pub(super) fn encode(&mut self, kind: BlockKind, offset: u64, decoded: &[u8], out: &mut Vec<u8>) {
        let codec = match kind {
            BlockKind::Data => self.codec,
            BlockKind::Filter => Codec::Plain,
            BlockKind::Index | BlockKind::Top | BlockKind::Section => Codec::Lz4,
        };
        let of_zstd;
        let packed = match codec {
            Codec::Plain => None,
            Codec::Lz4 => self.lz4.compress(decoded),
            // It fails for want of memory only; then the block is stored as it is.
            Codec::Zstd => {
                of_zstd = self.zstd.as_mut().and_then(|zstd| zstd.compress(decoded).ok());
                of_zstd.as_deref()
            }
        };
        let (codec, stored) = match packed.filter(|packed| packed.len() < decoded.len()) {
            Some(packed) => (codec, packed),
            None => (Codec::Plain, decoded),
        };
        let start = out.len();
        out.put_slice(&[kind as u8, codec as u8, 0, 0]);
        out.put_u32_le(stored.len() as u32);
        out.put_u32_le(decoded.len() as u32);
        out.put_bytes(0, 16);
        let crc = checksum(&out[start..], stored, (self.layer, offset));
        out.put_u32_le(crc);
        out.put_slice(stored);
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("codec", &self.codec)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// As for the encoder: a context takes longer to make than to use.
    static ZSTD: std::cell::RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { std::cell::RefCell::new(None) };
}

fn decompress_zstd(block: &[u8], decoded: usize) -> std::io::Result<Vec<u8>> {
    ZSTD.with_borrow_mut(|zstd| {
        let zstd = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert(zstd::bulk::Decompressor::new()?),
        };
        zstd.decompress(block, decoded)
    })
}

fn checksum(header: &[u8], stored: &[u8], (layer, offset): (LayerId, u64)) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(header), stored);
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, &layer.encode())
}

/// Checks the block and decodes its bytes. The error says what is wrong.
pub(super) fn decode(kind: BlockKind, place: (LayerId, u64), block: &[u8]) -> Result<Bytes, &'static str> {
    let (header, block) = block.split_at_checked(HEADER_BYTES).ok_or("it is cut")?;
    let (mut fields, mut crc) = (&header[4..], &header[CHECKSUM_AT..]);
    let (stored, decoded) = (fields.get_u32_le() as usize, fields.get_u32_le() as usize);
    if checksum(&header[..CHECKSUM_AT], block, place) != crc.get_u32_le() {
        return Err("its checksum is wrong");
    }
    if header[0] != kind as u8 {
        return Err("it is a block of another kind");
    }
    if header[2..4] != [0; 2] || header[12..CHECKSUM_AT] != [0; 16] {
        return Err("it is encrypted, or of a newer format");
    }
    if stored != block.len() || decoded > MAX_DECODED_BYTES {
        return Err("its lengths cannot be");
    }
    let bytes = match header[1] {
        0 => Bytes::copy_from_slice(block),
        1 => match lz4_flex::block::decompress(block, decoded) {
            Ok(out) => out.into(),
            Err(_) => return Err("it does not decompress"),
        },
        2 => match decompress_zstd(block, decoded) {
            Ok(out) => out.into(),
            Err(_) => return Err("it does not decompress"),
        },
        _ => return Err("its codec is unknown"),
    };
    if bytes.len() == decoded {
        Ok(bytes)
    } else {
        Err("it decodes to another length")
    }
}
