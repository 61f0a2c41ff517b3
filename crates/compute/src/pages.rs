//! Pages of the tier: one pipelined stream to each shard, opened again for ever.
//!
//! A question is answered or waits: Postgres has no use for an error where it expects its disk. While a shard is away
//! its questions stay here and are asked again on the next stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::shard::shard_of;
use lakebed_types::{Lsn, PAGE_SIZE, PageKey, ShardIdentity};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::branch::{Branch, ShardAddress};

/// Questions of one shard under way.
const PENDING: usize = 1024;
/// Pages in one question.
const MAX_KEYS: usize = 256;
/// Pause before a question is asked again, or a stream opened again.
const RETRY: Duration = Duration::from_millis(20);
/// Largest answer.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Why a page will never come.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PageError {
    /// The tier has lost it.
    #[error("{key}: {message}")]
    Damaged {
        /// The page.
        key: PageKey,
        /// What the pageserver says.
        message: String,
    },
    /// The compute ends.
    #[error("the compute is stopping")]
    Stopping,
}

/// Counters.
#[derive(Debug, Default)]
pub struct PageCounters {
    /// Pages received.
    pub pages: AtomicU64,
    /// Questions asked again.
    pub retries: AtomicU64,
}

struct Ask {
    keys: Vec<PageKey>,
    reply: oneshot::Sender<Vec<v1::PageResult>>,
}

/// Where the shards are; who finds an entry wrong calls for a new one.
#[derive(Debug)]
pub struct Placement {
    /// By index.
    pub shards: watch::Receiver<Vec<ShardAddress>>,
    /// Rung when a shard is not where it should be.
    pub stale: Arc<Notify>,
}

/// See the module header; cheap to clone.
#[derive(Clone, Debug)]
pub struct PageClient {
    asks: Vec<mpsc::Sender<Ask>>,
    count: lakebed_types::ShardCount,
    counters: Arc<PageCounters>,
}

impl PageClient {
    /// Starts a task for each shard; they end with `stop`. All pages are read as of `at`.
    pub fn start(
        branch: &Branch,
        at: Lsn,
        placement: &Placement,
        stop: &CancellationToken,
    ) -> Option<PageClient> {
        let counters = Arc::new(PageCounters::default());
        let count = branch.shards.first()?.shard.count();
        let mut asks = Vec::new();
        for ShardAddress { shard, .. } in &branch.shards {
            let (sender, receiver) = mpsc::channel(PENDING);
            asks.push(sender);
            let stream = ShardStream {
                branch: branch.clone(),
                shard: *shard,
                at,
                shards: placement.shards.clone(),
                stale: placement.stale.clone(),
                asks: receiver,
                pending: BTreeMap::new(),
                next: 1,
                counters: counters.clone(),
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(stream.run()));
        }
        Some(PageClient {
            asks,
            count,
            counters,
        })
    }

    /// What was counted.
    pub fn counters(&self) -> &PageCounters {
        &self.counters
    }

    /// Pages, in the order of the keys.
    ///
    /// # Errors
    /// See [`PageError`].
    pub async fn get(&self, keys: &[PageKey]) -> Result<Vec<Bytes>, PageError> {
        let mut pages = vec![Bytes::new(); keys.len()];
        let mut by_shard: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
        for (place, key) in keys.iter().enumerate() {
            by_shard.entry(shard_of(key, self.count)).or_default().push(place);
        }
        let mut under_way = Vec::new();
        for (shard, places) in &by_shard {
            for places in places.chunks(MAX_KEYS) {
                under_way.push((*shard, places.to_vec()));
            }
        }
        while !under_way.is_empty() {
            let mut replies = Vec::new();
            for (shard, places) in under_way {
                let wanted: Vec<PageKey> = places
                    .iter()
                    .filter_map(|place| keys.get(*place).copied())
                    .collect();
                replies.push((shard, places, self.ask(shard, wanted).await?));
            }
            under_way = Vec::new();
            for (shard, places, reply) in replies {
                let results = reply.await.map_err(|_| PageError::Stopping)?;
                let mut again = Vec::new();
                for (place, result) in places.into_iter().zip(results) {
                    if take(keys, &mut pages, place, result)? {
                        again.push(place);
                    }
                }
                if !again.is_empty() {
                    under_way.push((shard, again));
                }
            }
            if !under_way.is_empty() {
                self.counters.retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(RETRY).await;
            }
        }
        self.counters
            .pages
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(pages)
    }

    async fn ask(
        &self,
        shard: u8,
        keys: Vec<PageKey>,
    ) -> Result<oneshot::Receiver<Vec<v1::PageResult>>, PageError> {
        let (reply, receiver) = oneshot::channel();
        let asks = self.asks.get(usize::from(shard)).ok_or(PageError::Stopping)?;
        asks.send(Ask { keys, reply })
            .await
            .map_err(|_| PageError::Stopping)?;
        Ok(receiver)
    }
}

/// Puts a result in its place. True if it has to be asked again.
fn take(
    keys: &[PageKey],
    pages: &mut [Bytes],
    place: usize,
    result: v1::PageResult,
) -> Result<bool, PageError> {
    let (Some(key), Some(page)) = (keys.get(place), pages.get_mut(place)) else {
        return Ok(false);
    };
    match result.status() {
        v1::PageStatus::Ok if result.page.len() == PAGE_SIZE => {
            *page = result.page;
            Ok(false)
        }
        v1::PageStatus::Retry | v1::PageStatus::WrongShard => Ok(true),
        v1::PageStatus::Ok | v1::PageStatus::Unspecified | v1::PageStatus::Gone | v1::PageStatus::Damaged => {
            Err(PageError::Damaged {
                key: *key,
                message: format!("{:?}: {}", result.status(), result.message),
            })
        }
    }
}

struct ShardStream {
    branch: Branch,
    shard: ShardIdentity,
    at: Lsn,
    shards: watch::Receiver<Vec<ShardAddress>>,
    stale: Arc<Notify>,
    asks: mpsc::Receiver<Ask>,
    pending: BTreeMap<u64, Ask>,
    next: u64,
    counters: Arc<PageCounters>,
}

impl ShardStream {
    async fn run(mut self) {
        let mut complained = false;
        loop {
            let address = {
                let shards = self.shards.borrow();
                shards
                    .get(usize::from(self.shard.index()))
                    .map(|shard| shard.address.clone())
            };
            let Some(address) = address else { return };
            match self.follow(&address).await {
                Ok(true) => return,
                Ok(false) => complained = false,
                Err(error) => {
                    if !complained {
                        let error = format!("{error:#}");
                        tracing::warn!(shard = %self.shard, address, error, "pageserver is away; reads of its pages wait");
                        complained = true;
                    }
                }
            }
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            self.stale.notify_one();
            tokio::time::sleep(RETRY).await;
        }
    }

    fn message(&self, id: u64, keys: &[PageKey]) -> v1::GetPagesRequest {
        v1::GetPagesRequest {
            request_id: id,
            shard: Some(convert::shard_ref(self.branch.tenant, self.shard)),
            timeline: self.branch.timeline.0.to_vec().into(),
            at: Some(v1::ReadPoint {
                lsn: self.at.0,
                not_modified_since: self.at.0,
            }),
            keys: keys.iter().map(|key| key.encode().to_vec().into()).collect(),
        }
    }

    /// One stream. True when nobody will ask any more, false when it ended after it had worked.
    async fn follow(&mut self, address: &str) -> anyhow::Result<bool> {
        let channel = connect(address).await?;
        let mut client = PageserverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        // Room for everything that may be pending: sending never waits, so answers are always read.
        let (requests, outgoing) = mpsc::channel(PENDING + 1);
        let mut answers = client
            .get_pages(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        self.pending.retain(|_, ask| !ask.reply.is_closed());
        for (id, ask) in &self.pending {
            requests.send(self.message(*id, &ask.keys)).await?;
        }
        let mut worked = false;
        loop {
            tokio::select! {
                ask = self.asks.recv(), if self.pending.len() < PENDING => {
                    let Some(ask) = ask else { return Ok(true) };
                    let id = self.next;
                    self.next += 1;
                    let message = self.message(id, &ask.keys);
                    self.pending.insert(id, ask);
                    requests.try_send(message)?;
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        worked = true;
                        self.answered(answer);
                    }
                    Ok(None) => return Ok(false),
                    Err(_) if worked => return Ok(false),
                    Err(status) => return Err(status.into()),
                },
            }
        }
    }

    fn answered(&mut self, answer: v1::GetPagesResponse) {
        let Some(ask) = self.pending.remove(&answer.request_id) else {
            return;
        };
        let wrong = |page: &v1::PageResult| page.status() == v1::PageStatus::WrongShard;
        if answer.pages.iter().any(wrong) {
            self.stale.notify_one();
        }
        if answer.pages.len() == ask.keys.len() {
            // Who asked may have gone.
            let _ = ask.reply.send(answer.pages);
        } else {
            tracing::error!(shard = %self.shard, "a pageserver's answer has another number of pages than asked for");
            let retry = v1::PageResult {
                status: v1::PageStatus::Retry.into(),
                ..Default::default()
            };
            let _ = ask.reply.send(vec![retry; ask.keys.len()]);
        }
    }
}
