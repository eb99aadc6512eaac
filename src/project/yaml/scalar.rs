//! The small values that recipe and node configuration share: durations, sizes, bounded numbers, variables.
//!
//! Each checks itself while it is read, so that its error stands at its own line and column.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::with_hint;
use crate::sys::error::Error;
use crate::sys::escape::visible_bounded;

/// Reads a text and turns it into a value; the error is the message for the place of the text.
///
/// # Errors
/// If there is no text or `make` refuses it.
pub fn from_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    make: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<F, T>(&'static str, F, PhantomData<T>);
    impl<F: FnOnce(&str) -> Result<T, String>, T> Visitor<'_> for Text<F, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(expected, make, PhantomData))
}

/// The message and hint of one of our errors, for a place in a file.
#[must_use]
pub fn message_of(error: &Error) -> String {
    error.hint_text().map_or_else(|| error.message().to_string(), |hint| with_hint(error.message(), hint))
}

/// A text without NUL and control characters other than tab and newline, not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a text", |text| {
            check_text(text)?;
            if text.trim().is_empty() { Err("the text is empty".into()) } else { Ok(Self(text.to_string())) }
        })
    }
}

/// Refuses what no program takes as an argument and no person sees: control characters.
///
/// # Errors
/// The message.
pub fn check_text(text: &str) -> Result<(), String> {
    match text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r')) {
        Some(c) => Err(format!("the text holds the control character \\u{{{:x}}}", c as u32)),
        None => Ok(()),
    }
}

/// A duration of at least one second and at most one day: `90s`, `15m`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a duration such as 90s, 15m or 2h", |text| parse_span(text).map(Self))
    }
}

/// Reads `90s`, `15m` or `2h`, from one second to one day.
///
/// # Errors
/// The message.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    const FORMS: &str = "a number and a unit: 90s, 15m or 2h; from 1s to 24h";
    let shown = visible_bounded(text.as_bytes(), 40);
    let unit = match text.bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        _ => return Err(with_hint(&format!("`{shown}` is no duration"), FORMS)),
    };
    let number = number(&text[..text.len() - 1]);
    let Some(number) = number else { return Err(with_hint(&format!("`{shown}` is no duration"), FORMS)) };
    match number.checked_mul(unit) {
        Some(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(with_hint(&format!("`{shown}` is not within 1s and 24h"), FORMS)),
    }
}

/// A size in bytes, at least one: `64MiB`, `20GiB`, `1000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a size such as 64MiB or 20GiB", |text| parse_size(text).map(Self))
    }
}

/// Reads a size: a whole number and nothing, `B`, `KiB`, `MiB`, `GiB` or `TiB`.
///
/// # Errors
/// The message.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];
    let (digits, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *shift)))
        .unwrap_or((text, 0));
    match number(digits).and_then(|n| n.checked_mul(1 << shift)) {
        Some(bytes @ 1..=0x0004_0000_0000_0000) => Ok(bytes),
        _ => Err(with_hint(
            &format!("`{}` is no size", visible_bounded(text.as_bytes(), 40)),
            "a whole number and a unit: B, KiB, MiB, GiB, TiB; from 1B to 1024TiB",
        )),
    }
}

/// Reads an amount of memory: a size, or a number and `K`, `M` or `G` as systemd and containers write it (1024 based);
/// from 4 MiB, below which no program begins.
///
/// # Errors
/// The message.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => parse_size(&format!("{digits}{}iB", &text[digits.len()..])),
        None => parse_size(text),
    };
    match bytes {
        Ok(bytes @ 0x0040_0000..) => Ok(bytes),
        _ => Err(with_hint(
            &format!("`{}` is no amount of memory", visible_bounded(text.as_bytes(), 40)),
            "a whole number and a unit: 512M or 2G; at least 4M",
        )),
    }
}

/// Digits only, and few enough that no unit can overflow.
fn number(digits: &str) -> Option<u64> {
    let good = !digits.is_empty() && digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit());
    if good { digits.parse().ok() } else { None }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<const MIN: u32, const MAX: u32>(pub u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Number<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole<const MIN: u32, const MAX: u32>;
        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Whole<MIN, MAX> {
            type Value = Number<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
                match u32::try_from(number) {
                    Ok(small) if (MIN..=MAX).contains(&small) => Ok(Number(small)),
                    _ => Err(E::custom(format!("{number} is not within {MIN} and {MAX}"))),
                }
            }
        }
        deserializer.deserialize_u64(Whole)
    }
}

/// Environment variables whose names an application chooses: `[A-Z_][A-Z0-9_]*`, none that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Variables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VariablesVisitor { lower: false }).map(Self)
    }
}

/// Variables as [`Variables`] whose names may be in small letters too (`http_proxy`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeVariables(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for NodeVariables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VariablesVisitor { lower: true }).map(Self)
    }
}

struct VariablesVisitor {
    lower: bool,
}

impl<'de> Visitor<'de> for VariablesVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of variables")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut variables = BTreeMap::new();
        while let Some(name) = entries.next_key_seed(VariableName { lower: self.lower })? {
            let value: VariableValue = entries.next_value()?;
            variables.insert(name, value.0);
            if variables.len() > 500 {
                return Err(A::Error::custom("more than 500 variables"));
            }
        }
        Ok(variables)
    }
}

struct VariableName {
    lower: bool,
}

impl<'de> DeserializeSeed<'de> for VariableName {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        from_text(deserializer, "the name of a variable", |name| {
            check_variable(name, self.lower).map(|()| name.to_string())
        })
    }
}

struct VariableValue(String);

impl<'de> Deserialize<'de> for VariableValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a text", |value| check_value(value).map(|()| Self(value.to_string())))
    }
}

/// Refuses names that are no variable's, or that only we set.
///
/// # Errors
/// The message.
pub fn check_variable(name: &str, lower: bool) -> Result<(), String> {
    let shown = visible_bounded(name.as_bytes(), 80);
    let letter = |b: u8| b.is_ascii_uppercase() || b == b'_' || (lower && b.is_ascii_lowercase());
    let mut bytes = name.bytes();
    let good = name.len() <= 128 && bytes.next().is_some_and(letter) && bytes.all(|b| letter(b) || b.is_ascii_digit());
    if !good {
        return Err(with_hint(&format!("`{shown}` is no name of a variable"), "capital letters, digits and _"));
    }
    if name == "PATH" || name.starts_with("MC_") || name.starts_with("LD_") {
        return Err(with_hint(
            &format!("variable `{shown}` may not be set"),
            "PATH, MC_* and LD_* are set by the node",
        ));
    }
    Ok(())
}

/// Refuses values that no environment can hold.
///
/// # Errors
/// The message.
pub fn check_value(value: &str) -> Result<(), String> {
    if value.contains('\0') {
        return Err("the value holds a NUL byte".into());
    }
    // Linux gives one variable 128 KiB, name included (MAX_ARG_STRLEN, execve(2)).
    if value.len() > 100_000 { Err("the value has more than 100000 bytes".into()) } else { Ok(()) }
}

/// Whether this is a mail address of the usual shape, alone.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let good = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.') && !part.contains("..");
    text.split_once('@').is_some_and(|(user, domain)| {
        text.len() <= 254
            && user.len() <= 64
            && part(user)
            && user.chars().all(good)
            && part(domain)
            && domain.chars().all(|c| c.is_alphanumeric() || "-.".contains(c))
    })
}

/// A mail address of the usual shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(pub String);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a mail address", |text| {
            if is_address(text) {
                return Ok(Self(text.to_string()));
            }
            let message = format!("`{}` is no mail address", visible_bounded(text.as_bytes(), 100));
            Err(with_hint(&message, "write the address alone: name@example.org"))
        })
    }
}
