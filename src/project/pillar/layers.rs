//! The layers of a configuration, lowest first, and which of them a value comes from.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::document::Document;
use crate::sys::error::Error;

/// Where a layer comes from, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `config: {defaults: …}` of the recipe.
    Defaults,
    /// The mapping of the project in PILLAR.sample, or in the pillar; for a plain pillar its file.
    Own,
    /// `data`.
    Data,
    /// `env_defaults` of the environment.
    Environment,
    /// `os_defaults` of the family of the operating system.
    System,
}

impl Origin {
    /// The word that `config --explain` shows.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Defaults => "defaults of the recipe",
            Self::Own => "the project's own key",
            Self::Data => "data",
            Self::Environment => "env_defaults",
            Self::System => "os_defaults",
        }
    }
}

/// One layer.
#[derive(Clone, PartialEq)]
pub struct Layer {
    /// What it is.
    pub origin: Origin,
    /// The file that it stands in; `None` for the recipe.
    pub document: Option<Arc<Document>>,
    /// The way of keys to it in that file.
    pub way: Vec<String>,
    /// What it says.
    pub values: Map<String, Value>,
}

impl Layer {
    fn place_of(&self, key: &[&str]) -> String {
        let Some(document) = &self.document else { return "mc_project.yaml".to_string() };
        let mut way = self.way.clone();
        way.extend(key.iter().map(ToString::to_string));
        document.place_of(&way)
    }

    /// An error at a key of this layer.
    #[must_use]
    pub fn error_at(&self, key: &[&str], message: &str) -> Error {
        let Some(document) = &self.document else {
            return Error::invalid(format!("mc_project.yaml: config.defaults.{}: {message}", key.join(".")));
        };
        let way: Vec<&str> = self.way.iter().map(String::as_str).chain(key.iter().copied()).collect();
        document.error_at(&way, message)
    }
}

/// Layers of one part of a configuration, lowest first.
#[derive(Clone, Default, PartialEq)]
pub struct Layers(pub Vec<Layer>);

/// What one layer says of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// What the layer is.
    pub origin: Origin,
    /// Where it stands: `file:line`.
    pub place: String,
    /// The value as it stands there.
    pub value: Value,
}

impl Layers {
    /// All of them merged: mappings deeply, everything else is replaced by the higher one.
    #[must_use]
    pub fn merged(&self) -> Map<String, Value> {
        let mut all = Map::new();
        for layer in &self.0 {
            merge(&mut all, layer.values.clone());
        }
        all
    }

    /// The highest layer that has a key.
    #[must_use]
    pub fn holding(&self, key: &[&str]) -> Option<&Layer> {
        self.0.iter().rev().find(|layer| get(&layer.values, key).is_some())
    }

    /// What the layers say of one value that is no mapping with keys, the one that holds first.
    #[must_use]
    pub fn said_of(&self, key: &[&str]) -> Vec<Said> {
        let mut said: Vec<Said> = Vec::new();
        for layer in self.0.iter().rev() {
            if let Some(value) = get(&layer.values, key) {
                said.push(Said { origin: layer.origin, place: layer.place_of(key), value: value.clone() });
            }
        }
        said
    }
}

/// Merges a higher layer into a lower one.
pub fn merge(lower: &mut Map<String, Value>, higher: Map<String, Value>) {
    for (key, value) in higher {
        match (lower.get_mut(&key), value) {
            (Some(Value::Object(lower)), Value::Object(higher)) => merge(lower, higher),
            (Some(lower), value) => *lower = value,
            (None, value) => {
                lower.insert(key, value);
            }
        }
    }
}

/// The value at a way of keys; an index goes into a list.
#[must_use]
pub fn get<'a>(map: &'a Map<String, Value>, key: &[&str]) -> Option<&'a Value> {
    let (first, rest) = key.split_first()?;
    rest.iter().try_fold(map.get(*first)?, |value, name| match value {
        Value::Object(map) => map.get(*name),
        Value::Array(list) => name.parse::<usize>().ok().and_then(|index| list.get(index)),
        _ => None,
    })
}
