use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use bytes::Bytes;
use lakebed_types::{Generation, ShardCount, ShardIdentity, SlruKind};

use super::*;
use crate::format::{Codec, IndexCache, ReadCount};
use crate::{Chain, DeadBytes, Edit, LayerMap, Plan, PlanPolicy, ValueKind, plan, read};

fn key(page: u64) -> PageKey {
    PageKey::Slru {
        kind: SlruKind::Clog,
        page,
    }
}

fn id(number: u64) -> LayerId {
    LayerId {
        generation: Generation(1),
        number,
    }
}

fn value(kind: ValueKind, page: u64, lsn: u64) -> Value {
    let body = format!("{kind:?} of {page} at {lsn} ").repeat(40);
    Value {
        kind,
        body: body.into(),
    }
}

/// No image is made of these; lives of some pages ended.
#[derive(Default)]
struct NoImages(BTreeMap<PageKey, Vec<Lsn>>);

impl MakeImage for NoImages {
    type Error = Infallible;

    fn ends(&mut self, key: &PageKey) -> Vec<Lsn> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    fn image(&mut self, _: &PageKey, _: Lsn, _: &[(Lsn, Value)]) -> Result<Option<Bytes>, Infallible> {
        Ok(None)
    }
}

struct Numbered(u64);

impl NewLayers for Numbered {
    type Sink = Vec<u8>;

    fn create(&mut self, _: LayerKind) -> std::io::Result<(LayerId, Vec<u8>)> {
        self.0 += 1;
        Ok((id(self.0), Vec::new()))
    }
}

/// Layers in memory, and the map.
struct Store {
    map: LayerMap,
    readers: BTreeMap<LayerId, Arc<LayerReader<Bytes>>>,
}

const PAGES: u64 = 100;
const POLICY: PlanPolicy = PlanPolicy {
    level0: 2,
    layer_bytes: 10_000,
    history: 9,
    waste: 1,
    catalogue: 9,
};

impl Store {
    /// Two level-0 layers: a value that stands alone for each page, then one more and a delta for each.
    fn new() -> Store {
        let mut store = Store {
            map: LayerMap::default(),
            readers: BTreeMap::new(),
        };
        for number in 1..3 {
            let mut writer = LayerWriter::new(Vec::new(), id(number), LayerKind::Level0, Codec::Lz4).unwrap();
            for page in 0..PAGES {
                for (kind, lsn) in [
                    (ValueKind::Base, 10 * number + 1),
                    (ValueKind::Delta, 10 * number + 2),
                ] {
                    writer
                        .value(&key(page), Lsn(lsn), &value(kind, page, lsn))
                        .unwrap();
                }
            }
            let (bytes, desc) = writer
                .finish(Lsn(10 * number), Lsn(10 * number + 10), &[])
                .unwrap();
            store.add(bytes, desc);
            store.map = store.map.apply(&Edit::Flush(vec![desc])).unwrap().0;
        }
        store
    }

    fn add(&mut self, bytes: Vec<u8>, desc: LayerDesc) {
        let reader = LayerReader::open(Bytes::from(bytes), desc.id, desc.bytes).unwrap();
        reader.verify().unwrap();
        assert_eq!(*reader.desc(), desc);
        self.readers.insert(desc.id, Arc::new(reader));
    }

    fn merge(&self) -> Option<Merge<Bytes, Vec<u8>>> {
        self.merge_of(0, 1)
    }

    /// What a shard merges.
    fn merge_of(&self, index: u8, count: u8) -> Option<Merge<Bytes, Vec<u8>>> {
        let points = ReadPoints::since(Lsn(0));
        let Plan::Merge(job) = plan(&self.map, &points, &POLICY, &DeadBytes::default())? else {
            panic!("no catalogue here");
        };
        let rules = MergeRules {
            images: ImagePolicy::default(),
            points,
            layer_bytes: POLICY.layer_bytes,
            shard: ShardIdentity::new(index, ShardCount::new(count).unwrap()).unwrap(),
        };
        let readers = job.inputs.iter().map(|id| self.readers[id].clone()).collect();
        Some(Merge::new(*job, rules, readers))
    }

    fn apply(&mut self, finished: Finished<Vec<u8>>) {
        for (bytes, desc) in finished.sinks {
            self.add(bytes, desc);
        }
        self.map = self.map.apply(&Edit::Merge(Box::new(finished.merged))).unwrap().0;
    }

    /// The page at an LSN, and what it cost.
    fn read(&self, page: u64, lsn: u64) -> (Vec<(Lsn, Value)>, ReadCount) {
        let (mut chain, mut count) = (Chain::new(Lsn(0), Lsn(lsn)), ReadCount::default());
        let open = |id| Ok::<_, ReadError>(self.readers[&id].clone());
        read(
            &self.map,
            &key(page),
            &mut chain,
            &IndexCache::new(0),
            &mut count,
            open,
        )
        .unwrap();
        (chain.into_values().collect(), count)
    }

    fn check_reads(&self) {
        for page in 0..PAGES {
            for (lsn, base) in [(15, 11), (25, 21)] {
                let deltas = [ValueKind::Base, ValueKind::Delta].into_iter().zip(base..);
                let expected: Vec<_> = deltas
                    .map(|(kind, lsn)| (Lsn(lsn), value(kind, page, lsn)))
                    .collect();
                let (found, count) = self.read(page, lsn);
                assert_eq!(found, expected, "page {page} at {lsn}");
                assert_eq!(count.data_blocks, 1, "page {page} at {lsn}");
            }
        }
    }
}

#[test]
fn each_cut_counts_and_a_merge_that_is_given_up_goes_on_from_the_last() {
    let (mut store, mut layers, mut cuts, mut pages) = (Store::new(), Numbered(100), 0, 0);
    while let Some(mut merge) = store.merge() {
        // Given up some pages after a cut.
        let mut since_cut = None;
        loop {
            match merge.step(&mut layers, &mut NoImages::default()).unwrap() {
                Step::Page => since_cut = since_cut.map(|pages| pages + 1),
                Step::Cut(finished) => {
                    store.apply(*finished);
                    (cuts, since_cut) = (cuts + 1, Some(0));
                    store.check_reads();
                }
                Step::Done(finished) => {
                    store.apply(*finished);
                    break;
                }
            }
            if since_cut == Some(3) {
                break;
            }
        }
        pages += merge.count().pages;
    }
    store.check_reads();
    assert!(cuts > 3, "{cuts} cuts");
    assert!(
        (PAGES..PAGES + 4 * cuts).contains(&pages),
        "{pages} pages were merged, {cuts} cuts"
    );
    assert_eq!(store.map.level0_layers().count(), 0);
    let sizes: Vec<u64> = store.map.layers().map(|desc| desc.bytes).collect();
    assert!(
        sizes.iter().all(|bytes| *bytes < 2 * POLICY.layer_bytes),
        "{sizes:?}"
    );
}

#[test]
fn what_a_merge_does_is_counted() {
    let store = Store::new();
    let (mut merge, mut layers) = (store.merge().unwrap(), Numbered(100));
    loop {
        if let Step::Done(_) = merge.step(&mut layers, &mut NoImages::default()).unwrap() {
            break;
        }
    }
    let count = merge.count();
    assert_eq!(
        (count.pages, count.values, count.dropped, count.images),
        (PAGES, 4 * PAGES, 0, 0)
    );
    let inputs: u64 = store.map.layers().map(|desc| desc.bytes).sum();
    assert!(
        count.bytes_read <= inputs && count.bytes_read > inputs / 2,
        "{count:?} of {inputs}"
    );
    assert!(count.bytes_written > 0);
}

#[test]
fn an_older_layer_of_history_may_have_later_values_of_other_pages() {
    let mut store = Store {
        map: LayerMap::default(),
        readers: BTreeMap::new(),
    };
    // Page 1 has a version at 70, in history since one at 90 came; page 2 became history later, though it is older.
    let mut layer = |number, kind, values: &[(u64, u64)]| {
        let mut writer = LayerWriter::new(Vec::new(), id(number), kind, Codec::Lz4).unwrap();
        for (page, lsn) in values {
            let value = value(ValueKind::Base, *page, *lsn);
            writer.value(&key(*page), Lsn(*lsn), &value).unwrap();
        }
        let lsns = values.iter().map(|(_, lsn)| Lsn(*lsn));
        let range = (lsns.clone().min().unwrap(), lsns.max().unwrap());
        let (bytes, desc) = writer.finish(range.0, range.1, &[]).unwrap();
        store.add(bytes, desc);
        desc
    };
    let older = layer(1, LayerKind::History, &[(1, 70)]);
    let newer = layer(2, LayerKind::History, &[(2, 50)]);
    let current = layer(3, LayerKind::Current, &[(1, 90), (2, 91)]);
    for (through, history, current) in [(90, older, None), (91, newer, Some(current))] {
        let (pages, of) = store.map.partitions().next().unwrap();
        let merged = Merged {
            pages,
            of: of.clone(),
            through: Lsn(through),
            current,
            history: Some(history),
            superseded: None,
            pinned: Vec::new(),
            reclaimed: None,
        };
        store.map = store.map.apply(&Edit::Merge(Box::new(merged))).unwrap().0;
    }
    let mut chain = Chain::new(Lsn(60), Lsn(80));
    let open = |id| Ok::<_, ReadError>(store.readers[&id].clone());
    let (cache, mut count) = (IndexCache::new(0), ReadCount::default());
    read(&store.map, &key(1), &mut chain, &cache, &mut count, open).unwrap();
    assert_eq!(chain.values().map(|(lsn, _)| lsn.0).collect::<Vec<_>>(), [70]);
    assert_eq!(count.data_blocks, 1);
}

/// Names for layers of a later generation.
struct OfLater(u64);

impl NewLayers for OfLater {
    type Sink = Vec<u8>;

    fn create(&mut self, _: LayerKind) -> std::io::Result<(LayerId, Vec<u8>)> {
        self.0 += 1;
        let generation = Generation(2);
        Ok((
            LayerId {
                generation,
                ..id(self.0)
            },
            Vec::new(),
        ))
    }
}

#[test]
fn what_was_copied_at_a_split_is_rewritten_once_without_what_is_another_shards() {
    // These pages are all of shard 0.
    for (index, pages) in [(0, PAGES), (1, 0)] {
        let (mut store, mut layers, mut merged) = (Store::new(), OfLater(0), 0);
        store.map = store.map.of_split(Generation(1));
        assert_eq!(store.map.copies().count(), 2);
        while let Some(mut merge) = store.merge_of(index, 2) {
            merged += 1;
            assert!(merged < 100, "it does not end");
            loop {
                match merge.step(&mut layers, &mut NoImages::default()).unwrap() {
                    Step::Page => {}
                    Step::Cut(finished) => store.apply(*finished),
                    Step::Done(finished) => {
                        store.apply(*finished);
                        break;
                    }
                }
            }
        }
        assert_eq!(store.map.copies().count(), 0);
        let current = store.map.layers().filter(|desc| desc.kind == LayerKind::Current);
        assert_eq!(
            current.map(|desc| desc.pages).sum::<u64>(),
            pages,
            "shard {index}"
        );
        match index {
            0 => store.check_reads(),
            _ => assert_eq!(store.map.layers().count(), 0),
        }
    }
}

#[test]
fn a_page_whose_life_ended_has_no_current_version() {
    let mut store = Store::new();
    let ends = |lsn: u64, pages: Range<u64>| pages.map(move |page| (key(page), vec![Lsn(lsn)]));
    // Ended before the merge's end, and after it: of the latter it is not for this merge to say.
    let mut images = NoImages(ends(30, 0..50).chain(ends(31, 50..60)).collect());
    let mut layers = Numbered(100);
    let mut merge = store.merge().unwrap();
    let mut superseded = 0;
    loop {
        match merge.step(&mut layers, &mut images).unwrap() {
            Step::Page => {}
            Step::Cut(finished) => store.apply(*finished),
            Step::Done(finished) => {
                superseded += u64::from(finished.merged.superseded.is_some());
                store.apply(*finished);
                break;
            }
        }
    }
    // All can be read; those that are gone are in history.
    store.check_reads();
    let pages = |kind| {
        let layers = store.map.layers().filter(move |desc| desc.kind == kind);
        layers.map(|desc| desc.pages).sum::<u64>()
    };
    assert_eq!(pages(LayerKind::Current), PAGES - 50);
    assert!(superseded > 0);
}
