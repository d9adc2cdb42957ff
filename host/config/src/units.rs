//! Values with a unit: durations (`"500ms"`), sizes (`"64KiB"`) and counts, each within a range.

use std::{ops::RangeInclusive, time::Duration};

use toml::de::DeValue;

use crate::document::{MAX_QUOTED_CHARS, Table, Value, quote};

/// Duration units with their nanoseconds. `ms` stands before `s`, which it ends with.
const DURATION_UNITS: [(&str, u128); 5] = [
    ("ms", 1_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
];

/// Size units, largest first, with their bytes.
const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Most digits of a duration after the point. With the smallest unit the last of them is less than a nanosecond.
const FRACTION_DIGITS: usize = 9;

impl Table<'_> {
    pub(super) fn duration(&mut self, key: &'static str, range: &RangeInclusive<Duration>) -> Option<Duration> {
        self.take(key)?.duration(range)
    }

    pub(super) fn size(&mut self, key: &'static str, range: &RangeInclusive<u64>) -> Option<usize> {
        self.take(key)?.size(range)
    }

    pub(super) fn count(&mut self, key: &'static str, range: &RangeInclusive<u64>) -> Option<usize> {
        self.take(key)?.count(range)
    }
}

impl Value<'_> {
    pub(super) fn duration(&self, range: &RangeInclusive<Duration>) -> Option<Duration> {
        let DeValue::String(text) = &self.value else {
            self.mismatch("a duration in quotes, for example \"30s\" or \"500ms\"");
            return None;
        };
        let Some(duration) = parse_duration(text) else {
            self.problem(format!("{} is not a duration; write for example \"500ms\", \"30s\" or \"5m\"", quote(text)));
            return None;
        };
        self.within(duration, range, &quote(text), |bound| format!("{:?}", show_duration(*bound)))
    }

    /// Bytes: an integer, or a string with a unit.
    pub(super) fn size(&self, range: &RangeInclusive<u64>) -> Option<usize> {
        let (size, written) = match &self.value {
            DeValue::String(text) => (parse_size(text), quote(text)),
            DeValue::Integer(number) => (self.unsigned(), shorten(&number.to_string())),
            _ => {
                self.mismatch("a size, for example \"64KiB\" or a number of bytes");
                return None;
            }
        };
        let Some(size) = size else {
            self.problem(format!(
                "{written} is not a size; write for example \"64KiB\", \"16MiB\" or a number of bytes"
            ));
            return None;
        };
        self.within(size, range, &written, |bound| show_size(*bound)).map(saturate)
    }

    pub(super) fn count(&self, range: &RangeInclusive<u64>) -> Option<usize> {
        let DeValue::Integer(number) = &self.value else {
            self.mismatch("an integer");
            return None;
        };
        let written = shorten(&number.to_string());
        // A number that does not fit is negative or beyond every range.
        let count = self.unsigned().unwrap_or(if written.starts_with('-') { 0 } else { u64::MAX });
        self.within(count, range, &written, u64::to_string).map(saturate)
    }

    fn unsigned(&self) -> Option<u64> {
        self.value.as_integer().and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
    }

    fn within<T: PartialOrd>(
        &self,
        value: T,
        range: &RangeInclusive<T>,
        written: &str,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        let within = range.contains(&value);
        if !within {
            let (least, most) = (show(range.start()), show(range.end()));
            self.problem(format!("{written} is out of range; write {least} to {most}"));
        }
        within.then_some(value)
    }
}

/// Reads a number, perhaps with a decimal fraction, and one of `ms`, `s`, `m`, `h`, `d`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, nanos) = DURATION_UNITS.iter().find_map(|(unit, nanos)| Some((text.strip_suffix(unit)?, *nanos)))?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let mut total = nanos.checked_mul(u128::from(digits(whole)?))?;
    if let Some(fraction) = fraction {
        let value = digits(fraction).filter(|_| fraction.len() <= FRACTION_DIGITS)?;
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        total = total.checked_add(u128::from(value).checked_mul(nanos)? / scale)?;
    }
    u64::try_from(total).ok().map(Duration::from_nanos)
}

/// A duration given on the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "it is a number and a unit, for example \"10s\" or \"2m\"".to_owned())
}

/// Reads a whole number and one of `KiB`, `MiB`, `GiB`, into bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, bytes) = SIZE_UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)))?;
    digits(number)?.checked_mul(bytes)
}

/// Writes a duration as configuration would, to the millisecond.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".into(),
        // One day is 24h: the other ends of its range are hours as a rule.
        _ if millis.is_multiple_of(86_400_000) && millis > 86_400_000 => format!("{}d", millis / 86_400_000),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

/// Writes a size as configuration would: in the largest unit that divides it, else in bytes.
pub(super) fn show_size(bytes: u64) -> String {
    SIZE_UNITS
        .iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

fn shorten(number: &str) -> String {
    number.chars().take(MAX_QUOTED_CHARS).collect()
}

fn saturate(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Reads digits alone: `str::parse` would also take a sign.
pub(super) fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::tests::problems;

    #[test]
    fn ranges_and_types() {
        let text = "a = '2h'\nb = 30\nc = '30'\nd = '0s'\ne = 1.5\nf = '2GiB'\ng = -1\nh = 0\ni = 'x'\nj = 0x40\nk = 99999999999999999999\n";
        let time = Duration::from_millis(100)..=Duration::from_secs(3600);
        let found = problems(text, |mut root| {
            for key in ["a", "b", "c", "d"] {
                assert_eq!(root.duration(key, &time), None);
            }
            for key in ["e", "f", "g"] {
                assert_eq!(root.size(key, &(1024..=1 << 30)), None);
            }
            for key in ["h", "i", "k"] {
                assert_eq!(root.count(key, &(1..=100)), None);
            }
            assert_eq!(root.count("j", &(1..=100)), Some(64));
            assert_eq!(root.count("absent", &(1..=100)), None);
        });
        let expected = [
            "f.toml:1: a: \"2h\" is out of range; write \"100ms\" to \"1h\"",
            "f.toml:2: b: must be a duration in quotes, for example \"30s\" or \"500ms\", not an integer",
            "f.toml:3: c: \"30\" is not a duration; write for example \"500ms\", \"30s\" or \"5m\"",
            "f.toml:4: d: \"0s\" is out of range; write \"100ms\" to \"1h\"",
            "f.toml:5: e: must be a size, for example \"64KiB\" or a number of bytes, not a float",
            "f.toml:6: f: \"2GiB\" is out of range; write 1KiB to 1GiB",
            "f.toml:7: g: -1 is not a size; write for example \"64KiB\", \"16MiB\" or a number of bytes",
            "f.toml:8: h: 0 is out of range; write 1 to 100",
            "f.toml:9: i: must be an integer, not a string",
            "f.toml:11: k: 99999999999999999999 is out of range; write 1 to 100",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("0.5s", 500), ("1.25m", 75_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("0.5ms"), Some(Duration::from_micros(500)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration() {
        for text in [
            "",
            "s",
            "30",
            "-1s",
            "+1s",
            "1 s",
            "1S",
            "1w",
            ".5s",
            "1.s",
            "1.2.3s",
            "1e3s",
            "inf s",
            "9999999999999h",
            "0.1234567890s",
            "99999999999999999999s",
            "٣s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("16MiB"), Some(16 << 20));
        assert_eq!(parse_size("1GiB"), Some(1 << 30));
        for text in ["", "KiB", "64", "64KB", "64kib", "1.5MiB", "-1KiB", "64 KiB", "99999999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn shown_as_written() {
        for text in ["100ms", "1s", "90s", "5m", "1h", "24h", "30d"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["1KiB", "64MiB", "4GiB"] {
            assert_eq!(show_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(show_size(125), "125");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*|[0-9.]{0,40}(ms|s|m|h|KiB|MiB|GiB)") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }

        #[test]
        fn sizes_round_trip(bytes in 1u64..1 << 40) {
            let shown = show_size(bytes);
            prop_assert_eq!(parse_size(&shown).or_else(|| shown.parse().ok()), Some(bytes));
        }
    }
}
