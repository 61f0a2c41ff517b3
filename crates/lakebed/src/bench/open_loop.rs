//! Requests that come when they like, whatever becomes of those before: what users do, who do not wait for each other.
//!
//! A thread of its own sends requests for single pages at random moments (the times between two are exponentially
//! distributed) on all streams in turn. The latency of a request begins when it was to be sent, not when the thread came
//! to it, so that whatever holds up this process counts as well; one that finds no room on its stream waits, and that
//! counts too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::getpage::{ENDED, Known, Target};
use super::stats::Samples;
use lakebed_proto::stream::pages::PageStream;
use lakebed_proto::v1;

/// Requests that wait to be sent on a stream.
const ROOM: usize = 4096;
/// How late the kernel may wake the thread, in nanoseconds.
const TIMER_SLACK_NS: u64 = 1000;

/// Requests under way on a stream: what was asked, and when it was to be sent.
type UnderWay = Arc<Mutex<HashMap<u64, (Known, Instant)>>>;

struct Sending {
    requests: mpsc::Sender<v1::GetPagesRequest>,
    under_way: UnderWay,
    target: usize,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Microseconds from when a request was to be sent to its answer.
    pub latencies: Samples,
    /// Answers that were not what they must be.
    pub wrong: u64,
}

/// Sends `per_second` requests a second for `time` on so many streams to each pageserver, and waits for all answers.
///
/// # Errors
/// A pageserver does not answer.
pub async fn run(
    targets: &Arc<Vec<Target>>,
    streams: usize,
    per_second: f64,
    time: Duration,
    seed: u64,
) -> anyhow::Result<Measured> {
    let (mut sending, mut receiving) = (Vec::new(), JoinSet::new());
    for _ in 0..streams {
        for (target, of) in targets.iter().enumerate() {
            let stream = PageStream::connect(&of.address).await?;
            let (requests, due) = mpsc::channel(ROOM);
            let under_way = UnderWay::default();
            sending.push(Sending {
                requests,
                under_way: under_way.clone(),
                target,
            });
            receiving.spawn(on_stream(stream, due, under_way));
        }
    }
    let targets = targets.clone();
    let thread = std::thread::Builder::new().name("open_loop".to_owned());
    let sender = thread.spawn(move || send(&targets, sending, per_second, time, seed))?;
    let mut all = Measured::default();
    while let Some(measured) = receiving.join_next().await {
        let measured = measured.context("receiving")??;
        all.latencies = all.latencies.with(measured.latencies);
        all.wrong += measured.wrong;
    }
    sender
        .join()
        .map_err(|_| anyhow::anyhow!("the sender panicked"))?;
    Ok(all)
}

fn send(targets: &[Target], sending: Vec<Sending>, per_second: f64, time: Duration, seed: u64) {
    // Late wake-ups would only make the measurement coarser.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(TIMER_SLACK_NS));
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let begin = Instant::now();
    let (mut at, mut id) = (Duration::ZERO, 0);
    for on in sending.iter().cycle() {
        let uniform: f64 = random.random_range(f64::EPSILON..1.0);
        at += Duration::from_secs_f64(-uniform.ln() / per_second);
        if at > time {
            break;
        }
        let due = begin + at;
        let now = Instant::now();
        if due > now {
            std::thread::sleep(due - now);
        }
        let Some(target) = targets.get(on.target) else {
            break;
        };
        let place = random.random_range(0..target.pages.len());
        let Some(known) = target.pages.get(place) else {
            break;
        };
        id += 1;
        let under_way = || on.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way().insert(id, (*known, due));
        let request = target.request(id, std::iter::once(known.key));
        if on.requests.blocking_send(request).is_err() {
            // Its receiver tells why.
            break;
        }
    }
}

/// Sends what is due, and takes the answers, until nothing more is due and all was answered.
async fn on_stream(
    mut stream: PageStream,
    mut due: mpsc::Receiver<v1::GetPagesRequest>,
    under_way: UnderWay,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let (mut asked, mut answered) = (0, 0);
    loop {
        tokio::select! {
            Some(request) = due.recv() => {
                stream.ask(&request)?;
                asked += 1;
            }
            answer = stream.answer(), if answered < asked => {
                let answer = answer?.context(ENDED)?;
                answered += 1;
                let asked = under_way
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&answer.request_id);
                let (known, due) = asked.context("an answer to no question")?;
                measured.latencies.push(due.elapsed().as_secs_f64() * 1e6);
                let right = answer.pages.first().is_some_and(|page| known.is(page));
                measured.wrong += u64::from(!right);
            }
            // Nothing is due any more, and all was answered.
            else => return Ok(measured),
        }
    }
}
