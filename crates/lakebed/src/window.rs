//! Lengths of time and amounts of WAL on the command line: `7d`, `90m`, `512MiB`, `10GB`.

use std::str::FromStr;

/// Why a text is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {expected}")]
pub struct BadText {
    given: String,
    expected: &'static str,
}

/// Splits `text` into a whole number and a unit.
fn number<'a>(text: &'a str, expected: &'static str) -> Result<(u64, &'a str), BadText> {
    let bad = || BadText {
        given: text.to_owned(),
        expected,
    };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).ok_or_else(bad)?;
    Ok((digits.parse().map_err(|_| bad())?, unit))
}

/// A length of time, at least a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u64);

const SECONDS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];

impl FromStr for Seconds {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Seconds, BadText> {
        let expected = "a length of time such as 90s, 30m, 12h, 7d or 2w";
        let (count, unit) = number(text, expected)?;
        let found = SECONDS.iter().find(|(name, _)| *name == unit);
        let seconds = found.and_then(|(_, seconds)| count.checked_mul(*seconds));
        seconds
            .filter(|seconds| *seconds > 0)
            .map(Seconds)
            .ok_or_else(|| BadText {
                given: text.to_owned(),
                expected,
            })
    }
}

/// An amount of bytes, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

const BYTES: [(&str, u64); 9] = [
    ("", 1),
    ("B", 1),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Bytes {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Bytes, BadText> {
        let expected = "an amount of bytes such as 512MiB, 10GB or 1TiB";
        let (count, unit) = number(text, expected)?;
        let found = BYTES.iter().find(|(name, _)| *name == unit);
        let bytes = found.and_then(|(_, bytes)| count.checked_mul(*bytes));
        bytes
            .filter(|bytes| *bytes > 0)
            .map(Bytes)
            .ok_or_else(|| BadText {
                given: text.to_owned(),
                expected,
            })
    }
}

/// A bound that may be lifted: `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound<T> {
    /// So much.
    Some(T),
    /// No bound.
    None,
}

impl<T: FromStr> FromStr for Bound<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Bound<T>, T::Err> {
        match text {
            "none" => Ok(Bound::None),
            text => text.parse().map(Bound::Some),
        }
    }
}

impl<T> Bound<T> {
    /// As an option.
    pub fn some(self) -> Option<T> {
        match self {
            Bound::Some(bound) => Some(bound),
            Bound::None => None,
        }
    }
}

/// A window of history for people.
pub fn text(seconds: Option<u64>, bytes: Option<u64>) -> String {
    let largest = |amount: u64, units: &[(&str, u64)]| {
        let fits = units.iter().filter(|(_, unit)| amount.is_multiple_of(*unit));
        let (name, unit) = fits.max_by_key(|(_, unit)| *unit).copied().unwrap_or(("", 1));
        format!("{}{name}", amount / unit)
    };
    let seconds = seconds.map(|seconds| largest(seconds, &SECONDS[..4]));
    let bytes = bytes.map(|bytes| largest(bytes, &BYTES[1..]));
    match (seconds, bytes) {
        (None, None) => "all".to_owned(),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(seconds), Some(bytes)) => format!("{seconds}, at most {bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written() {
        let seconds = |text: &str| text.parse::<Seconds>().ok().map(|seconds| seconds.0);
        for (given, expected) in [
            ("90s", Some(90)),
            ("7d", Some(604_800)),
            ("2w", Some(1_209_600)),
            ("7", None),
            ("0s", None),
            ("d", None),
            ("-1d", None),
            ("1 d", None),
            ("99999999999999999999s", None),
            ("9999999999999999w", None),
            ("", None),
            ("1ä", None),
        ] {
            assert_eq!(seconds(given), expected, "{given}");
        }
        let bytes = |text: &str| text.parse::<Bytes>().ok().map(|bytes| bytes.0);
        for (given, expected) in [
            ("512MiB", Some(512 << 20)),
            ("10GB", Some(10_000_000_000)),
            ("17", Some(17)),
            ("0", None),
            ("1gb", None),
        ] {
            assert_eq!(bytes(given), expected, "{given}");
        }
        assert_eq!("none".parse::<Bound<Seconds>>().unwrap().some(), None);
        assert_eq!(text(Some(604_800), None), "7d");
        assert_eq!(text(Some(90), Some(512 << 20)), "90s, at most 512MiB");
        assert_eq!(text(None, Some(10_000_000_000)), "10GB");
        assert_eq!(text(None, None), "all");
    }
}
