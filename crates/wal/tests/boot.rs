//! Stock Postgres boots on a synthesized checkpoint, wherever on a page the boot position lies.

use std::fs;
use std::os::unix::fs::FileExt;

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop};
use lakebed_types::Lsn;
use lakebed_wal::boot::{boot_segment_pieces, shutdown_checkpoint};
use lakebed_wal::control::{ControlError, ControlFile};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;

fn control_file(cluster: &Cluster) -> ControlFile {
    ControlFile::decode(&fs::read(cluster.data_dir().join("global/pg_control")).unwrap()).unwrap()
}

/// End of the WAL of a cluster that was shut down, and the start of its last record.
fn end_of_wal(cluster: &Cluster, format: WalFormat) -> (Lsn, Lsn) {
    let checkpoint = control_file(cluster).checkpoint_lsn();
    let mut decoder = WalDecoder::new(format, checkpoint, Lsn::INVALID);
    decoder.feed(&wal_from(cluster, format, checkpoint));
    decoder.next_raw().unwrap().expect("the shutdown checkpoint");
    (decoder.position(), decoder.last_record_start())
}

fn segment_name(number: u64) -> String {
    format!("pg_wal/{:08X}{:08X}{:08X}", 1, number / 256, number % 256)
}

fn wal_from(cluster: &Cluster, format: WalFormat, from: Lsn) -> Vec<u8> {
    let segment = u64::from(format.segment_bytes);
    let mut wal = Vec::new();
    for number in from.segment_number(segment).. {
        let Ok(bytes) = fs::read(cluster.data_dir().join(segment_name(number))) else {
            break;
        };
        wal.extend(bytes);
    }
    wal.split_off(from.segment_offset(segment) as usize)
}

/// Replaces WAL and control file by synthesized ones at the end of WAL; returns that position.
fn make_stateless(cluster: &Cluster, format: WalFormat) -> (Lsn, Lsn) {
    let (boot, previous) = end_of_wal(cluster, format);
    let mut control = control_file(cluster);
    let wal = shutdown_checkpoint(format, boot, previous, control.checkpoint());
    control.shut_down_at(wal.record_start, &wal.checkpoint);

    let data = cluster.data_dir();
    let segment = u64::from(format.segment_bytes);
    for number in 1..=boot.segment_number(segment) + 2 {
        let _ = fs::remove_file(data.join(segment_name(number)));
    }
    let owner = fs::metadata(&data).unwrap();
    for (at, bytes) in boot_segment_pieces(format, boot, &wal) {
        for (offset, byte) in bytes.iter().enumerate() {
            let at = Lsn(at.0 + offset as u64);
            let path = data.join(segment_name(at.segment_number(segment)));
            let file = fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .unwrap();
            file.set_len(segment).unwrap();
            file.write_all_at(&[*byte], at.segment_offset(segment)).unwrap();
            use std::os::unix::fs::MetadataExt;
            std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }
    fs::write(data.join("global/pg_control"), control.encode()).unwrap();
    (boot, previous)
}

#[test]
fn stock_postgres_boots_wherever_the_position_lies() {
    Installation::each(boot_everywhere);
}

fn boot_everywhere(installation: &Installation) {
    let mut cluster = Cluster::init_with(installation, &InitOptions::default());
    assert_eq!(
        control_file(&cluster).version().major(),
        u32::from(installation.major)
    );
    let control = control_file(&cluster);
    assert!(control.is_shut_down() && !control.has_data_checksums());
    let format = WalFormat {
        version: control.version(),
        timeline: 1,
        system_identifier: control.system_identifier(),
        segment_bytes: control.segment_bytes(),
    };
    let segment = u64::from(format.segment_bytes);
    cluster.start(&["fsync=off"]);
    cluster.sql("create table t (n int); insert into t values (0)");
    let mut rows = 1;
    let mut offsets = Vec::new();
    // Aims at a page's end, so that the record fits just, is split in its header or body, or begins the next page;
    // the last two aim at the end of a segment.
    for (border, room) in [
        (8192, 120),
        (8192, 112),
        (8192, 96),
        (8192, 24),
        (8192, 16),
        (8192, 8),
        (8192, 0),
        (segment, 48),
        (segment, 0),
    ] {
        cluster.stop(Stop::Clean);
        cluster.start(&[
            "fsync=off",
            "autovacuum=off",
            "checkpoint_timeout=1h",
            "bgwriter_lru_maxpages=0",
        ]);
        // The shutdown checkpoint takes 120 bytes behind the message, whose own overhead is 24 + 2 or 5 + 16 + "x\0".
        let now: Lsn = cluster.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
        let border: u64 = border;
        let wanted = (now.0 + 4_000).next_multiple_of(border) - room - 120;
        let whole_pages = wanted / 8192 - now.0 / 8192;
        let crosses_segment = wanted / segment != now.0 / segment;
        let headers = whole_pages * 24 + if crosses_segment { 16 } else { 0 };
        let payload = (wanted - now.0 - headers).saturating_sub(24 + 5 + 19);
        cluster.sql(&format!(
            "select pg_logical_emit_message(false, 'x', repeat('y', {payload}))"
        ));
        cluster.stop(Stop::Clean);

        let before = control_file(&cluster).checkpoint();
        let (boot, previous) = make_stateless(&cluster, format);
        offsets.push(boot.0 % 8192);
        cluster.start(&["fsync=off"]);
        assert_eq!(
            cluster.sql("select count(*) from t").parse(),
            Ok(rows),
            "boot at {boot}"
        );
        cluster.sql(&format!("insert into t values ({rows})"));
        rows += 1;
        assert!(
            !cluster.log().contains("not properly shut down"),
            "{}",
            cluster.log()
        );
        cluster.stop(Stop::Crash);
        // What it wrote continues the chain of records without a hole.
        let mut decoder = WalDecoder::new(format, boot, previous);
        decoder.feed(&wal_from(&cluster, format, boot));
        let first = decoder.next_record().unwrap().expect("the synthesized record");
        assert_eq!((first.rmid, first.info, first.prev), (0, 0, previous));
        let second = decoder.next_record().unwrap().expect("a record of this compute");
        assert_eq!(second.prev, first.start);
        cluster.start(&["fsync=off"]);
        assert_eq!(
            cluster.sql("select count(*) from t").parse(),
            Ok(rows),
            "recovery after boot at {boot}"
        );
        assert!(control_file(&cluster).checkpoint().next_xid >= before.next_xid);
        fs::write(cluster.home().join("log"), "").unwrap();
    }
    // The aim was good: positions close to a page's end, and on it.
    assert!(
        offsets.iter().filter(|&&offset| offset > 8192 - 120).count() >= 3,
        "{offsets:?}"
    );
}

#[test]
fn a_damaged_or_foreign_control_file_is_refused() {
    Installation::each(refuse_damage);
}

fn refuse_damage(installation: &Installation) {
    let cluster = Cluster::init_with(installation, &InitOptions::default());
    let file = fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    assert_eq!(ControlFile::decode(&file).unwrap().encode(), file);
    let mut damaged = file.clone();
    damaged[30] ^= 1;
    assert!(matches!(
        ControlFile::decode(&damaged),
        Err(ControlError::Crc { .. })
    ));
    let mut newer = file.clone();
    newer[8..12].copy_from_slice(&1900u32.to_le_bytes());
    let catalogue = ControlFile::decode(&file).unwrap().version().catalog_version();
    let refused = ControlError::Version {
        control: 1900,
        catalogue,
    };
    assert_eq!(ControlFile::decode(&newer), Err(refused));
    assert_eq!(ControlFile::decode(&file[..295]), Err(ControlError::Short(295)));
}
