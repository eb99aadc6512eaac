//! What the recipe asks of a configuration: keys that must be there, and a JSON Schema that it must fit. Nothing is fetched: a
//! schema that refers to another file is refused.

use boon::{Compiler, ErrorKind, InstanceToken, Schemas, UrlLoader, ValidationError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Pillar;
use super::layers::get;
use crate::project::yaml::Source;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The name under which the schema is known to the engine.
const URL: &str = "mc:///pillar.schema";
/// What to do about a key that is missing.
const REQUIRED_HINT: &str =
    "config: {required: […]} in the recipe asks for it; push init.sls to the repository git/pillar first";
/// How many complaints are told at once.
const MOST: usize = 10;

/// Checks that the keys are there, and not empty.
///
/// # Errors
/// Of kind Invalid, naming every key that is missing.
pub fn required(pillar: &Pillar, keys: &[String]) -> Result<()> {
    let config = pillar.config().as_object();
    let is_missing = |key: &&String| {
        let names: Vec<&str> = key.split('.').collect();
        let found = config.and_then(|config| get(config, &names));
        found.is_none_or(|value| value.is_null() || value.as_str().is_some_and(str::is_empty))
    };
    let missing: Vec<String> = keys.iter().filter(is_missing).map(|key| format!("`{key}`")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let words = if missing.len() == 1 { "is required and is" } else { "are required and are" };
    let message = format!("{} {words} not set", missing.join(", "));
    let names: Vec<&str> =
        keys.iter().find(|key| is_missing(key)).map(|key| key.split('.').collect()).unwrap_or_default();
    Err(pillar.error_at(&names, &message).hint(REQUIRED_HINT))
}

/// What a configuration does not fit, each with the way of keys to it and without any value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misfits {
    /// Why the schema is none; then nothing was checked.
    pub no_schema: Option<String>,
    /// What does not fit.
    pub complaints: Vec<(Vec<String>, String)>,
}

/// Holds a configuration against a JSON Schema. It takes as long as the schema likes: whoever asks must be able to end it.
#[must_use]
pub fn misfits(config: &Value, schema: Value) -> Misfits {
    let bad = |error: &dyn std::fmt::Display| {
        let text = visible_bounded(error.to_string().as_bytes(), 300);
        Misfits { no_schema: Some(text), complaints: Vec::new() }
    };
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.use_loader(Box::new(Nowhere));
    if let Err(error) = compiler.add_resource(URL, schema) {
        return bad(&error);
    }
    let index = match compiler.compile(URL, &mut schemas) {
        Ok(index) => index,
        Err(error) => return bad(&error),
    };
    let mut found = Misfits::default();
    if let Err(error) = schemas.validate(config, index) {
        collect(&error, &mut found.complaints);
    }
    found.complaints.dedup();
    found.complaints.truncate(MOST + 1);
    found
}

/// Reads a schema, which is written as JSON or YAML.
///
/// # Errors
/// Of kind Invalid, with file, line and column.
pub fn read_schema(file: &str, schema: &[u8]) -> Result<Value> {
    Source::new(file, schema)?.read()
}

/// Says what does not fit, at its place in the pillar.
///
/// # Errors
/// Of kind Invalid, unless everything fits.
pub fn refuse(pillar: &Pillar, file: &str, misfits: &Misfits) -> Result<()> {
    if let Some(why) = &misfits.no_schema {
        return Err(Error::invalid(format!("{file}: this is no JSON Schema: {}", why.replace(URL, file))));
    }
    let mut told: Vec<Error> = Vec::new();
    for (key, message) in &misfits.complaints {
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let shown = visible_bounded(key.join(".").as_bytes(), 200);
        let at = if key.is_empty() { String::new() } else { format!("`{shown}`: ") };
        told.push(pillar.error_at(&key, &format!("{at}{message}")));
    }
    let mut lines = told.iter().map(Error::message);
    let Some(first) = lines.next() else { return Ok(()) };
    let mut hint: Vec<String> = lines.take(MOST).map(ToString::to_string).collect();
    hint.push(format!("{file} says what it must be"));
    Err(Error::invalid(first.to_string()).hint(hint.join("\n")))
}

/// No schema comes from anywhere else.
struct Nowhere;

impl UrlLoader for Nowhere {
    fn load(&self, url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err(format!("`{url}` is another schema, which is not fetched").into())
    }
}

/// The complaints that have no others below them, each with the way of keys to what it is about.
fn collect(error: &ValidationError<'_, '_>, all: &mut Vec<(Vec<String>, String)>) {
    if !error.causes.is_empty() {
        error.causes.iter().for_each(|cause| collect(cause, all));
        return;
    }
    let key = error.instance_location.tokens.iter().map(|token| match token {
        InstanceToken::Prop(name) => name.to_string(),
        InstanceToken::Item(index) => index.to_string(),
    });
    all.push((key.collect(), words(&error.kind)));
}

/// A complaint without any value of the configuration, which may be secret; what the schema says may be told.
fn words(kind: &ErrorKind<'_, '_>) -> String {
    let names = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match kind {
        ErrorKind::Type { got, want } => {
            let want: Vec<String> = want.iter().map(|kind| kind.to_string()).collect();
            format!("must be {}, and is {got}", want.join(" or "))
        }
        ErrorKind::Required { want } => format!("{} must be set", names(want)),
        ErrorKind::AdditionalProperties { got } => {
            let got: Vec<&str> = got.iter().map(AsRef::as_ref).collect();
            format!("{} is not known here", visible_bounded(names(&got).as_bytes(), 200))
        }
        ErrorKind::Enum { want } => {
            let want: Vec<String> = want.iter().map(ToString::to_string).collect();
            format!("must be one of {}", want.join(", "))
        }
        ErrorKind::Const { want } => format!("must be {want}"),
        ErrorKind::Pattern { want, .. } => format!("must fit the pattern {want}"),
        ErrorKind::Format { want, .. } => format!("must be a {want}"),
        ErrorKind::MinLength { want, .. } => format!("must have at least {want} characters"),
        ErrorKind::MaxLength { want, .. } => format!("must have at most {want} characters"),
        ErrorKind::MinItems { want, .. } => format!("must have at least {want} entries"),
        ErrorKind::MaxItems { want, .. } => format!("must have at most {want} entries"),
        ErrorKind::Minimum { want, .. } => format!("must be at least {want}"),
        ErrorKind::Maximum { want, .. } => format!("must be at most {want}"),
        ErrorKind::ExclusiveMinimum { want, .. } => format!("must be more than {want}"),
        ErrorKind::ExclusiveMaximum { want, .. } => format!("must be less than {want}"),
        ErrorKind::MultipleOf { want, .. } => format!("must be a multiple of {want}"),
        ErrorKind::UniqueItems { .. } => "has an entry twice".to_string(),
        ErrorKind::DependentRequired { missing, .. } | ErrorKind::Dependency { missing, .. } => {
            format!("{} must be set too", names(missing))
        }
        _ => "does not fit".to_string(),
    }
}
