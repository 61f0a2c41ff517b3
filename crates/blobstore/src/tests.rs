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
    store.delete("a/b/1").await.unwrap();
    let names = ["a/b/1", "a/b/2", "never"].map(str::to_owned);
    store.delete_all(names.to_vec()).await.unwrap();
    assert!(matches!(store.get("a/b/1").await, Err(BlobError::NotFound(_))));
    assert_eq!(store.list("a").await.unwrap(), [""; 0]);
    store.delete_all(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_directory_and_memory_do_what_a_store_must() {
    let dir = tempfile::tempdir().unwrap();
    keeps_its_word(BlobStore::open(&format!("file://{}", dir.path().display())).unwrap()).await;
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
