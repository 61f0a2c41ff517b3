//! A safekeeper that has one timeline's WAL ready, in the batches that each shard would get, and does nothing else.
//!
//! It sends as a safekeeper sends, from threads of its own whose processor time is told apart by their name.

use std::sync::Arc;

use anyhow::Context;
use lakebed_proto::v1::safekeeper_server::{Safekeeper, SafekeeperServer};
use lakebed_proto::v1::{self, feed_shard_request};
use lakebed_safekeeper::decoded::{BATCH_BYTES, BATCH_RECORDS, routed};
use lakebed_safekeeper::feed::BATCHES_AHEAD;
use lakebed_safekeeper::selection::Selection;
use lakebed_types::{Lsn, ShardCount, ShardIdentity};
use lakebed_wal::stream::RawRecord;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Name of its threads.
pub const THREADS: &str = "feeder";

/// What each shard gets, by its index.
pub type Batches = Vec<Vec<v1::FeedShardBatch>>;

/// Cuts these records into batches for each of so many shards, as a safekeeper does.
///
/// # Errors
/// The number of shards is none that a tenant may have.
pub fn batches(records: &[RawRecord], shards: u8) -> anyhow::Result<Batches> {
    let count = ShardCount::new(shards).context("a number of shards")?;
    let identities = (0..shards).map(|index| ShardIdentity::new(index, count).context("a shard"));
    let mut selections = identities
        .map(|shard| shard.map(Selection::new))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut batches: Batches = vec![Vec::new(); selections.len()];
    let mut rest = records;
    while !rest.is_empty() {
        let (mut bytes, mut taken) = (0, 0);
        for record in rest.iter().take(BATCH_RECORDS) {
            (bytes, taken) = (bytes + record.bytes.len(), taken + 1);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        let (now, later) = rest.split_at(taken);
        rest = later;
        let end = now.last().map_or(Lsn(0), |record| record.end);
        let now: Vec<_> = now.iter().map(|record| routed(record.clone(), count)).collect();
        for (selection, batches) in selections.iter_mut().zip(&mut batches) {
            batches.push(v1::FeedShardBatch {
                entries: selection.take(&now),
                end_lsn: end.0,
                commit_lsn: end.0,
            });
        }
    }
    Ok(batches)
}

/// One that serves until it is dropped.
#[derive(Debug)]
pub struct Feeder {
    /// Where it listens.
    pub address: String,
    runtime: Option<Runtime>,
}

impl Feeder {
    /// Serves these batches.
    ///
    /// # Errors
    /// There is no port or no thread.
    pub fn start(batches: Arc<Batches>) -> anyhow::Result<Feeder> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(THREADS)
            .enable_all()
            .build()?;
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener)?;
            let served = tonic::transport::Server::builder()
                .initial_connection_window_size(16 << 20)
                .initial_stream_window_size(16 << 20)
                .add_service(SafekeeperServer::new(Service { batches }))
                .serve_with_incoming(TcpListenerStream::new(listener));
            served.await.map_err(anyhow::Error::from)
        });
        let runtime = Some(runtime);
        Ok(Feeder { address, runtime })
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Service {
    batches: Arc<Batches>,
}

/// What nobody asks it.
fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a feed is all there is"))
}

#[tonic::async_trait]
impl Safekeeper for Service {
    type ReadWalStream = ReceiverStream<Result<v1::WalChunk, Status>>;
    type FeedShardStream = ReceiverStream<Result<v1::FeedShardBatch, Status>>;

    async fn feed_shard(
        &self,
        request: Request<Streaming<v1::FeedShardRequest>>,
    ) -> Result<Response<Self::FeedShardStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|first| first.message);
        let Some(feed_shard_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message must be a start"));
        };
        let (out, answers) = mpsc::channel(BATCHES_AHEAD);
        let batches = self.batches.clone();
        tokio::spawn(async move {
            let of = batches.get(start.shard_index as usize).into_iter().flatten();
            for batch in of.filter(|batch| batch.end_lsn > start.from_lsn) {
                if out.send(Ok(batch.clone())).await.is_err() {
                    return;
                }
            }
            while let Ok(Some(_)) = inbound.message().await {}
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn create_timeline(
        &self,
        _: Request<v1::CreateSafekeeperTimelineRequest>,
    ) -> Result<Response<v1::SafekeeperTimelineStatus>, Status> {
        no()
    }

    async fn change_membership(
        &self,
        _: Request<v1::ChangeMembershipRequest>,
    ) -> Result<Response<v1::SafekeeperTimelineStatus>, Status> {
        no()
    }

    async fn delete_timeline(
        &self,
        _: Request<v1::TimelineRef>,
    ) -> Result<Response<v1::DeleteTimelineResponse>, Status> {
        no()
    }

    async fn give_up_timeline(
        &self,
        _: Request<v1::TimelineRef>,
    ) -> Result<Response<v1::DeleteTimelineResponse>, Status> {
        no()
    }

    async fn get_timeline_status(
        &self,
        _: Request<v1::TimelineRef>,
    ) -> Result<Response<v1::SafekeeperTimelineStatus>, Status> {
        no()
    }

    async fn read_wal(
        &self,
        _: Request<v1::ReadWalRequest>,
    ) -> Result<Response<Self::ReadWalStream>, Status> {
        no()
    }

    async fn find_boundary(
        &self,
        _: Request<v1::FindBoundaryRequest>,
    ) -> Result<Response<v1::FindBoundaryResponse>, Status> {
        no()
    }
}
