//! Property tests of everything that reads a server's bytes: real messages in pieces of any size, and damaged.

use bytes::Bytes;
use lakebed_pgtest::fuzz::{Choices, Tally};
use lakebed_pgwire::auth::Login;
use lakebed_pgwire::backup::BackupLabel;
use lakebed_pgwire::message::MAX_MESSAGE_BYTES;
use lakebed_pgwire::tar::{TarItem, TarReader};
use lakebed_pgwire::{Backend, Binding, Frames, Target, backup, replication};

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// A session from its login to a stream.
fn session() -> Vec<u8> {
    let mut all = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    all.extend(message(b'R', b"\0\0\0\x0br=x,s=eA==,i=4096"));
    all.extend(message(b'R', &[0; 4]));
    all.extend(message(b'S', b"server_version\x0015.18\0"));
    all.extend(message(b'K', &[1; 8]));
    all.extend(message(b'Z', b"I"));
    all.extend(message(
        b'T',
        &[b"\0\x01systemid\0".as_slice(), &[0; 18]].concat(),
    ));
    all.extend(message(b'D', b"\0\x02\0\0\0\x03123\xff\xff\xff\xff"));
    all.extend(message(b'C', b"IDENTIFY_SYSTEM\0"));
    all.extend(message(b'N', b"VNOTICE\0C00000\0Mhello\0\0"));
    all.extend(message(b'E', b"VERROR\0C58P01\0Mgone\0Dwhy\0Hdo\0Fx.c\0\0"));
    all.extend(message(b'W', &[0; 3]));
    let mut wal = vec![b'w'];
    wal.extend([0; 24]);
    wal.extend([7; 300]);
    all.extend(message(b'd', &wal));
    all.extend(message(b'd', &[&[b'k'][..], &[0; 17]].concat()));
    all.extend(message(b'd', b"nbase.tar\0\0"));
    all.extend(message(b'd', b"p\0\0\0\0\0\0\0\x01"));
    all.extend(message(b'c', b""));
    all
}

/// Every message, read as whatever it may be.
fn read(choices: &mut Choices<'_>, bytes: &[u8]) -> (Vec<Backend>, bool) {
    let (mut frames, mut rest, mut messages) = (Frames::default(), bytes, Vec::new());
    let mut login = Login::new("user", Some("password"), Binding::Prefer, Some(vec![7; 32]));
    while !rest.is_empty() {
        let most = choices.of(&[1, 5, 64, 1 << 20]);
        let size = match choices.is_empty() {
            true => rest.len(),
            false => 1 + choices.below(most).min(rest.len() - 1),
        };
        let (piece, after) = rest.split_at(size);
        frames.buffer().extend_from_slice(piece);
        rest = after;
        loop {
            match frames.next_message() {
                Ok(Some(found)) => {
                    match &found {
                        Backend::CopyData(data) => {
                            let _ = (replication::parse(data.clone()), backup::parse(data.clone()));
                        }
                        Backend::Authentication(request) => {
                            let mut out = Default::default();
                            let _ = login.handle(request, &mut out);
                        }
                        _ => {}
                    }
                    messages.push(found);
                }
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
        assert!(frames.buffer().len() <= MAX_MESSAGE_BYTES + size);
    }
    (messages, false)
}

#[test]
fn messages() {
    let whole = session();
    let (expected, failed) = read(&mut Choices::new(&[]), &whole);
    assert!(expected.len() == 17 && !failed, "{}", expected.len());
    let tally = Tally::new("pgwire::messages");
    bolero::check!().with_max_len(256).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let mut bytes = whole.clone();
        let changes = choices.below(4);
        (0..changes).for_each(|_| choices.damage(&mut bytes));
        let (found, failed) = read(&mut choices, &bytes);
        if changes == 0 {
            assert_eq!((&found, failed), (&expected, false), "the pieces matter");
        }
        tally.count(failed);
    });
}

/// An archive of a few members, as Postgres writes it.
fn archive() -> Vec<u8> {
    let mut all = Vec::new();
    for (name, kind, bytes) in [
        ("backup_label", b'0', 100usize),
        ("base", b'5', 0),
        ("base/1/1259", b'0', 8192),
        ("x", b'0', 1),
    ] {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{bytes:011o} ").as_bytes());
        header[148..156].fill(b' ');
        header[156] = kind;
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        all.extend(header);
        all.extend(vec![b'y'; bytes]);
        all.resize(all.len().next_multiple_of(512), 0);
    }
    all.extend([0; 1024]);
    all
}

#[test]
fn archives() {
    let whole = archive();
    let tally = Tally::new("pgwire::tar");
    bolero::check!().with_max_len(256).for_each(|input: &[u8]| {
        let mut choices = Choices::new(input);
        let mut bytes = whole.clone();
        let changes = choices.below(3);
        (0..changes).for_each(|_| choices.damage(&mut bytes));
        let (mut reader, mut rest) = (TarReader::default(), &bytes[..]);
        let (mut members, mut content, mut failed) = (0, 0, false);
        while !rest.is_empty() && !failed {
            let size = match choices.is_empty() {
                true => rest.len(),
                false => 1 + choices.below(rest.len().min(2000)),
            };
            let (piece, after) = rest.split_at(size.min(rest.len()));
            let mut input = Bytes::copy_from_slice(piece);
            rest = after;
            loop {
                match reader.next(&mut input) {
                    Ok(Some(TarItem::Member { .. })) => members += 1,
                    Ok(Some(TarItem::Data(data))) => content += data.len(),
                    Ok(Some(TarItem::End)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        failed = true;
                        break;
                    }
                }
            }
        }
        assert!(content <= bytes.len());
        if changes == 0 {
            assert_eq!(
                (members, content, failed, reader.is_between()),
                (4, 8293, false, true)
            );
        }
        tally.count(failed);
    });
}

#[test]
fn texts() {
    bolero::check!().with_max_len(200).for_each(|input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let _ = BackupLabel::parse(&text);
        let _ = format!("postgresql://{text}").parse::<Target>();
    });
}
