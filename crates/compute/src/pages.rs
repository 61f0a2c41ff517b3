//! Pages of the tier: one pipelined stream to each shard, opened again for ever.
//!
//! A question is answered or waits: Postgres has no use for an error where it expects its disk. While a shard is away
//! its questions stay here and are asked again on the next stream. When the tenant is split into more shards there are streams
//! to those, and what the old ones have not answered is asked there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lakebed_proto::stream::pages::PageStream;
use lakebed_proto::{convert, v1};
use lakebed_types::shard::shard_of;
use lakebed_types::{Lsn, PAGE_SIZE, PageKey, ShardCount, ShardIdentity};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::branch::{Branch, ShardAddress};

/// Questions of one shard under way.
const PENDING: usize = 1024;
/// Pages in one question.
const MAX_KEYS: usize = 256;
/// Pause before a question is asked again, or a stream opened again.
const RETRY: Duration = Duration::from_millis(20);

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
    routes: watch::Receiver<Arc<Routes>>,
    counters: Arc<PageCounters>,
}

/// Streams to all shards.
#[derive(Debug)]
struct Routes {
    asks: Vec<mpsc::Sender<Ask>>,
    count: ShardCount,
}

/// What streams are begun with.
struct Streams {
    branch: Branch,
    at: Lsn,
    shards: watch::Receiver<Vec<ShardAddress>>,
    stale: Arc<Notify>,
    counters: Arc<PageCounters>,
    stop: CancellationToken,
}

impl Streams {
    /// Begins a stream to each shard that there is now; they end with the routes.
    fn begin(&mut self) -> Option<Arc<Routes>> {
        let shards = self.shards.borrow_and_update().clone();
        let count = shards.first()?.shard.count();
        let mut asks = Vec::new();
        for ShardAddress { shard, .. } in shards {
            let (sender, receiver) = mpsc::channel(PENDING);
            asks.push(sender);
            let stream = ShardStream {
                branch: self.branch.clone(),
                shard,
                at: self.at,
                shards: self.shards.clone(),
                stale: self.stale.clone(),
                asks: receiver,
                pending: BTreeMap::new(),
                next: 1,
                counters: self.counters.clone(),
            };
            tokio::spawn(self.stop.clone().run_until_cancelled_owned(stream.run()));
        }
        Some(Arc::new(Routes { asks, count }))
    }

    /// Begins others whenever the number of shards changes.
    async fn follow(mut self, routes: watch::Sender<Arc<Routes>>) {
        loop {
            let count = routes.borrow().count;
            let other = |shards: &Vec<ShardAddress>| {
                let first = shards.first();
                first.is_some_and(|first| first.shard.count() != count)
            };
            let told = tokio::select! {
                () = routes.closed() => return,
                changed = self.shards.wait_for(other) => changed.is_ok(),
            };
            if !told {
                // Nobody will tell of others any more; these go on.
                return routes.closed().await;
            }
            if let Some(begun) = self.begin() {
                tracing::info!(
                    from = count.get(),
                    to = begun.count.get(),
                    "the tenant has another number of shards"
                );
                routes.send_replace(begun);
            }
        }
    }
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
        let mut streams = Streams {
            branch: branch.clone(),
            at,
            shards: placement.shards.clone(),
            stale: placement.stale.clone(),
            counters: counters.clone(),
            stop: stop.clone(),
        };
        let (tell, routes) = watch::channel(streams.begin()?);
        tokio::spawn(stop.clone().run_until_cancelled_owned(streams.follow(tell)));
        Some(PageClient { routes, counters })
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
        let mut wanted: Vec<usize> = (0..keys.len()).collect();
        while !wanted.is_empty() {
            // Held for this round only: what is not answered may belong to others in the next.
            let routes = self.routes.borrow().clone();
            let mut by_shard: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
            for place in wanted {
                if let Some(key) = keys.get(place) {
                    let shard = shard_of(key, routes.count);
                    by_shard.entry(shard).or_default().push(place);
                }
            }
            let mut replies = Vec::new();
            for (shard, places) in &by_shard {
                for places in places.chunks(MAX_KEYS) {
                    let asked = places.iter().filter_map(|place| keys.get(*place).copied());
                    let reply = routes.ask(*shard, asked.collect()).await?;
                    replies.push((places, reply));
                }
            }
            drop(routes);
            wanted = Vec::new();
            for (places, reply) in replies {
                let results = reply.await.map_err(|_| PageError::Stopping)?;
                for (place, result) in places.iter().zip(results) {
                    if take(keys, &mut pages, *place, result)? {
                        wanted.push(*place);
                    }
                }
            }
            if !wanted.is_empty() {
                self.counters.retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(RETRY).await;
            }
        }
        self.counters
            .pages
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(pages)
    }
}

impl Routes {
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
                let shards = self.shards.borrow_and_update();
                let same = shards.iter().find(|known| known.shard == self.shard);
                same.map(|shard| shard.address.clone())
            };
            let Some(address) = address else {
                return self.give_back().await;
            };
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

    /// There is no such shard any more: what is asked of it is to be asked of others.
    async fn give_back(mut self) {
        let again = |ask: Ask| {
            // Who asked may have gone.
            let _ = ask.reply.send(vec![retry(); ask.keys.len()]);
        };
        std::mem::take(&mut self.pending).into_values().for_each(again);
        while let Some(ask) = self.asks.recv().await {
            again(ask);
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
        let mut stream = PageStream::connect(address).await?;
        self.pending.retain(|_, ask| !ask.reply.is_closed());
        for (id, ask) in &self.pending {
            stream.ask(&self.message(*id, &ask.keys))?;
        }
        let mut worked = false;
        loop {
            tokio::select! {
                // Perhaps it is elsewhere, or there are others in its place.
                Ok(()) = self.shards.changed() => {
                    let gone = |shards: &[ShardAddress]| {
                        let here = |known: &ShardAddress| known.shard == self.shard && known.address == address;
                        !shards.iter().any(here)
                    };
                    if gone(&self.shards.borrow_and_update()) {
                        return Ok(false);
                    }
                }
                ask = self.asks.recv(), if self.pending.len() < PENDING => {
                    let Some(ask) = ask else { return Ok(true) };
                    self.take_up(&mut stream, ask)?;
                    // What is asked at the same time goes out in the same write.
                    while self.pending.len() < PENDING && let Ok(ask) = self.asks.try_recv() {
                        self.take_up(&mut stream, ask)?;
                    }
                }
                answer = stream.answer() => match answer {
                    Ok(Some(answer)) => {
                        worked = true;
                        self.answered(answer);
                    }
                    Ok(None) => return Ok(false),
                    Err(_) if worked => return Ok(false),
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }

    fn take_up(&mut self, stream: &mut PageStream, ask: Ask) -> anyhow::Result<()> {
        let id = self.next;
        self.next += 1;
        let message = self.message(id, &ask.keys);
        self.pending.insert(id, ask);
        Ok(stream.ask(&message)?)
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
            let _ = ask.reply.send(vec![retry(); ask.keys.len()]);
        }
    }
}

fn retry() -> v1::PageResult {
    v1::PageResult {
        status: v1::PageStatus::Retry.into(),
        ..Default::default()
    }
}
