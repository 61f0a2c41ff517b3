//! One record's change of one SLRU page, as it is stored and applied.
//!
//! A record changes a few bits of an 8 KiB page, so versions of SLRU pages are stored as deltas. The stored form is a
//! tag and then values, little-endian, up to the end:
//!
//! | tag | delta | values |
//! |---|---|---|
//! | 1 | `ZeroPage` | none |
//! | 2 | `ClogSetStatus` | status u8, then slots u16 |
//! | 3 | `CommitTsSet` | time i64, origin u16, then slots u16 |
//! | 4 | `MultiOffsetsSet` | pairs of slot u16 and offset u32 |
//! | 5 | `MembersSet` | first slot u16, then pairs of xid u32 and status u8 |
//!
//! A slot is an entry's number inside its page. A delta applies to any page of its kind, also to one of zeros, and
//! applying it twice is the same as once.

use lakebed_types::PAGE_SIZE;

use crate::slru::{CLOG_XIDS_PER_PAGE, COMMIT_TS_XIDS_PER_PAGE, MEMBERS_PER_PAGE, OFFSETS_PER_PAGE};

/// Transaction status of `pg_xact`: committed (`access/clog.h`).
pub const CLOG_COMMITTED: u8 = 1;
/// Transaction status of `pg_xact`: aborted.
pub const CLOG_ABORTED: u8 = 2;
/// Highest multixact member status (`MultiXactStatusUpdate`, `access/multixact.h`).
pub const MAX_MEMBER_STATUS: u8 = 5;

const COMMIT_TS_ENTRY_BYTES: usize = 10;

/// See the module header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlruDelta {
    /// The page begins anew, with zeros.
    ZeroPage,
    /// `pg_xact`: transactions of this page get a status.
    ClogSetStatus {
        /// [`CLOG_COMMITTED`] or [`CLOG_ABORTED`].
        status: u8,
        /// Transaction ids modulo 32768.
        slots: Vec<u16>,
    },
    /// `pg_commit_ts`: transactions of this page committed.
    CommitTsSet {
        /// Commit time, microseconds since 2000 as Postgres stores it.
        pg_time: i64,
        /// Replication origin, 0 for none.
        origin: u16,
        /// Transaction ids modulo 819.
        slots: Vec<u16>,
    },
    /// `pg_multixact/offsets`: where the members of multixacts begin.
    MultiOffsetsSet {
        /// Multixact ids modulo 2048, and their offset.
        entries: Vec<(u16, u32)>,
    },
    /// `pg_multixact/members`: members in neighbouring slots.
    MembersSet {
        /// Offset modulo 1636 of the first one.
        first_slot: u16,
        /// Transaction id and lock status, 0 to 5, of each.
        members: Vec<(u32, u8)>,
    },
}

/// Stored bytes that are no delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes with tag {tag} are not an SLRU delta: {rule}")]
pub struct DeltaError {
    tag: u8,
    bytes: usize,
    rule: &'static str,
}

impl SlruDelta {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            SlruDelta::ZeroPage => vec![1],
            SlruDelta::ClogSetStatus { status, slots } => with_slots(vec![2, *status], slots),
            SlruDelta::CommitTsSet {
                pg_time,
                origin,
                slots,
            } => {
                let mut out = vec![3];
                out.extend(pg_time.to_le_bytes());
                out.extend(origin.to_le_bytes());
                with_slots(out, slots)
            }
            SlruDelta::MultiOffsetsSet { entries } => {
                let mut out = vec![4];
                for (slot, offset) in entries {
                    out.extend(slot.to_le_bytes());
                    out.extend(offset.to_le_bytes());
                }
                out
            }
            SlruDelta::MembersSet { first_slot, members } => {
                let mut out = vec![5];
                out.extend(first_slot.to_le_bytes());
                for (xid, status) in members {
                    out.extend(xid.to_le_bytes());
                    out.push(*status);
                }
                out
            }
        }
    }

    /// Reads the stored form; refuses what [`SlruDelta::encode`] does not make and what does not fit on a page.
    pub fn decode(bytes: &[u8]) -> Result<SlruDelta, DeltaError> {
        let tag = bytes.first().copied().unwrap_or(0);
        let refuse = |rule| DeltaError {
            tag,
            bytes: bytes.len(),
            rule,
        };
        let rest = bytes.get(1..).ok_or_else(|| refuse("there are none"))?;
        let delta = decode_values(tag, rest).ok_or_else(|| refuse("their number is wrong"))?;
        match delta.violation() {
            None => Ok(delta),
            Some(rule) => Err(refuse(rule)),
        }
    }

    /// The rule that makes [`SlruDelta::apply`] safe, if this delta violates it.
    fn violation(&self) -> Option<&'static str> {
        let slots_fit = |slots: &[u16], limit: u32| slots.iter().all(|&slot| u32::from(slot) < limit);
        let (fits, values_exist) = match self {
            SlruDelta::ZeroPage => (true, true),
            SlruDelta::ClogSetStatus { status, slots } => (
                slots_fit(slots, CLOG_XIDS_PER_PAGE),
                (CLOG_COMMITTED..=CLOG_ABORTED).contains(status),
            ),
            SlruDelta::CommitTsSet { slots, .. } => (slots_fit(slots, COMMIT_TS_XIDS_PER_PAGE), true),
            SlruDelta::MultiOffsetsSet { entries } => (
                entries
                    .iter()
                    .all(|&(slot, _)| u32::from(slot) < OFFSETS_PER_PAGE),
                true,
            ),
            SlruDelta::MembersSet { first_slot, members } => (
                usize::from(*first_slot) + members.len() <= MEMBERS_PER_PAGE as usize,
                members.iter().all(|&(_, status)| status <= MAX_MEMBER_STATUS),
            ),
        };
        match (fits, values_exist) {
            (false, _) => Some("a slot lies outside of the page"),
            (_, false) => Some("a status does not exist"),
            _ => None,
        }
    }

    /// Changes the page.
    ///
    /// # Panics
    /// When a slot lies outside of the page, which is neither decoded nor made from a record.
    pub fn apply(&self, page: &mut [u8; PAGE_SIZE]) {
        match self {
            SlruDelta::ZeroPage => page.fill(0),
            SlruDelta::ClogSetStatus { status, slots } => {
                for &slot in slots {
                    let byte = &mut page[usize::from(slot / 4)];
                    let shift = slot % 4 * 2;
                    *byte = *byte & !(3 << shift) | status << shift;
                }
            }
            SlruDelta::CommitTsSet {
                pg_time,
                origin,
                slots,
            } => {
                for &slot in slots {
                    let at = usize::from(slot) * COMMIT_TS_ENTRY_BYTES;
                    page[at..at + 8].copy_from_slice(&pg_time.to_le_bytes());
                    page[at + 8..at + 10].copy_from_slice(&origin.to_le_bytes());
                }
            }
            SlruDelta::MultiOffsetsSet { entries } => {
                for (slot, offset) in entries {
                    let at = usize::from(*slot) * 4;
                    page[at..at + 4].copy_from_slice(&offset.to_le_bytes());
                }
            }
            SlruDelta::MembersSet { first_slot, members } => {
                for (slot, (xid, status)) in (usize::from(*first_slot)..).zip(members) {
                    // A group: the status bytes of four members, then their ids.
                    let (group, member) = (slot / 4 * 20, slot % 4);
                    page[group + member] = *status;
                    let at = group + 4 + member * 4;
                    page[at..at + 4].copy_from_slice(&xid.to_le_bytes());
                }
            }
        }
    }
}

fn with_slots(mut out: Vec<u8>, slots: &[u16]) -> Vec<u8> {
    for slot in slots {
        out.extend(slot.to_le_bytes());
    }
    out
}

fn decode_values(tag: u8, rest: &[u8]) -> Option<SlruDelta> {
    let slots = |bytes: &[u8]| -> Option<Vec<u16>> {
        let (pairs, odd) = bytes.as_chunks::<2>();
        (odd.is_empty() && !pairs.is_empty()).then(|| pairs.iter().map(|&b| u16::from_le_bytes(b)).collect())
    };
    match tag {
        1 if rest.is_empty() => Some(SlruDelta::ZeroPage),
        2 => {
            let (&status, rest) = rest.split_first()?;
            Some(SlruDelta::ClogSetStatus {
                status,
                slots: slots(rest)?,
            })
        }
        3 => {
            let (time, rest) = rest.split_first_chunk()?;
            let (origin, rest) = rest.split_first_chunk()?;
            Some(SlruDelta::CommitTsSet {
                pg_time: i64::from_le_bytes(*time),
                origin: u16::from_le_bytes(*origin),
                slots: slots(rest)?,
            })
        }
        4 => {
            let (entries, odd) = rest.as_chunks::<6>();
            let entry = |b: &[u8; 6]| {
                (
                    u16::from_le_bytes([b[0], b[1]]),
                    u32::from_le_bytes([b[2], b[3], b[4], b[5]]),
                )
            };
            (odd.is_empty() && !entries.is_empty()).then(|| SlruDelta::MultiOffsetsSet {
                entries: entries.iter().map(entry).collect(),
            })
        }
        5 => {
            let (first, rest) = rest.split_first_chunk()?;
            let (members, odd) = rest.as_chunks::<5>();
            let member = |b: &[u8; 5]| (u32::from_le_bytes([b[0], b[1], b[2], b[3]]), b[4]);
            (odd.is_empty() && !members.is_empty()).then(|| SlruDelta::MembersSet {
                first_slot: u16::from_le_bytes(*first),
                members: members.iter().map(member).collect(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> [SlruDelta; 5] {
        [
            SlruDelta::ZeroPage,
            SlruDelta::ClogSetStatus {
                status: CLOG_ABORTED,
                slots: vec![0, 5, 32_767],
            },
            SlruDelta::CommitTsSet {
                pg_time: -2,
                origin: 7,
                slots: vec![1, 818],
            },
            SlruDelta::MultiOffsetsSet {
                entries: vec![(0, 1), (2047, u32::MAX)],
            },
            SlruDelta::MembersSet {
                first_slot: 1635,
                members: vec![(0x0403_0201, 5)],
            },
        ]
    }

    #[test]
    fn stored_form_round_trips_and_damage_is_refused_or_still_applies() {
        for delta in samples() {
            let bytes = delta.encode();
            assert_eq!(SlruDelta::decode(&bytes), Ok(delta));
            for length in 0..bytes.len() {
                if let Ok(shorter) = SlruDelta::decode(&bytes[..length]) {
                    shorter.apply(&mut [0; PAGE_SIZE]);
                }
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1 << bit;
                    if let Ok(other) = SlruDelta::decode(&damaged) {
                        assert_eq!(other.encode(), damaged);
                        other.apply(&mut [0; PAGE_SIZE]);
                    }
                }
            }
        }
        for bad in [
            &[][..],
            &[0],
            &[1, 0],
            &[2],
            &[2, 1],
            &[2, 3, 0, 0],
            &[2, 1, 0, 0x80],
            &[6, 0],
        ] {
            assert!(SlruDelta::decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_delta_writes_where_postgres_looks() {
        let mut page = [0u8; PAGE_SIZE];
        let [zero, clog, commit_ts, offsets, members] = samples();
        clog.apply(&mut page);
        assert_eq!((page[0], page[1], page[8191]), (2, 0b1000, 0b1000_0000));
        let again = page;
        clog.apply(&mut page);
        assert_eq!(page, again);
        zero.apply(&mut page);
        assert_eq!(page, [0; PAGE_SIZE]);

        commit_ts.apply(&mut page);
        assert_eq!(page[10..20], [0xfe, 255, 255, 255, 255, 255, 255, 255, 7, 0]);
        assert_eq!((page[8179], page[8180], page[8190]), (0, 0xfe, 0));

        zero.apply(&mut page);
        offsets.apply(&mut page);
        assert_eq!((page[0], page[4], &page[8188..]), (1, 0, &[255; 4][..]));

        zero.apply(&mut page);
        members.apply(&mut page);
        assert_eq!(
            page[8160..8180],
            [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]
        );
    }
}
