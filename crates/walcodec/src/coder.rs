//! A binary range coder: one yes or no at a time, each with the probability that the model gives it.
//!
//! An interval of 32 bits is cut in proportion to the probability, and the half that the bit names is kept; leading
//! bytes that can no longer change go out. Encoder and decoder implement one trait, so that the model is written once
//! and both sides walk through it in the same steps: [`Coder::bit`] is given the bit by who encodes, and gives it to
//! who decodes.
//!
//! Postgres-sized batches are a few dozen bytes, so the end matters: the encoder writes as few bytes as name a point
//! of the last interval, and the decoder reads zeros behind them.

/// Probability of a one, in 1/65536; neither 0 nor 65536.
pub(crate) type Probability = u16;

/// One side of the coder.
pub(crate) trait Coder {
    /// Whether bits come out of it.
    const DECODES: bool;
    /// Codes a bit that is a one with this probability; returns it.
    fn bit(&mut self, one: Probability, bit: bool) -> bool;
}

/// Writes.
#[derive(Debug)]
pub(crate) struct Encoder {
    low: u32,
    high: u32,
    out: Vec<u8>,
}

/// Reads.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    low: u32,
    high: u32,
    code: u32,
    input: &'a [u8],
    /// Bytes read behind the end of the input.
    beyond: u64,
}

/// Where the interval is cut: ones are at or below.
fn cut(low: u32, high: u32, one: Probability) -> u32 {
    let width = u64::from(high - low);
    // Below `high`, because the probability is below one.
    low + ((width * u64::from(one)) >> 16) as u32
}

impl Encoder {
    pub(crate) fn new() -> Encoder {
        Encoder {
            low: 0,
            high: u32::MAX,
            out: Vec::new(),
        }
    }

    /// The bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        // The shortest byte string that, with zeros behind it, lies in the interval.
        for bytes in 0..=4 {
            let kept = if bytes == 0 {
                0
            } else {
                u32::MAX << (32 - 8 * bytes)
            };
            let point = self.low.wrapping_add(!kept) & kept;
            if point >= self.low && point <= self.high {
                self.out.extend(point.to_be_bytes().iter().take(bytes as usize));
                break;
            }
        }
        // The reader finds zeros behind the end anyway.
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl Coder for Encoder {
    const DECODES: bool = false;

    fn bit(&mut self, one: Probability, bit: bool) -> bool {
        let middle = cut(self.low, self.high, one);
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.push((self.high >> 24) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        bit
    }
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Decoder<'a> {
        let mut decoder = Decoder {
            low: 0,
            high: u32::MAX,
            code: 0,
            input,
            beyond: 0,
        };
        for _ in 0..4 {
            decoder.shift();
        }
        decoder
    }

    fn shift(&mut self) {
        let byte = match self.input.split_first() {
            Some((&byte, rest)) => {
                self.input = rest;
                byte
            }
            None => {
                self.beyond += 1;
                0
            }
        };
        self.code = self.code << 8 | u32::from(byte);
    }

    /// Whether all of the input was needed.
    pub(crate) fn is_used_up(&self) -> bool {
        self.input.is_empty()
    }
}

impl Coder for Decoder<'_> {
    const DECODES: bool = true;

    fn bit(&mut self, one: Probability, _: bool) -> bool {
        let middle = cut(self.low, self.high, one);
        let bit = self.code <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.shift();
        }
        bit
    }
}
