//! What a project may ask root for: its units, reloads of others, more space.

use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use crate::project::unit::{UnitAction, UnitName};
use crate::project::yaml::scalar::{check_value, from_text};
use crate::project::yaml::with_hint;

/// What a project may ask root for (`allow:` in node.yaml).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// Units that its steps may start, stop, restart and reload.
    pub units: Vec<UnitName>,
    /// Units that its steps may reload and nothing else.
    pub reload: Vec<UnitName>,
    /// The program that makes room where a deployment finds too little.
    pub enlarge: Option<Enlarge>,
}

impl Allow {
    /// Whether a step may do this with this unit.
    #[must_use]
    pub fn permits(&self, action: UnitAction, unit: &UnitName) -> bool {
        self.units.contains(unit) || (action == UnitAction::Reload && self.reload.contains(unit))
    }

    /// The key below `allow` to which a unit is added for this.
    #[must_use]
    pub fn key_for(action: UnitAction) -> &'static str {
        if action == UnitAction::Reload { "reload" } else { "units" }
    }
}

/// A program and its arguments; the program is an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enlarge(Vec<String>);

impl Enlarge {
    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        Path::new(self.0.first().map_or("", String::as_str))
    }

    /// The program and its arguments.
    #[must_use]
    pub fn argv(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Enlarge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Argv;
        impl<'de> Visitor<'de> for Argv {
            type Value = Enlarge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list: a program by its absolute path, and its arguments")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Enlarge, A::Error> {
                let mut argv = Vec::new();
                if let Some(Program(program)) = items.next_element()? {
                    argv.push(program);
                }
                while let Some(Word(word)) = items.next_element()? {
                    argv.push(word);
                }
                if argv.is_empty() { Err(A::Error::custom("the command is empty")) } else { Ok(Enlarge(argv)) }
            }
        }
        deserializer.deserialize_seq(Argv)
    }
}

struct Program(String);

impl<'de> Deserialize<'de> for Program {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a program", |text| {
            let path = Path::new(text);
            let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            let whole = !text.ends_with('/') && !text.contains("//") && !text.contains("/./");
            if !path.is_absolute() || !plain || !whole || text.contains(char::is_control) {
                return Err(with_hint("this is no absolute path of a program", "write it whole: /usr/local/sbin/grow"));
            }
            Ok(Self(text.to_string()))
        })
    }
}

struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "an argument: a text", |text| check_value(text).map(|()| Self(text.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::node::NodeConfig;
    use crate::project::node::ProjectConfig;
    use crate::sys::error::Result;

    fn shop(allow: &str) -> Result<ProjectConfig> {
        let text = format!("projects:\n  shop:\n    {allow}\n");
        Ok(NodeConfig::parse("node.yaml", text.as_bytes())?.for_project(&"shop".parse().unwrap(), None))
    }

    #[test]
    fn a_unit_may_be_handled_and_another_one_only_reloaded() {
        let config = shop("allow: {units: [shop.service], reload: [nginx.service]}").unwrap();
        let (shop, nginx, other) =
            ("shop.service".parse().unwrap(), "nginx.service".parse().unwrap(), "ssh.service".parse().unwrap());
        for action in UnitAction::ALL {
            assert!(config.allow.permits(action, &shop));
            assert_eq!(config.allow.permits(action, &nginx), action == UnitAction::Reload);
            assert!(!config.allow.permits(action, &other));
        }
    }

    #[test]
    fn nothing_is_allowed_where_nothing_is_written_and_not_to_another_project() {
        let text = b"projects: {shop: {disk: 20GiB, allow: {units: [a.service], enlarge: [/sbin/grow, --by, 10]}}}\n";
        let node = NodeConfig::parse("node.yaml", text).unwrap();
        let shop = node.for_project(&"shop".parse().unwrap(), None);
        assert_eq!(shop.disk, Some(20 << 30));
        let enlarge = shop.allow.enlarge.unwrap();
        assert_eq!((enlarge.program(), enlarge.argv().len()), (Path::new("/sbin/grow"), 3));
        let blog = node.for_project(&"blog".parse().unwrap(), None);
        assert_eq!((blog.allow, blog.disk), (Allow::default(), None));
    }

    #[test]
    fn every_fault_is_told_at_its_place() {
        for (text, place, words) in [
            ("allow: {unit: [a.service]}", "3:13: ", "unknown key `unit`"),
            ("allow: {units: [a]}", "3:21: ", "`a` is no name of a unit"),
            ("allow: {reload: ['*.service']}", "3:22: ", "is no name of a unit"),
            ("allow: {enlarge: []}", "3:22: ", "the command is empty"),
            ("allow: {enlarge: /sbin/grow}", "3:22: ", "a list: a program"),
            ("allow: {enlarge: [grow]}", "3:23: ", "no absolute path"),
            ("allow: {enlarge: [/sbin/../grow]}", "3:23: ", "no absolute path"),
            ("allow: {enlarge: [/sbin/]}", "3:23: ", "no absolute path"),
            ("disk: 20GB", "3:11: ", "is no size"),
        ] {
            let error = shop(text).unwrap_err();
            assert!(error.message().starts_with(&format!("node.yaml:{place}")), "{text}: {error}");
            assert!(error.message().contains(words), "{text}: {error}");
        }
    }
}
