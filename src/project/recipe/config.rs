//! `config:` and `templates:`: what a project says about its configuration.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::PathText;
use crate::project::pillar::Merge;
use crate::project::secrets::SecretName;
use crate::project::yaml::scalar::{Text, check_variable, from_text, message_of};
use crate::project::yaml::{Source, locate::Step as Way, with_hint};
use crate::sys::error::Result;
use crate::sys::path::TreePath;

/// What a project says about its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// By which rule the pillar is merged.
    pub merge: Merge,
    /// Keys that must be there, each a way of keys.
    pub required: Vec<String>,
    /// What holds where the pillar says nothing.
    pub defaults: Map<String, Value>,
    /// A JSON Schema that the configuration must fit; a file of the commit, JSON or YAML.
    pub schema: Option<TreePath>,
    /// The text of a first pillar, for `config new`; a file of the commit.
    pub template: Option<TreePath>,
}

/// Whose a file is that is made from a template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateOwner {
    /// The project's user, as everything in `run`.
    #[default]
    Project,
    /// Root, with the project's group: the application cannot change it.
    Root,
}

/// A file that is made from a template and the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The template, ending in `.j2`.
    pub from: TreePath,
    /// The file that is made.
    pub to: TreePath,
    /// Its mode.
    pub mode: u32,
    /// Whose it is.
    pub owner: TemplateOwner,
}

/// `config:` as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    merge: MergeWord,
    required: Vec<Text>,
    defaults: Map<String, Value>,
    schema: Option<PathText>,
    template: Option<PathText>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MergeWord {
    #[default]
    Auto,
    Plain,
    Makina,
}

impl ConfigFile {
    /// What it means.
    ///
    /// # Errors
    /// If a required key is none, or a directory stands where a file is wanted.
    pub fn resolve(self, source: &Source<'_>) -> Result<Config> {
        for (index, key) in self.required.iter().enumerate() {
            if key.0.split('.').any(|name| name.trim().is_empty()) {
                let way = [Way::Key("config"), Way::Key("required"), Way::Index(index)];
                let message = with_hint("this is no key of a configuration", "names with dots between them: db.host");
                return Err(source.error_at(&way, &message));
            }
        }
        for (key, path) in [("schema", &self.schema), ("template", &self.template)] {
            if path.as_ref().is_some_and(|path| path.is_dir) {
                return Err(source.error_at(&[Way::Key("config"), Way::Key(key)], &format!("`config.{key}` is a file")));
            }
        }
        Ok(Config {
            merge: match self.merge {
                MergeWord::Auto => Merge::Auto,
                MergeWord::Plain => Merge::Plain,
                MergeWord::Makina => Merge::Makina,
            },
            required: self.required.into_iter().map(|key| key.0).collect(),
            defaults: self.defaults,
            schema: self.schema.map(|path| path.path),
            template: self.template.map(|path| path.path),
        })
    }
}

/// `secrets:` as written: a variable, and the secret that it is.
#[derive(Default)]
pub struct SecretsFile(pub BTreeMap<String, SecretName>);

impl<'de> Deserialize<'de> for SecretsFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written: BTreeMap<String, Text> = BTreeMap::deserialize(deserializer)?;
        let one = |(variable, name): (String, Text)| {
            check_variable(&variable, false).map_err(D::Error::custom)?;
            let name = name.0.parse().map_err(|error| D::Error::custom(message_of(&error)))?;
            Ok((variable, name))
        };
        written.into_iter().map(one).collect::<Result<_, _>>().map(Self)
    }
}

/// One entry of `templates:` as written: a path, or a mapping.
pub struct TemplateFile(Template);

/// Checks what only all templates together show: no two make one file, and none makes another template.
///
/// # Errors
/// Of kind Invalid, at the entry.
pub fn templates(source: &Source<'_>, written: Vec<TemplateFile>) -> Result<Vec<Template>> {
    let all: Vec<Template> = written.into_iter().map(|written| written.0).collect();
    for (index, template) in all.iter().enumerate() {
        let at = |message: String| source.error_at(&[Way::Key("templates"), Way::Index(index)], &message);
        if let Some(other) = all[..index].iter().find(|other| other.to == template.to) {
            return Err(at(format!("`{}` is made from `{}` already", template.to, other.from)));
        }
        if let Some(other) = all.iter().find(|other| other.from == template.to) {
            return Err(at(format!("`{}` is a template itself", other.from)));
        }
    }
    Ok(all)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateMap {
    from: J2,
    to: Option<PathText>,
    mode: Option<Mode>,
    #[serde(default)]
    owner: TemplateOwner,
}

/// A path that ends in `.j2`.
struct J2(TreePath);

impl<'de> Deserialize<'de> for J2 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathText::deserialize(deserializer)?;
        j2(path).map_err(D::Error::custom)
    }
}

fn j2(path: PathText) -> Result<J2, String> {
    let is_good = !path.is_dir && path.path.as_bytes().ends_with(b".j2") && path.path.as_bytes().len() > 3;
    if is_good { Ok(J2(path.path)) } else { Err(format!("`{}` is no template: its name must end in .j2", path.path)) }
}

impl J2 {
    /// The path without the ending.
    fn made(&self) -> Result<TreePath, String> {
        let bytes = self.0.as_bytes();
        TreePath::new(&bytes[..bytes.len() - 3]).map_err(|error| message_of(&error))
    }
}

/// A mode of a file in quotes or without, octal: `0640`.
struct Mode(u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a mode in quotes, such as \"0640\"", |text| {
            let digits = text.strip_prefix("0o").unwrap_or(text);
            let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777 && digits.len() >= 3);
            mode.map(Self).ok_or_else(|| with_hint("this is no mode", "an octal number from 000 to 777: \"0640\""))
        })
    }
}

impl<'de> Deserialize<'de> for TemplateFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = TemplateFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path that ends in .j2, or a mapping")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TemplateFile, E> {
                let path = PathText::read(text).map_err(E::custom)?;
                let from = j2(path).map_err(E::custom)?;
                let to = from.made().map_err(E::custom)?;
                Ok(TemplateFile(Template { from: from.0, to, mode: 0o640, owner: TemplateOwner::Project }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TemplateFile, A::Error> {
                let written = TemplateMap::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                let to = match written.to {
                    Some(to) if to.is_dir => return Err(A::Error::custom("`to` is a file, not a directory")),
                    Some(to) => to.path,
                    None => written.from.made().map_err(A::Error::custom)?,
                };
                let mode = written.mode.map_or(0o640, |mode| mode.0);
                Ok(TemplateFile(Template { from: written.from.0, to, mode, owner: written.owner }))
            }
        }
        deserializer.deserialize_any(Entry)
    }
}
