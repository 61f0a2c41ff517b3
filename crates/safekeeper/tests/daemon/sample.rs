//! The WAL of a real cluster that did a bit of everything, made once for all tests.

use std::fs;
use std::sync::LazyLock;

use bytes::Bytes;
use lakebed_pgtest::{Cluster, Stop, run};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::{RawRecord, WalDecoder};

pub const SEGMENT: u32 = 1 << 24;
/// Records that lie before the start of the timelines of the tests.
const BEFORE: usize = 40;

static SAMPLE: LazyLock<Sample> = LazyLock::new(Sample::make);

/// WAL and its records, from [`Sample::start`] on.
pub struct Sample {
    pub system_id: u64,
    wal: Bytes,
    pub start: Lsn,
    /// All records at and after the start.
    pub records: Vec<RawRecord>,
}

pub fn sample() -> &'static Sample {
    &SAMPLE
}

impl Sample {
    fn make() -> Sample {
        let mut cluster = Cluster::init();
        cluster.start(&[
            "wal_keep_size=1GB",
            "fsync=off",
            "autovacuum=off",
            "max_wal_size=2GB",
        ]);
        run(cluster.client("pgbench").args(["-i", "-s", "1", "-q"]));
        cluster.sql(
            "create table wide as select n, repeat('x', 500) as text from generate_series(1, 20000) n;
             create table other as select n from generate_series(1, 5000) n;
             select pg_switch_wal();
             delete from wide where n > 1000;
             vacuum wide;
             create database second strategy file_copy;
             drop table other;
             truncate pgbench_history;
             insert into wide select n, repeat('y', 500) from generate_series(1, 5000) n;
             begin; savepoint a; insert into wide values (1, 'a'); rollback to a; commit;
             drop database second;",
        );
        run(cluster.client("pgbench").args(["-c", "2", "-t", "100", "-n"]));
        cluster.stop(Stop::Clean);

        let data = cluster.data_dir();
        let control = fs::read(data.join("global/pg_control")).unwrap();
        let system_id = u64::from_le_bytes(control[..8].try_into().unwrap());
        let format = WalFormat {
            version: PgVersion::V15,
            timeline: 1,
            system_identifier: system_id,
            segment_bytes: SEGMENT,
        };
        let mut wal = Vec::new();
        for number in 1.. {
            match fs::read(data.join(format!("pg_wal/{:024X}", (1u128 << 64) + number))) {
                Ok(bytes) => wal.extend(bytes),
                Err(_) => break,
            }
        }
        let mut decoder = WalDecoder::new(format, Lsn(SEGMENT.into()), Lsn::INVALID);
        decoder.feed(&wal);
        let mut records = Vec::new();
        while let Ok(Some(record)) = decoder.next_raw() {
            records.push(record);
        }
        let start = records[BEFORE].end;
        Sample {
            system_id,
            wal: Bytes::from(wal).slice((start.0 - u64::from(SEGMENT)) as usize..),
            start,
            records: records.split_off(BEFORE + 1),
        }
    }

    /// End of the last record.
    pub fn end(&self) -> Lsn {
        self.records[self.records.len() - 1].end
    }

    /// End of the record at this part of the way, of 100.
    pub fn at_percent(&self, percent: usize) -> Lsn {
        self.records[self.records.len() * percent / 100].end
    }

    pub fn bytes(&self, from: Lsn, to: Lsn) -> Bytes {
        self.wal
            .slice((from.0 - self.start.0) as usize..(to.0 - self.start.0) as usize)
    }

    /// The bytes from `begin` to the last record end at or below `end`; one record if the first is longer than that.
    pub fn whole_records(&self, begin: Lsn, end: Lsn) -> Bytes {
        let first = self.records.partition_point(|record| record.end <= begin);
        let after = self.records.partition_point(|record| record.end <= end);
        let last = after.max(first + 1) - 1;
        self.bytes(begin, self.records[last].end)
    }
}
