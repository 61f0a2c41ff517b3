//! Answers on their way out of one proposer's stream, in few bytes if the proposer understands that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lakebed_proto::differences::Answers;
use lakebed_proto::v1;
use v1::acceptor_message::Message;

use crate::owner::Answer;
use crate::wire;

/// A proposer is told about shards this often: it looks at their progress over seconds.
const SHARD_EVERY: Duration = Duration::from_millis(100);

/// The sending half of a stream.
#[derive(Debug)]
pub(crate) struct Pack {
    node_id: u64,
    /// Set by [`crate::unpack::Unpack`] before the first answer leaves.
    shorten: Arc<AtomicBool>,
    answers: Answers,
    shard_told: Option<Instant>,
}

impl Pack {
    pub(crate) fn new(node_id: u64, shorten: Arc<AtomicBool>) -> Pack {
        Pack {
            node_id,
            shorten,
            answers: Answers::default(),
            shard_told: None,
        }
    }

    pub(crate) fn answer(&mut self, answer: Answer) -> v1::AcceptorMessage {
        let mut message = wire::answer(answer, self.node_id);
        if !self.shorten.load(Ordering::Acquire) {
            return message;
        }
        if let Some(Message::Append(append)) = &mut message.message
            && append.slowest_shard.is_some()
        {
            if self.shard_told.is_some_and(|told| told.elapsed() < SHARD_EVERY) {
                append.slowest_shard = None;
            } else {
                self.shard_told = Some(Instant::now());
            }
        }
        self.answers.shorten(message)
    }
}
