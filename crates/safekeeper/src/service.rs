//! The gRPC service: each call checks its message, finds the timeline and hands over.

use std::pin::Pin;
use std::sync::Arc;

use lakebed_proto::{convert, v1};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::data_dir::Name;
use crate::server::Safekeeper;
use crate::{feed, read_wal, wire};

/// The service of one safekeeper.
pub(crate) struct Service(Arc<Safekeeper>);

impl Service {
    pub(crate) fn new(safekeeper: Arc<Safekeeper>) -> Service {
        Service(safekeeper)
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn name(wire: Option<&v1::TimelineRef>) -> Result<Name, Status> {
    convert::timeline(wire).map_err(wire::refused)
}

#[tonic::async_trait]
impl v1::safekeeper_server::Safekeeper for Service {
    async fn create_timeline(
        &self,
        request: Request<v1::CreateSafekeeperTimelineRequest>,
    ) -> Result<Response<v1::SafekeeperTimelineStatus>, Status> {
        let request = request.into_inner();
        let name = name(request.timeline.as_ref())?;
        let timeline = self.0.create(name, &request).await?;
        Ok(Response::new(timeline.status()))
    }

    async fn change_membership(
        &self,
        request: Request<v1::ChangeMembershipRequest>,
    ) -> Result<Response<v1::SafekeeperTimelineStatus>, Status> {
        let request = request.into_inner();
        let membership = wire::membership(request.membership.as_ref()).map_err(wire::refused)?;
        let timeline = self.0.timeline(name(request.timeline.as_ref())?)?;
        self.0.change_membership(&timeline, membership).await?;
        Ok(Response::new(timeline.status()))
    }

    async fn delete_timeline(
        &self,
        request: Request<v1::TimelineRef>,
    ) -> Result<Response<v1::DeleteTimelineResponse>, Status> {
        self.0.delete(name(Some(request.get_ref()))?).await?;
        Ok(Response::new(v1::DeleteTimelineResponse {}))
    }

    async fn give_up_timeline(
        &self,
        request: Request<v1::TimelineRef>,
    ) -> Result<Response<v1::DeleteTimelineResponse>, Status> {
        self.0.give_up(name(Some(request.get_ref()))?).await?;
        Ok(Response::new(v1::DeleteTimelineResponse {}))
    }

    async fn get_timeline_status(
        &self,
        request: Request<v1::TimelineRef>,
    ) -> Result<Response<v1::SafekeeperTimelineStatus>, Status> {
        let timeline = self.0.timeline(name(Some(request.get_ref()))?)?;
        Ok(Response::new(timeline.status()))
    }

    type ReadWalStream = Out<v1::WalChunk>;

    async fn read_wal(
        &self,
        request: Request<v1::ReadWalRequest>,
    ) -> Result<Response<Self::ReadWalStream>, Status> {
        let request = request.into_inner();
        let timeline = self.0.timeline(name(request.timeline.as_ref())?)?;
        let archive = self.0.archive(timeline.name);
        let range = read_wal::check(&timeline, &request, archive.as_ref())?;
        let (out, chunks) = mpsc::channel(read_wal::CHUNKS_AHEAD);
        self.0
            .serve_stream(read_wal::serve(self.0.clone(), timeline, range, out));
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn find_boundary(
        &self,
        request: Request<v1::FindBoundaryRequest>,
    ) -> Result<Response<v1::FindBoundaryResponse>, Status> {
        let request = request.into_inner();
        let timeline = self.0.timeline(name(request.timeline.as_ref())?)?;
        let archive = self.0.archive(timeline.name);
        let at = lakebed_types::Lsn(request.at_or_below);
        let found = read_wal::find_boundary(&timeline, at, archive.as_ref()).await?;
        Ok(Response::new(found))
    }

    type FeedShardStream = Out<v1::FeedShardBatch>;

    async fn feed_shard(
        &self,
        request: Request<Streaming<v1::FeedShardRequest>>,
    ) -> Result<Response<Self::FeedShardStream>, Status> {
        let (out, batches) = mpsc::channel(feed::BATCHES_AHEAD);
        let stream = feed::serve(self.0.clone(), request.into_inner(), out);
        self.0.serve_stream(stream);
        Ok(Response::new(Box::pin(ReceiverStream::new(batches))))
    }
}
