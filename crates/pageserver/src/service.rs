//! The services: check what comes in, ask the node, answer. Pages have a [stream](page_stream) of their own, all else is gRPC.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use lakebed_proto::convert::{self, InvalidMessage};
use lakebed_proto::v1::pageserver_server::Pageserver;
use lakebed_proto::v1::{self, import_message};
use lakebed_types::data_directory::is_inside;
use lakebed_types::{ForkNumber, Generation, Lsn, PgVersion, ShardIdentity, TenantId, Term, TimelineId};
use tonic::{Request, Response, Status, Streaming};

use crate::basebackup::{BackupItem, BasebackupError, basebackup};
use crate::fill::FillError;
use crate::manifest::{Cluster, Parent};
use crate::node::{Attachment, Node, NodeError, Taken, TimelineSpec, wait_for};
use crate::receive::{Spool, outside, receive_directory};
use crate::timeline::history::Kept;
use crate::timeline::{Identity, NotTaken, Timeline, TimelineError};

mod explain;
mod horizon;
pub(crate) mod page_stream;
mod pages;

/// How long a read waits for the WAL that it depends on.
const READ_WAIT: Duration = Duration::from_secs(10);
/// How long a basebackup waits.
const BASEBACKUP_WAIT: Duration = Duration::from_secs(60);
/// Bytes of a file in one message.
const CHUNK_BYTES: usize = 1 << 20;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct PageService {
    node: Arc<Node>,
}

impl PageService {
    /// Serves a node's timelines.
    pub fn new(node: Arc<Node>) -> PageService {
        PageService { node }
    }

    /// The timeline that a request about the catalogue names.
    fn catalogue_of(&self, timeline: Option<&v1::TimelineRef>) -> Result<Arc<Timeline>, Status> {
        let (tenant, id) = convert::timeline(timeline).map_err(invalid)?;
        self.node.catalogue_of(tenant, id).map_err(status)
    }

    /// Attaches a shard with these timelines, or adds them to it.
    async fn attach(
        &self,
        shard: Option<v1::ShardRef>,
        generation: u64,
        timelines: Vec<v1::PageserverTimeline>,
    ) -> Result<(), Status> {
        let (tenant, shard) = convert::shard(shard.as_ref()).map_err(invalid)?;
        let timelines = timelines.into_iter().map(spec).collect::<Result<_, _>>()?;
        let attachment = Attachment {
            tenant,
            shard,
            generation: Generation(generation),
            timelines: crate::node::parents_first(timelines),
            retired: false,
        };
        self.node.attach(attachment).await.map_err(status)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn invalid(error: InvalidMessage) -> Status {
    Status::invalid_argument(error.to_string())
}

fn missing(field: &'static str) -> Status {
    invalid(InvalidMessage::Missing(field))
}

/// An error of the node as a gRPC status: what repeating can cure is `unavailable`.
fn status(error: NodeError) -> Status {
    let text = error.to_string();
    match error {
        NodeError::StaleGeneration { .. } => Status::failed_precondition(text),
        NodeError::NotAttached { .. } | NodeError::NoTimeline(_) => Status::not_found(text),
        NodeError::NeverStored(_) | NodeError::Import(_) => Status::failed_precondition(text),
        NodeError::ParentBehind { .. } => Status::unavailable(text),
        NodeError::HasBranch { .. } | NodeError::StillHangs { .. } => Status::failed_precondition(text),
        NodeError::Timeline(TimelineError::BeforeHistory { .. } | TimelineError::NotKept { .. }) => {
            Status::out_of_range(text)
        }
        NodeError::Timeline(TimelineError::Deleted(_)) => Status::not_found(text),
        NodeError::Timeline(TimelineError::TooManyLeases(_)) => Status::resource_exhausted(text),
        NodeError::Timeline(TimelineError::Blob(_)) => Status::unavailable(text),
        NodeError::Timeline(TimelineError::Unobtainable(error)) if !error.is_damage() => {
            Status::unavailable(text)
        }
        NodeError::NotFilled(error) => match *error {
            FillError::Generation { .. } => Status::failed_precondition(text),
            FillError::Lost { .. } => Status::data_loss(text),
            FillError::Blob(_) | FillError::Manifest(_) | FillError::Stopped => Status::unavailable(text),
        },
        NodeError::Timeline(_) | NodeError::Local { .. } => Status::internal(text),
    }
}

type OfTenant = (TenantId, ShardIdentity);

/// A new shard, and the one that it is a part of.
fn split_of(new: Option<&v1::ShardRef>, old: Option<&v1::ShardRef>) -> Result<(OfTenant, OfTenant), Status> {
    let (new, old) = (
        convert::shard(new).map_err(invalid)?,
        convert::shard(old).map_err(invalid)?,
    );
    if new.0 != old.0 || !new.1.is_part_of(old.1) {
        return Err(Status::invalid_argument(format!(
            "shard {} of tenant {} is no part of shard {} of tenant {}",
            new.1, new.0, old.1, old.0
        )));
    }
    Ok((new, old))
}

fn timeline_id(bytes: &[u8]) -> Result<TimelineId, Status> {
    TimelineId::from_slice(bytes).map_err(|error| Status::invalid_argument(format!("timeline: {error}")))
}

fn spec(wire: v1::PageserverTimeline) -> Result<TimelineSpec, Status> {
    let cluster = wire.cluster.ok_or_else(|| missing("cluster"))?;
    let parent = if wire.parent.is_empty() {
        None
    } else {
        Some(Parent {
            timeline: timeline_id(&wire.parent)?,
            lsn: Lsn(wire.branch_lsn),
        })
    };
    Ok(TimelineSpec {
        timeline: timeline_id(&wire.timeline)?,
        parent,
        cluster: Cluster {
            system_identifier: cluster.system_identifier,
            postgres_major: PgVersion::try_from(cluster.postgres_major)
                .map_err(|error| Status::invalid_argument(format!("cluster.postgres_major: {error}")))?,
            wal_segment_bytes: cluster.wal_segment_bytes,
            data_checksums: cluster.data_checksums,
        },
        safekeepers: wire.safekeepers,
        kept: Kept {
            horizon: Lsn(wire.horizon_lsn),
            branches: wire
                .branches_below
                .iter()
                .map(|branch| timeline_id(branch))
                .collect::<Result<_, _>>()?,
        },
    })
}

#[tonic::async_trait]
impl Pageserver for PageService {
    async fn attach_shard(
        &self,
        request: Request<v1::AttachShardRequest>,
    ) -> Result<Response<v1::AttachShardResponse>, Status> {
        let request = request.into_inner();
        self.attach(request.shard, request.generation, request.timelines)
            .await?;
        Ok(Response::new(v1::AttachShardResponse {}))
    }

    async fn import_timeline(
        &self,
        request: Request<Streaming<v1::ImportMessage>>,
    ) -> Result<Response<v1::ImportResponse>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|first| first.message);
        let Some(import_message::Message::Start(start)) = first else {
            return Err(Status::invalid_argument(
                "an import begins with its start message",
            ));
        };
        let key = convert::shard(start.shard.as_ref()).map_err(invalid)?;
        let timeline = timeline_id(&start.timeline)?;
        let spool = Spool::new(&self.node.config.data_dir, &format!("{}-{timeline}", key.1))?;
        let circumstances = receive_directory(&spool, messages).await?;
        let generation = Generation(start.generation);
        let imported = self
            .node
            .import(key, generation, timeline, spool.path(), circumstances);
        let Taken {
            cluster,
            start,
            last_record_start,
            consistent,
        } = imported.await.map_err(status)?;
        Ok(Response::new(v1::ImportResponse {
            start_lsn: start.0,
            cluster: Some(v1::ClusterIdentity {
                system_identifier: cluster.system_identifier,
                postgres_major: cluster.postgres_major.major(),
                wal_segment_bytes: cluster.wal_segment_bytes,
                data_checksums: cluster.data_checksums,
            }),
            last_record_start: last_record_start.0,
            consistent_lsn: consistent.0,
        }))
    }

    async fn create_timeline(
        &self,
        request: Request<v1::CreatePageserverTimelineRequest>,
    ) -> Result<Response<v1::CreatePageserverTimelineResponse>, Status> {
        let request = request.into_inner();
        let timeline = request.timeline.ok_or_else(|| missing("timeline"))?;
        self.attach(request.shard, request.generation, vec![timeline])
            .await?;
        Ok(Response::new(v1::CreatePageserverTimelineResponse {}))
    }

    async fn delete_timeline(
        &self,
        request: Request<v1::DeletePageserverTimelineRequest>,
    ) -> Result<Response<v1::DeletePageserverTimelineResponse>, Status> {
        let request = request.into_inner();
        let key = convert::shard(request.shard.as_ref()).map_err(invalid)?;
        self.node
            .delete_timeline(
                key,
                Generation(request.generation),
                timeline_id(&request.timeline)?,
            )
            .await
            .map_err(status)?;
        Ok(Response::new(v1::DeletePageserverTimelineResponse {}))
    }

    async fn detach_timeline(
        &self,
        request: Request<v1::DetachTimelineRequest>,
    ) -> Result<Response<v1::DetachTimelineResponse>, Status> {
        let request = request.into_inner();
        let key = convert::shard(request.shard.as_ref()).map_err(invalid)?;
        let timeline = timeline_id(&request.timeline)?;
        let generation = Generation(request.generation);
        let detached = self.node.detach_timeline(key, generation, timeline);
        let detached = detached.map_err(status)?;
        Ok(Response::new(v1::DetachTimelineResponse {
            detached: detached.done,
            pages_done: detached.pages_done,
            pages_known: detached.pages_known,
        }))
    }

    async fn fill_shard(
        &self,
        request: Request<v1::FillShardRequest>,
    ) -> Result<Response<v1::FillShardResponse>, Status> {
        let request = request.into_inner();
        let (key, from) = split_of(request.shard.as_ref(), request.from.as_ref())?;
        let timelines = request.timelines.iter();
        let timelines = timelines.map(|id| timeline_id(id)).collect::<Result<_, _>>()?;
        let generation = Generation(request.generation);
        let filled = self.node.fill_shard(key, generation, from, timelines).await;
        let filled = filled.map_err(status)?;
        Ok(Response::new(v1::FillShardResponse {
            filled: filled.done,
            layers_done: filled.layers_done,
            layers_known: filled.layers_known,
        }))
    }

    async fn retire_shard(
        &self,
        request: Request<v1::RetireShardRequest>,
    ) -> Result<Response<v1::RetireShardResponse>, Status> {
        let request = request.into_inner();
        let key = convert::shard(request.shard.as_ref()).map_err(invalid)?;
        let retired = self.node.retire_shard(key, Generation(request.generation));
        retired.await.map_err(status)?;
        Ok(Response::new(v1::RetireShardResponse {}))
    }

    async fn take_over_shard(
        &self,
        request: Request<v1::TakeOverShardRequest>,
    ) -> Result<Response<v1::TakeOverShardResponse>, Status> {
        let request = request.into_inner();
        let (key, from) = split_of(request.shard.as_ref(), request.from.as_ref())?;
        let took_over = self.node.take_over(key, Generation(request.generation), from);
        took_over.await.map_err(status)?;
        Ok(Response::new(v1::TakeOverShardResponse {}))
    }

    async fn drop_shard(
        &self,
        request: Request<v1::DropShardRequest>,
    ) -> Result<Response<v1::DropShardResponse>, Status> {
        let request = request.into_inner();
        let key = convert::shard(request.shard.as_ref()).map_err(invalid)?;
        let dropped = self.node.drop_shard(key, Generation(request.generation));
        dropped.await.map_err(status)?;
        Ok(Response::new(v1::DropShardResponse {}))
    }

    async fn explain_page(
        &self,
        request: Request<v1::ExplainPageRequest>,
    ) -> Result<Response<v1::ExplainPageResponse>, Status> {
        let request = request.into_inner();
        let (tenant, shard) = convert::shard(request.shard.as_ref()).map_err(invalid)?;
        let key = convert::page_key(&request.key).map_err(invalid)?;
        let timeline = timeline_id(&request.timeline)?;
        let timeline = self.node.timeline(tenant, shard, timeline).map_err(status)?;
        let lsn = read_point(&timeline, request.at).await?;
        explain::page(&timeline, &key, lsn).await.map(Response::new)
    }

    async fn get_relation(
        &self,
        request: Request<v1::GetRelationRequest>,
    ) -> Result<Response<v1::GetRelationResponse>, Status> {
        let request = request.into_inner();
        let rel = convert::relation(request.relation.as_ref()).map_err(invalid)?;
        let timeline = self.catalogue_of(request.timeline.as_ref())?;
        let lsn = read_point(&timeline, request.at).await?;
        let size = timeline.relation_size(rel, lsn);
        let init = timeline.relation_size(rel.with_fork(ForkNumber::Init), lsn);
        let unlogged = rel.fork != ForkNumber::Init && init.is_some();
        Ok(Response::new(v1::GetRelationResponse {
            exists: size.is_some(),
            blocks: size.unwrap_or(0),
            unlogged,
            served_lsn: lsn.0,
        }))
    }

    async fn list_relations(
        &self,
        request: Request<v1::ListRelationsRequest>,
    ) -> Result<Response<v1::ListRelationsResponse>, Status> {
        let request = request.into_inner();
        let timeline = self.catalogue_of(request.timeline.as_ref())?;
        let lsn = read_point(&timeline, request.at).await?;
        let place = (request.tablespace, request.database);
        let listed = |(rel, blocks)| v1::ListedRelation {
            relation: Some(convert::relation_to_wire(rel)),
            blocks,
        };
        let relations = timeline.catalogue(|catalogue| catalogue.relations(place, lsn).map(listed).collect());
        Ok(Response::new(v1::ListRelationsResponse { relations }))
    }

    async fn get_lsn_by_time(
        &self,
        request: Request<v1::GetLsnByTimeRequest>,
    ) -> Result<Response<v1::GetLsnByTimeResponse>, Status> {
        let request = request.into_inner();
        let timeline = self.catalogue_of(request.timeline.as_ref())?;
        let found = timeline.catalogue(|catalogue| catalogue.lsn_at(request.unix_micros));
        Ok(Response::new(v1::GetLsnByTimeResponse {
            lsn: found.unwrap_or_default().0,
            before_history: found.is_none(),
        }))
    }

    async fn find_horizon(
        &self,
        request: Request<v1::FindHorizonRequest>,
    ) -> Result<Response<v1::FindHorizonResponse>, Status> {
        let request = request.into_inner();
        let timeline = self.catalogue_of(request.timeline.as_ref())?;
        horizon::find(&timeline, &request).map(Response::new)
    }

    async fn lease_history(
        &self,
        request: Request<v1::LeaseHistoryRequest>,
    ) -> Result<Response<v1::LeaseHistoryResponse>, Status> {
        let request = request.into_inner();
        let (tenant, shard) = convert::shard(request.shard.as_ref()).map_err(invalid)?;
        let timeline = timeline_id(&request.timeline)?;
        let timeline = self.node.timeline(tenant, shard, timeline).map_err(status)?;
        horizon::lease(&timeline, &request).map(Response::new)
    }

    type BasebackupStream = Answers<v1::FileChunk>;

    async fn basebackup(
        &self,
        request: Request<v1::BasebackupRequest>,
    ) -> Result<Response<Self::BasebackupStream>, Status> {
        let request = request.into_inner();
        let timeline = self.catalogue_of(request.timeline.as_ref())?;
        let lsn = Lsn(request.lsn);
        check_consistent(&timeline, lsn)?;
        wait_for(&timeline, lsn, BASEBACKUP_WAIT).await.map_err(status)?;
        compute_term(&timeline, request.term)?;
        let last_record_start = Lsn(request.last_record_start);
        let slrus = request.slru_on_demand;
        let items = timeline.obtaining(|| basebackup(&timeline, lsn, last_record_start, slrus));
        let items = items.await;
        // Once more: it may have been given up meanwhile.
        check_consistent(&timeline, lsn)?;
        let items = items.map_err(|error| match error {
            BasebackupError::Timeline(error) => status(error.into()),
            error => Status::internal(error.to_string()),
        })?;
        let chunks = items.into_iter().flat_map(chunks).map(Ok);
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn put_file(
        &self,
        request: Request<v1::PutFileRequest>,
    ) -> Result<Response<v1::PutFileResponse>, Status> {
        let request = request.into_inner();
        if !is_inside(&request.path) {
            return Err(outside(&request.path));
        }
        let timeline = self.catalogue_of(request.timeline.as_ref())?;
        compute_term(&timeline, request.term)?;
        let put = timeline.put_file(request.path, (!request.removed).then_some(request.content));
        put.map_err(|error| Status::unavailable(error.to_string()))?;
        timeline.flush().await.map_err(|error| status(error.into()))?;
        Ok(Response::new(v1::PutFileResponse {}))
    }
}

/// Refuses a compute that another has superseded. Term 0 is nobody's: tools that look, and change nothing.
fn compute_term(timeline: &Timeline, term: u64) -> Result<(), Status> {
    if term == 0 {
        return Ok(());
    }
    timeline.compute_term(Term(term)).map_err(|error| match error {
        NotTaken::Superseded(known) => Status::aborted(format!(
            "a compute of term {} has timeline {}; term {term} is over",
            known.0, timeline.identity.timeline
        )),
        NotTaken::Retired => Status::unavailable(error.to_string()),
    })
}

/// The LSN at which a read is served: min(lsn, last record), once the last record is at or past what it depends on.
async fn read_point(timeline: &Timeline, at: Option<v1::ReadPoint>) -> Result<Lsn, Status> {
    let at = at.ok_or_else(|| missing("at"))?;
    let needed = Lsn(at.not_modified_since);
    if timeline.last_record() < needed {
        wait_for(timeline, needed, READ_WAIT).await.map_err(|error| {
            let stopped = timeline
                .stopped()
                .map(|reason| format!("; ingest stopped: {reason}"))
                .unwrap_or_default();
            Status::unavailable(format!("{error}{stopped}"))
        })?;
    }
    let lsn = timeline.last_record().min(Lsn(at.lsn));
    check_consistent(timeline, lsn)?;
    Ok(lsn)
}

/// Refuses what is before the timeline's history, in history that was given up, or in the middle of the base backup that it was made of.
fn check_consistent(timeline: &Timeline, lsn: Lsn) -> Result<(), Status> {
    let Identity {
        start, consistent, ..
    } = timeline.identity;
    if lsn < start {
        return Err(Status::out_of_range(format!(
            "{lsn} is before the start of this timeline's history at {start}"
        )));
    }
    timeline.check_kept(lsn).map_err(|error| status(error.into()))?;
    if lsn < consistent {
        return Err(Status::out_of_range(format!(
            "{lsn} is before {consistent}, the end of the base backup that this timeline was made of: there is no \
             consistent state before it"
        )));
    }
    Ok(())
}

/// Messages that carry one entry of a basebackup.
fn chunks(item: BackupItem) -> Vec<v1::FileChunk> {
    match item {
        BackupItem::Directory(path) => {
            vec![v1::FileChunk {
                path: format!("{path}/"),
                last: true,
                ..Default::default()
            }]
        }
        BackupItem::Link { path, target } => {
            let link_target = Bytes::copy_from_slice(target.as_os_str().as_encoded_bytes());
            vec![v1::FileChunk {
                path,
                link_target,
                last: true,
                ..Default::default()
            }]
        }
        BackupItem::OnDemand { path, bytes } => {
            vec![v1::FileChunk {
                path,
                file_bytes: bytes,
                on_demand: true,
                last: true,
                ..Default::default()
            }]
        }
        BackupItem::File { path, bytes, pieces } => {
            let mut chunks = Vec::new();
            for (mut offset, mut rest) in pieces {
                while !rest.is_empty() {
                    let data = rest.split_to(CHUNK_BYTES.min(rest.len()));
                    let length = data.len() as u64;
                    let path = path.clone();
                    chunks.push(v1::FileChunk {
                        path,
                        offset,
                        data,
                        file_bytes: bytes,
                        ..Default::default()
                    });
                    offset += length;
                }
            }
            if chunks.is_empty() {
                chunks.push(v1::FileChunk {
                    path,
                    file_bytes: bytes,
                    ..Default::default()
                });
            }
            if let Some(last) = chunks.last_mut() {
                last.last = true;
            }
            chunks
        }
    }
}
