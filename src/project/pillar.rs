//! The pillar: a project's private configuration, `init.sls` of its pillar repository and what that includes.
//!
//! It is full of secrets: nothing here prints a value, and no error quotes a line of it.
//!
//! Two rules. **plain**: the file (or what stands below its key `makina-projects.<name>`) over the recipe's defaults, words
//! as YAML 1.2 reads them. **makina**: the layers of makina-states, lowest first
//!
//! ```text
//! the recipe's defaults
//! PILLAR.sample: data              pillar: data
//! PILLAR.sample: env_defaults      pillar: env_defaults      of the environment
//! pillar: os_defaults              of the family of the operating system
//! ```
//!
//! mappings merged deeply, lists replaced, `{name}` resolved, words as Salt reads them. It holds where the commit has a
//! PILLAR.sample or the pillar has the project's key, unless the recipe says otherwise.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::ids::ProjectName;
use super::secrets::{self, Source, Sources};
use super::yaml::is_secret_word;
use super::yaml::scalar::{check_value, check_variable};
use crate::sys::error::{Error, Result};

mod braces;
pub mod check;
pub mod document;
pub mod layers;
mod reader;
mod scalars;
pub mod template;
#[cfg(test)]
mod tests;

use document::{Document, Words};
use layers::{Layer, Layers, Origin, Said};
use reader::Reader;
use template::Facts;

/// The name of the pillar's file at the root of its repository.
pub const FILE: &str = "init.sls";

/// The shortest value that is taken for a secret; shorter ones stand in too many other texts.
const MIN_SECRET: usize = 8;
/// What is shown in place of a secret.
const MASK: &str = "********";

/// How a configuration is put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Merge {
    /// By makina-states' rules where something of theirs is there, else plainly.
    #[default]
    Auto,
    /// The pillar's file over the recipe's defaults.
    Plain,
    /// By makina-states' rules.
    Makina,
}

/// Reads a file of the pillar's repository by its path; `None` if there is none.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>>;

/// What a configuration is made of.
pub struct Inputs<'a> {
    /// The project.
    pub project: &'a ProjectName,
    /// The rule that the recipe asks for.
    pub merge: Merge,
    /// The recipe's own defaults.
    pub defaults: &'a Map<String, Value>,
    /// PILLAR.sample of the commit: its path and its bytes.
    pub sample: Option<(&'a str, &'a [u8])>,
    /// The files of the pillar's repository.
    pub files: ReadFile<'a>,
    /// What is known of node and project.
    pub facts: &'a Facts,
}

/// A project's private configuration.
#[derive(Clone, Default, PartialEq)]
pub struct Pillar {
    config: Value,
    project: Map<String, Value>,
    whole: Map<String, Value>,
    exports: BTreeMap<String, String>,
    secrets: Vec<(String, String)>,
    sources: Sources,
    warnings: Vec<String>,
    is_makina: bool,
    uses_facts: bool,
    /// Of the project's own mapping, and of its data.
    layers: [Layers; 2],
}

impl fmt::Debug for Pillar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pillar({} exports, {} secrets, hidden)", self.exports.len(), self.secrets.len())
    }
}

/// One value of a configuration, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// Its way of keys, with dots.
    pub key: String,
    /// The value, secrets hidden.
    pub value: Value,
    /// What the layers say of it, the one that holds first; secrets hidden.
    pub said: Vec<Said>,
    /// Whether names in braces were resolved in it.
    pub is_resolved: bool,
}

impl Pillar {
    /// The pillar of a project that has none.
    #[must_use]
    pub fn empty() -> Self {
        Self { config: Value::Object(Map::new()), ..Self::default() }
    }

    /// Reads a pillar of one file, without anything else that belongs to a configuration.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column and without any value.
    pub fn parse(file: &str, bytes: &[u8], project: &ProjectName) -> Result<Self> {
        let name = file.rsplit('/').next().unwrap_or(file);
        let files = |wanted: &str| Ok((wanted == name).then(|| bytes.to_vec()));
        let facts = Facts::default();
        let inputs =
            Inputs { project, merge: Merge::Auto, defaults: &Map::new(), sample: None, files: &files, facts: &facts };
        Self::read_named(&inputs, name, file.strip_suffix(name).unwrap_or(""))
    }

    /// Puts a configuration together.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column and without any value.
    pub fn read(inputs: &Inputs<'_>) -> Result<Self> {
        Self::read_named(inputs, FILE, "pillar/")
    }

    fn read_named(inputs: &Inputs<'_>, first: &str, before: &str) -> Result<Self> {
        let nothing = Value::Object(Map::new());
        let sample =
            inputs.sample.map(|(file, bytes)| Document::read(file, bytes, inputs.facts, &nothing)).transpose()?;
        let known = match &sample {
            Some(sample) => Value::Object(sample.keys(Words::Salt)?.clone()),
            None => nothing,
        };
        let documents = Reader::new(inputs, before, &known).read_all(first)?;
        let own = Keys::of(inputs.project);
        let has_own = |document: &Arc<Document>| Ok(document.keys(Words::New)?.keys().any(|key| own.is_one(key)));
        let is_makina = match inputs.merge {
            Merge::Plain => false,
            Merge::Makina => true,
            Merge::Auto => {
                sample.is_some() || documents.iter().map(has_own).collect::<Result<Vec<_>>>()?.contains(&true)
            }
        };
        let uses_facts = is_makina || documents.iter().any(|document| document.is_rendered());
        let mut pillar = Self { is_makina, uses_facts, ..Self::empty() };
        let words = if is_makina { Words::Salt } else { Words::New };
        for document in documents.iter().map(AsRef::as_ref).chain(&sample) {
            collect_secrets(&Value::Object(document.keys(words)?.clone()), "", false, &mut pillar.secrets);
            pillar
                .secrets
                .extend(document.made.iter().map(|made| ("a password that was made up".to_string(), made.clone())));
            pillar.warnings.extend(document.warnings(words));
        }
        if !inputs.defaults.is_empty() {
            let (way, values) = (Vec::new(), inputs.defaults.clone());
            let defaults = Layer { origin: Origin::Defaults, document: None, way, values };
            pillar.layers[usize::from(is_makina)].0.push(defaults);
        }
        let defaults = match &sample {
            Some(sample) => sample.keys(words)?.clone(),
            None => Map::new(),
        };
        if is_makina {
            pillar.layer_makina(sample.map(Arc::new).as_ref(), &documents, &own, inputs)?;
        } else {
            pillar.layer_plain(&documents, &own)?;
        }
        pillar.put_together(inputs.facts)?;
        pillar.take_whole(defaults, &documents, words)?;
        pillar.exports = pillar.read_exports()?;
        Ok(pillar)
    }

    /// The file whole, or the project's key of it, with `data` over it.
    fn layer_plain(&mut self, documents: &[Arc<Document>], own: &Keys) -> Result<()> {
        for document in documents {
            let keys = document.keys(Words::New)?;
            let Some(mapping) = keys.get(&own.new) else {
                let mut values = keys.clone();
                values.shift_remove("include");
                self.push(0, Origin::Own, document, &[], values);
                continue;
            };
            let (mut values, mut data_of) = (mapping_at(document, &[&own.new], mapping)?, None);
            if let Some(data) = values.shift_remove("data") {
                let data = mapping_at(document, &[&own.new, "data"], &data)?;
                data_of = Some(data);
            }
            self.push(0, Origin::Own, document, &[&own.new], values);
            if let Some(data) = data_of {
                self.push(0, Origin::Data, document, &[&own.new, "data"], data);
            }
        }
        Ok(())
    }

    fn layer_makina(
        &mut self,
        sample: Option<&Arc<Document>>,
        documents: &[Arc<Document>],
        own: &Keys,
        inputs: &Inputs<'_>,
    ) -> Result<()> {
        let mut parts = Vec::new();
        if let Some(document) = sample {
            let keys = document.keys(Words::Salt)?;
            for (key, value) in keys.iter().filter(|(key, _)| Keys::is_of_a_sample(key)) {
                parts.push(Part::new(document, key, value, true)?);
            }
        }
        for document in documents {
            let keys = document.keys(Words::Salt)?;
            for key in [&own.old, &own.new] {
                if let Some(value) = keys.get(key) {
                    parts.push(Part::new(document, key, value, false)?);
                }
            }
        }
        let of_pillar = |parts: &[Part], key: &str| {
            let texts = parts.iter().rev().filter(|part| !part.is_sample).filter_map(|part| part.own.get(key));
            texts.into_iter().find_map(|value| value.as_str().map(ToString::to_string))
        };
        let whole =
            documents.iter().rev().find_map(|document| document.keys(Words::Salt).ok()?.get("default_env")?.as_str());
        let environment = of_pillar(&parts, "default_env")
            .or_else(|| whole.map(ToString::to_string))
            .unwrap_or_else(|| inputs.facts.environment.clone());
        let family = inputs.facts.grain("os_family").unwrap_or("Debian").to_string();
        for part in &parts {
            self.push(0, Origin::Own, &part.document, &[&part.key], part.own.clone());
            self.push(1, Origin::Data, &part.document, &[&part.key, "data"], part.data.clone());
        }
        for part in &parts {
            let values = part.section("env_defaults", &environment)?;
            self.push(1, Origin::Environment, &part.document, &[&part.key, "env_defaults", &environment], values);
        }
        for part in parts.iter().filter(|part| !part.is_sample) {
            let mut values = part.section("os_defaults", &family)?;
            let way = [part.key.as_str(), "os_defaults", &family];
            if let Some(data) = values.shift_remove("data") {
                let way = [way[0], way[1], way[2], "data"];
                self.push(1, Origin::System, &part.document, &way, mapping_at(&part.document, &way, &data)?);
            }
            self.push(0, Origin::System, &part.document, &way, values);
        }
        self.project.insert("default_env".into(), environment.into());
        Ok(())
    }

    /// The whole pillar as states see it: that of PILLAR.sample, its names in braces resolved, and the files over it.
    fn take_whole(&mut self, mut sample: Map<String, Value>, documents: &[Arc<Document>], words: Words) -> Result<()> {
        let mut names = self.project.clone();
        names.extend(self.project.get("data").and_then(Value::as_object).cloned().unwrap_or_default());
        // What leads back to itself was told where it matters.
        let _ = braces::resolve(&mut sample, &names);
        for document in documents {
            layers::merge(&mut sample, document.keys(words)?.clone());
        }
        sample.shift_remove("include");
        self.whole = sample;
        Ok(())
    }

    fn push(&mut self, at: usize, origin: Origin, document: &Arc<Document>, way: &[&str], values: Map<String, Value>) {
        if !values.is_empty() {
            let way = way.iter().map(ToString::to_string).collect();
            self.layers[at].0.push(Layer { origin, document: Some(document.clone()), way, values });
        }
    }

    /// Merges the layers and resolves the names.
    fn put_together(&mut self, facts: &Facts) -> Result<()> {
        let (mut own, mut data) = (self.layers[0].merged(), self.layers[1].merged());
        if self.is_makina {
            let mut whole = facts.project.clone();
            whole.extend(std::mem::take(&mut self.project));
            layers::merge(&mut whole, own.clone());
            let placed = |(key, message): braces::Wrong| self.error_at(&[&key], message);
            braces::resolve(&mut data, &whole).map_err(placed)?;
            braces::resolve(&mut own, &data).map_err(placed)?;
            layers::merge(&mut whole, own.clone());
            braces::resolve(&mut whole, &data).map_err(placed)?;
            whole.insert("data".into(), Value::Object(data.clone()));
            self.project = whole;
            own = own
                .into_iter()
                .map(|(key, value)| (key.clone(), self.project.get(&key).cloned().unwrap_or(value)))
                .collect();
        }
        own.extend(data);
        self.config = Value::Object(own);
        self.sources = secrets::parse(&self.config).map_err(|(way, message)| {
            let way: Vec<&str> = way.iter().map(String::as_str).collect();
            self.error_at(&way, &message)
        })?;
        collect_secrets(&self.config, "", false, &mut self.secrets);
        let mut seen = std::collections::HashSet::new();
        self.secrets.retain(|(_, value)| seen.insert(value.clone()));
        Ok(())
    }

    /// The configuration of the project, an object.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The configuration as makina-states' states know it, `cfg`: what is known of the project, and below `data` the rest.
    #[must_use]
    pub fn project(&self) -> &Map<String, Value> {
        &self.project
    }

    /// The whole pillar, all keys of all files, as Salt's states see it.
    #[must_use]
    pub fn whole(&self) -> &Map<String, Value> {
        &self.whole
    }

    /// Whether it was put together by makina-states' rules.
    #[must_use]
    pub fn is_makina(&self) -> bool {
        self.is_makina
    }

    /// Whether what it comes to may depend on the machine: by templates or by names in braces.
    #[must_use]
    pub fn uses_facts(&self) -> bool {
        self.uses_facts
    }

    /// What whoever wrote it may not have meant: a sentence each, with its place and without any value.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The variables that steps are given: the pillar's `env`.
    #[must_use]
    pub fn exports(&self) -> BTreeMap<String, String> {
        self.exports.clone()
    }

    /// Where the secrets come from that programs are given as files.
    #[must_use]
    pub fn secret_sources(&self) -> &Sources {
        &self.sources
    }

    /// The secrets in the whole file as (way of keys, value), for those who must keep them out of what they write.
    #[must_use]
    pub fn secrets(&self) -> Vec<(String, String)> {
        self.secrets.clone()
    }

    /// The configuration with the values of secrets replaced, to be shown.
    #[must_use]
    pub fn masked(&self) -> Value {
        let mut shown = self.config.clone();
        self.mask(&mut shown);
        shown
    }

    fn mask(&self, value: &mut Value) {
        self.mask_below(value, false);
    }

    /// Hides secrets wherever they stand, and everything below a key that speaks of one, however short.
    fn mask_below(&self, value: &mut Value, is_secret: bool) {
        match value {
            Value::String(_) | Value::Number(_) if is_secret => *value = MASK.into(),
            Value::String(text) => {
                let mut found: Vec<&str> = self.secrets.iter().map(|(_, secret)| secret.as_str()).collect();
                found.retain(|secret| text.contains(secret));
                // One may be a part of another.
                found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
                for secret in found {
                    *text = text.replace(secret, MASK);
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|value| self.mask_below(value, is_secret)),
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::Object(named) if key == "secrets" => {
                            // What only says where a secret is found is none.
                            for source in named.values_mut() {
                                match source {
                                    Value::Object(words) => {
                                        words.values_mut().for_each(|word| self.mask_below(word, false));
                                    }
                                    text => self.mask_below(text, true),
                                }
                            }
                        }
                        value => self.mask_below(value, is_secret || is_secret_word(key)),
                    }
                }
            }
            _ => {}
        }
    }

    /// Where the values at and below a key come from; `None` where there is no such key.
    #[must_use]
    pub fn explain(&self, key: &str) -> Option<Vec<Explained>> {
        let names: Vec<&str> = key.split('.').filter(|name| !name.is_empty()).collect();
        let config = self.config.as_object()?;
        let value = if names.is_empty() { &self.config } else { layers::get(config, &names)? };
        let mut all = Vec::new();
        self.explain_below(&names, value, &mut all);
        Some(all)
    }

    fn explain_below(&self, key: &[&str], value: &Value, all: &mut Vec<Explained>) {
        if let Value::Object(map) = value
            && !map.is_empty()
        {
            for (name, inner) in map {
                let mut key = key.to_vec();
                key.push(name);
                self.explain_below(&key, inner, all);
            }
            return;
        }
        let has =
            |layers: &Layers| layers.0.iter().any(|layer| key.first().is_some_and(|k| layer.values.contains_key(*k)));
        let layers = &self.layers[usize::from(has(&self.layers[1]))];
        let mut said = layers.said_of(key);
        let is_resolved = said.first().is_none_or(|said| said.value != *value);
        let is_secret = match key {
            ["secrets", rest @ ..] => rest.len() == 1,
            _ => key.iter().any(|name| is_secret_word(name)),
        };
        let mut value = value.clone();
        self.mask_below(&mut value, is_secret);
        for said in &mut said {
            self.mask_below(&mut said.value, is_secret);
        }
        all.push(Explained { key: key.join("."), value, said, is_resolved });
    }

    /// An error about a value of the configuration: at its place in the file that it comes from.
    #[must_use]
    pub fn error_at(&self, key: &[&str], message: &str) -> Error {
        for length in (1..=key.len()).rev() {
            if let Some(layer) = self.layers.iter().rev().find_map(|layers| layers.holding(&key[..length])) {
                return layer.error_at(&key[..length], message);
            }
        }
        Error::invalid(format!("pillar/{FILE}: {message}"))
    }

    fn read_exports(&self) -> Result<BTreeMap<String, String>> {
        let env = match self.config.get("env") {
            None | Some(Value::Null) => return Ok(BTreeMap::new()),
            Some(Value::Object(env)) => env,
            Some(_) => return Err(self.error_at(&["env"], "`env` must be a mapping of variables")),
        };
        let mut exports = BTreeMap::new();
        for (name, value) in env {
            let text = check_variable(name, false).and_then(|()| match value {
                Value::String(text) => check_value(text).map(|()| text.clone()),
                Value::Bool(value) => Ok(value.to_string()),
                Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
                // 1.10 would become 1.1.
                _ => Err(format!("the value of `{name}` must be a text: put it in quotes")),
            });
            let text = text.map_err(|message| self.error_at(&["env", name], &message))?;
            exports.insert(name.clone(), text);
        }
        Ok(exports)
    }
}

/// The keys of a file that belong to a project.
struct Keys {
    new: String,
    old: String,
}

impl Keys {
    fn of(project: &ProjectName) -> Self {
        Self { new: format!("makina-projects.{project}"), old: format!("makina-states.{project}") }
    }

    fn is_one(&self, key: &str) -> bool {
        key == self.new || key == self.old
    }

    /// In PILLAR.sample the name is a placeholder; the older prefix has settings of the machine too, which have more dots.
    fn is_of_a_sample(key: &str) -> bool {
        let is_old = key.starts_with("makina-states.") && key.matches('.').count() < 2;
        key.starts_with("makina-projects.") || is_old
    }
}

/// The project's mapping in one file.
struct Part {
    document: Arc<Document>,
    key: String,
    is_sample: bool,
    /// Everything but the three sections.
    own: Map<String, Value>,
    data: Map<String, Value>,
    sections: Map<String, Value>,
}

impl Part {
    fn new(document: &Arc<Document>, key: &str, value: &Value, is_sample: bool) -> Result<Self> {
        let mut own = mapping_at(document, &[key], value)?;
        let data = own.shift_remove("data").unwrap_or(Value::Null);
        let data = mapping_at(document, &[key, "data"], &data)?;
        let mut sections = Map::new();
        for name in ["env_defaults", "os_defaults"] {
            sections.extend(own.shift_remove(name).map(|value| (name.to_string(), value)));
        }
        Ok(Self { document: document.clone(), key: key.to_string(), is_sample, own, data, sections })
    }

    fn section(&self, section: &str, of: &str) -> Result<Map<String, Value>> {
        let Some(all) = self.sections.get(section) else { return Ok(Map::new()) };
        let all = mapping_at(&self.document, &[&self.key, section], all)?;
        let Some(values) = all.get(of) else { return Ok(Map::new()) };
        mapping_at(&self.document, &[&self.key, section, of], values)
    }
}

/// A mapping; nothing is an empty one.
fn mapping_at(document: &Document, way: &[&str], value: &Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map.clone()),
        Value::Null => Ok(Map::new()),
        _ => Err(document.error_at(way, "expected a mapping")),
    }
}

/// Collects the texts of `secrets`: what only names a secret is none.
fn collect_named(secrets: &Value, way: &str, found: &mut Vec<(String, String)>) {
    for (name, value) in secrets.as_object().into_iter().flatten() {
        if !matches!(Source::parse(value), Ok(source) if !matches!(source, Source::Here(_))) {
            collect_secrets(value, &format!("{way}.{name}"), true, found);
        }
    }
}

/// Collects the texts below keys that speak of something secret.
fn collect_secrets(value: &Value, way: &str, is_secret: bool, found: &mut Vec<(String, String)>) {
    let below = |key: &str| if way.is_empty() { key.to_string() } else { format!("{way}.{key}") };
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if key == "secrets" && inner.is_object() {
                    collect_named(inner, &below(key), found);
                    continue;
                }
                collect_secrets(inner, &below(key), is_secret || is_secret_word(key), found);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate() {
                collect_secrets(inner, &below(&index.to_string()), is_secret, found);
            }
        }
        Value::String(text) if is_secret && text.chars().count() >= MIN_SECRET => {
            found.push((way.to_string(), text.clone()));
        }
        _ => {}
    }
}
