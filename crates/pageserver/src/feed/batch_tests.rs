use lakebed_proto::v1::feed_entry::Entry as Kind;
use lakebed_types::ForkNumber;

use super::*;

const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16_384,
    fork: ForkNumber::Vm,
};

fn sent() -> FeedShardBatch {
    let record = |start_lsn, record: &'static [u8]| {
        let record = Bytes::from_static(record);
        Kind::Record(v1::FeedRecord { start_lsn, record })
    };
    let extent = v1::RelationExtent {
        relation: Some(convert::relation_to_wire(REL)),
        blocks: 300,
    };
    let entries = [
        (200, record(100, b"the first record")),
        (300, Kind::Extent(extent)),
        (1 << 63, record(u64::MAX, b"")),
        (500, Kind::XidSeen(u32::MAX)),
        (600, Kind::XidSeen(0)),
        (700, record(600, b"the last")),
    ];
    let entry = |(end_lsn, entry)| v1::FeedEntry {
        end_lsn,
        entry: Some(entry),
    };
    FeedShardBatch {
        entries: entries.map(entry).into(),
        end_lsn: 800,
        commit_lsn: 900,
    }
}

/// An entry's end, and its record (where that begins, and its bytes) or what else it tells.
type Seen = (Lsn, Result<(Lsn, Bytes), Told>);

/// What the generated code sees, in the form of here.
fn expected(sent: &FeedShardBatch) -> Option<Vec<Seen>> {
    let entry = |entry: &v1::FeedEntry| {
        let told = match entry.entry.as_ref()? {
            Kind::Record(record) => Ok((Lsn(record.start_lsn), record.record.clone())),
            Kind::Extent(extent) => {
                let rel = convert::relation(extent.relation.as_ref()).ok()?;
                Err(Told::Extent(rel, extent.blocks))
            }
            Kind::XidSeen(xid) => Err(Told::Xid(*xid)),
        };
        Some((Lsn(entry.end_lsn), told))
    };
    sent.entries.iter().map(entry).collect()
}

fn found(batch: &Batch) -> Vec<Seen> {
    let entry = |entry: &Entry| {
        let told = match entry.told {
            Told::Record { start, at, length } => Ok((start, batch.record(at, length))),
            told => Err(told),
        };
        (entry.end, told)
    };
    batch.entries.iter().map(entry).collect()
}

#[test]
fn a_batch_is_what_the_generated_code_reads() {
    for sent in [sent(), FeedShardBatch::default()] {
        let batch = Batch::decode(sent.encode_to_vec().into()).unwrap();
        assert_eq!(batch.end, Lsn(sent.end_lsn));
        assert_eq!(Some(found(&batch)), expected(&sent));
    }
    let mut unknown = sent().encode_to_vec();
    // A number, eight bytes, some bytes, and four bytes, of fields that do not exist.
    unknown.extend([
        0x78, 0xff, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7a, 2, 9, 9, 0x7d, 1, 2, 3, 4,
    ]);
    let batch = Batch::decode(unknown.into()).unwrap();
    assert_eq!(Some(found(&batch)), expected(&sent()));
}

/// Whatever is wrong, there is an answer, and what is taken for good the generated code takes for the same.
#[test]
fn damage_is_refused_or_read_alike() {
    let good = sent().encode_to_vec();
    let check = |bytes: Vec<u8>| {
        let theirs = FeedShardBatch::decode(&bytes[..]).ok();
        if let Some(batch) = Batch::decode(bytes.clone().into()) {
            let theirs = theirs.unwrap_or_else(|| panic!("only taken here: {bytes:x?}"));
            assert_eq!(Some(found(&batch)), expected(&theirs), "{bytes:x?}");
            assert_eq!(batch.end, Lsn(theirs.end_lsn));
        }
    };
    for length in 0..good.len() {
        check(good[..length].to_vec());
    }
    for at in 0..good.len() {
        for byte in 0..=255 {
            let mut bytes = good.clone();
            bytes[at] = byte;
            check(bytes);
        }
    }
}
