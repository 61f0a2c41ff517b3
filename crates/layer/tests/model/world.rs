//! A few timelines, and random things that happen to them.

use bytes::Bytes;
use lakebed_layer::format::ReadCount;
use lakebed_layer::{Chain, ReadPoints, Value, ValueKind};
use lakebed_types::{Lsn, PageKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::reference::{PAGES, key, redo};
use crate::sabotage::Sabotage;
use crate::timeline::{Durables, Engine, Violation};

const OPERATIONS: u32 = 400;
const MOST_TIMELINES: usize = 4;

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    values: u64,
    reads: u64,
    reads_in_parents: u64,
    flushes: u64,
    merge_steps: u64,
    durable_steps: u64,
    images: u64,
    crashes: u64,
    crashes_in_a_change: u64,
    superseded: u64,
    branches: u64,
    horizons: u64,
}

impl Done {
    fn fields(&mut self) -> [&mut u64; 12] {
        [
            &mut self.values,
            &mut self.reads,
            &mut self.reads_in_parents,
            &mut self.flushes,
            &mut self.merge_steps,
            &mut self.durable_steps,
            &mut self.images,
            &mut self.crashes,
            &mut self.crashes_in_a_change,
            &mut self.superseded,
            &mut self.branches,
            &mut self.horizons,
        ]
    }

    /// Adds what another run did.
    pub fn add(&mut self, other: &Done) {
        let mut other = *other;
        for (sum, more) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }

    /// Whether everything happened at least once.
    pub fn is_varied(mut self) -> bool {
        self.fields().into_iter().all(|field| *field > 0)
    }
}

struct Timeline {
    parent: Option<(usize, Lsn)>,
    start: Lsn,
    horizon: Lsn,
    /// Single LSNs that are read: leases.
    leases: Vec<Lsn>,
    durables: Durables,
    engine: Engine,
    /// Earlier owners that do not know that they are superseded.
    earlier: Vec<Engine>,
}

struct World {
    rng: StdRng,
    sabotage: Option<Sabotage>,
    timelines: Vec<Timeline>,
    done: Done,
}

/// One run. The error says what was wrong.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Done, Violation> {
    let mut world = World {
        rng: StdRng::seed_from_u64(seed),
        sabotage,
        timelines: Vec::new(),
        done: Done::default(),
    };
    world.create(None, Lsn(10))?;
    for _ in 0..OPERATIONS {
        world.operation()?;
        world.check_durable()?;
    }
    for at in 0..world.timelines.len() {
        world.crash(at)?;
        world.read_all(at)?;
    }
    Ok(world.done)
}

impl World {
    fn create(&mut self, parent: Option<(usize, Lsn)>, start: Lsn) -> Result<(), Violation> {
        let mut durables = Durables::default();
        let engine = Engine::open(&mut durables, start, self.sabotage)?;
        self.timelines.push(Timeline {
            parent,
            start,
            horizon: start,
            leases: Vec::new(),
            durables,
            engine,
            earlier: Vec::new(),
        });
        Ok(())
    }

    fn operation(&mut self) -> Result<(), Violation> {
        let at = self.rng.random_range(0..self.timelines.len());
        match self.rng.random_range(0..100) {
            0..30 => self.ingest(at),
            30..42 => self.flush(at),
            42..62 => self.merge(at),
            62..80 => self.durable(at),
            80..84 => self.image(at),
            84..88 => self.move_horizon(at),
            88..89 => self.lease(at),
            89..91 => self.branch(at),
            91..93 => self.crash(at),
            93..94 => self.go_on_superseded(at),
            _ => self.read_some(at),
        }
    }

    fn ingest(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = &mut self.timelines[at];
        let mut lsn = timeline.engine.last_record;
        // One page gets most.
        let hot = self.rng.random_range(0..PAGES);
        for _ in 0..self.rng.random_range(1..20) {
            lsn = Lsn(lsn.0 + self.rng.random_range(1..8));
            let page = if self.rng.random_bool(0.5) {
                hot
            } else {
                self.rng.random_range(0..PAGES)
            };
            // Sometimes a record has two values for a page.
            for _ in 0..self.rng.random_range(1..6) / 4 + 1 {
                let kind = match self.rng.random_range(0..12) {
                    0 => ValueKind::Base,
                    1 => ValueKind::VmClear,
                    _ => ValueKind::Delta,
                };
                let mut body = self.rng.random::<u64>().to_le_bytes().to_vec();
                body.resize(self.rng.random_range(8..400), 0x11);
                let value = Value {
                    kind,
                    body: Bytes::from(body),
                };
                timeline.engine.ingest(&key(page), lsn, &value)?;
                timeline.durables.log.values.push((lsn, key(page), value));
                self.done.values += 1;
            }
        }
        Ok(())
    }

    fn flush(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = &mut self.timelines[at];
        if !timeline.engine.is_busy() {
            timeline.engine.flush()?;
            self.done.flushes += 1;
        }
        Ok(())
    }

    /// LSNs that are read in a timeline.
    fn points(&self, at: usize) -> ReadPoints {
        let timeline = &self.timelines[at];
        let late = u64::from(self.sabotage == Some(Sabotage::LateHorizon));
        let open = (Lsn(timeline.horizon.0 + late), Lsn::MAX);
        let branches = self
            .timelines
            .iter()
            .filter_map(|child| child.parent.filter(|(parent, _)| *parent == at))
            .filter(|_| self.sabotage != Some(Sabotage::ForgottenBranch))
            .map(|(_, lsn)| lsn);
        let single = branches.chain(timeline.leases.iter().copied());
        ReadPoints::new(single.map(|lsn| (lsn, lsn)).chain([open]))
    }

    fn merge(&mut self, at: usize) -> Result<(), Violation> {
        if self.timelines[at].engine.is_busy() {
            return Ok(());
        }
        let (points, steps) = (self.points(at), self.rng.random_range(1..12));
        let (before, rest) = self.timelines.split_at_mut(at);
        let Some((timeline, _)) = rest.split_first_mut() else {
            return Ok(());
        };
        // A parent has a lower number.
        let parent = timeline.parent;
        let start = |key: &PageKey| match parent {
            Some((parent, lsn)) => page(before, parent, key, lsn, &mut ReadCount::default()),
            None => Ok(0),
        };
        self.done.merge_steps += 1;
        timeline.engine.merge(&points, &start, steps)
    }

    fn durable(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = &mut self.timelines[at];
        for _ in 0..self.rng.random_range(1..5) {
            self.done.durable_steps += u64::from(timeline.engine.is_busy());
            if !timeline.engine.durable_step(&mut timeline.durables)? {
                return Err("the newest owner was told to stop".to_owned());
            }
        }
        Ok(())
    }

    fn image(&mut self, at: usize) -> Result<(), Violation> {
        for number in 0..PAGES {
            let key = key(number);
            // Reads want images too, of pages that may have nothing in memory.
            if !self.timelines[at].engine.wants_image(&key) && !self.rng.random_bool(0.05) {
                continue;
            }
            // Values may have come since the worker read the page.
            let newest = self.timelines[at].engine.last_record;
            let lsn = Lsn(newest.0 - self.rng.random_range(0..10));
            if lsn >= self.timelines[at].horizon {
                let page = page(&self.timelines, at, &key, lsn, &mut ReadCount::default())?;
                let taken = self.timelines[at].engine.insert_image(&key, lsn, page)?;
                self.done.images += u64::from(taken);
            }
        }
        Ok(())
    }

    fn move_horizon(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = &mut self.timelines[at];
        let span = timeline.engine.last_record.0 - timeline.horizon.0;
        let wanted = Lsn(timeline.horizon.0 + self.rng.random_range(0..=span / 3));
        // Often just before a value, where being wrong by one matters.
        let next = timeline
            .durables
            .log
            .values
            .iter()
            .find(|(lsn, ..)| *lsn > wanted);
        let before = next.map(|(lsn, ..)| Lsn(lsn.0 - 1));
        timeline.horizon = before.filter(|lsn| *lsn >= wanted).unwrap_or(wanted);
        self.done.horizons += 1;
        Ok(())
    }

    fn lease(&mut self, at: usize) -> Result<(), Violation> {
        let lsn = self.readable(at);
        let timeline = &mut self.timelines[at];
        if timeline.leases.len() > 3 {
            timeline.leases.clear();
        }
        timeline.leases.push(lsn);
        Ok(())
    }

    fn branch(&mut self, at: usize) -> Result<(), Violation> {
        if self.timelines.len() < MOST_TIMELINES {
            let lsn = self.readable(at);
            self.done.branches += 1;
            self.create(Some((at, lsn)), lsn)?;
        }
        Ok(())
    }

    /// The owner dies, or is only thought dead, and another takes over.
    fn crash(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = &mut self.timelines[at];
        self.done.crashes += 1;
        self.done.crashes_in_a_change += u64::from(timeline.engine.is_busy());
        let engine = Engine::open(&mut timeline.durables, timeline.start, self.sabotage)?;
        let earlier = std::mem::replace(&mut timeline.engine, engine);
        if self.rng.random_bool(0.5) {
            timeline.earlier.push(earlier);
        }
        Ok(())
    }

    fn go_on_superseded(&mut self, at: usize) -> Result<(), Violation> {
        let points = self.points(at);
        let timeline = &mut self.timelines[at];
        let Some(mut earlier) = timeline.earlier.pop() else {
            return Ok(());
        };
        for _ in 0..20 {
            if !earlier.is_busy() {
                // It has no parent to read; what it makes is never read.
                let merged = earlier.merge(&points, &|_| Ok(0), 5);
                let flushed = merged.and_then(|()| match earlier.is_busy() {
                    true => Ok(()),
                    false => earlier.flush(),
                });
                flushed?;
            }
            let goes_on = earlier.durable_step(&mut timeline.durables)?;
            if !goes_on || !earlier.is_busy() {
                self.done.superseded += u64::from(!goes_on);
                return Ok(());
            }
        }
        Ok(())
    }

    /// An LSN at which reads are answered.
    fn readable(&mut self, at: usize) -> Lsn {
        let points = self.points(at);
        let timeline = &self.timelines[at];
        let newest = timeline.engine.last_record.0;
        let (start, horizon) = (timeline.start.0, timeline.horizon.0);
        let any = Lsn(self.rng.random_range(start..=newest));
        match points.contains(any) {
            true => any,
            false if self.rng.random_bool(0.3) => Lsn(horizon),
            false => Lsn(self.rng.random_range(horizon..=newest)),
        }
    }

    fn read_some(&mut self, at: usize) -> Result<(), Violation> {
        for _ in 0..6 {
            let (number, lsn) = (self.rng.random_range(0..PAGES), self.readable(at));
            self.check_read(at, &key(number), lsn)?;
        }
        Ok(())
    }

    /// Every page at LSNs all over those that are read, and at each single one.
    fn read_all(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = &self.timelines[at];
        let log: Vec<Lsn> = timeline
            .durables
            .log
            .values
            .iter()
            .map(|(lsn, ..)| *lsn)
            .collect();
        let mut lsns: Vec<Lsn> = log.into_iter().filter(|_| self.rng.random_bool(0.03)).collect();
        lsns.extend([timeline.start, timeline.horizon]);
        lsns.extend(&timeline.leases);
        lsns.extend(
            self.timelines
                .iter()
                .filter_map(|child| child.parent)
                .map(|(_, lsn)| lsn),
        );
        lsns.sort_unstable();
        lsns.dedup();
        let points = self.points(at);
        let newest = self.timelines[at].engine.last_record;
        lsns.retain(|lsn| points.contains(*lsn) && *lsn <= newest);
        for number in 0..PAGES {
            for lsn in &lsns {
                self.check_read(at, &key(number), *lsn)?;
            }
        }
        Ok(())
    }

    fn check_read(&mut self, at: usize, key: &PageKey, lsn: Lsn) -> Result<(), Violation> {
        let expected = self.expected(at, key, lsn);
        let mut count = ReadCount::default();
        let found = page(&self.timelines, at, key, lsn, &mut count)?;
        if found != expected {
            return Err(format!("timeline {at}: page {key} at {lsn} is wrong"));
        }
        self.done.reads += 1;
        self.done.reads_in_parents += u64::from(self.timelines[at].parent.is_some());
        let (mut bound, mut next) = (0, Some((at, lsn)));
        while let Some((at, lsn)) = next {
            let timeline = &self.timelines[at];
            bound += timeline.engine.level0(key, lsn) as u32 + 1;
            next = timeline.parent.map(|(parent, branch)| (parent, branch.min(lsn)));
        }
        if count.data_blocks > bound {
            return Err(format!(
                "timeline {at}: page {key} at {lsn}: {count:?}, more than {bound} blocks"
            ));
        }
        Ok(())
    }

    fn expected(&self, at: usize, key: &PageKey, lsn: Lsn) -> u64 {
        let timeline = &self.timelines[at];
        let start = match timeline.parent {
            Some((parent, branch)) => self.expected(parent, key, branch.min(lsn)),
            None => 0,
        };
        timeline.durables.log.page(start, key, lsn)
    }

    /// What the newest manifest names is there.
    fn check_durable(&self) -> Result<(), Violation> {
        for timeline in &self.timelines {
            let Some((_, manifest)) = timeline.durables.manifests.last_key_value() else {
                continue;
            };
            for desc in manifest.map.layers() {
                if !timeline.durables.objects.contains_key(&desc.id) {
                    return Err(format!("layer {} is named and not there", desc.id));
                }
            }
        }
        Ok(())
    }
}

/// The page as the engines answer.
fn page(
    timelines: &[Timeline],
    at: usize,
    key: &PageKey,
    lsn: Lsn,
    count: &mut ReadCount,
) -> Result<u64, Violation> {
    let (mut chain, mut next) = (Chain::new(Lsn(0), lsn), Some(at));
    while let Some(at) = next.filter(|_| !chain.is_complete()) {
        let timeline = &timelines[at];
        timeline.engine.read(key, &mut chain, count)?;
        next = timeline.parent.map(|(parent, branch)| {
            chain.limit(branch);
            parent
        });
    }
    Ok(chain.values().fold(0, |page, (_, value)| redo(page, value)))
}
