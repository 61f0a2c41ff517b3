//! Random faults under recording clients: every acknowledgement is written down, none may be missing afterwards.
//!
//! `LAKEBED_CAMPAIGN_SECONDS` and `LAKEBED_CAMPAIGN_SEED` make it longer and repeat its choices (`tests/fault-campaign`).
//! One safekeeper is broken at a time, or all lose power at once; each time the clients must get on again before the
//! next fault. In the end, and whenever a compute was lost, a new compute tells what is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lakebed_pgtest::{Installation, wait_until};
use lakebed_tests::recorder::{Record, Recorder, TABLE};
use lakebed_tests::{Compute, Shape, Tier};

const CLIENTS: i32 = 4;
/// Place of the commit position in a safekeeper's control file: behind 20 bytes of envelope and five words.
const COMMIT_OFFSET: u64 = 20 + 5 * 8;
/// Bits of a position in its segment.
const SEGMENT_MASK: u64 = (1 << 24) - 1;
const DISK_BYTES: u64 = 512 << 20;
/// Acknowledgements of each client between two faults.
const PROGRESS: u64 = 20;

/// The random numbers of a campaign (SplitMix64).
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Freeze,
    FailedFsync,
    PowerCut,
    PowerCutOfAll,
    DiskFull,
    AllDisksFull,
    Mute,
    Deaf,
    CutOff,
    ClockJump,
    FlippedWal,
    FlippedCommittedWal,
    FlippedControlFile,
    ComputeKilled,
    EverythingLosesPower,
}

const FAULTS: [Fault; 16] = [
    Fault::Kill,
    Fault::Freeze,
    Fault::FailedFsync,
    Fault::PowerCut,
    Fault::PowerCutOfAll,
    Fault::DiskFull,
    Fault::AllDisksFull,
    Fault::Mute,
    Fault::Deaf,
    Fault::CutOff,
    Fault::ClockJump,
    Fault::FlippedWal,
    Fault::FlippedCommittedWal,
    Fault::FlippedControlFile,
    Fault::ComputeKilled,
    Fault::EverythingLosesPower,
];

/// What a campaign found.
#[derive(Debug, Default)]
struct Result {
    faults: BTreeMap<Fault, u64>,
    acknowledged: u64,
    /// Sent, and the answer was lost with the compute; of these, found afterwards.
    ambiguous: (u64, u64),
    lost: u64,
    /// A number is missing below one that is there, or one is there that was never sent.
    wrong: u64,
    /// Why no compute came up after a fault.
    dead: Option<String>,
}

struct Campaign {
    tier: Tier,
    choices: Choices,
    compute: Option<Compute>,
    computes: u32,
    clients: Vec<Recorder>,
    result: Result,
}

impl Campaign {
    fn start(seed: u64) -> Campaign {
        let tier = Tier::start(&Shape {
            shards: 1,
            faults: Some(DISK_BYTES),
            ..Shape::default()
        });
        let mut campaign = Campaign {
            tier,
            choices: Choices(seed),
            compute: None,
            computes: 0,
            clients: Vec::new(),
            result: Result::default(),
        };
        assert!(campaign.boot(), "{:?}", campaign.result.dead);
        campaign.compute().sql(&[TABLE]);
        campaign.begin_clients(&vec![0; CLIENTS as usize]);
        campaign
    }

    fn compute(&self) -> &Compute {
        self.compute.as_ref().expect("a compute")
    }

    fn boot(&mut self) -> bool {
        self.computes += 1;
        let directory = self.tier.home().join(format!("compute-{}", self.computes));
        let started = Compute::try_start(
            &Installation::default_15(),
            &self.tier.connect("main"),
            &directory,
            &["--lease-ms=120000"],
        );
        match started {
            Ok(compute) => self.compute = Some(compute),
            Err(why) => self.result.dead = Some(why),
        }
        self.compute.is_some()
    }

    fn begin_clients(&mut self, from: &[u64]) {
        let url = self.compute().url();
        let clients = from.iter().zip(0..);
        self.clients = clients
            .map(|(from, client)| Recorder::start(&url, client, *from))
            .collect();
    }

    /// Waits until every client has had more acknowledged.
    fn advance(&self) {
        let begin: Vec<u64> = self.clients.iter().map(Recorder::acknowledged).collect();
        wait_until("every client to go on", || {
            let now = self.clients.iter().map(Recorder::acknowledged);
            begin.iter().zip(now).all(|(begin, now)| now >= begin + PROGRESS)
        });
    }

    /// The clients' last words against what the compute has.
    fn compare(&mut self, records: &[Record]) -> Vec<u64> {
        let mut found = Vec::new();
        for (client, record) in records.iter().enumerate() {
            let sql = format!("select count(*), coalesce(max(n), 0) from recorded where client = {client}");
            let row = self.compute().sql(&[&sql]);
            let (count, max) = row.split_once('|').expect("two columns");
            let (count, max): (u64, u64) = (count.parse().expect("a number"), max.parse().expect("a number"));
            self.result.lost += record.acknowledged.saturating_sub(count);
            self.result.wrong += u64::from(count != max || max > record.attempted);
            self.result.ambiguous.0 += record.attempted - record.acknowledged;
            self.result.ambiguous.1 += max.saturating_sub(record.acknowledged);
            found.push(max);
        }
        found
    }

    /// The compute is gone; a new one has everything that was acknowledged.
    fn new_compute(&mut self, faulty: &mut dyn FnMut(&mut Tier)) {
        let before: u64 = self.acknowledged();
        if let Some(compute) = self.compute.take() {
            compute.kill();
        }
        let records: Vec<Record> = std::mem::take(&mut self.clients)
            .into_iter()
            .map(Recorder::join)
            .collect();
        faulty(&mut self.tier);
        if !self.boot() {
            self.result.lost += before;
            return;
        }
        let found = self.compare(&records);
        self.begin_clients(&found);
    }

    fn acknowledged(&self) -> u64 {
        self.clients.iter().map(Recorder::acknowledged).sum()
    }

    fn pause(&mut self) {
        // A fault lasts a while: what is asked for is how long, not that something happened meanwhile.
        sleep(Duration::from_millis(200 + self.choices.below(1800)));
    }

    fn inject(&mut self, fault: Fault) {
        let names = self.tier.names("safekeeper");
        let name = names[self.choices.below(names.len() as u64) as usize].clone();
        println!("{fault:?} {name}");
        *self.result.faults.entry(fault).or_default() += 1;
        match fault {
            Fault::Kill => {
                self.tier.kill_role(&name);
                self.pause();
                self.tier.start_role(&name);
            }
            Fault::Freeze => {
                self.tier.pause_role(&name);
                self.pause();
                self.tier.resume_role(&name);
            }
            Fault::FailedFsync => {
                let before = self.tier.faults(&name).failed_fsyncs();
                self.tier.faults(&name).fail_fsync(true);
                wait_until("an fsync to fail", || {
                    self.tier.faults(&name).failed_fsyncs() > before
                });
                self.advance();
                self.tier.faults(&name).fail_fsync(false);
                self.power_cycle(&[name]);
            }
            Fault::PowerCut => self.power_cycle(&[name]),
            Fault::PowerCutOfAll => self.power_cycle(&names),
            Fault::DiskFull => self.fill(&[name]),
            Fault::AllDisksFull => self.fill(&names),
            Fault::Mute => self.cut_off(&name, (true, false)),
            Fault::Deaf => self.cut_off(&name, (false, true)),
            Fault::CutOff => self.cut_off(&name, (true, true)),
            Fault::ClockJump => {
                let seconds = self.choices.below(2 * 86_400) as i64 - 86_400;
                self.tier.faults(&name).set_clock_wrong(seconds);
            }
            Fault::FlippedWal | Fault::FlippedCommittedWal | Fault::FlippedControlFile => {
                self.flip(fault, &name)
            }
            Fault::ComputeKilled => self.new_compute(&mut |_| {}),
            Fault::EverythingLosesPower => self.new_compute(&mut |tier| {
                let names = tier.names("safekeeper");
                tier.cut_power(&names);
                names.iter().for_each(|name| tier.start_role(name));
            }),
        }
    }

    fn power_cycle(&mut self, names: &[String]) {
        self.tier.cut_power(names);
        names.iter().for_each(|name| self.tier.start_role(name));
    }

    fn fill(&mut self, names: &[String]) {
        names.iter().for_each(|name| self.tier.disk(name).fill());
        self.pause();
        names.iter().for_each(|name| self.tier.disk(name).make_room());
    }

    fn cut_off(&mut self, name: &str, (sends, receives): (bool, bool)) {
        self.tier.faults(name).cut_off(sends, receives);
        self.pause();
        self.tier.faults(name).cut_off(false, false);
    }

    /// Flips a bit of a node's files while it is down: of flushed WAL above the commit position of the control file, of
    /// WAL below, or of a copy of the control file. The node makes it good by itself.
    fn flip(&mut self, fault: Fault, name: &str) {
        let status = self.tier.status(name)["timelines"][0].clone();
        let (flush, start) = (position(&status["flush_lsn"]), position(&status["truncate_lsn"]));
        self.tier.kill_role(name);
        let timelines = self.tier.home().join(name).join("timelines");
        let timeline = fs::read_dir(timelines).expect("timelines").flatten().next();
        let timeline = timeline.expect("a timeline").path();
        let control = File::open(timeline.join("control")).expect("a control file");
        let mut commit = [0; 8];
        control
            .read_exact_at(&mut commit, COMMIT_OFFSET)
            .expect("a commit position");
        let commit = u64::from_le_bytes(commit);
        match fault {
            Fault::FlippedControlFile => {
                let copy = ["control", "control-copy"][self.choices.below(2) as usize];
                let bytes = fs::metadata(timeline.join(copy)).expect("a copy").len();
                let at = self.choices.below(bytes);
                self.flip_bit(&timeline.join(copy), at);
            }
            Fault::FlippedCommittedWal if start < commit => {
                // Near the commit position a start finds it, further down the scrubber.
                let reach = [4096, 8 << 20][self.choices.below(2) as usize];
                let at = commit - 1 - self.choices.below(reach.min(commit - start));
                self.flip_bit(&segment_of(&timeline, at), at & SEGMENT_MASK);
                println!("flipped a bit {} bytes below the durable commit", commit - at);
            }
            Fault::FlippedWal if commit < flush => {
                let at = commit + self.choices.below(flush - commit);
                self.flip_bit(&segment_of(&timeline, at), at & SEGMENT_MASK);
                println!("flipped a bit {} bytes above the durable commit", at - commit);
            }
            _ => {}
        }
        self.tier.start_role(name);
        wait_until("damage to be made good", || {
            let stopped = self.tier.status(name)["timelines"][0]["stopped_reason"].is_string();
            !stopped && self.tier.scrub(name)["timelines"][0]["scrub"]["damage"] == serde_json::json!([])
        });
    }

    fn flip_bit(&mut self, path: &Path, at: u64) {
        let file = File::options().read(true).write(true).open(path).expect("a file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        byte[0] ^= 1 << self.choices.below(8);
        file.write_all_at(&byte, at).expect("a byte");
    }

    fn end(mut self) -> Result {
        let records: Vec<Record> = std::mem::take(&mut self.clients)
            .into_iter()
            .map(Recorder::stop)
            .collect();
        if let Some(compute) = self.compute.take() {
            compute.kill();
        }
        if self.result.dead.is_none() && self.boot() {
            self.compare(&records);
        }
        self.result.acknowledged = records.iter().map(|record| record.acknowledged).sum();
        self.result
    }
}

fn position(text: &serde_json::Value) -> u64 {
    let (high, low) = text
        .as_str()
        .and_then(|text| text.split_once('/'))
        .expect("a position");
    let half = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
    half(high) << 32 | half(low)
}

/// The segment file of a position, with segments of 16 MiB.
fn segment_of(timeline: &Path, lsn: u64) -> PathBuf {
    let number = lsn >> 24;
    timeline.join(format!("00000001{:08X}{:08X}", number >> 8, number & 0xff))
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => default,
    }
}

#[test]
fn nothing_acknowledged_is_lost_under_random_faults() {
    let seed = number("LAKEBED_CAMPAIGN_SEED", 1);
    let seconds = number("LAKEBED_CAMPAIGN_SECONDS", 60);
    println!("seed {seed}, {seconds} s");
    let mut campaign = Campaign::start(seed);
    let begin = Instant::now();
    // Each kind comes once before chance decides, so that a short campaign has them all.
    let mut first = FAULTS.to_vec();
    while begin.elapsed() < Duration::from_secs(seconds) {
        campaign.advance();
        let fault = match first.len() as u64 {
            0 => FAULTS[campaign.choices.below(FAULTS.len() as u64) as usize],
            left => first.swap_remove(campaign.choices.below(left) as usize),
        };
        campaign.inject(fault);
        assert_eq!(campaign.result.dead, None, "no compute comes up");
    }
    campaign.advance();
    let result = campaign.end();
    println!("{result:#?}");
    assert_eq!(result.dead, None);
    assert!(result.acknowledged > 0);
    assert_eq!((result.lost, result.wrong), (0, 0));
}

/// A campaign that finds nothing proves nothing unless it would have: here fsync does nothing, so that what is
/// acknowledged is not on disk.
#[test]
fn a_campaign_finds_what_is_acknowledged_before_it_is_flushed() {
    let mut campaign = Campaign::start(1);
    for name in campaign.tier.names("safekeeper") {
        campaign.tier.faults(&name).skip_fsync();
    }
    campaign.advance();
    campaign.inject(Fault::EverythingLosesPower);
    let result = campaign.result;
    println!("{result:#?}");
    assert!(result.lost > 0, "nobody noticed: {result:?}");
}
