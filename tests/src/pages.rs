//! Pages as pageservers serve them, asked for as a compute does.

use std::collections::BTreeMap;

use lakebed_proto::stream::pages::PageStream;
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::v1::{self, PageStatus};
use lakebed_proto::{connect, convert};
use lakebed_redo::PageBytes;
use lakebed_types::shard::shard_of;
use lakebed_types::{Lsn, PageKey, RelTag, ShardCount, ShardIdentity, TenantId, TimelineId};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::Tier;

/// Pages in one question.
const KEYS: usize = 256;

/// A page, or why it was not served.
pub type Served = Result<Box<PageBytes>, String>;

/// A client of the pageservers of one branch.
#[derive(Debug)]
pub struct Pages {
    runtime: Runtime,
    tenant: TenantId,
    timeline: TimelineId,
    start: Lsn,
    count: ShardCount,
    /// Where each is, and for calls.
    shards: Vec<(String, PageserverClient<Channel>)>,
}

impl Pages {
    /// Connects to the pageservers of a branch.
    pub fn of(tier: &Tier, branch: &str) -> Pages {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (info, shards) = runtime.block_on(async {
            let controller = connect(tier.controller()).await.expect("a controller");
            let request = v1::ResolveBranchRequest {
                tenant: "test".to_owned(),
                branch: branch.to_owned(),
            };
            let info = ControllerClient::new(controller).resolve_branch(request).await;
            let info = info.expect("a branch").into_inner();
            let mut shards = Vec::new();
            for shard in &info.shards {
                let node = shard.node.as_ref().expect("a shard that is somewhere");
                let channel = connect(&node.address).await.expect("a pageserver");
                shards.push((node.address.clone(), PageserverClient::new(channel)));
            }
            (info, shards)
        });
        let (tenant, timeline) = convert::timeline(info.timeline.as_ref()).expect("a timeline");
        let count = u8::try_from(shards.len()).ok().and_then(ShardCount::new);
        Pages {
            runtime,
            tenant,
            timeline,
            start: Lsn(info.start_lsn),
            count: count.expect("shards"),
            shards,
        }
    }

    /// Where the branch's own WAL starts.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// Its tenant.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Its timeline.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Every page of every relation of these databases and of the shared ones.
    pub fn all(&self, databases: &[u32], lsn: Lsn) -> BTreeMap<PageKey, Vec<u8>> {
        let shared = std::iter::once((1664, 0));
        let places = shared.chain(databases.iter().map(|oid| (1663, *oid)));
        let mut keys = Vec::new();
        for (rel, blocks) in places.flat_map(|place| self.relations(lsn, place)) {
            keys.extend((0..blocks).map(|block| PageKey::Rel { rel, block }));
        }
        let served = self.get(lsn, &keys);
        let bytes = |(key, page): (PageKey, Served)| match page {
            Ok(page) => (key, page.to_vec()),
            Err(why) => panic!("{key} at {lsn}: {why}"),
        };
        keys.into_iter().zip(served).map(bytes).collect()
    }

    /// Pages at exactly this LSN, in the order of the keys.
    pub fn get(&self, lsn: Lsn, keys: &[PageKey]) -> Vec<Served> {
        let mut all: Vec<Served> = keys.iter().map(|key| Err(format!("{key}: no answer"))).collect();
        for (index, (address, _)) in (0..).zip(&self.shards) {
            let shard = ShardIdentity::new(index, self.count).expect("a shard");
            let places: Vec<usize> = (0..keys.len())
                .filter(|&place| shard_of(&keys[place], self.count) == index)
                .collect();
            let request = |(number, places): (u64, &[usize])| v1::GetPagesRequest {
                request_id: number,
                shard: Some(convert::shard_ref(self.tenant, shard)),
                timeline: self.timeline.0.to_vec().into(),
                at: Some(at(lsn)),
                keys: places
                    .iter()
                    .map(|&place| keys[place].encode().to_vec().into())
                    .collect(),
            };
            let requests: Vec<_> = (0..).zip(places.chunks(KEYS)).map(request).collect();
            // In any order: one that has to wait does not hold up the others.
            let mut answers = self.runtime.block_on(async {
                let mut stream = PageStream::connect(address).await.expect("a stream of pages");
                for request in &requests {
                    stream.ask(request).expect("a request");
                }
                let mut answers = Vec::new();
                while answers.len() < requests.len() {
                    let answer = stream.answer().await.expect("answers");
                    answers.push(answer.expect("all answers"));
                }
                answers
            });
            answers.sort_by_key(|answer| answer.request_id);
            assert_eq!(
                answers.len(),
                places.chunks(KEYS).count(),
                "answers of shard {index}"
            );
            for (places, answer) in places.chunks(KEYS).zip(answers) {
                assert_eq!(answer.pages.len(), places.len(), "pages of shard {index}");
                for (&place, page) in places.iter().zip(answer.pages) {
                    all[place] = served(answer.served_lsn, lsn, page);
                }
            }
        }
        all
    }

    /// Forks of one database at exactly this LSN, and their sizes in blocks.
    pub fn relations(&self, lsn: Lsn, (tablespace, database): (u32, u32)) -> BTreeMap<RelTag, u32> {
        let request = v1::ListRelationsRequest {
            timeline: Some(convert::timeline_ref(self.tenant, self.timeline)),
            at: Some(at(lsn)),
            tablespace,
            database,
        };
        let mut client = self.shards[0].1.clone();
        let list = self
            .runtime
            .block_on(client.list_relations(request))
            .expect("a list");
        let listed = list.into_inner().relations.into_iter().map(|listed| {
            let rel = convert::relation(listed.relation.as_ref()).expect("a relation");
            (rel, listed.blocks)
        });
        listed.collect()
    }
}

fn at(lsn: Lsn) -> v1::ReadPoint {
    v1::ReadPoint {
        lsn: lsn.0,
        not_modified_since: lsn.0,
    }
}

fn served(served_lsn: u64, lsn: Lsn, page: v1::PageResult) -> Served {
    if page.status() != PageStatus::Ok {
        return Err(format!("{}: {}", page.status().as_str_name(), page.message));
    }
    if served_lsn != lsn.0 {
        return Err(format!("served at {} instead of {lsn}", Lsn(served_lsn)));
    }
    let bytes: Box<[u8]> = page.page.to_vec().into();
    bytes
        .try_into()
        .map_err(|bytes: Box<[u8]>| format!("{} bytes", bytes.len()))
}
