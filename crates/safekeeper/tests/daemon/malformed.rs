//! Messages that are right but for one field, with a value that chance chose: each is refused with a reason, and
//! nothing is changed by it.

use bytes::Bytes;
use lakebed_proto::v1;
use lakebed_proto::v1::acceptor_message::Message as Answer;
use lakebed_proto::v1::feed_shard_request::{self, Message as FeedMessage};
use lakebed_proto::v1::proposer_message::Message;
use lakebed_types::Lsn;
use tokio_stream::wrappers::ReceiverStream;

use crate::node::{Nodes, create_request, eventually, soon, timeline_ref};
use crate::sample::sample;
use crate::stream::{Stream, append, elected, framed, greeting, vote};

const MEMBERS: [u64; 1] = [1];
/// Term that the acceptor is in.
const TERM: u64 = 3;
const MESSAGES: usize = 400;
/// Generation of the owner of the shard that is fed.
const FEED_GENERATION: u64 = 5;

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Small, large, or one off what is right; never what is right.
    fn other(&mut self, right: u64) -> u64 {
        let choices = [
            0,
            1,
            right.wrapping_sub(1),
            right.wrapping_add(1),
            u64::MAX,
            self.next(),
        ];
        let chosen = choices[self.below(choices.len() as u64) as usize];
        if chosen == right {
            right.wrapping_add(8)
        } else {
            chosen
        }
    }

    fn other32(&mut self, right: u32) -> u32 {
        let chosen = self.other(right.into()) as u32;
        if chosen == right {
            right.wrapping_add(8)
        } else {
            chosen
        }
    }

    fn bytes(&mut self, most: u64) -> Bytes {
        let length = self.below(most);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Of a timeline that is not there, or no id at all.
    fn other_timeline(&mut self) -> Option<v1::TimelineRef> {
        let mut timeline = timeline_ref();
        match self.below(3) {
            0 => return None,
            1 => timeline.tenant = self.bytes(40),
            _ => timeline.timeline = self.bytes(40),
        }
        Some(timeline)
    }

    fn other_cluster(&mut self) -> Option<v1::ClusterIdentity> {
        let mut cluster = create_request(&MEMBERS).cluster.unwrap();
        match self.below(4) {
            0 => return None,
            1 => cluster.system_identifier = self.other(cluster.system_identifier),
            2 => cluster.postgres_major = self.other32(cluster.postgres_major),
            _ => cluster.wal_segment_bytes = self.other32(cluster.wal_segment_bytes),
        }
        Some(cluster)
    }

    /// Not a higher generation: that one is adopted.
    fn other_membership(&mut self) -> Option<v1::Membership> {
        let mut membership = create_request(&MEMBERS).membership.unwrap();
        match self.below(4) {
            0 => return None,
            1 => membership.generation = 0,
            2 => membership.current = (0..self.below(100)).map(|_| self.next()).collect(),
            _ => membership.next = (0..=self.below(100)).map(|_| self.next()).collect(),
        }
        Some(membership)
    }

    fn wrong_greeting(&mut self) -> Message {
        let Message::Greeting(mut wrong) = greeting(&MEMBERS) else {
            unreachable!()
        };
        match self.below(4) {
            0 => wrong.protocol_version = self.other32(wrong.protocol_version),
            1 => wrong.timeline = self.other_timeline(),
            2 => wrong.cluster = self.other_cluster(),
            _ => wrong.membership = self.other_membership(),
        }
        Message::Greeting(wrong)
    }

    fn wrong_vote(&mut self) -> Message {
        let Message::Vote(mut wrong) = vote(self.below(TERM + 1)) else {
            unreachable!()
        };
        if self.below(2) == 0 {
            (wrong.term, wrong.generation) = (self.next(), self.other(1));
        }
        Message::Vote(wrong)
    }

    fn wrong_history(&mut self, start: Lsn) -> Message {
        let low = (self.below(TERM), start);
        let mut message = match self.below(4) {
            0 => elected(&[(0, start), low], start),
            1 => elected(&[(0, start), (TERM, Lsn(self.other(start.0)))], start),
            2 => elected(&[(TERM, start), (TERM, start)], start),
            _ => elected(&[(0, start), (1, start), (TERM, start)], start),
        };
        if let (Message::Elected(wrong), 0) = (&mut message, self.below(4)) {
            wrong.generation = self.other(1);
        }
        message
    }

    /// A later or another set than the one here, without this safekeeper or with the same generation.
    fn wrong_change(&mut self) -> v1::ChangeMembershipRequest {
        let mut wrong = v1::ChangeMembershipRequest {
            timeline: Some(timeline_ref()),
            membership: create_request(&MEMBERS).membership,
        };
        let higher = 2 + self.below(1000);
        match (self.below(4), &mut wrong.membership) {
            (0, _) => wrong.timeline = self.other_timeline(),
            (1, Some(set)) => (set.generation, set.current) = (higher, vec![2, 3, self.other(1)]),
            (2, Some(set)) => (set.generation, set.next) = (1, vec![1, 2, 3]),
            (_, set) => *set = self.other_membership(),
        }
        wrong
    }

    /// The start of a feed.
    fn wrong_feed(&mut self) -> v1::FeedStart {
        let mut wrong = feed_start();
        match self.below(5) {
            0 => wrong.timeline = self.other_timeline(),
            1 => wrong.shard_index = self.other32(0),
            2 => wrong.shard_count = [0, 129, 257, u32::MAX][self.below(4) as usize],
            3 => wrong.shard_generation = self.below(FEED_GENERATION),
            // Before what is here, or inside a record. Further on it would wait for the commit to get there.
            _ => wrong.from_lsn = [0, 1, wrong.from_lsn - 8, wrong.from_lsn + 1][self.below(4) as usize],
        }
        wrong
    }

    fn wrong_append(&mut self, end: Lsn, next: &Bytes) -> Message {
        let Message::Append(mut wrong) = append(TERM, end, next.clone(), end) else {
            unreachable!()
        };
        match self.below(3) {
            0 => wrong.generation = self.other(1),
            1 => wrong.term = self.other(TERM),
            _ => wrong.begin_lsn = self.other(end.0),
        }
        Message::Append(wrong)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposers_message_with_one_wrong_field_changes_nothing() {
    let nodes = Nodes::start(1).await;
    let (start, end, more) = (sample().start, sample().at_percent(1), sample().at_percent(2));
    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    stream.ask(vote(TERM)).await.unwrap();
    stream
        .ask(elected(&[(0, start), (TERM, start)], start))
        .await
        .unwrap();
    stream
        .ask(append(TERM, start, sample().bytes(start, end), start))
        .await
        .unwrap();
    let before = nodes.status(1).await;
    let next = sample().bytes(end, more);
    let mut chance = Chance(0x1abe_bed5);
    let mut refusals = 0;
    for _ in 0..MESSAGES {
        let message = match chance.below(4) {
            0 => chance.wrong_greeting(),
            1 => chance.wrong_vote(),
            2 => chance.wrong_history(start),
            _ => chance.wrong_append(end, &next),
        };
        let what = format!("{message:?}");
        match stream.ask(message).await {
            Ok(Answer::Refusal(refusal)) => {
                assert!(!refusal.reason.is_empty(), "{what}");
                refusals += 1;
            }
            Ok(other) => panic!("{what} was answered with {other:?}"),
            Err(status) => {
                assert!(!status.message().is_empty(), "{what}");
                stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
            }
        }
        assert_eq!(nodes.status(1).await, before, "{what}");
    }
    assert!(refusals > 0 && refusals < MESSAGES, "{refusals} refusals");
    // And who is right is served.
    stream
        .ask(elected(&[(0, start), (TERM, start)], start))
        .await
        .unwrap();
    let answer = stream.ask(append(TERM, end, next, end)).await.unwrap();
    assert!(matches!(answer, Answer::Append(append) if append.flush_lsn == more.0));
}

/// What is sent is right but for its bytes: some are others, some are missing, or some were never a frame.
#[tokio::test(flavor = "multi_thread")]
async fn frames_with_wrong_bytes_end_the_stream_and_change_nothing() {
    let nodes = Nodes::start(1).await;
    let (start, end, more) = (sample().start, sample().at_percent(1), sample().at_percent(2));
    let history = elected(&[(0, start), (TERM, start)], start);
    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    stream.ask(vote(TERM)).await.unwrap();
    stream.ask(history.clone()).await.unwrap();
    stream
        .ask(append(TERM, start, sample().bytes(start, end), start))
        .await
        .unwrap();
    let before = nodes.status(1).await;
    let next = append(TERM, end, sample().bytes(end, more), end);
    let message = v1::ProposerMessage {
        message: Some(next.clone()),
    };
    let right = framed(&message);
    let mut chance = Chance(0xf8a3e);
    for _ in 0..MESSAGES / 4 {
        let mut wrong = right.clone();
        match chance.below(4) {
            0 => {
                let bit = chance.below(wrong.len() as u64 * 8) as usize;
                wrong[bit / 8] ^= 1 << (bit % 8);
            }
            1 => wrong.truncate(chance.below(right.len() as u64) as usize),
            2 => wrong[3] = chance.other32(1) as u8,
            _ => wrong = chance.bytes(1000).as_ref().into(),
        }
        if wrong == right {
            continue;
        }
        let what = format!(
            "{:x?} and {} bytes more",
            &wrong[..wrong.len().min(16)],
            wrong.len()
        );
        let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
        stream.send_bytes(&wrong).await;
        // A frame that is longer than what came is waited for; here it ends.
        stream.no_more().await;
        if let Some(status) = stream.end().await {
            assert!(!status.message().is_empty(), "{what}");
        }
        let now = v1::SafekeeperTimelineStatus {
            proposers: before.proposers,
            ..nodes.status(1).await
        };
        assert_eq!(now, before, "{what}");
    }
    // And who is right is served, on the stream that was open all the time.
    let answer = stream.ask(next).await.unwrap();
    assert!(matches!(answer, Answer::Append(append) if append.flush_lsn == more.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_one_wrong_field_change_nothing() {
    let nodes = Nodes::start(1).await;
    let before = nodes.status(1).await;
    let (mut chance, mut client) = (Chance(7), nodes.client(1).await);
    for _ in 0..MESSAGES {
        // A valid id of another timeline would make that timeline; an invalid one makes nothing.
        let mut wrong = create_request(&MEMBERS);
        match chance.below(4) {
            0 => {
                wrong.timeline = Some(v1::TimelineRef {
                    timeline: chance.bytes(16),
                    ..timeline_ref()
                })
            }
            1 => wrong.start_lsn = chance.other(wrong.start_lsn),
            2 => wrong.cluster = chance.other_cluster(),
            _ => wrong.membership = chance.other_membership().filter(|other| other.generation != 0),
        }
        let what = format!("{wrong:?}");
        let status = client.create_timeline(wrong).await.expect_err(&what);
        assert!(!status.message().is_empty(), "{what}");
        let read = v1::ReadWalRequest {
            timeline: chance.other_timeline(),
            begin_lsn: chance.next(),
            end_lsn: chance.next(),
            committed_only: chance.below(2) == 0,
            term: chance.below(3),
        };
        let what = format!("{read:?}");
        let boundary = v1::FindBoundaryRequest {
            timeline: read.timeline.clone(),
            at_or_below: read.begin_lsn,
        };
        assert!(client.read_wal(read).await.is_err(), "{what}");
        assert!(client.find_boundary(boundary).await.is_err(), "{what}");
    }
    assert_eq!(nodes.status(1).await, before);
    assert_eq!(
        nodes.status_json(1)["timelines"].as_array().map(Vec::len),
        Some(1)
    );
}

fn feed_start() -> v1::FeedStart {
    v1::FeedStart {
        timeline: Some(timeline_ref()),
        shard_index: 0,
        shard_count: 1,
        shard_generation: FEED_GENERATION,
        from_lsn: sample().start.0,
    }
}

fn feed_message(message: feed_shard_request::Message) -> v1::FeedShardRequest {
    v1::FeedShardRequest {
        message: Some(message),
    }
}

/// A feed of these messages: its first answer, or why there is none.
async fn feed(
    nodes: &Nodes,
    messages: Vec<v1::FeedShardRequest>,
) -> Result<v1::FeedShardBatch, tonic::Status> {
    let (out, inbound) = tokio::sync::mpsc::channel(8);
    for message in messages {
        out.send(message).await.unwrap();
    }
    let mut client = nodes.client(1).await;
    let mut batches = client
        .feed_shard(ReceiverStream::new(inbound))
        .await?
        .into_inner();
    let first = soon("an answer of the feed", batches.message()).await?;
    Ok(first.expect("a batch"))
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_deletes_and_feeds_with_one_wrong_field_change_nothing() {
    let nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().at_percent(1));
    let mut stream = Stream::greeted(&nodes, 1, &MEMBERS).await;
    for message in [
        vote(TERM),
        elected(&[(0, start), (TERM, start)], start),
        append(TERM, start, sample().bytes(start, end), start),
        append(TERM, end, Bytes::new(), end),
    ] {
        stream.ask(message).await.unwrap();
    }
    // The shard has an owner, whose progress nobody else may change.
    let right = feed(&nodes, vec![feed_message(FeedMessage::Start(feed_start()))]);
    assert!(right.await.unwrap().end_lsn > start.0);
    // Its end is noticed some time after it.
    eventually("the feed to be over", async || {
        !nodes
            .status(1)
            .await
            .shard_reports
            .iter()
            .any(|report| report.fed)
    })
    .await;
    let before = nodes.status(1).await;
    assert_eq!(before.shard_reports.len(), 1);
    let (mut chance, mut client) = (Chance(0xfeed), nodes.client(1).await);
    for _ in 0..MESSAGES {
        let wrong = chance.wrong_change();
        let what = format!("{wrong:?}");
        let status = client.change_membership(wrong).await.expect_err(&what);
        assert!(!status.message().is_empty(), "{what}");

        let wrong = chance.wrong_feed();
        let what = format!("{wrong:?}");
        let mut messages = vec![feed_message(FeedMessage::Start(wrong))];
        if chance.below(4) == 0 {
            // Progress of a feed that nobody began, or no message at all.
            let progress = v1::ShardProgress {
                shard_index: 0,
                last_record_lsn: chance.next(),
                disk_consistent_lsn: chance.next(),
                remote_consistent_lsn: chance.next(),
            };
            let first = [None, Some(FeedMessage::Progress(progress))][chance.below(2) as usize].clone();
            messages.insert(0, v1::FeedShardRequest { message: first });
        }
        let status = feed(&nodes, messages).await.expect_err(&what);
        assert!(!status.message().is_empty(), "{what}");

        // A valid id of another timeline is deleted already; an invalid one names nothing.
        let mut wrong = timeline_ref();
        wrong.timeline = chance.bytes(16);
        let what = format!("{wrong:?}");
        assert!(client.delete_timeline(wrong.clone()).await.is_err(), "{what}");
        assert!(client.get_timeline_status(wrong).await.is_err(), "{what}");
        assert_eq!(nodes.status(1).await, before, "{what}");
    }
    client.delete_timeline(timeline_ref()).await.unwrap();
}
