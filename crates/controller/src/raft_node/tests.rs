//! One member across restarts and tears, and three members in one process.

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use lakebed_placement::NodeRole;
use lakebed_types::NodeId;

use super::*;

const WAIT: Duration = Duration::from_secs(10);

fn config(directory: &std::path::Path, node_id: u64, voters: &[u64]) -> RaftConfig {
    RaftConfig {
        node_id,
        voters: voters.to_vec(),
        directory: directory.to_owned(),
        tick: Duration::from_millis(10),
        snapshot_every_entries: 1000,
    }
}

fn alone(directory: &std::path::Path) -> Result<RaftNode, RaftError> {
    RaftNode::start(config(directory, 1, &[1]), Box::new(|_| ()))
}

fn register(node: u64) -> Command {
    let (role, address) = (NodeRole::Safekeeper, format!("h{node}:1"));
    Command::RegisterNode {
        node: NodeId(node),
        role,
        address,
        incarnation: 1,
    }
}

fn nodes(node: &RaftNode) -> Vec<u64> {
    node.state().nodes.keys().map(|id| id.0).collect()
}

async fn in_charge(node: &RaftNode) {
    let mut status = node.status();
    tokio::time::timeout(WAIT, status.wait_for(|s| s.in_charge))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn what_was_applied_is_there_after_every_restart() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=4u64 {
        let node = RaftNode::start(
            RaftConfig {
                snapshot_every_entries: 7,
                ..config(dir.path(), 1, &[1])
            },
            Box::new(|_| ()),
        )
        .unwrap();
        node.read_barrier(WAIT).await.unwrap();
        let before = nodes(&node);
        assert_eq!(before, (1..=(round - 1) * 10).collect::<Vec<_>>());
        for n in before.len() as u64 + 1..=round * 10 {
            assert_eq!(node.propose(register(n), WAIT).await, Ok(Outcome::Applied));
        }
        assert_eq!(node.propose(register(1), WAIT).await, Ok(Outcome::Unchanged));
        let refused = node.propose(
            Command::DeleteTenant {
                tenant: lakebed_types::TenantId([1; 16]),
            },
            WAIT,
        );
        assert!(matches!(
            refused.await,
            Err(ProposeError::Rejected(Rejection::NoTenant(_)))
        ));
    }
    let bytes = std::fs::metadata(dir.path().join("log")).unwrap().len();
    assert!(
        bytes < 4000,
        "the log was replaced by snapshots, yet has {bytes} bytes"
    );
}

#[tokio::test]
async fn a_directory_has_one_owner_and_is_free_after_a_drop() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).unwrap();
    assert!(matches!(
        alone(dir.path()),
        Err(RaftError::Disk(DiskError::InUse(_)))
    ));
    drop(node);
    alone(dir.path()).unwrap();
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_and_damage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = alone(dir.path()).unwrap();
    in_charge(&node).await;
    for n in 1..=5 {
        node.propose(register(n), WAIT).await.unwrap();
    }
    drop(node);
    let log = dir.path().join("log");
    let good = std::fs::read(&log).unwrap();

    // The power failed in the middle of a sixth append.
    std::fs::write(&log, [&good[..], &good[20..60]].concat()).unwrap();
    let node = alone(dir.path()).unwrap();
    node.read_barrier(WAIT).await.unwrap();
    assert_eq!(nodes(&node), [1, 2, 3, 4, 5]);
    drop(node);

    let mut bad = good.clone();
    bad[100] ^= 1;
    std::fs::write(&log, &bad).unwrap();
    let error = alone(dir.path()).err().unwrap().to_string();
    assert!(error.contains("log is damaged: the frame at byte"), "{error}");
    assert!(error.contains("restore"), "{error}");

    std::fs::write(&log, &good).unwrap();
    std::fs::remove_file(dir.path().join("snapshot")).unwrap();
    let error = alone(dir.path()).err().unwrap().to_string();
    assert!(error.contains("snapshot is damaged: it is missing"), "{error}");
}

#[tokio::test]
async fn many_proposals_share_the_disk_and_each_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(alone(dir.path()).unwrap());
    in_charge(&node).await;
    let tasks: Vec<_> = (1..=300)
        .map(|n| {
            let node = node.clone();
            tokio::spawn(async move { node.propose(register(n), WAIT).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(Outcome::Applied));
    }
    assert_eq!(nodes(&node).len(), 300);
}

type Wires = Arc<Mutex<std::collections::BTreeMap<u64, Sender<Message>>>>;

/// A member whose messages travel through `wires`; removing a wire cuts the member off.
fn member(directory: &std::path::Path, id: u64, wires: &Wires) -> Arc<RaftNode> {
    let (sender, receiver) = channel::<Message>();
    wires.lock().unwrap().insert(id, sender);
    let out = wires.clone();
    let outgoing = move |message: Message| {
        let wires = out.lock().unwrap();
        if wires.contains_key(&message.from)
            && let Some(wire) = wires.get(&message.to)
        {
            let _ = wire.send(message);
        }
    };
    let directory = directory.join(id.to_string());
    let settings = RaftConfig {
        snapshot_every_entries: 20,
        ..config(&directory, id, &[1, 2, 3])
    };
    let node = Arc::new(RaftNode::start(settings, Box::new(outgoing)).unwrap());
    let weak = Arc::downgrade(&node);
    std::thread::spawn(move || {
        for message in receiver {
            match weak.upgrade() {
                Some(node) => node.step(message),
                None => return,
            }
        }
    });
    node
}

/// Proposes on any member until it is certainly applied.
async fn insist(members: &[Arc<RaftNode>], command: Command) {
    for attempt in 0..200 {
        let node = &members[attempt % members.len()];
        if node
            .propose(command.clone(), Duration::from_secs(1))
            .await
            .is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no leader within the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_go_on_without_one_and_it_catches_up_by_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::default();
    let mut members: Vec<_> = (1..=3).map(|id| member(dir.path(), id, &wires)).collect();
    insist(&members, register(1)).await;

    // The leader disappears.
    let leader = members
        .iter()
        .position(|m| m.status().borrow().in_charge)
        .unwrap();
    let id = leader as u64 + 1;
    wires.lock().unwrap().remove(&id);
    drop(members.remove(leader));
    for n in 2..=60 {
        insist(&members, register(n)).await;
    }
    let back = member(dir.path(), id, &wires);
    tokio::time::timeout(WAIT, async {
        while back.read_barrier(Duration::from_secs(1)).await.is_err() || nodes(&back).len() < 60 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(nodes(&back), (1..=60).collect::<Vec<_>>());
}
