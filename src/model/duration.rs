//! Durations as people write them: `500ms`, `10s`, `5m`, `1h`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units and their length in milliseconds, the largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration that is written as a whole number with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

/// A pattern for texts that [`HumanDuration`] can be parsed from.
pub const DURATION_PATTERN: &str = "^[0-9]+(ms|s|m|h)$";

impl schemars::JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": DURATION_PATTERN})
    }
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A bare number, which could mean seconds or milliseconds.
    #[error("{0} has no unit; write for example `{0}s` or `{0}ms` (units: ms, s, m, h)")]
    NoUnit(String),
    /// Any other text.
    #[error("{} is not a duration; write a whole number and a unit: `500ms`, `10s`, `5m` or `1h`", super::problem::quoted(.0))]
    Malformed(String),
    /// More milliseconds than 64 bits can hold.
    #[error("{} is too long a time", super::problem::quoted(.0))]
    TooLong(String),
}

impl std::str::FromStr for HumanDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(DurationError::Malformed(text.to_owned()));
        }
        if unit.is_empty() {
            return Err(DurationError::NoUnit(text.to_owned()));
        }
        let Some((_, milliseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(DurationError::Malformed(text.to_owned()));
        };
        let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*milliseconds));
        total.map(|total| Self(Duration::from_millis(total))).ok_or_else(|| DurationError::TooLong(text.to_owned()))
    }
}

/// Writes the duration in the largest unit that divides it: `90s`, `5m`.
impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_millis();
        if total == 0 {
            return f.write_str("0s");
        }
        let whole = UNITS.iter().find(|(_, milliseconds)| total.is_multiple_of(u128::from(*milliseconds)));
        let (unit, milliseconds) = whole.unwrap_or(&UNITS[UNITS.len() - 1]);
        write!(f, "{}{unit}", total / u128::from(*milliseconds))
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DurationVisitor;
        impl de::Visitor<'_> for DurationVisitor {
            type Value = HumanDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as `10s`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                text.parse().map_err(E::custom)
            }
            // YAML reads a bare number as a number. This is the most common mistake, so it has a message of its own.
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<HumanDuration, E> {
                Err(E::custom(DurationError::NoUnit(number.to_string())))
            }
        }
        deserializer.deserialize_any(DurationVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Duration, DurationError> {
        text.parse::<HumanDuration>().map(|written| written.0)
    }

    #[test]
    fn every_unit_is_read() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0), ("007s", 7_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_asks_for_a_unit() {
        assert!(parse("10").unwrap_err().to_string().contains("10 has no unit; write for example `10s`"));
        let error = serde_json::from_str::<HumanDuration>("10").unwrap_err().to_string();
        assert!(error.contains("has no unit"), "{error}");
    }

    #[test]
    fn nothing_else_is_a_duration() {
        for text in ["", "s", "-1s", "+1s", "1.5s", "1 s", " 1s", "1s ", "1d", "1S", "1m30s", "ten seconds", "١s"] {
            assert!(matches!(parse(text), Err(DurationError::Malformed(_))), "{text}");
        }
        for text in ["99999999999999999999s", "18446744073709551615h"] {
            assert!(matches!(parse(text), Err(DurationError::TooLong(_))), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for (milliseconds, text) in [(0, "0s"), (500, "500ms"), (75_000, "75s"), (300_000, "5m"), (7_200_000, "2h")] {
            let duration = HumanDuration(Duration::from_millis(milliseconds));
            assert_eq!(duration.to_string(), text);
            assert_eq!(parse(text), Ok(duration.0));
        }
    }
}
