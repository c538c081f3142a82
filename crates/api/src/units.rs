//! Sizes and spans of time as people write them: `128MiB`, `1GiB`, `30s`, `5m`.
//!
//! Both are whole numbers of their smallest unit inside, and are written back in the largest unit that divides
//! them, so that what a user wrote comes back as it was written or shorter, and never rounded.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const BYTE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A number of bytes. Written with a binary unit (IEC 80000-13); a bare number means bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// A span of time in whole milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub struct UnitError {
    text: String,
    what: &'static str,
}

impl ByteSize {
    /// `count` bytes.
    #[must_use]
    pub const fn from_bytes(count: u64) -> ByteSize {
        ByteSize(count)
    }

    /// `count` mebibytes; saturates.
    #[must_use]
    pub const fn from_mib(count: u64) -> ByteSize {
        ByteSize(count.saturating_mul(1 << 20))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The whole mebibytes in it, rounded down.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl Span {
    /// `count` milliseconds.
    #[must_use]
    pub const fn from_millis(count: u64) -> Span {
        Span(count)
    }

    /// `count` seconds; saturates.
    #[must_use]
    pub const fn from_secs(count: u64) -> Span {
        Span(count.saturating_mul(1_000))
    }

    /// The number of milliseconds.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// The same span for timers.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<ByteSize, UnitError> {
        let what = "a size: a whole number with a unit such as 128MiB, 1GiB or 10TiB";
        parse(text, &BYTE_UNITS, Some(1))
            .map(ByteSize)
            .ok_or_else(|| UnitError { text: text.to_owned(), what })
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Span, UnitError> {
        let what = "a span of time: a whole number with a unit such as 500ms, 30s, 5m or 2h";
        parse(text, &TIME_UNITS, None).map(Span).ok_or_else(|| UnitError { text: text.to_owned(), what })
    }
}

/// Reads `<digits><unit>`; a missing unit counts as `bare` when there is one. `None` also when it does not fit u64.
fn parse(text: &str, units: &[(&str, u64)], bare: Option<u64>) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|character: char| character.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start() {
        "" => bare?,
        unit => units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn write(value: u64, units: &[(&str, u64)], formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let exact = units.iter().find(|(_, factor)| value.is_multiple_of(*factor) && value >= *factor);
    match exact.or(units.last()) {
        Some((unit, factor)) => formatter.pad(&format!("{}{unit}", value / factor)),
        None => formatter.pad(&value.to_string()),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, &BYTE_UNITS, formatter)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { formatter.pad("0s") } else { write(self.0, &TIME_UNITS, formatter) }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What serde may find where a size stands: YAML reads a bare number as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        let expected = || serde::de::Error::custom("expected a size such as 128MiB or 1GiB");
        match TextOrNumber::deserialize(deserializer).map_err(|_| expected())? {
            TextOrNumber::Number(bytes) => Ok(ByteSize(bytes)),
            TextOrNumber::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        String::deserialize(deserializer)
            .map_err(|_| serde::de::Error::custom("expected a span of time such as 30s or 5m"))?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// For fields that are left out of what is stored when they are nought.
pub(crate) const fn is_nought(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_back_exactly() {
        let check = |text: &str, bytes: Option<u64>, written: &str| {
            let found = text.parse::<ByteSize>().ok();
            assert_eq!(found.map(ByteSize::bytes), bytes, "{text:?}");
            if let Some(size) = found {
                assert_eq!(size.to_string(), written, "{text:?}");
            }
        };
        check("128MiB", Some(128 << 20), "128MiB");
        check("1024 mib", Some(1 << 30), "1GiB");
        check("1536MiB", Some(1536 << 20), "1536MiB");
        check("512", Some(512), "512B");
        check("0", Some(0), "0B");
        check("1.5GiB", None, "");
        check("-1MiB", None, "");
        check("12MB", None, "");
        check("", None, "");
        check("99999999999TiB", None, "");
    }

    #[test]
    fn spans_need_a_unit() {
        let check = |text: &str, millis: Option<u64>, written: &str| {
            let found = text.parse::<Span>().ok();
            assert_eq!(found.map(Span::millis), millis, "{text:?}");
            if let Some(span) = found {
                assert_eq!(span.to_string(), written, "{text:?}");
            }
        };
        check("30s", Some(30_000), "30s");
        check("120s", Some(120_000), "2m");
        check("0s", Some(0), "0s");
        check("1500ms", Some(1_500), "1500ms");
        check("30", None, "");
        check("soon", None, "");
    }
}
