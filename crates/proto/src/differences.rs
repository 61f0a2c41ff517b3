//! Appends and their answers as what differs from the one before on the same stream.
//!
//! Most appends go on where the last one ended, in the same term, and most answers only move positions on. Sent in
//! full they cost more bytes than the WAL of a small transaction does once that is compressed. Each
//! direction of a stream has one [`Appends`] or [`Answers`] at each end; both ends see the same messages in the same
//! order, so they agree on what the last one was. What cannot be said as a difference is said in full.

use bytes::Bytes;
use lakebed_quorum::message::{Body, Request, Response};
use lakebed_types::{Generation, Lsn, Term};

use crate::convert::InvalidMessage;
use crate::v1;

/// Everything of an append but its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendHead {
    /// Configuration.
    pub generation: Generation,
    /// The sender's term.
    pub term: Term,
    /// Position of the first byte.
    pub begin: Lsn,
    /// The sender's commit position.
    pub commit: Lsn,
    /// WAL below it may go.
    pub truncate: Lsn,
}

impl AppendHead {
    /// The request, with the WAL in it.
    pub fn request(self, bytes: Bytes) -> Request {
        Request::Append {
            generation: self.generation,
            term: self.term,
            begin: self.begin,
            bytes,
            commit: self.commit,
            truncate: self.truncate,
        }
    }
}

/// Appends of one stream, at either end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Appends {
    /// The last one, but that `begin` is where it ended.
    last: Option<AppendHead>,
}

fn missing(what: &'static str) -> InvalidMessage {
    InvalidMessage::Field {
        field: what,
        reason: "it goes on from a message that was not sent".to_owned(),
    }
}

fn advanced(lsn: Lsn, by: u64, what: &'static str) -> Result<Lsn, InvalidMessage> {
    lsn.0.checked_add(by).map(Lsn).ok_or_else(|| missing(what))
}

impl Appends {
    /// An append of `length` bytes of WAL in the form of `batch`, in the fewest bytes.
    pub fn to_wire(
        &mut self,
        head: AppendHead,
        length: usize,
        batch: Bytes,
    ) -> v1::proposer_message::Message {
        use v1::proposer_message::Message;
        let last = self.last.filter(|last| {
            (last.generation, last.term, last.begin) == (head.generation, head.term, head.begin)
                && last.commit <= head.commit
                && last.truncate <= head.truncate
        });
        self.sent(head, length);
        match last {
            Some(last) => Message::AppendNext(v1::AppendNext {
                batch,
                commit_advance: head.commit.0 - last.commit.0,
                truncate_advance: head.truncate.0 - last.truncate.0,
            }),
            None => Message::Append(v1::Append {
                generation: head.generation.0,
                term: head.term.0,
                begin_lsn: head.begin.0,
                wal: Bytes::new(),
                commit_lsn: head.commit.0,
                truncate_lsn: head.truncate.0,
                batch,
            }),
        }
    }

    /// What an append in full says.
    pub fn in_full(append: &v1::Append) -> AppendHead {
        AppendHead {
            generation: Generation(append.generation),
            term: Term(append.term),
            begin: Lsn(append.begin_lsn),
            commit: Lsn(append.commit_lsn),
            truncate: Lsn(append.truncate_lsn),
        }
    }

    /// What a difference says.
    ///
    /// # Errors
    /// There was no append before, or a position overflows: the stream should end.
    pub fn next(&self, next: &v1::AppendNext) -> Result<AppendHead, InvalidMessage> {
        let last = self.last.ok_or_else(|| missing("append_next"))?;
        Ok(AppendHead {
            commit: advanced(last.commit, next.commit_advance, "commit_advance")?,
            truncate: advanced(last.truncate, next.truncate_advance, "truncate_advance")?,
            ..last
        })
    }

    /// Remembers an append of `length` bytes of WAL, in whatever form it went or came.
    pub fn sent(&mut self, head: AppendHead, length: usize) {
        let begin = Lsn(head.begin.0.saturating_add(length as u64));
        self.last = Some(AppendHead { begin, ..head });
    }
}

/// Answers of one stream to appends, at either end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    last: Option<(Generation, Term, Lsn, Lsn)>,
}

impl Answers {
    /// Makes an answer shorter if it can be.
    pub fn shorten(&mut self, message: v1::AcceptorMessage) -> v1::AcceptorMessage {
        use v1::acceptor_message::Message;
        let Some(Message::Append(full)) = &message.message else {
            return message;
        };
        let now = Answers::of(full);
        let last = self.last.replace(now);
        let (generation, term, flush, commit) = now;
        match last {
            Some((g, t, f, c)) if (g, t) == (generation, term) && f <= flush && c <= commit => {
                let next = v1::AppendedNext {
                    flush_advance: flush.0 - f.0,
                    commit_advance: commit.0 - c.0,
                    slowest_shard: full.slowest_shard,
                };
                v1::AcceptorMessage {
                    message: Some(Message::AppendedNext(next)),
                }
            }
            _ => message,
        }
    }

    fn of(full: &v1::AppendResponse) -> (Generation, Term, Lsn, Lsn) {
        let (flush, commit) = (Lsn(full.flush_lsn), Lsn(full.commit_lsn));
        (Generation(full.generation), Term(full.term), flush, commit)
    }

    /// The response, whether it came short or in full.
    ///
    /// # Errors
    /// The message is not valid; the stream should end.
    pub fn response(&mut self, wire: v1::AcceptorMessage) -> Result<Response, InvalidMessage> {
        use v1::acceptor_message::Message;
        match wire.message {
            Some(Message::AppendedNext(next)) => {
                let (generation, term, flush, commit) = self.last.ok_or_else(|| missing("appended_next"))?;
                let flush = advanced(flush, next.flush_advance, "flush_advance")?;
                let commit = advanced(commit, next.commit_advance, "commit_advance")?;
                self.last = Some((generation, term, flush, commit));
                Ok(Response {
                    generation,
                    term,
                    body: Body::Appended { flush, commit },
                })
            }
            message => {
                if let Some(Message::Append(full)) = &message {
                    self.last = Some(Answers::of(full));
                }
                crate::quorum::response(v1::AcceptorMessage { message })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::acceptor_message::Message as Answer;
    use v1::proposer_message::Message;

    fn head(term: u64, begin: u64, commit: u64) -> AppendHead {
        AppendHead {
            generation: Generation(1),
            term: Term(term),
            begin: Lsn(begin),
            commit: Lsn(commit),
            truncate: Lsn(8),
        }
    }

    #[test]
    fn appends_come_out_as_they_went_in_and_only_what_goes_on_is_short() {
        let table = [
            (head(3, 1000, 900), 64, false),
            (head(3, 1064, 1000), 128, true),
            (head(3, 1192, 1000), 0, true),
            // A gap, a commit position that falls, another term.
            (head(3, 2000, 1000), 8, false),
            (head(3, 2008, 900), 8, false),
            (head(4, 2016, 900), 8, false),
        ];
        let (mut sender, mut receiver) = (Appends::default(), Appends::default());
        for (head, length, short) in table {
            let batch = Bytes::from_static(b"batch");
            let received = match sender.to_wire(head, length, batch.clone()) {
                Message::Append(append) => (Appends::in_full(&append), append.batch, false),
                Message::AppendNext(next) => (receiver.next(&next).unwrap(), next.batch, true),
                other => panic!("{other:?}"),
            };
            assert_eq!(received, (head, batch, short));
            receiver.sent(head, length);
        }
    }

    #[test]
    fn a_difference_from_nothing_or_beyond_the_end_is_refused() {
        let next = v1::AppendNext {
            commit_advance: u64::MAX,
            ..Default::default()
        };
        let mut appends = Appends::default();
        assert!(appends.next(&next).is_err());
        appends.sent(head(1, 10, 9), 1);
        assert!(appends.next(&next).is_err());
        let answer = v1::AcceptorMessage {
            message: Some(Answer::AppendedNext(v1::AppendedNext::default())),
        };
        assert!(Answers::default().response(answer).is_err());
    }

    #[test]
    fn answers_come_out_as_they_went_in() {
        let (mut sender, mut receiver) = (Answers::default(), Answers::default());
        for (term, flush, commit, short) in [
            (2, 100, 90, false),
            (2, 108, 100, true),
            (2, 50, 50, false),
            (3, 60, 50, false),
        ] {
            let full = v1::AppendResponse {
                generation: 1,
                term,
                flush_lsn: flush,
                commit_lsn: commit,
                slowest_shard: None,
            };
            let message = v1::AcceptorMessage {
                message: Some(Answer::Append(full)),
            };
            let sent = sender.shorten(message.clone());
            assert_eq!(matches!(sent.message, Some(Answer::AppendedNext(_))), short);
            assert_eq!(
                receiver.response(sent).unwrap(),
                crate::quorum::response(message).unwrap()
            );
        }
    }
}
