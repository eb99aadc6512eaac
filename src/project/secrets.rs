//! Secrets: values that the pillar names instead of holding, each by where the node finds it when it deploys.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The words of [`Source`], for errors.
const SOURCES: &str = "a text, or one of {secret: NAME}, {generate: LENGTH}, {file: /PATH}, {env: VARIABLE}, \
                       {exec: [PROGRAM, …], input: FILE-OF-THE-PILLAR}, {credential: NAME}";
/// How long a secret that is made up may be.
pub const LENGTHS: std::ops::RangeInclusive<u64> = 8..=1024;

/// The name of a secret: letters, digits, `_`, `-` and `.`, at most 64.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SecretName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let good = (1..=64).contains(&text.len()) && text.bytes().all(letter) && !text.starts_with(['.', '-']);
        if good {
            return Ok(Self(text.to_string()));
        }
        Err(Error::usage(format!("`{}` is no name of a secret", visible_bounded(text.as_bytes(), 80)))
            .hint("at most 64 letters, digits, _, - and ., not beginning with - or ."))
    }
}

impl TryFrom<String> for SecretName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

/// Where a secret comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// The pillar itself.
    Here(String),
    /// What `secret set` has kept, for the project or for the whole node.
    Kept(SecretName),
    /// Made up with so many characters when it is first needed, and kept.
    Generate(usize),
    /// A file of the node, by its absolute path.
    File(PathBuf),
    /// A variable that the node has for the project.
    Variable(String),
    /// What a program prints, which may read a file of the pillar.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// The file that it reads as its standard input.
        input: Option<String>,
    },
    /// A credential of systemd (systemd.exec(5), "Credentials").
    Credential(SecretName),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Source {
    /// What it is called.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Here(_) => "pillar",
            Self::Kept(_) => "secret",
            Self::Generate(_) => "generate",
            Self::File(_) => "file",
            Self::Variable(_) => "env",
            Self::Exec { .. } => "exec",
            Self::Credential(_) => "credential",
        }
    }

    /// Reads the value of a key below `secrets`.
    ///
    /// # Errors
    /// The message, without any value.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let wrong = || format!("a secret is {SOURCES}");
        let map = match value {
            Value::String(text) => return Ok(Self::Here(text.clone())),
            Value::Object(map) => map,
            _ => return Err(wrong()),
        };
        let mut words = map.iter().filter(|(key, _)| *key != "input");
        let (Some((word, what)), None) = (words.next(), words.next()) else { return Err(wrong()) };
        if map.contains_key("input") && word != "exec" {
            return Err("only `exec` has an `input`".to_string());
        }
        let text = || what.as_str().filter(|text| !text.is_empty()).ok_or_else(wrong);
        let name = || text()?.parse::<SecretName>().map_err(|error| error.message().to_string());
        match word.as_str() {
            "secret" => Ok(Self::Kept(name()?)),
            "credential" => Ok(Self::Credential(name()?)),
            "file" => match text()? {
                path if path.starts_with('/') && !path.contains('\0') => Ok(Self::File(PathBuf::from(path))),
                _ => Err("`file` is an absolute path".to_string()),
            },
            "env" => Ok(Self::Variable(text()?.to_string())),
            "generate" => match what.as_u64().filter(|length| LENGTHS.contains(length)) {
                Some(length) => Ok(Self::Generate(usize::try_from(length).unwrap_or(32))),
                None => Err(format!("`generate` is a length from {} to {}", LENGTHS.start(), LENGTHS.end())),
            },
            "exec" => {
                let words = what.as_array().ok_or("`exec` is a list: the program and its arguments")?;
                let argv: Option<Vec<String>> = words.iter().map(|word| Some(word.as_str()?.to_string())).collect();
                let argv = argv.filter(|argv| argv.first().is_some_and(|program| !program.is_empty()));
                let argv = argv.ok_or("`exec` is a list of texts: the program and its arguments")?;
                let input = map.get("input").map(|input| input.as_str().ok_or("`input` is a file of the pillar"));
                Ok(Self::Exec { argv, input: input.transpose()?.map(ToString::to_string) })
            }
            _ => Err(wrong()),
        }
    }
}

/// The secrets of a configuration, by name.
pub type Sources = BTreeMap<SecretName, Source>;

/// Reads `secrets` of a configuration.
///
/// # Errors
/// The way of keys to what is wrong, and the message.
pub fn parse(config: &Value) -> Result<Sources, (Vec<String>, String)> {
    let map = match config.get("secrets") {
        None | Some(Value::Null) => return Ok(Sources::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err((vec!["secrets".into()], "`secrets` is a mapping of names".into())),
    };
    let mut sources = Sources::new();
    for (name, value) in map {
        let at = |message: String| (vec!["secrets".to_string(), name.clone()], message);
        let parsed = name.parse::<SecretName>().map_err(|error| at(error.message().to_string()))?;
        sources.insert(parsed, Source::parse(value).map_err(at)?);
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Source, parse};

    #[test]
    fn each_kind_of_source_is_read_and_nothing_else() {
        let config = json!({"secrets": {
            "here": "canary-here", "kept": {"secret": "db"}, "made": {"generate": 32}, "file": {"file": "/etc/key"},
            "env": {"env": "TOKEN"}, "exec": {"exec": ["age", "-d"], "input": "key.age"}, "unit": {"credential": "tls"},
        }});
        let sources = parse(&config).unwrap();
        let words: Vec<&str> = sources.values().map(Source::word).collect();
        assert_eq!(words, ["env", "exec", "file", "pillar", "secret", "generate", "credential"]);
        assert!(!format!("{sources:?}").contains("canary"));
        assert!(parse(&json!({})).unwrap().is_empty() && parse(&json!({"secrets": null})).unwrap().is_empty());
        for (bad, words) in [
            (json!({"a": 5}), "a secret is a text, or one of"),
            (json!({"a": {"flie": "/x"}}), "a secret is a text, or one of"),
            (json!({"a": {"file": "canary"}}), "`file` is an absolute path"),
            (json!({"a": {"file": "/x", "env": "Y"}}), "a secret is a text, or one of"),
            (json!({"a": {"env": "X", "input": "y"}}), "only `exec` has an `input`"),
            (json!({"a": {"exec": "age -d"}}), "`exec` is a list"),
            (json!({"a": {"exec": []}}), "`exec` is a list of texts"),
            (json!({"a": {"generate": 4}}), "from 8 to 1024"),
            (json!({"../a": "x"}), "is no name of a secret"),
            (json!({"a": {"secret": "-x"}}), "is no name of a secret"),
        ] {
            let (way, message) = parse(&json!({"secrets": bad})).unwrap_err();
            assert!(message.contains(words) && !message.contains("canary"), "{bad}: {message}");
            assert_eq!(way.len(), 2);
        }
        assert_eq!(parse(&json!({"secrets": []})).unwrap_err().0, ["secrets"]);
    }
}
