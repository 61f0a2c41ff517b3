//! Questions to shard 0: relations, the basebackup, and files that no WAL carries.

use std::sync::Arc;
use std::time::Duration;

use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::{Lsn, RelTag, Term};
use tokio::sync::{Mutex, Notify, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::branch::{Branch, ShardAddress};
use crate::pages::Placement;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before it is asked again.
const RETRY: Duration = Duration::from_millis(50);
/// Largest answer.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What the tier knows of a relation fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Size in blocks; none if it does not exist.
    pub blocks: Option<u32>,
    /// It belongs to an unlogged relation, whose init fork alone is in the tier.
    pub unlogged: bool,
}

/// A client of shard 0; cheap to clone.
#[derive(Clone, Debug)]
pub struct CatalogueClient {
    branch: Arc<Branch>,
    at: Lsn,
    shards: watch::Receiver<Vec<ShardAddress>>,
    stale: Arc<Notify>,
    channel: Arc<Mutex<Option<PageserverClient<Channel>>>>,
}

impl CatalogueClient {
    /// Asks as of `at`.
    pub fn new(branch: &Branch, at: Lsn, placement: &Placement) -> CatalogueClient {
        CatalogueClient {
            branch: Arc::new(branch.clone()),
            at,
            shards: placement.shards.clone(),
            stale: placement.stale.clone(),
            channel: Arc::default(),
        }
    }

    fn timeline(&self) -> Option<v1::TimelineRef> {
        Some(convert::timeline_ref(self.branch.tenant, self.branch.timeline))
    }

    fn read_point(&self) -> Option<v1::ReadPoint> {
        Some(v1::ReadPoint {
            lsn: self.at.0,
            not_modified_since: self.at.0,
        })
    }

    async fn client(&self) -> Result<PageserverClient<Channel>, Status> {
        let mut channel = self.channel.lock().await;
        if let Some(client) = &*channel {
            return Ok(client.clone());
        }
        let address = self.shards.borrow().first().map(|shard| shard.address.clone());
        let address = address.ok_or_else(|| Status::internal("no shard"))?;
        let connected = connect(&address).await;
        let connected =
            connected.map_err(|error| Status::unavailable(format!("pageserver {address}: {error:?}")))?;
        let client = PageserverClient::new(connected).max_decoding_message_size(MAX_MESSAGE_BYTES);
        *channel = Some(client.clone());
        Ok(client)
    }

    /// Asks until there is an answer, unless asking again cannot help.
    async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &self,
        what: &str,
        question: impl Fn(PageserverClient<Channel>) -> F,
    ) -> Result<T, Status> {
        let mut complained = false;
        loop {
            let once = async { question(self.client().await?).await };
            let answer = tokio::time::timeout(PATIENCE, once).await;
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            let hopeless = matches!(
                status.code(),
                Code::InvalidArgument
                    | Code::Internal
                    | Code::OutOfRange
                    | Code::Unimplemented
                    | Code::Aborted
            );
            if hopeless {
                return Err(status);
            }
            if !complained {
                tracing::warn!(
                    what,
                    error = status.message(),
                    "shard 0 does not answer; asking again"
                );
                complained = true;
            }
            *self.channel.lock().await = None;
            self.stale.notify_one();
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A relation fork at the boot position.
    ///
    /// # Errors
    /// Asking again cannot help.
    pub async fn relation(&self, rel: RelTag) -> Result<Relation, Status> {
        let request = v1::GetRelationRequest {
            timeline: self.timeline(),
            at: self.read_point(),
            relation: Some(convert::relation_to_wire(rel)),
        };
        let answer = self
            .ask("GetRelation", |mut client| {
                let request = request.clone();
                async move { client.get_relation(request).await }
            })
            .await?
            .into_inner();
        Ok(Relation {
            blocks: answer.exists.then_some(answer.blocks),
            unlogged: answer.unlogged,
        })
    }

    /// All relation forks of a database in a tablespace, with their sizes in blocks.
    ///
    /// # Errors
    /// Asking again cannot help.
    pub async fn list(&self, tablespace: u32, database: u32) -> Result<Vec<(RelTag, u32)>, Status> {
        let request = v1::ListRelationsRequest {
            timeline: self.timeline(),
            at: self.read_point(),
            tablespace,
            database,
        };
        let answer = self
            .ask("ListRelations", |mut client| {
                let request = request.clone();
                async move { client.list_relations(request).await }
            })
            .await?
            .into_inner();
        let relation = |listed: &v1::ListedRelation| {
            let rel = convert::relation(listed.relation.as_ref());
            rel.map(|rel| (rel, listed.blocks))
        };
        let relations: Result<Vec<_>, _> = answer.relations.iter().map(relation).collect();
        relations.map_err(|error| Status::internal(format!("a pageserver's answer: {error}")))
    }

    /// Stores or removes a file that no WAL carries; returns when that is durable.
    ///
    /// # Errors
    /// Asking again cannot help.
    pub async fn put_file(&self, term: Term, path: &str, content: Option<Vec<u8>>) -> Result<(), Status> {
        let request = v1::PutFileRequest {
            timeline: self.timeline(),
            term: term.0,
            path: path.to_owned(),
            removed: content.is_none(),
            content: content.unwrap_or_default().into(),
        };
        let stored = self
            .ask("PutFile", |mut client| {
                let request = request.clone();
                async move { client.put_file(request).await }
            })
            .await;
        stored.map(|_| ())
    }

    /// The stream of files to boot from.
    ///
    /// # Errors
    /// Asking again cannot help.
    pub async fn basebackup(
        &self,
        term: Term,
        last_record_start: Lsn,
    ) -> Result<tonic::Streaming<v1::FileChunk>, Status> {
        let request = v1::BasebackupRequest {
            timeline: self.timeline(),
            lsn: self.at.0,
            last_record_start: last_record_start.0,
            term: term.0,
            slru_on_demand: true,
        };
        let answer = self
            .ask("Basebackup", |mut client| {
                let request = request.clone();
                async move { client.basebackup(request).await }
            })
            .await?;
        Ok(answer.into_inner())
    }
}
