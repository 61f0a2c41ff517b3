//! Probabilities that are learned while they are used.
//!
//! A *context* is a number that says what is coded: the third byte of the main data of such and such a record. Each
//! context leads, through a hash, to slots of one table of fixed size; a slot holds the probability that the next bit is a
//! one and how sure that is. New slots move fast, old ones slowly, and none so slowly that a changed workload is not
//! learned within a hundred records. Contexts may share a slot; that costs a little space and is the same on both
//! sides.
//!
//! A slot, 32 bits: 0..10 number of bits seen, up to [`MAX_SEEN`]; 10..32 probability of a one.

use crate::coder::Coder;

/// Slots: 512 KiB a direction and stream.
const SLOTS: usize = 1 << 17;
/// A slot moves by 1/(seen + 1.5) of its error, and by no less than one in this many.
const MAX_SEEN: u32 = 60;
const FRESH: u32 = 1 << 31;

/// A context, hashed already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context(u32);

impl Context {
    /// From its kind and what it depends on.
    pub(crate) fn new(kind: u32) -> Context {
        Context(kind.wrapping_mul(0x9E37_79B1) ^ 0x5bd1_e995)
    }

    /// Narrowed by a number.
    pub(crate) fn with(self, number: u32) -> Context {
        let mixed = (self.0 ^ number.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35);
        Context(mixed ^ mixed >> 15)
    }

    fn slot(self, node: u32) -> usize {
        let mixed = self
            .0
            .wrapping_add(node.wrapping_mul(0x9E37_79B1))
            .wrapping_mul(0x2C1B_3C6D);
        (mixed >> (32 - SLOTS.trailing_zeros())) as usize
    }
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct Bits {
    slots: Box<[u32]>,
    /// 65536 / (seen + 1.5).
    rates: [u32; MAX_SEEN as usize + 1],
}

impl Bits {
    pub(crate) fn new() -> Bits {
        let mut rates = [0; MAX_SEEN as usize + 1];
        for (seen, rate) in rates.iter_mut().enumerate() {
            *rate = (2 * 65536 / (2 * seen + 3)) as u32;
        }
        Bits {
            slots: vec![FRESH; SLOTS].into_boxed_slice(),
            rates,
        }
    }

    fn at<C: Coder>(&mut self, coder: &mut C, slot: usize, bit: bool) -> bool {
        // The index has as many bits as the table.
        let Some(slot) = self.slots.get_mut(slot) else {
            return false;
        };
        let (probability, seen) = (*slot >> 10, *slot & 0x3ff);
        let one = (probability >> 6).clamp(16, 65535 - 16) as u16;
        let bit = coder.bit(one, bit);
        let rate = i64::from(self.rates.get(seen as usize).copied().unwrap_or(0));
        let target = if bit { (1 << 22) - 1 } else { 0 };
        let moved = i64::from(probability) + (((target - i64::from(probability)) * rate) >> 16);
        *slot = (moved as u32) << 10 | (seen + 1).min(MAX_SEEN);
        bit
    }

    /// Codes a yes or no.
    pub(crate) fn flag<C: Coder>(&mut self, coder: &mut C, context: Context, yes: bool) -> bool {
        self.at(coder, context.slot(0), yes)
    }

    /// Codes the lowest `width` bits of a number, the highest first.
    pub(crate) fn bits<C: Coder>(&mut self, coder: &mut C, context: Context, width: u32, value: u32) -> u32 {
        let mut node = 1;
        for at in (0..width).rev() {
            let bit = self.at(coder, context.slot(node), value >> at & 1 == 1);
            node = node << 1 | u32::from(bit);
        }
        node & ((1 << width) - 1)
    }

    /// Codes a byte of which one value is expected.
    pub(crate) fn byte<C: Coder>(&mut self, coder: &mut C, context: Context, expected: u8, value: u8) -> u8 {
        if self.flag(coder, context, value == expected) {
            return expected;
        }
        self.bits(coder, context, 8, value.into()) as u8
    }
}
