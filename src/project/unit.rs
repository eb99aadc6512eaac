//! Units of the machine's service manager: their names, and what a step may do with one.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::Deserializer;

use super::yaml::scalar::{from_text, message_of};
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The endings of units that a project may ask for.
const ENDINGS: [&str; 5] = ["service", "socket", "timer", "target", "path"];
/// The longest name before the ending.
const LONGEST: usize = 250;

/// The name of a unit: `shop.service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitName(String);

impl UnitName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UnitName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let good_byte = |b: u8| b.is_ascii_alphanumeric() || b":_.@\\-".contains(&b);
        let good = text.rsplit_once('.').is_some_and(|(body, ending)| {
            ENDINGS.contains(&ending) && !body.is_empty() && body.len() <= LONGEST && body.bytes().all(good_byte)
        });
        if good {
            return Ok(Self(text.to_string()));
        }
        Err(Error::invalid(format!("`{}` is no name of a unit", visible_bounded(text.as_bytes(), 80)))
            .hint(format!("letters, digits and : _ . @ - with one of the endings .{}", ENDINGS.join(", ."))))
    }
}

impl<'de> Deserialize<'de> for UnitName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        from_text(deserializer, "the name of a unit", |text| Self::from_str(text).map_err(|error| message_of(&error)))
    }
}

/// What a step does with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitAction {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Stop and start it.
    Restart,
    /// Have it read its configuration again.
    Reload,
}

impl UnitAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Start, Self::Stop, Self::Restart, Self::Reload];

    /// The word of recipes and of systemctl(1).
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_no_option_and_no_pattern_can_hide_in_are_units() {
        for good in ["shop.service", "shop@1.service", "a-b_c:d.socket", "x\\x2dy.path", "a.b.timer", "-x.target"] {
            assert_eq!(good.parse::<UnitName>().unwrap().as_str(), good);
        }
        let long = format!("{}.service", "a".repeat(251));
        for bad in [
            "",
            "shop",
            ".service",
            "shop.mount",
            "a b.service",
            "a*.service",
            "a/b.service",
            "a\n.service",
            "é.service",
        ]
        .into_iter()
        .chain([long.as_str()])
        {
            assert!(bad.parse::<UnitName>().is_err(), "{bad}");
        }
        assert!(format!("{}.service", "a".repeat(250)).parse::<UnitName>().is_ok());
    }
}
