//! Nothing is said before it is on disk.

use lakebed_quorum::history::TermHistory;
use lakebed_quorum::message::{Body, Request};
use lakebed_safekeeper::metrics::Metrics;
use lakebed_safekeeper::owner::{Mail, Outgoing};
use lakebed_safekeeper::timeline::{self, Timeline};
use lakebed_types::{Generation, Lsn, Term};
use tokio::sync::mpsc;

use crate::node::{TENANT, TIMELINE, soon};
use crate::sample::sample;
use crate::stream::durable;

/// Turns that everything else gets before it is clear that no answer comes.
const TURNS: usize = 1000;

/// Holds up the one thread that disks work on.
struct Gate(std::sync::mpsc::Sender<()>);

impl Gate {
    async fn close() -> Gate {
        let (open, closed) = std::sync::mpsc::channel();
        let (shut, is_shut) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || {
            shut.send(()).unwrap();
            closed.recv().unwrap();
        });
        is_shut.await.unwrap();
        Gate(open)
    }

    fn open(self) {
        self.0.send(()).unwrap();
    }
}

#[test]
fn no_answer_leaves_before_the_disk_is_done() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(answers_wait());
}

async fn answers_wait() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("timeline");
    let (start, end) = (sample().start, sample().at_percent(1));
    timeline::create(&directory, &durable(&[1])).unwrap();
    let timeline = Timeline::open((TENANT, TIMELINE), directory, &Metrics::default()).await;
    let mail = timeline.working.as_ref().unwrap().mail.clone();
    let (out, mut answers) = mpsc::channel(8);
    let history = TermHistory::new(vec![(Term(0), start), (Term(1), start)]).unwrap();
    let generation = Generation(1);
    let requests = [
        Request::Vote {
            generation,
            term: Term(1),
        },
        Request::Elected {
            generation,
            term: Term(1),
            history,
            common: start,
        },
        Request::Append {
            generation,
            term: Term(1),
            begin: start,
            bytes: sample().bytes(start, end),
            commit: start,
            truncate: Lsn::INVALID,
        },
    ];
    for request in requests {
        let gate = Gate::close().await;
        let reply = out.clone().reserve_owned().await.unwrap();
        let sent = mail.send(Mail {
            request: request.clone(),
            reply,
            room: None,
        });
        sent.await.unwrap();
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
            assert!(
                answers.try_recv().is_err(),
                "answered before the disk was: {request:?}"
            );
        }
        gate.open();
        let Some(Outgoing::Answer(answer)) = soon("an answer", answers.recv()).await else {
            panic!("no answer");
        };
        match answer.response.body {
            Body::Voted { flush, .. } | Body::Applied { flush } => assert_eq!(flush, start),
            Body::Appended { flush, .. } => assert_eq!(flush, end),
            other => panic!("{other:?}"),
        }
        // Who got an answer sees what it says.
        assert_eq!(timeline.view().borrow().term(), Term(1));
    }
    assert_eq!(timeline.view().borrow().flush, end);
    timeline.end("the test is over").await;
}
