//! Streams of pages: what is answered, in which order, and what ends one.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lakebed_pageserver::daemon::Pageserver;
use lakebed_pgtest::Cluster;
use lakebed_proto::frame::{self, Frame, Inbound};
use lakebed_proto::stream::pages::{MAX_KEYS, PageStream, PageStreamError};
use lakebed_proto::stream::{PAGES, PROPOSE};
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::v1::{self, PageStatus};
use lakebed_proto::{connect, convert};
use lakebed_redo::Managers;
use lakebed_types::{ForkNumber, Lsn, PAGE_SIZE, PageKey, RelTag, TimelineId};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::node::{TENANT, TIMELINE, attach_to, config, import, shard};

const PATIENCE: Duration = Duration::from_secs(30);
/// `pg_database`, which every cluster has in one file.
const REL: RelTag = RelTag {
    spcnode: 1664,
    dbnode: 0,
    relnode: 1262,
    fork: ForkNumber::Main,
};

async fn soon<T>(what: &str, done: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, done).await;
    done.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// A pageserver in this process.
struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
    start: Lsn,
    /// The first page of [`REL`].
    page: Bytes,
    _directory: tempfile::TempDir,
}

impl Server {
    async fn start() -> Server {
        let (directory, shutdown) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut registry = Registry::default();
        let config = config(directory.path());
        let server = Pageserver::start(config, Managers::default(), &mut registry, shutdown.clone());
        let server = server.await.unwrap();
        let (node, address) = (server.node(), server.address().unwrap());
        let served = tokio::spawn(server.serve());
        let cluster = Cluster::init();
        let files = cluster.data_dir();
        let taken = import(&node, &files).await;
        attach_to(&node, taken.cluster, Vec::new()).await;
        let page = fs::read(files.join("global/1262")).unwrap();
        Server {
            address,
            shutdown,
            served,
            start: taken.start,
            page: Bytes::from(page).slice(..PAGE_SIZE),
            _directory: directory,
        }
    }

    async fn stream(&self) -> PageStream {
        let connected = soon("a stream", PageStream::connect(&self.address.to_string())).await;
        connected.unwrap()
    }

    /// A request for so many first pages that depends on an LSN.
    fn request(&self, request_id: u64, keys: usize, needs: Lsn) -> v1::GetPagesRequest {
        let key = PageKey::Rel { rel: REL, block: 0 };
        v1::GetPagesRequest {
            request_id,
            shard: Some(convert::shard_ref(TENANT, shard())),
            timeline: TIMELINE.0.to_vec().into(),
            at: Some(v1::ReadPoint {
                lsn: needs.0,
                not_modified_since: needs.0,
            }),
            keys: vec![key.encode().to_vec().into(); keys],
        }
    }

    /// Asks for so many pages, and finds them right.
    async fn reads(&self, stream: &mut PageStream, id: u64, keys: usize) {
        stream.ask(&self.request(id, keys, self.start)).unwrap();
        let answer = answer(stream).await;
        assert_eq!((answer.request_id, answer.served_lsn), (id, self.start.0));
        assert_eq!(answer.pages.len(), keys);
        for page in answer.pages {
            assert_eq!(page.status(), PageStatus::Ok, "{}", page.message);
            assert_eq!(page.page, self.page);
        }
    }

    /// Sends these bytes on a connection of its own; how the pageserver ends it.
    async fn end_of(&self, bytes: &[u8]) -> Status {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let mut inbound = Inbound::default();
        loop {
            match inbound.next::<v1::GetPagesResponse>().unwrap() {
                Some(Frame::End(end)) => {
                    let mut rest = Vec::new();
                    let read = soon("the end", socket.read_to_end(&mut rest)).await;
                    assert_eq!(read.unwrap(), 0, "bytes behind the end");
                    return frame::status(end);
                }
                Some(Frame::Message(answer)) => panic!("answered with {answer:?}"),
                None => {}
            }
            let read = soon("an end", socket.read_buf(inbound.room())).await;
            assert!(read.unwrap() > 0, "the connection ended without a word");
        }
    }
}

async fn answer(stream: &mut PageStream) -> v1::GetPagesResponse {
    let answer = soon("an answer", stream.answer()).await;
    answer.unwrap().expect("an answer before the end")
}

fn framed(message: &impl prost::Message) -> BytesMut {
    let mut bytes = BytesMut::from(PAGES.bytes().as_slice());
    frame::put(message, &mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_holds_up_no_other() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    server.reads(&mut stream, 1, 1).await;
    // The WAL that they need never comes.
    for id in [2, 3] {
        stream
            .ask(&server.request(id, 1, Lsn(server.start.0 + (1 << 30))))
            .unwrap();
    }
    for id in 10..200 {
        server.reads(&mut stream, id, 1).await;
    }
    server.reads(&mut stream, 200, MAX_KEYS).await;
    // More than a stream may have waiting in its socket, all at once.
    for id in 201..221 {
        stream.ask(&server.request(id, MAX_KEYS, server.start)).unwrap();
    }
    let (mut whole, mut late) = (BTreeSet::new(), Vec::new());
    while whole.len() < 20 || late.len() < 2 {
        let answer = answer(&mut stream).await;
        if answer.request_id < 10 {
            late.push(answer);
            continue;
        }
        assert!(answer.pages.iter().all(|page| page.page == server.page));
        whole.insert(answer.request_id);
    }
    assert_eq!(whole, (201..221).collect());
    late.sort_by_key(|answer| answer.request_id);
    for (id, answer) in [2, 3].into_iter().zip(late) {
        assert_eq!(answer.request_id, id);
        assert_eq!(answer.pages[0].status(), PageStatus::Retry);
        assert!(
            answer.pages[0].message.contains("not"),
            "{}",
            answer.pages[0].message
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_ends_its_own_stream_and_says_why() {
    let server = Server::start().await;
    let mut other = server.stream().await;
    server.reads(&mut other, 1, 1).await;
    let refused = async |bytes: &[u8], code: Code, why: &str| {
        let status = server.end_of(bytes).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(why), "{status}");
    };
    let [magic @ .., version] = *PAGES.bytes();
    let newer = [magic.as_slice(), &[version + 1]].concat();
    refused(
        &newer,
        Code::FailedPrecondition,
        &format!("version {}", version + 1),
    )
    .await;
    refused(PROPOSE.bytes(), Code::InvalidArgument, "another kind of daemon").await;
    let good = framed(&server.request(1, 1, server.start));
    for at in [PAGES.bytes().len() + 4, good.len() - 1] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        refused(&flipped, Code::InvalidArgument, "checksum").await;
    }
    let long = [PAGES.bytes().as_slice(), &[0xff, 0xff, 0x0f, 1, 0, 0, 0, 0]].concat();
    refused(&long, Code::OutOfRange, "at most").await;
    let mut end = BytesMut::from(PAGES.bytes().as_slice());
    frame::put_end(&Status::ok(""), &mut end);
    refused(&end, Code::InvalidArgument, "only a pageserver").await;
    let many = framed(&server.request(1, MAX_KEYS + 1, server.start));
    refused(&many, Code::InvalidArgument, "keys in one request").await;
    let mut short = server.request(1, 1, server.start);
    short.keys = vec![Bytes::from_static(&[1, 2, 3])];
    refused(&framed(&short), Code::InvalidArgument, "key").await;
    let nowhen = v1::GetPagesRequest {
        at: None,
        ..server.request(1, 1, server.start)
    };
    refused(&framed(&nowhen), Code::InvalidArgument, "at").await;
    // Half a request, and gone.
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&good[..good.len() / 2]).await.unwrap();
    drop(socket);

    // What is wrong about the place is no fault of the stream.
    let mut elsewhere = server.request(2, 3, server.start);
    elsewhere.timeline = TimelineId([9; 16]).0.to_vec().into();
    other.ask(&elsewhere).unwrap();
    let told = answer(&mut other).await;
    assert_eq!(told.pages.len(), 3);
    assert!(told.pages.iter().all(|page| page.status() == PageStatus::Retry));
    server.reads(&mut other, 3, 2).await;
    // The same port serves calls.
    let channel = soon("a connection", connect(&server.address.to_string()))
        .await
        .unwrap();
    let relation = v1::GetRelationRequest {
        timeline: Some(convert::timeline_ref(TENANT, TIMELINE)),
        relation: Some(convert::relation_to_wire(REL)),
        at: Some(v1::ReadPoint {
            lsn: server.start.0,
            not_modified_since: server.start.0,
        }),
    };
    let mut client = PageserverClient::new(channel);
    let called = soon("an answer", client.get_relation(relation)).await;
    assert!(called.unwrap().into_inner().exists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_takes_no_answers_is_not_read() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let mut requests = framed(&server.request(1, 1, server.start));
    let request = requests.split_off(PAGES.bytes().len());
    socket.write_all(&requests).await.unwrap();
    // Far more than the buffers of the sockets take: those of one connection hold some ten megabytes.
    let many = request.repeat((64 << 20) / request.len());
    let written = tokio::time::timeout(Duration::from_secs(3), socket.write_all(&many)).await;
    assert!(written.is_err(), "{written:?}");
    let mut other = server.stream().await;
    server.reads(&mut other, 1, MAX_KEYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_hear_that_the_pageserver_ends() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    server.reads(&mut stream, 1, 1).await;
    stream
        .ask(&server.request(2, 1, Lsn(server.start.0 + (1 << 30))))
        .unwrap();
    server.reads(&mut stream, 3, 1).await;
    server.shutdown.cancel();
    match soon("the end", stream.answer()).await {
        Err(PageStreamError::Ended(status)) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        other => panic!("{other:?}"),
    }
    drop(stream);
    soon("the pageserver's end", server.served)
        .await
        .unwrap()
        .unwrap();
}
