//! Records of an extension's resource manager in a pageserver: with a plug-in they become versions of pages like any
//! others, through layer files and object storage; without one the timeline stops in front of the first.

mod toy;

use std::path::Path;

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_ingest::ControlState;
use lakebed_pageserver::ingest::Ingestor;
use lakebed_pageserver::timeline::{Storage, Thresholds};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_redo::{Managers, page};
use lakebed_types::{Lsn, PageKey, PgVersion};
use lakebed_wal::record::{BlockRef, DecodedRecord};
use toy::{REL, RMID, imported, managers, taken_over};

/// A record of 64 bytes behind `start`, which writes `data` at `at` of blocks.
fn record(start: Lsn, xid: u32, at: u16, blocks: &[(u32, &'static [u8])], will_init: bool) -> DecodedRecord {
    let named = (0u8..).zip(blocks).map(|(id, &(block, data))| BlockRef {
        id,
        rel: REL,
        block,
        will_init,
        image: None,
        data: Some(Bytes::from_static(data)),
    });
    DecodedRecord {
        version: PgVersion::V15,
        start,
        end: Lsn(start.0 + 64),
        prev: Lsn(0),
        xid,
        rmid: RMID,
        info: 0x20,
        origin: None,
        toplevel_xid: None,
        blocks: named.collect(),
        main_data: Bytes::copy_from_slice(&at.to_le_bytes()),
    }
}

fn storage(directory: &Path, store: &BlobStore, managers: Managers) -> Storage {
    Storage {
        directory: directory.to_owned(),
        disk: Default::default(),
        store: store.clone(),
        thresholds: Thresholds::of_size(1 << 20),
        managers,
    }
}

fn key(block: u32) -> PageKey {
    PageKey::Rel { rel: REL, block }
}

#[tokio::test]
async fn a_registered_managers_pages_are_kept_and_built() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let timeline = imported(
        &cluster.data_dir(),
        storage(&local.path().join("a"), &store, managers()),
    )
    .await;
    let start = timeline.last_record();
    let xid = 5000;
    let records = [
        record(start, xid, 100, &[(0, b"aaaa"), (3, b"dddd")], true),
        record(Lsn(start.0 + 64), 0, 102, &[(0, b"bb")], false),
        // Names no page, and changes nothing.
        record(Lsn(start.0 + 128), 0, 0, &[], false),
    ];
    let mut ingestor = Ingestor::new(timeline.clone()).unwrap();
    for record in &records {
        ingestor.record(record).unwrap();
    }
    let end = records[2].end;
    ingestor.publish(end);
    timeline.flush().await.unwrap();

    let timeline = taken_over(
        &timeline,
        &store,
        storage(&local.path().join("b"), &store, managers()),
    )
    .await;
    let mut expected = [0; 8192];
    expected[100..104].copy_from_slice(b"aaaa");
    page::set_lsn(&mut expected, records[0].end);
    assert_eq!(*timeline.page(&key(0), records[0].end).unwrap(), expected);
    expected[102..104].copy_from_slice(b"bb");
    page::set_lsn(&mut expected, records[1].end);
    assert_eq!(*timeline.page(&key(0), end).unwrap(), expected);
    assert_eq!(&timeline.page(&key(3), end).unwrap()[100..104], b"dddd");
    assert_eq!(timeline.relation_size(REL, end), Some(4));
    let control = ControlState::decode(&timeline.control(end).unwrap()).unwrap();
    assert_eq!(control.next_xid() as u32, xid + 1);

    // A node that lacks the plug-in cannot make the page of it, and says whose it is.
    let without = taken_over(
        &timeline,
        &store,
        storage(&local.path().join("c"), &store, Managers::default()),
    )
    .await;
    let error = without.page(&key(0), end).unwrap_err().to_string();
    assert!(error.contains("resource manager 142"), "{error}");
}

#[tokio::test]
async fn without_a_plug_in_nothing_of_the_record_is_taken() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let directory = local.path().join("a");
    let timeline = imported(
        &cluster.data_dir(),
        storage(&directory, &store, Managers::default()),
    )
    .await;
    let start = timeline.last_record();
    let mut ingestor = Ingestor::new(timeline.clone()).unwrap();
    for blocks in [&[(0, &b"aaaa"[..])][..], &[]] {
        let error = ingestor
            .record(&record(start, 5000, 100, blocks, true))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "record at {start}: custom resource manager 142 (info 0x20) is an extension's, and this pageserver was \
                 built without a plug-in for it"
            )
        );
    }
    assert_eq!(ingestor.last(), start);
    ingestor.publish(start);
    assert_eq!(timeline.relation_size(REL, start), None);
}
