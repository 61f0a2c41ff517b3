//! A record of an extension's resource manager, made by hand: no stock server writes one without an extension.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use lakebed_pgtest::{Cluster, Stop};
use lakebed_redo::{Managers, PageBytes, PageRecord, ResourceManager, mask, page};
use lakebed_types::Lsn;
use lakebed_verify::{Native, verify};
use lakebed_wal::control::ControlFile;

use crate::history::request;

const RMID: u8 = 142;
/// Where the image's hole begins: behind four bytes of content.
const HOLE: u16 = 28;

/// Writes the block's data behind the page's header.
struct Plugin;

impl ResourceManager for Plugin {
    fn name(&self) -> &str {
        "toy"
    }

    fn operation(&self, info: u8) -> String {
        format!("WRITE {info:#x}")
    }

    fn redo(&self, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), &'static str> {
        let data = record.own.data.ok_or("no data")?;
        page::init(page, 0);
        page[24..24 + data.len()].copy_from_slice(data);
        page[12..14].copy_from_slice(&HOLE.to_le_bytes());
        page::set_lsn(page, record.end);
        Ok(())
    }

    fn mask(&self, page: &mut PageBytes, block: u32) {
        mask::for_record(20, page, block);
    }
}

/// A record that makes block 0 of a new relation of `content`, and says that its page then is `image`.
fn record(previous: Lsn, content: &[u8; 4], image: &PageBytes) -> Vec<u8> {
    let hole_length = 8192 - HOLE;
    let mut body = vec![0, 0x70]; // block 0 of the main fork: image, data, from nothing
    body.extend(4u16.to_le_bytes());
    body.extend(HOLE.to_le_bytes()); // stored bytes: what is in front of the hole
    body.extend(HOLE.to_le_bytes());
    body.push(1); // a hole, not to be applied
    for field in [1663u32, 5, 99_999, 0] {
        body.extend(field.to_le_bytes());
    }
    body.extend(&image[..8192 - usize::from(hole_length)]);
    body.extend(content);
    let mut record = Vec::new();
    record.extend((24 + body.len() as u32).to_le_bytes());
    record.extend(0u32.to_le_bytes());
    record.extend(previous.0.to_le_bytes());
    record.extend([0x12, RMID, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
    record.extend(crc.to_le_bytes());
    record.extend(body);
    record
}

#[test]
fn a_custom_resource_manager_is_refused_by_name_and_verified_with_a_plug_in() {
    let mut cluster = Cluster::init();
    cluster.start(&["fsync=off"]);
    cluster.stop(Stop::Clean);
    let data = cluster.data_dir();
    let control = ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
    let checkpoint = control.checkpoint_lsn();
    // Its record has 114 bytes and is aligned to 8.
    let at = Lsn((checkpoint.0 + 114).next_multiple_of(8));
    assert!(at.0 % 8192 < 7000 && at.0 / 8192 == checkpoint.0 / 8192);
    let mut image = [0; 8192];
    page::init(&mut image, 0);
    image[24..28].copy_from_slice(b"toys");
    image[12..14].copy_from_slice(&HOLE.to_le_bytes());
    let wal = data.join("pg_wal");
    let segment = wal.join(format!("0000000100000000{:08X}", at.0 >> 24));
    let write = |content| {
        let file = fs::File::options().write(true).open(&segment).unwrap();
        file.write_all_at(&record(checkpoint, content, &image), at.0 & 0xFF_FFFF)
            .unwrap();
    };
    let request = request(&data, &wal);
    let with = |managers: &Managers| verify(&request, &Native, managers, &mut |_| {});

    write(b"toys");
    let error = with(Managers::none()).unwrap_err().to_string();
    assert!(
        error.contains("custom resource manager 142") && error.contains(&at.to_string()),
        "{error}"
    );

    let mut managers = Managers::default();
    managers.register(RMID, Arc::new(Plugin)).unwrap();
    let report = with(&managers).unwrap();
    assert!(report.ok(), "{:#?}", report.summary());
    assert_eq!(report.of("toy", "WRITE 0x10").checked, 1, "{:?}", report.types);

    write(b"boys");
    let report = with(&managers).unwrap();
    assert_eq!(report.mismatched(), 1);
    assert_eq!(
        (report.mismatches[0].lsn, report.mismatches[0].rmgr.as_str()),
        (at, "toy")
    );
}
