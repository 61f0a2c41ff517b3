//! WAL of a real server, and a proposer that puts it on safekeepers.

use std::path::Path;

use bytes::BytesMut;
use lakebed_proto::frame::{self, Frame, Inbound};
use lakebed_proto::v1::proposer_message::Message;
use lakebed_proto::{stream, v1};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tier::{Tier, soon};

/// WAL from where a branch starts.
pub struct Wal {
    pub start: Lsn,
    pub bytes: Vec<u8>,
    /// Start and end of each record.
    pub records: Vec<(Lsn, Lsn)>,
}

impl Wal {
    /// Reads the WAL of a server that was stopped, from `branch`'s start on.
    pub fn read(data: &Path, branch: &v1::BranchInfo) -> Wal {
        let (start, cluster) = (Lsn(branch.start_lsn), branch.cluster.unwrap());
        let segment = u64::from(cluster.wal_segment_bytes);
        let format = WalFormat {
            version: PgVersion::V15,
            timeline: 1,
            system_identifier: cluster.system_identifier,
            segment_bytes: cluster.wal_segment_bytes,
        };
        let mut bytes = Vec::new();
        for number in start.0 / segment.. {
            match std::fs::read(data.join(format!("pg_wal/{:024X}", (1u128 << 64) + u128::from(number)))) {
                Ok(content) => bytes.extend(content),
                Err(_) => break,
            }
        }
        bytes.drain(..(start.0 % segment) as usize);
        let mut decoder = WalDecoder::new(format, start, Lsn(branch.last_record_start));
        decoder.feed(&bytes);
        let mut records = Vec::new();
        while let Ok(Some(record)) = decoder.next_raw() {
            records.push((record.start, record.end));
        }
        let end = records.last().unwrap().1;
        bytes.truncate((end.0 - start.0) as usize);
        Wal {
            start,
            bytes,
            records,
        }
    }

    pub fn end(&self) -> Lsn {
        self.records.last().unwrap().1
    }

    /// Puts it on one safekeeper as the proposer of term 1, or takes over in term 2 one that has it all; says that
    /// all is committed up to `commit`.
    pub async fn propose(
        &self,
        tier: &Tier,
        safekeeper: u64,
        branch: &v1::BranchInfo,
        term: u64,
        commit: Lsn,
    ) {
        let takes_over = term > 1;
        let address = tier.address(&format!("safekeeper-{safekeeper}"));
        let connected = soon("a proposer's stream", stream::connect(&address)).await;
        let (mut read, mut write) = connected.unwrap().into_split();
        write.write_all(stream::PROPOSE.bytes()).await.unwrap();
        let mut send = async |message| {
            let message = v1::ProposerMessage {
                message: Some(message),
            };
            let mut bytes = BytesMut::new();
            frame::put(&message, &mut bytes).unwrap();
            write.write_all(&bytes).await.unwrap();
        };
        let generation = branch.membership.as_ref().unwrap().generation;
        send(Message::Greeting(v1::ProposerGreeting {
            protocol_version: 1,
            timeline: branch.timeline.clone(),
            cluster: branch.cluster,
            membership: branch.membership.clone(),
            codec: 0,
        }))
        .await;
        send(Message::Vote(v1::VoteRequest { generation, term })).await;
        let entry = |term, at: Lsn| v1::TermStart {
            term,
            start_lsn: at.0,
        };
        let mut history = vec![entry(0, self.start), entry(1, self.start)];
        history.extend(takes_over.then(|| entry(term, self.end())));
        send(Message::Elected(v1::Elected {
            generation,
            term,
            history,
            common_lsn: if takes_over { self.end().0 } else { self.start.0 },
        }))
        .await;
        let append = |begin: Lsn, end: Lsn| {
            let range = (begin.0 - self.start.0) as usize..(end.0 - self.start.0) as usize;
            Message::Append(v1::Append {
                generation,
                term,
                begin_lsn: begin.0,
                wal: self.bytes[range].to_vec().into(),
                commit_lsn: commit.min(end).0,
                truncate_lsn: self.start.0,
                batch: Default::default(),
            })
        };
        let mut begin = self.start;
        for records in self.records.chunks(200).filter(|_| !takes_over) {
            let end = records.last().unwrap().1;
            send(append(begin, end)).await;
            begin = end;
        }
        if takes_over {
            begin = self.end();
            send(append(begin, begin)).await;
        }
        let done = async {
            let (mut asked, mut inbound) = (false, Inbound::default());
            loop {
                let answer: v1::AcceptorMessage = match inbound.next().unwrap() {
                    Some(Frame::Message(answer)) => answer,
                    Some(Frame::End(end)) => panic!("{:?}", frame::status(end)),
                    None => {
                        assert!(
                            read.read_buf(inbound.room()).await.unwrap() > 0,
                            "no more answers"
                        );
                        continue;
                    }
                };
                match answer.message.unwrap() {
                    v1::acceptor_message::Message::Append(told) if told.flush_lsn == self.end().0 => {
                        if told.commit_lsn == commit.0 {
                            return;
                        }
                        // Once all is flushed, an empty append tells what is committed.
                        assert!(!asked, "{told:?}");
                        send(append(begin, begin)).await;
                        asked = true;
                    }
                    v1::acceptor_message::Message::Refusal(refusal) => panic!("{refusal:?}"),
                    _ => {}
                }
            }
        };
        soon("the WAL to be flushed and committed", done).await;
    }

    /// On safekeepers 1 to 3, all committed.
    pub async fn commit(&self, tier: &Tier, branch: &v1::BranchInfo) {
        for id in 1..=3 {
            self.propose(tier, id, branch, 1, self.end()).await;
        }
    }
}
