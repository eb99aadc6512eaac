//! The pillar: a project's private configuration, `init.sls` of its pillar repository.
//!
//! It is full of secrets: nothing here prints a value, and no error quotes a line of it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::ids::ProjectName;
use super::yaml::locate::Step as Way;
use super::yaml::scalar::{check_value, check_variable};
use super::yaml::{Source, is_secret_word};
use crate::sys::error::{Error, Result};

/// The name of the pillar's file at the root of its repository.
pub const FILE: &str = "init.sls";

/// The shortest value that is taken for a secret; shorter ones stand in too many other texts.
const MIN_SECRET: usize = 8;

/// A project's private configuration.
#[derive(Clone, Default, PartialEq)]
pub struct Pillar {
    config: Value,
    exports: BTreeMap<String, String>,
    secrets: Vec<(String, String)>,
}

impl fmt::Debug for Pillar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pillar({} exports, {} secrets, hidden)", self.exports.len(), self.secrets.len())
    }
}

impl Pillar {
    /// The pillar of a project that has none.
    #[must_use]
    pub fn empty() -> Self {
        Self { config: Value::Object(Map::new()), ..Self::default() }
    }

    /// Reads a pillar.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column and without any value.
    pub fn parse(file: &str, bytes: &[u8], project: &ProjectName) -> Result<Self> {
        // Salt takes a file without a document for one without data, and `init` writes one of comments only.
        let is_blank = |line: &[u8]| matches!(line.trim_ascii_start().first(), None | Some(b'#'));
        refuse_templates(file, bytes)?;
        if bytes.split(|b| *b == b'\n').all(is_blank) {
            return Ok(Self::empty());
        }
        let source = Source::new_secret(file, bytes)?;
        let document = source.read()?;
        let mut secrets = Vec::new();
        collect_secrets(&document, "", false, &mut secrets);
        let (config, way) = configuration(document, project, &source)?;
        let exports = exports(&config, &way, &source)?;
        Ok(Self { config, exports, secrets })
    }

    /// The configuration of the project, an object.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The variables that steps are given: the pillar's `env`.
    #[must_use]
    pub fn exports(&self) -> BTreeMap<String, String> {
        self.exports.clone()
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
        match value {
            Value::String(text) if self.secrets.iter().any(|(_, secret)| secret == text) => {
                *text = "********".to_string();
            }
            Value::Array(list) => list.iter_mut().for_each(|value| self.mask(value)),
            Value::Object(map) => map.values_mut().for_each(|value| self.mask(value)),
            _ => {}
        }
    }
}

/// Finds in the file what belongs to the project, and where: below `makina-projects.<name>`, if there is such a key,
/// its `data` over the mapping itself; else the whole file.
fn configuration(document: Value, project: &ProjectName, source: &Source<'_>) -> Result<(Value, Vec<String>)> {
    let Value::Object(mut document) = document else {
        return Err(source.error_at(&[], "expected a mapping"));
    };
    let key = format!("makina-projects.{project}");
    let Some(own) = document.shift_remove(&key) else { return Ok((Value::Object(document), Vec::new())) };
    let Value::Object(mut own) = own else {
        return Err(source.error_at(&[Way::Key(&key)], "expected a mapping"));
    };
    let mut way = vec![key];
    match own.shift_remove("data") {
        None | Some(Value::Null) => {}
        Some(Value::Object(data)) => {
            if data.contains_key("env") {
                way.push("data".into());
            }
            own.extend(data);
        }
        Some(_) => return Err(source.error_at(&[Way::Key(&way[0]), Way::Key("data")], "expected a mapping")),
    }
    Ok((Value::Object(own), way))
}

fn exports(config: &Value, way: &[String], source: &Source<'_>) -> Result<BTreeMap<String, String>> {
    let mut place: Vec<Way<'_>> = way.iter().map(|key| Way::Key(key)).collect();
    place.push(Way::Key("env"));
    let env = match config.get("env") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(env)) => env,
        Some(_) => return Err(source.error_at(&place, "`env` must be a mapping of variables")),
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
        let text = text.map_err(|message| {
            place.push(Way::Key(name));
            source.error_at(&place, &message)
        })?;
        exports.insert(name.clone(), text);
    }
    Ok(exports)
}

/// Collects the texts below keys that speak of something secret.
fn collect_secrets(value: &Value, way: &str, is_secret: bool, found: &mut Vec<(String, String)>) {
    let below = |key: &str| if way.is_empty() { key.to_string() } else { format!("{way}.{key}") };
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
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

/// Salt would render these; taken as they stand they would mean something else.
fn refuse_templates(file: &str, bytes: &[u8]) -> Result<()> {
    let renderer = bytes.strip_prefix(b"#!").map(|rest| rest.split(|b| *b == b'\n').next().unwrap_or(b"").trim_ascii());
    let found = ["{%", "{{"].iter().filter_map(|sign| memchr::memmem::find(bytes, sign.as_bytes())).min();
    let at = match (renderer, found) {
        (Some(renderer), _) if renderer != b"yaml" => 0,
        (_, Some(at)) => at,
        (_, None) => return Ok(()),
    };
    let before = &bytes[..at];
    let line = 1 + memchr::memchr_iter(b'\n', before).count();
    let column = 1 + before.rsplit(|b| *b == b'\n').next().map_or(0, <[u8]>::len);
    Err(Error::invalid(format!("{file}:{line}:{column}: templates in the pillar are not available in this version"))
        .hint("write the values out; a value that holds {{ or {% cannot be kept in this file"))
}

#[cfg(test)]
mod tests {
    use super::{FILE, Pillar};
    use crate::sys::error::{Kind, Result};

    fn parse(text: &str) -> Result<Pillar> {
        Pillar::parse(FILE, text.as_bytes(), &"shop".parse().unwrap())
    }

    const WHOLE: &str = "\
makina-projects.shop:
  default_env: staging
  env: {A: outer}
  data:
    env: {DATABASE_URL: 'postgres://u:canary-1@db', DEBUG: false, WORKERS: 4}
    db_password: canary-2-x
    short_password: abc
    secrets: {one: canary-3-x, two: [canary-4-x]}
    plain: not-a-thing-to-hide
makina-projects.other:
  data: {API_KEY: canary-5-x}
";

    #[test]
    fn data_of_the_projects_own_key_is_the_configuration() {
        let pillar = parse(WHOLE).unwrap();
        assert_eq!(pillar.config()["plain"], "not-a-thing-to-hide");
        assert_eq!(pillar.config()["default_env"], "staging");
        assert!(pillar.config().get("makina-projects.other").is_none());
        let exports = pillar.exports();
        assert_eq!(exports["DATABASE_URL"], "postgres://u:canary-1@db");
        assert_eq!((exports["DEBUG"].as_str(), exports["WORKERS"].as_str(), exports.len()), ("false", "4", 3));
        assert_eq!(parse("a: 1\n").unwrap().config()["a"], 1);
        assert_eq!(parse("").unwrap(), Pillar::empty());
        assert!(parse("# nothing yet\n\n").unwrap().config().is_object());
    }

    #[test]
    fn secrets_are_found_in_the_whole_file_and_never_printed() {
        let pillar = parse(WHOLE).unwrap();
        let secrets = pillar.secrets();
        let values: Vec<&str> = secrets.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["canary-2-x", "canary-3-x", "canary-4-x", "canary-5-x"]);
        assert_eq!(secrets[2].0, "makina-projects.shop.data.secrets.two.0");
        assert!(!format!("{pillar:?}").contains("canary"));
    }

    #[test]
    fn errors_name_the_place_and_never_quote_the_file() {
        let cases = [
            ("a: canary\nb: {{ salt }}\n", "2:4: ", "templates in the pillar are not available"),
            ("{% set x = 'canary' %}\n", "1:1: ", "templates"),
            ("#!py\ncanary: 1\n", "1:1: ", "templates"),
            ("a: canary\na: canary\n", "2:1: ", "stands here twice"),
            ("5: canary\n", "1:1: ", "a key that is a text"),
            ("[canary]\n", "1:1: ", "expected a mapping"),
            ("a: !canary canary\n", "1:4: ", "tag"),
            ("a: 'canary\n", "2:1: ", "while scanning a quoted scalar"),
            ("makina-projects.shop: canary\n", "1:1: ", "expected a mapping"),
            ("makina-projects.shop:\n  data: canary\n", "2:3: ", "expected a mapping"),
            ("makina-projects.shop:\n  data:\n    env: {PATH: canary}\n", "3:11: ", "`PATH` may not be set"),
            ("env: {lower: canary}\n", "1:7: ", "no name of a variable"),
            ("env: {A: 1.10}\n", "1:7: ", "put it in quotes"),
            ("env: canary\n", "1:1: ", "must be a mapping"),
        ];
        for (text, place, words) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().starts_with(&format!("{FILE}:{place}")), "{text:?}: {error}");
            assert!(error.message().contains(words), "{text:?}: {error}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }
}
