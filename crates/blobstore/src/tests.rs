//! What every store must do, on the two that need no server. The same on S3, with faults: `tests/s3.rs`.

use super::*;

async fn keeps_its_word(store: BlobStore) {
    let one = Bytes::from_static(b"one");
    for _ in 0..2 {
        store.put_if_absent("a/b/1", one.clone()).await.unwrap();
    }
    for other in ["two", "other"] {
        let lost = store.put_if_absent("a/b/1", Bytes::from(other)).await;
        assert!(matches!(lost, Err(BlobError::Exists(_))), "{lost:?}");
    }
    assert_eq!(store.get("a/b/1").await.unwrap(), "one");
    assert_eq!(store.get_range("a/b/1", 1..2).await.unwrap(), "n");
    assert_eq!(store.get_range("a/b/1", 1..9).await.unwrap(), "ne");
    store.put("a/b/2", Bytes::from("longer")).await.unwrap();
    store.put("a/b/2", Bytes::from("new")).await.unwrap();
    let mut listed = store.list_objects("a").await.unwrap();
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    let found: Vec<_> = listed.iter().map(|o| (o.path.as_str(), o.bytes)).collect();
    assert_eq!(found, [("a/b/1", 3), ("a/b/2", 3)]);
    assert!(listed.iter().all(|object| object.written_unix_s > 1_500_000_000));
    for _ in 0..2 {
        store.copy("a/b/1", "c/1").await.unwrap();
    }
    let missing = store.copy("a/b/3", "c/3").await;
    assert!(matches!(missing, Err(BlobError::NotFound(_))), "{missing:?}");
    store.delete("a/b/1").await.unwrap();
    // It is none of the other's business.
    assert_eq!(store.get("c/1").await.unwrap(), "one");
    let names = ["a/b/1", "a/b/2", "never"].map(str::to_owned);
    store.delete_all(names.to_vec()).await.unwrap();
    assert!(matches!(store.get("a/b/1").await, Err(BlobError::NotFound(_))));
    assert_eq!(store.list("a").await.unwrap(), [""; 0]);
    store.delete_all(Vec::new()).await.unwrap();
    for bytes in [5, parts::PART_BYTES, 2 * parts::PART_BYTES + 12_345] {
        large(&store, "l/1", bytes).await;
    }
    let failed = store.put_large("l/2", parts::PART_BYTES + 1, |range| match range.start {
        0 => Ok(Bytes::from(vec![0; (range.end - range.start) as usize])),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    });
    let failed = failed.await;
    assert!(matches!(failed, Err(BlobError::Content { .. })), "{failed:?}");
    // What was given up is not there, and leaves nothing.
    assert_eq!(store.list("l").await.unwrap(), ["l/1"]);
}

/// Writes and reads an object in parts.
async fn large(store: &BlobStore, path: &str, bytes: u64) {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    let content = move |range: Range<u64>| Ok(range.map(byte).collect::<Vec<_>>().into());
    store.put_large(path, bytes, content).await.unwrap();
    assert_eq!(store.size(path).await.unwrap(), Some(bytes));
    let read: Vec<Bytes> = store.parts(path, bytes).try_collect().await.unwrap();
    assert!(read.iter().all(|part| part.len() as u64 <= parts::PART_BYTES));
    let read = read.concat();
    assert!(
        (0..)
            .map(byte)
            .zip(&read)
            .all(|(expected, found)| expected == *found)
    );
    assert_eq!(read.len() as u64, bytes);
    let too_long: Result<Vec<Bytes>, _> = store.parts(path, bytes + 1).try_collect().await;
    assert!(too_long.is_err(), "{too_long:?}");
}

#[tokio::test]
async fn a_directory_and_memory_do_what_a_store_must() {
    let dir = tempfile::tempdir().unwrap();
    keeps_its_word(BlobStore::open(&format!("file://{}", dir.path().display())).unwrap()).await;
    let left = std::fs::read_dir(dir.path().join("l")).unwrap();
    assert_eq!(left.count(), 1, "nothing lies beside the object");
    keeps_its_word(BlobStore::open("memory:").unwrap()).await;
}

#[tokio::test]
async fn one_of_many_writers_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&format!("file://{}", dir.path().display())).unwrap();
    let writers = (0..16u8).map(|writer| {
        let store = store.clone();
        async move {
            store
                .put_if_absent("x", Bytes::from(vec![writer; 9]))
                .await
                .is_ok()
        }
    });
    let won = futures::future::join_all(writers).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
}
