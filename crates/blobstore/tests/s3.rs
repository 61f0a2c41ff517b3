//! Object storage over S3, with the faults of real networks.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use lakebed_blobstore::{BlobError, BlobStore, Limits, PART_BYTES};
use lakebed_s3test::{CREDENTIALS, Fault, FaultyProxy, S3Server};

/// One server for all tests of this process; each has a prefix of its own.
fn server() -> &'static S3Server {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    SERVER.get_or_init(S3Server::start)
}

/// Enough for a busy machine where an answer comes, little where none does.
const LIMITS: Limits = Limits {
    deadline: Duration::from_secs(60),
    attempt: Duration::from_secs(5),
    attempts: 8,
    concurrency: 16,
};

fn open(endpoint: &str, prefix: &str, limits: Limits) -> BlobStore {
    let credentials = CREDENTIALS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    BlobStore::open_as(&S3Server::store(endpoint, prefix), limits, credentials).unwrap()
}

#[tokio::test]
async fn every_operation_works() {
    let store = open(&server().address, "operations", LIMITS);
    for _ in 0..2 {
        store.put_if_absent("a/1", Bytes::from("one")).await.unwrap();
    }
    let lost = store.put_if_absent("a/1", Bytes::from("two")).await;
    assert!(matches!(lost, Err(BlobError::Exists(_))), "{lost:?}");
    store.put("a/2", Bytes::from("0123456789")).await.unwrap();
    assert_eq!(store.get_range("a/2", 3..6).await.unwrap(), "345");
    assert_eq!(store.get_range("a/2", 8..99).await.unwrap(), "89");
    assert!(matches!(store.get("a/3").await, Err(BlobError::NotFound(_))));
    let mut listed = store.list_objects("a").await.unwrap();
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    let found: Vec<_> = listed.iter().map(|o| (o.path.as_str(), o.bytes)).collect();
    assert_eq!(found, [("a/1", 3), ("a/2", 10)]);
    assert!(listed.iter().all(|object| object.written_unix_s > 1_500_000_000));
    // The prefix of another address sees nothing of it.
    let other = open(&server().address, "operation", LIMITS);
    assert_eq!(other.list("").await.unwrap(), [""; 0]);
    // Twice: the second time it is there.
    for _ in 0..2 {
        store.copy("a/2", "b/2").await.unwrap();
    }
    assert_eq!(store.get("b/2").await.unwrap(), "0123456789");
    let missing = store.copy("a/3", "b/3").await;
    assert!(matches!(missing, Err(BlobError::NotFound(_))), "{missing:?}");
    store.delete("a/1").await.unwrap();
    store.delete("a/1").await.unwrap();
    assert_eq!(store.list("a").await.unwrap(), ["a/2"]);
}

#[tokio::test]
async fn more_objects_than_one_request_can_name_are_listed_and_deleted() {
    let store = open(&server().address, "many", LIMITS);
    let names: Vec<String> = (0..1100).map(|number| format!("m/{number:04}")).collect();
    let puts = names.iter().map(|name| store.put(name, Bytes::from_static(b"x")));
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    let mut listed = store.list("m").await.unwrap();
    listed.sort();
    assert_eq!(listed, names);
    store.delete_all(names).await.unwrap();
    assert_eq!(store.list("m").await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn of_racing_writers_exactly_one_wins() {
    let proxy = FaultyProxy::start(&server().address);
    let store = open(&proxy.address, "race", LIMITS);
    for round in 0..4 {
        let name = format!("r/{round}");
        let writers = (0..16u8).map(|writer| store.put_if_absent(&name, Bytes::from(vec![writer; 7])));
        let results = futures::future::join_all(writers).await;
        let winners: Vec<_> = results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.is_ok())
            .collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        let content = store.get(&name).await.unwrap();
        assert_eq!(content, vec![winners[0].0 as u8; 7]);
        for result in &results {
            assert!(matches!(result, Ok(()) | Err(BlobError::Exists(_))), "{result:?}");
        }
    }
}

#[tokio::test]
async fn an_overloaded_store_is_asked_again() {
    let proxy = FaultyProxy::start(&server().address);
    let store = open(&proxy.address, "overloaded", LIMITS);
    // Half of all requests, without a rhythm that a client's own could fall in with.
    proxy.set(
        |seen| match seen.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 {
            0 => Fault::Unavailable,
            1 => Fault::Lost,
            _ => Fault::None,
        },
    );
    store.put("o/1", Bytes::from("content")).await.unwrap();
    store.put_if_absent("o/2", Bytes::from("content")).await.unwrap();
    assert_eq!(store.get("o/1").await.unwrap(), "content");
    assert_eq!(store.get_range("o/2", 0..3).await.unwrap(), "con");
    assert_eq!(store.list("o").await.unwrap(), ["o/1", "o/2"]);
    store.delete("o/1").await.unwrap();
    assert_eq!(store.list("o").await.unwrap(), ["o/2"]);
}

/// A put that took effect and whose answer never came is this writer's own; another writer's stays another's.
#[tokio::test]
async fn a_put_without_an_answer_is_found_out_about() {
    let proxy = FaultyProxy::start(&server().address);
    for fault in [Fault::AnswerLost, Fault::Silent] {
        let limits = Limits {
            attempt: Duration::from_millis(700),
            ..LIMITS
        };
        let store = open(&proxy.address, &format!("unanswered-{fault:?}"), limits);
        proxy.set(move |seen| if seen.method == "PUT" { fault } else { Fault::None });
        let before = proxy.seen().len();
        store.put_if_absent("u/1", Bytes::from("mine")).await.unwrap();
        let asked = proxy.seen();
        let puts = asked[before..]
            .iter()
            .filter(|(seen, _)| seen.method == "PUT")
            .count();
        assert_eq!(puts, 1, "{fault:?}: it took effect, nothing is to be repeated");
        let other = store.put_if_absent("u/1", Bytes::from("them")).await;
        assert!(matches!(other, Err(BlobError::Exists(_))), "{fault:?}: {other:?}");
        // The same writer after a restart: another id, the same content.
        store.put_if_absent("u/1", Bytes::from("mine")).await.unwrap();
        proxy.set(|_| Fault::None);
        assert_eq!(store.get("u/1").await.unwrap(), "mine");
    }
}

/// The id decides, and not the content: nothing is downloaded to find out.
#[tokio::test]
async fn an_own_put_is_known_by_its_id() {
    let proxy = FaultyProxy::start(&server().address);
    let store = open(&proxy.address, "ids", LIMITS);
    proxy.set(|seen| {
        if seen.method == "PUT" {
            Fault::AnswerLost
        } else {
            Fault::None
        }
    });
    store.put_if_absent("i/1", Bytes::from("mine")).await.unwrap();
    let methods: Vec<String> = proxy.seen().into_iter().map(|(seen, _)| seen.method).collect();
    assert_eq!(methods, ["PUT", "HEAD"]);
}

#[tokio::test]
async fn a_put_that_never_arrived_is_repeated() {
    let proxy = FaultyProxy::start(&server().address);
    let store = open(&proxy.address, "lost", LIMITS);
    let mut puts = 0;
    proxy.set(move |seen| {
        puts += u32::from(seen.method == "PUT");
        if seen.method == "PUT" && puts <= 2 {
            Fault::Lost
        } else {
            Fault::None
        }
    });
    store.put_if_absent("l/1", Bytes::from("mine")).await.unwrap();
    assert_eq!(store.get("l/1").await.unwrap(), "mine");
}

#[tokio::test]
async fn slow_answers_are_answers() {
    let proxy = FaultyProxy::start(&server().address);
    let store = open(&proxy.address, "slow", LIMITS);
    proxy.set(|_| Fault::Slow(Duration::from_millis(300)));
    store.put_if_absent("s/1", Bytes::from("mine")).await.unwrap();
    assert_eq!(store.get("s/1").await.unwrap(), "mine");
    assert_eq!(proxy.seen().len(), 2);
}

#[tokio::test]
async fn a_store_that_is_down_is_said_to_be_and_is_not_flooded() {
    let proxy = FaultyProxy::start(&server().address);
    proxy.set(|_| Fault::Silent);
    let limits = Limits {
        deadline: Duration::from_millis(900),
        attempt: Duration::from_millis(200),
        ..LIMITS
    };
    let store = open(&proxy.address, "down", limits);
    let timeout = store.get("d/1").await;
    // Whoever gives up first, the client library or the attempt's own limit, it is the store that failed.
    assert!(
        matches!(timeout, Err(BlobError::Timeout { .. } | BlobError::Store { .. })),
        "{timeout:?}"
    );
    proxy.set(|_| Fault::Unavailable);
    let store = open(&proxy.address, "down", LIMITS);
    let before = proxy.seen().len();
    for _ in 0..60 {
        let failed = store.get("d/1").await;
        assert!(matches!(failed, Err(BlobError::Store { .. })), "{failed:?}");
    }
    // One attempt each, and what the budget has for retries: 40.
    assert_eq!(proxy.seen().len() - before, 60 + 40);
}

/// An object in parts, of which some are lost, and of which the last answer is lost.
#[tokio::test]
async fn a_large_object_survives_lost_parts_and_answers() {
    let proxy = FaultyProxy::start(&server().address);
    let store = open(&proxy.address, "large", LIMITS);
    let bytes = 2 * PART_BYTES + 1000;
    let content = |range: std::ops::Range<u64>| {
        Ok(range
            .map(|at| (at % 251) as u8 ^ (at >> 20) as u8)
            .collect::<Vec<_>>()
            .into())
    };
    let (mut parts, mut completed) = (0, 0);
    proxy.set(move |seen| {
        let (part, complete) = (
            seen.target.contains("partNumber="),
            seen.method == "POST" && seen.target.contains("uploadId="),
        );
        parts += u32::from(part);
        completed += u32::from(complete);
        match (part, complete) {
            (true, _) if parts == 1 => Fault::Lost,
            (true, _) if parts == 2 => Fault::AnswerLost,
            (_, true) if completed == 1 => Fault::Lost,
            (_, true) => Fault::AnswerLost,
            _ => Fault::None,
        }
    });
    store.put_large("p/1", bytes, content).await.unwrap();
    let completes = proxy.seen().into_iter();
    let completes = completes.filter(|(seen, _)| seen.method == "POST" && seen.target.contains("uploadId="));
    assert_eq!(completes.count(), 2, "one was lost, one took effect");
    let mut gets = 0;
    proxy.set(move |seen| {
        gets += u32::from(seen.method == "GET");
        match gets {
            1 => Fault::Unavailable,
            2 => Fault::AnswerLost,
            _ => Fault::None,
        }
    });
    let read: Vec<Bytes> = store.parts("p/1", bytes).try_collect().await.unwrap();
    assert_eq!(read.concat(), content(0..bytes).unwrap());
    assert_eq!(store.list("p").await.unwrap(), ["p/1"]);
}

/// What cannot be written is given up whole: no object, and no parts that somebody pays for.
#[tokio::test]
async fn a_large_object_that_fails_leaves_nothing() {
    let proxy = FaultyProxy::start(&server().address);
    let limits = Limits {
        attempts: 2,
        ..LIMITS
    };
    let store = open(&proxy.address, "large-failed", limits);
    proxy.set(|seen| match seen.target.contains("partNumber=2") {
        true => Fault::Unavailable,
        false => Fault::None,
    });
    let content = |range: std::ops::Range<u64>| Ok(vec![1; (range.end - range.start) as usize].into());
    let failed = store.put_large("p/1", 3 * PART_BYTES, content).await;
    assert!(matches!(failed, Err(BlobError::Store { .. })), "{failed:?}");
    assert_eq!(store.list("p").await.unwrap(), [""; 0]);
    let last = proxy.seen().pop().unwrap().0;
    assert!(
        proxy.seen().iter().any(|(seen, _)| seen.method == "DELETE"),
        "it was aborted: {last:?}"
    );
}
