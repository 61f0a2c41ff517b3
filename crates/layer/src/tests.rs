use bytes::Bytes;
use lakebed_types::Lsn;

use crate::{Chain, Value, ValueKind};

fn delta(text: &'static str) -> Value {
    Value {
        kind: ValueKind::Delta,
        body: Bytes::from_static(text.as_bytes()),
    }
}

fn image(fill: u8) -> Value {
    Value {
        kind: ValueKind::Image,
        body: vec![fill; 8192].into(),
    }
}

#[test]
fn a_chain_ends_at_the_newest_value_that_stands_alone() {
    let older = [(Lsn(10), image(1)), (Lsn(20), delta("a"))];
    let newer = [
        (Lsn(30), delta("b")),
        (Lsn(40), image(2)),
        (Lsn(50), delta("c")),
        (Lsn(60), delta("d")),
    ];
    let collect = |floor, upto| {
        let mut chain = Chain::new(Lsn(floor), Lsn(upto));
        chain.offer(newer.clone());
        if !chain.is_complete() {
            chain.offer(older.clone());
        }
        (
            chain.has_base(),
            chain.into_values().map(|(lsn, _)| lsn.0).collect::<Vec<_>>(),
        )
    };
    assert_eq!(collect(0, 55), (true, vec![40, 50]));
    assert_eq!(collect(0, 100), (true, vec![40, 50, 60]));
    assert_eq!(collect(0, 39), (true, vec![10, 20, 30]));
    assert_eq!(collect(20, 39), (false, vec![30]));
    assert_eq!(collect(45, 100), (false, vec![50, 60]));
    assert_eq!(collect(0, 9), (false, vec![]));
    assert_eq!(collect(50, 50), (false, vec![]));
}
