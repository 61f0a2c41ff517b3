//! Pages that a read found with a long chain wait here for an image.
//!
//! A flush gives an image to a page whose chain became long in its memory table, and a merge does so for layers. Between the
//! two, a page's chain may be long in several level-0 layers of which none has many of its deltas. Reads notice: what had
//! to replay more than the policy allows offers its page, once, to a bounded queue, and one task of the node makes the
//! images ([`Timeline::add_image`]). It rests as long as it worked while pages are served, so that reads go first. A page that
//! finds the queue full is not lost: its next read offers it again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::hot::PageName;
use crate::node::Node;
use crate::timeline::image::Added;
use crate::timeline::{Timeline, TimelineError};

/// Pages that may wait.
const WAITING: usize = 4096;

#[derive(Debug, Default)]
struct Waiting {
    order: VecDeque<PageName>,
    names: HashSet<PageName>,
}

/// See the module header.
#[derive(Debug, Default)]
pub struct ImageQueue {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

impl ImageQueue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A set and a list of names: whole at any moment but for one name.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a page, unless it waits already. Whether it waits now.
    pub fn offer(&self, page: PageName) -> bool {
        let mut waiting = self.waiting();
        if waiting.names.contains(&page) {
            return true;
        }
        if waiting.order.len() >= WAITING {
            return false;
        }
        waiting.names.insert(page);
        waiting.order.push_back(page);
        drop(waiting);
        self.bell.notify_one();
        true
    }

    /// The page that has waited longest.
    fn take(&self) -> Option<PageName> {
        let mut waiting = self.waiting();
        let page = waiting.order.pop_front()?;
        waiting.names.remove(&page);
        Some(page)
    }

    async fn next(&self) -> PageName {
        loop {
            if let Some(page) = self.take() {
                return page;
            }
            self.bell.notified().await;
        }
    }

    /// Pages that wait.
    pub fn len(&self) -> usize {
        self.waiting().order.len()
    }

    /// Whether no page waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Makes images until stopped.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    loop {
        let page = tokio::select! {
            page = node.images.next() => page,
            () = stop.cancelled() => return,
        };
        // Without its timeline, which may have gone meanwhile, there is nothing to do.
        let Ok(timeline) = node.timeline(page.tenant, page.shard, page.timeline) else {
            continue;
        };
        let (served, begin) = (node.metrics.pages.get(), Instant::now());
        match image(timeline, page).await {
            Ok(Added::Yes) => {
                node.metrics.read_images.inc();
            }
            Ok(Added::NotDue | Added::NoRoom) => {}
            Ok(Added::Late) => {
                node.images.offer(page);
            }
            Err(error) => {
                // The next read of the page says the same to whoever asked for it.
                tracing::warn!(timeline = %page.timeline, page = %page.key, %error, "no image");
            }
        }
        if node.metrics.pages.get() > served {
            tokio::select! {
                () = tokio::time::sleep(begin.elapsed()) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

async fn image(timeline: Arc<Timeline>, page: PageName) -> Result<Added, TimelineError> {
    let done =
        tokio::task::spawn_blocking(move || timeline.obtaining_here(|| timeline.add_image(&page.key))).await;
    done.map_err(|error| TimelineError::Internal(format!("an image: {error}")))?
}

#[cfg(test)]
mod tests {
    use lakebed_types::{PageKey, ShardCount, ShardIdentity, SlruKind, TenantId, TimelineId};

    use super::*;

    fn page(number: u64) -> PageName {
        PageName {
            tenant: TenantId([1; 16]),
            timeline: TimelineId([2; 16]),
            shard: ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap(),
            key: PageKey::Slru {
                kind: SlruKind::Clog,
                page: number,
            },
        }
    }

    #[test]
    fn a_page_waits_once_and_the_queue_is_bounded() {
        let queue = ImageQueue::default();
        assert!(queue.offer(page(0)) && queue.offer(page(0)));
        assert_eq!(queue.len(), 1);
        let taken = (1..).take_while(|number| queue.offer(page(*number))).count();
        assert_eq!((taken, queue.len()), (WAITING - 1, WAITING));
        assert!(queue.offer(page(0)), "it waits already");
        assert_eq!(queue.take(), Some(page(0)));
        assert!(queue.offer(page(0)), "there is room, and it waits no more");
        assert_eq!(queue.take(), Some(page(1)));
    }
}
