//! Replay of WAL over a base, with every checking image compared on the way.
//!
//! Two threads: one reads segments, puts records together and checks their CRC; the other takes records apart, replays
//! and compares. A bounded channel of bounded batches is between them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use lakebed_ingest::{Effects, names, rmgr};
use lakebed_redo::{Managers, PageBytes, PageRecord};
use lakebed_types::{ForkNumber, Lsn, RelTag};
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::{BlockRef, DecodedRecord, FIRST_CUSTOM_MANAGER};
use lakebed_wal::stream::RawRecord;

use crate::against;
use crate::ahead::{ClearedAhead, Debt};
use crate::cluster::{Cluster, Touch};
use crate::compare::{Allowed, Verdict, with_image};
use crate::directory::DataDirectory;
use crate::error::VerifyError;
use crate::fields::FieldDifference;
use crate::redo::Redo;
use crate::report::{Mismatch, NotCheckable, Report, TypeCounts};
use crate::segments::{Segments, WalEnd};

/// Bytes of records in a batch between the threads.
const BATCH_BYTES: usize = 1 << 20;
/// Batches between the threads.
const BATCHES: usize = 4;
/// Records that are taken apart before the first of them is replayed, so that the memory that they need is on its way into
/// the processor's caches by then: what replay waits for most is pages that nothing touched for long.
const AHEAD: usize = 32;
/// Most fields that are named of one mismatch.
const FIELDS: usize = 16;

const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_END_OF_RECOVERY: u8 = 0x90;
const XLOG_BACKUP_END: u8 = 0x50;
const XLOG_FPI_FOR_HINT: u8 = 0xA0;

/// What to verify.
#[derive(Clone, Debug)]
pub struct Request {
    /// A stopped cluster's or a base backup's data directory.
    pub base: PathBuf,
    /// Directory of WAL segments.
    pub wal: PathBuf,
    /// Compare images of records from here on; those in front are replayed only.
    pub from: Option<Lsn>,
    /// Stop in front of the first record that ends behind this position.
    pub to: Option<Lsn>,
    /// A data directory that stock Postgres recovered to the same position.
    pub against: Option<PathBuf>,
    /// Memory for pages, in bytes.
    pub memory_bytes: usize,
    /// Most mismatches, and most differences, that are kept with their fields. All are counted.
    pub shown: usize,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// WAL was replayed.
    Wal {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        all: u64,
        /// End of the last record.
        lsn: Lsn,
    },
    /// Files of the recovered cluster were compared.
    Files {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        all: u64,
    },
}

/// Replays and compares. `progress` is called now and then.
///
/// # Errors
/// Nothing can be said, or the rest cannot be: see [`VerifyError`]. Differences are in the report.
pub fn verify(
    request: &Request,
    redo: &dyn Redo,
    managers: &Managers,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, VerifyError> {
    let base = DataDirectory::open(&request.base)?;
    let start = base.start();
    for (name, lsn) in [("--from", request.from), ("--to", request.to)] {
        if let Some(lsn) = lsn.filter(|lsn| *lsn < start) {
            return Err(VerifyError::Position(format!(
                "{name} {lsn} is in front of {start}, where replay on this base begins"
            )));
        }
    }
    let format = WalFormat {
        version: base.version,
        timeline: base.timeline(),
        system_identifier: base.control.system_identifier(),
        segment_bytes: base.control.segment_bytes(),
    };
    let mut replay = Replay {
        cluster: Cluster::new(&base, request.memory_bytes),
        redo,
        managers,
        consistency: Consistency::of(&base),
        from: request.from.unwrap_or(Lsn::INVALID),
        shown: request.shown,
        counts: vec![TypeCounts::default(); 256 * 16],
        not_checkable: vec![[0; NotCheckable::ALL.len()]; 256 * 16],
        mismatches: Vec::new(),
        ahead: ClearedAhead::default(),
        records: 0,
        unresolved: 0,
        decoded: Vec::new(),
        effects: Some(Box::default()),
    };
    let segments = Segments::open(&request.wal, format, start)?;
    let ahead = segments.bytes_ahead();
    let all = request
        .to
        .map_or(ahead, |to| ahead.min(to.0.saturating_sub(start.0)));

    let to = request.to.unwrap_or(Lsn::MAX);
    let mut records = Records {
        segments,
        to,
        last: None,
    };
    let mut watched = Watched { start, all, progress };
    // On one processor a second thread would only take the records out of its cache.
    let end = if thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
        replay_beside(&mut records, &mut replay, &mut watched)?
    } else {
        replay_in_turns(&mut records, &mut replay, &mut watched)?
    };
    let wal_bytes = records.segments.bytes_read();
    if let Some(to) = request.to.filter(|to| end.lsn < *to && end.reason != REACHED) {
        return Err(VerifyError::EndsEarly { end: end.lsn, to });
    }
    let against = match &request.against {
        Some(directory) => Some(against::compare(
            &mut replay.cluster,
            &base,
            directory,
            end.lsn,
            request.shown,
            progress,
        )?),
        None => None,
    };
    Ok(replay.report(&base, start, end, wal_bytes, against))
}

/// Reason of an end that was asked for.
const REACHED: &str = "the end of the range is reached";

/// The records of the range.
struct Records {
    segments: Segments,
    /// What ends behind it stays unread.
    to: Lsn,
    /// End of the last record.
    last: Option<Lsn>,
}

impl Records {
    fn next(&mut self) -> Result<Result<RawRecord, WalEnd>, VerifyError> {
        let next = self.segments.next_record()?;
        Ok(match next {
            Ok(record) if record.end > self.to => Err(WalEnd {
                lsn: self.last.unwrap_or(record.start),
                reason: REACHED.to_owned(),
            }),
            Ok(record) => {
                self.last = Some(record.end);
                Ok(record)
            }
            Err(end) => Err(end),
        })
    }
}

/// Tells how far the replay is.
struct Watched<'a> {
    start: Lsn,
    all: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl Watched<'_> {
    fn at(&mut self, lsn: Lsn) {
        (self.progress)(Progress::Wal {
            done: lsn.0.saturating_sub(self.start.0),
            all: self.all,
            lsn,
        });
    }
}

fn replay_in_turns(
    records: &mut Records,
    replay: &mut Replay<'_>,
    watched: &mut Watched<'_>,
) -> Result<WalEnd, VerifyError> {
    let mut told = watched.start;
    let mut batch = Vec::with_capacity(AHEAD);
    loop {
        let mut wal_end = None;
        while batch.len() < AHEAD && wal_end.is_none() {
            match records.next() {
                Ok(Ok(raw)) => batch.push(raw),
                Ok(Err(end)) => wal_end = Some(Ok(end)),
                Err(error) => wal_end = Some(Err(error)),
            }
        }
        let last = batch.last().map_or(told, |raw| raw.end);
        replay.batch(batch.drain(..))?;
        if last.0 - told.0 >= BATCH_BYTES as u64 {
            told = last;
            watched.at(told);
        }
        if let Some(end) = wal_end {
            return end;
        }
    }
}

/// Reads on a thread of its own.
fn replay_beside(
    records: &mut Records,
    replay: &mut Replay<'_>,
    watched: &mut Watched<'_>,
) -> Result<WalEnd, VerifyError> {
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel::<Vec<RawRecord>>(BATCHES);
        let reader = scope.spawn(move || read(records, &sender));
        // The receiver is dropped in case of an error, which ends the reader.
        let result = receive(receiver, replay, watched);
        let end = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(end)
    })
}

/// Sends batches until the end.
fn read(records: &mut Records, sender: &mpsc::SyncSender<Vec<RawRecord>>) -> Result<WalEnd, VerifyError> {
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut end = None;
        while bytes < BATCH_BYTES && end.is_none() {
            match records.next()? {
                Ok(record) => {
                    bytes += record.bytes.len();
                    batch.push(record);
                }
                Err(wal_end) => end = Some(wal_end),
            }
        }
        // Nobody listens any more: the other side has an error to tell.
        let gone = sender.send(batch).is_err();
        if let Some(end) = end {
            return Ok(end);
        }
        if gone {
            return Ok(WalEnd {
                lsn: records.last.unwrap_or(Lsn::INVALID),
                reason: String::new(),
            });
        }
    }
}

fn receive(
    receiver: mpsc::Receiver<Vec<RawRecord>>,
    replay: &mut Replay<'_>,
    watched: &mut Watched<'_>,
) -> Result<(), VerifyError> {
    for batch in receiver {
        let last = batch.last().map(|record| record.end);
        replay.batch(batch.into_iter())?;
        if let Some(lsn) = last {
            watched.at(lsn);
        }
    }
    Ok(())
}

/// From when on no page may be missing (`CheckRecoveryConsistency` in `access/transam/xlogrecovery.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    Reached,
    /// Behind the end record of the backup that began here.
    AtBackupEnd(Lsn),
    /// From this position on.
    At(Lsn),
    /// At the end of WAL: a crashed server's files.
    AtEnd,
}

impl Consistency {
    fn of(base: &DataDirectory) -> Consistency {
        match &base.label {
            Some(label) if label.from_standby => Consistency::At(base.minimum_recovery_point),
            Some(label) => Consistency::AtBackupEnd(label.start),
            None if base.control.is_shut_down() => Consistency::Reached,
            None if base.minimum_recovery_point.is_valid() => Consistency::At(base.minimum_recovery_point),
            None => Consistency::AtEnd,
        }
    }
}

struct Replay<'a> {
    cluster: Cluster,
    redo: &'a dyn Redo,
    managers: &'a Managers,
    consistency: Consistency,
    from: Lsn,
    shown: usize,
    /// By resource manager and the upper half of `xl_info`.
    counts: Vec<TypeCounts>,
    /// Where `counts` has them by reason: almost every record adds to one.
    not_checkable: Vec<[u64; NotCheckable::ALL.len()]>,
    mismatches: Vec<Mismatch>,
    ahead: ClearedAhead,
    records: u64,
    unresolved: u64,
    /// The last records, in whose places the next ones are taken apart.
    decoded: Vec<DecodedRecord>,
    /// The last record's effects, in whose place the next one's are put. Taken while a record is replayed.
    effects: Option<Box<Effects>>,
}

impl Replay<'_> {
    /// Replays records in their order.
    fn batch(&mut self, mut raws: impl ExactSizeIterator<Item = RawRecord>) -> Result<(), VerifyError> {
        let mut decoded = std::mem::take(&mut self.decoded);
        let mut effects = self.effects.take().unwrap_or_default();
        while raws.len() > 0 {
            let (mut count, mut malformed) = (0, None);
            for raw in raws.by_ref().take(AHEAD) {
                if count == decoded.len() {
                    decoded.push(DecodedRecord::empty(raw.version));
                }
                if let Err(error) = raw.decode_into(&mut decoded[count]) {
                    malformed = Some(error);
                    break;
                }
                count += 1;
            }
            let records = &decoded[..count];
            self.cluster.expect(records);
            for record in records {
                self.effects(record, &mut effects)?;
                self.record(record, &effects)?;
            }
            if let Some(error) = malformed {
                return Err(lakebed_wal::stream::StreamError::Record(error).into());
            }
        }
        (self.decoded, self.effects) = (decoded, Some(effects));
        Ok(())
    }

    fn record(&mut self, record: &DecodedRecord, effects: &Effects) -> Result<(), VerifyError> {
        self.records += 1;
        self.counts(record).seen += 1;
        if record.blocks.is_empty() {
            self.not_checkable(record, NotCheckable::NoPage);
        }
        for block in &record.blocks {
            self.redo_block(record, block)?;
        }
        self.cluster.apply(record, effects)?;
        for (rel, block) in effects.vm_clears.iter().map(|clear| (clear.rel, clear.block)) {
            self.pay_map_bits(rel, block)?;
        }
        for (rel, block) in effects.vm_truncates.iter().map(|cut| (cut.rel, cut.block)) {
            self.pay_map_bits(rel, block)?;
        }
        for block in &record.blocks {
            self.check(record, block)?;
        }
        if starts_server(record) {
            self.settle_map_bits(record.start);
        }
        self.note_consistency(record);
        Ok(())
    }

    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), VerifyError> {
        if record.rmid >= FIRST_CUSTOM_MANAGER && !self.managers.knows(record.rmid) {
            return Err(VerifyError::CustomManager {
                lsn: record.start,
                rmid: record.rmid,
                info: record.info,
            });
        }
        self.redo.effects(record, effects).map_err(VerifyError::from)
    }

    fn redo_block(&mut self, record: &DecodedRecord, block: &BlockRef) -> Result<(), VerifyError> {
        if block.rel.fork == ForkNumber::Fsm || hint_only(record, block) {
            return Ok(());
        }
        if self.cluster.touch(record, block)? == Touch::Missing {
            // In a consistent cluster nothing excuses that any more; Postgres would panic.
            self.unresolved += u64::from(self.consistency == Consistency::Reached);
            return Ok(());
        }
        let key = (block.rel, block.block);
        let page = self.cluster.page_mut(block.rel, block.block)?;
        let server = (!self.ahead.is_clear(key)).then(|| self.ahead.as_on_server(key, page));
        replay(self.redo, self.managers, record, block, page)?;
        if let Some(mut server) = server {
            if block.image.as_ref().is_some_and(|image| image.apply) {
                self.ahead.pay(key, page);
            } else {
                replay(self.redo, self.managers, record, block, &mut server)?;
                if let Some(debt) = self.ahead.broken_by(key, page, &server) {
                    self.mismatched_after_all(debt);
                }
            }
        }
        self.cluster.remember(record, block);
        Ok(())
    }

    /// A record cleared bits of a map page that it does not name.
    fn pay_map_bits(&mut self, rel: RelTag, block: u32) -> Result<(), VerifyError> {
        if !self.ahead.is_clear((rel, block)) {
            let page = self.cluster.page(rel, block)?;
            self.ahead.pay((rel, block), page);
        }
        Ok(())
    }

    /// The server wrote nothing more of what it had begun in front of `end`.
    fn settle_map_bits(&mut self, end: Lsn) {
        for debt in std::mem::take(&mut self.ahead).unpaid_at(end) {
            self.mismatched_after_all(debt);
        }
    }

    /// Images that were taken to show bits which a later record clears, and no record did.
    fn mismatched_after_all(&mut self, debt: Debt) {
        for (at, images) in debt.images {
            let counts = &mut self.counts[at];
            counts.mismatched += images;
            if let Some(allowed) = counts.allowed.get_mut(&Allowed::VisibilityMapClearedAhead) {
                *allowed -= images;
            }
            counts.allowed.retain(|_, count| *count > 0);
        }
        self.show(debt.first);
    }

    fn show(&mut self, mismatch: Mismatch) {
        if self.mismatches.len() < self.shown {
            self.mismatches.push(mismatch);
        }
    }

    /// Compares the page of a reference with its image.
    fn check(&mut self, record: &DecodedRecord, block: &BlockRef) -> Result<(), VerifyError> {
        let image = block.image.as_ref();
        let reason = if block.rel.fork == ForkNumber::Fsm {
            Some(NotCheckable::FreeSpaceMap)
        } else if record.start < self.from {
            Some(NotCheckable::BeforeRange)
        } else if image.is_some_and(|image| image.apply) {
            Some(NotCheckable::ImageToApply)
        } else if image.is_none() && hint_only(record, block) {
            Some(NotCheckable::HintOnly)
        } else if image.is_none() {
            Some(NotCheckable::NoImage)
        } else if !self.cluster.has_content(block.rel, block.block)? {
            return self.check_missing(record, block);
        } else {
            None
        };
        let Some(image) = image.filter(|_| reason.is_none()) else {
            if let Some(reason) = reason {
                self.not_checkable(record, reason);
            }
            return Ok(());
        };
        let history = self.cluster.history(block.rel, block.block);
        let page = self.cluster.page(block.rel, block.block)?;
        if lakebed_redo::page::lsn(page) > record.end {
            self.not_checkable(record, NotCheckable::NewerPage);
            return Ok(());
        }
        let verdict =
            with_image(self.managers, record, block, image, page, history, FIELDS).map_err(|fault| {
                VerifyError::Redo(format!(
                    "the image of {} block {} in the record at {}: {fault}",
                    block.rel, block.block, record.start
                ))
            })?;
        self.count_verdict(record, block, verdict);
        Ok(())
    }

    fn check_missing(&mut self, record: &DecodedRecord, block: &BlockRef) -> Result<(), VerifyError> {
        if self.consistency == Consistency::Reached {
            // Nothing may be missing any more.
            self.count_verdict(
                record,
                block,
                Verdict::Different {
                    fields: Vec::new(),
                    stricter_than_postgres: false,
                },
            );
        } else {
            self.not_checkable(record, NotCheckable::MissingPage);
        }
        Ok(())
    }

    fn count_verdict(&mut self, record: &DecodedRecord, block: &BlockRef, verdict: Verdict) {
        let type_index = type_index(record);
        let counts = &mut self.counts[type_index];
        counts.checked += 1;
        let allowed = match verdict {
            Verdict::Same => return,
            Verdict::Different {
                fields,
                stricter_than_postgres,
            } => {
                counts.mismatched += 1;
                let mismatch = self.mismatch(record, block, fields, stricter_than_postgres);
                self.show(mismatch);
                return;
            }
            Verdict::Allowed(class) => class,
            Verdict::ClearedAhead { bits, fields } => {
                let mismatch = self.mismatch(record, block, fields, true);
                let page = (block.rel, block.block);
                self.ahead.owe(page, &bits, type_index, mismatch);
                Allowed::VisibilityMapClearedAhead
            }
        };
        *self.counts[type_index].allowed.entry(allowed).or_default() += 1;
    }

    fn mismatch(
        &self,
        record: &DecodedRecord,
        block: &BlockRef,
        fields: Vec<FieldDifference>,
        stricter_than_postgres: bool,
    ) -> Mismatch {
        let (rmgr, operation) = self.type_name(record.version, record.rmid, record.info);
        Mismatch {
            lsn: record.start,
            rmgr,
            operation,
            relation: block.rel.with_fork(ForkNumber::Main).to_string(),
            fork: block.rel.fork.name(),
            block: block.block,
            stricter_than_postgres,
            fields,
        }
    }

    fn counts(&mut self, record: &DecodedRecord) -> &mut TypeCounts {
        &mut self.counts[type_index(record)]
    }

    fn not_checkable(&mut self, record: &DecodedRecord, reason: NotCheckable) {
        self.not_checkable[type_index(record)][reason as usize] += 1;
    }

    fn note_consistency(&mut self, record: &DecodedRecord) {
        let reached = match self.consistency {
            Consistency::AtBackupEnd(start) => {
                record.rmid == rmgr::XLOG
                    && record.info & rmgr::INFO_MASK == XLOG_BACKUP_END
                    && record.main_data[..] == start.0.to_le_bytes()
            }
            Consistency::At(lsn) => record.end >= lsn,
            Consistency::Reached | Consistency::AtEnd => false,
        };
        if reached {
            self.consistency = Consistency::Reached;
            self.unresolved = self.cluster.unresolved().len() as u64;
        }
    }

    fn type_name(&self, version: lakebed_types::PgVersion, rmid: u8, info: u8) -> (String, String) {
        if let Some(manager) = self.managers.get(rmid) {
            return (manager.name().to_owned(), manager.operation(info & 0xF0));
        }
        let operation = names::operation_or_bits(version, rmid, info);
        (rmgr::name(rmid).to_owned(), operation.into_owned())
    }

    fn report(
        mut self,
        base: &DataDirectory,
        start: Lsn,
        end: WalEnd,
        wal_bytes: u64,
        against: Option<crate::report::Against>,
    ) -> Report {
        self.settle_map_bits(end.lsn);
        self.mismatches.sort_by_key(|mismatch| mismatch.lsn);
        let unresolved = match self.consistency {
            Consistency::Reached => self.unresolved,
            _ => self.cluster.unresolved().len() as u64,
        };
        let mut types = BTreeMap::new();
        for (at, counts) in self.counts.iter().enumerate() {
            if counts.seen > 0 {
                // 256 resource managers with 16 types each.
                let (rmid, info) = ((at / 16) as u8, ((at % 16) << 4) as u8);
                let missed = NotCheckable::ALL.into_iter().zip(self.not_checkable[at]);
                let mut counts = counts.clone();
                counts.not_checkable = missed.filter(|(_, count)| *count > 0).collect();
                types.insert(self.type_name(base.version, rmid, info), counts);
            }
        }
        Report {
            version: base.version,
            start,
            end: end.lsn,
            end_reason: end.reason,
            records: self.records,
            wal_bytes,
            spilled_pages: self.cluster.spilled_pages(),
            types,
            mismatches: self.mismatches,
            unresolved_pages: unresolved,
            consistent: matches!(self.consistency, Consistency::Reached | Consistency::AtEnd),
            against,
        }
    }
}

/// No transaction that ran in front of this record goes on behind it.
fn starts_server(record: &DecodedRecord) -> bool {
    let operation = record.info & rmgr::INFO_MASK;
    record.rmid == rmgr::XLOG && [XLOG_CHECKPOINT_SHUTDOWN, XLOG_END_OF_RECOVERY].contains(&operation)
}

/// Place of the record's type in [`Replay::counts`].
fn type_index(record: &DecodedRecord) -> usize {
    usize::from(record.rmid) * 16 + usize::from(names::type_bits(record.rmid, record.info) >> 4)
}

fn replay(
    redo: &dyn Redo,
    managers: &Managers,
    record: &DecodedRecord,
    block: &BlockRef,
    page: &mut PageBytes,
) -> Result<(), VerifyError> {
    let replayed = if record.rmid >= FIRST_CUSTOM_MANAGER {
        let replayed = PageRecord::new(record, block).redo(page, managers);
        replayed.map_err(|error| error.to_string())
    } else {
        redo.page(record, block, page)
    };
    replayed.map_err(VerifyError::Redo)
}

/// A hint-bit record without an image to apply changes nothing (`xlog_redo`).
fn hint_only(record: &DecodedRecord, block: &BlockRef) -> bool {
    record.rmid == rmgr::XLOG
        && record.info & rmgr::INFO_MASK == XLOG_FPI_FOR_HINT
        && !block.image.as_ref().is_some_and(|image| image.apply)
}
