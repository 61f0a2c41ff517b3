//! When a page gets an image.
//!
//! A read replays a page's deltas since its newest image, so their number and bytes are bounded: whoever sees the
//! bound passed has an image made, at the LSN of the last delta, and adds it as one more value. That is a flush for the
//! values of its memory table, compaction for those of layers, and a read for what lies in several of them. Checkpoints of
//! Postgres play no part.

use crate::ValueKind;

/// The bound. The first that is passed counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePolicy {
    /// Deltas since the last value that stands alone.
    pub deltas: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl Default for ImagePolicy {
    fn default() -> ImagePolicy {
        ImagePolicy {
            deltas: 24,
            bytes: 16 << 10,
        }
    }
}

/// What a read has to replay on top of the newest value that stands alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinceImage {
    /// Deltas.
    pub deltas: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl SinceImage {
    /// Counts the next value of the page.
    pub fn add(&mut self, kind: ValueKind, bytes: usize) {
        if kind.stands_alone() {
            *self = SinceImage::default();
        } else {
            self.deltas = self.deltas.saturating_add(1);
            self.bytes = self.bytes.saturating_add(bytes as u64);
        }
    }

    /// Whether an image is due.
    pub fn is_due(&self, policy: &ImagePolicy) -> bool {
        self.deltas >= policy.deltas.max(1) || (self.deltas > 0 && self.bytes >= policy.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ValueKind::{Base, Delta, Image};

    /// Kinds and lengths of values, and whether an image is due after them.
    type Row = (&'static [(ValueKind, usize)], bool);

    #[test]
    fn an_image_is_due_by_number_or_by_bytes() {
        let policy = ImagePolicy {
            deltas: 3,
            bytes: 100,
        };
        let rows: [Row; 8] = [
            (&[], false),
            (&[(Image, 8192)], false),
            (&[(Image, 8192), (Delta, 10), (Delta, 10)], false),
            (&[(Image, 8192), (Delta, 10), (Delta, 10), (Delta, 10)], true),
            (&[(Delta, 10), (Delta, 10), (Base, 200)], false),
            (&[(Delta, 99)], false),
            (&[(Delta, 100)], true),
            (&[(Delta, 60), (Delta, 40), (Image, 8192), (Delta, 60)], false),
        ];
        for (values, due) in rows {
            let mut since = SinceImage::default();
            for (kind, length) in values {
                since.add(*kind, *length);
            }
            assert_eq!(since.is_due(&policy), due, "{values:?}");
        }
    }
}
