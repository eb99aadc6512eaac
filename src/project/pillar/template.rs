//! Jinja in a pillar, as far as pillars use it: the facts of the machine and a few of Salt's functions. Salt renders Jinja
//! first and reads the result as YAML; so do we. Nothing is looked up elsewhere, no file is read, no program run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value as Shown};
use serde_json::{Map, Value};

use super::Pillar;
use crate::project::yaml::{MAX_BYTES, is_secret_word};
use crate::sys::error::{Error, Result};
use crate::sys::threads;

/// How many steps a template may take: far more than a pillar needs, far less than a second.
const FUEL: u64 = 200_000;
/// The largest file that has templates, in bytes.
const MOST_BYTES: usize = 64 << 10;
/// The engine calls itself for each operator and for each value inside of another, and bounds neither: no template of
/// [`MOST_BYTES`] that takes [`FUEL`] steps needs more stack than this. It is reserved, not used.
const STACK: usize = 1 << 30;
/// What a pillar of makina-states calls to have a password made up and kept.
const PASSWORD: &str = "mc_utils.generate_stored_password";

/// Makes up a password under a name, of so many characters, and keeps it: the same name is the same password ever after.
pub type Passwords = Arc<dyn Fn(&str, usize) -> Result<String> + Send + Sync>;

/// What is known of the node and the project when a pillar is read.
#[derive(Clone, Default)]
pub struct Facts {
    /// The node's environment.
    pub environment: String,
    /// The machine, in the words of Salt's grains: `os_family`, `fqdn`, `id`, …
    pub grains: Map<String, Value>,
    /// The project, in the words of makina-states: `name`, `user`, `project_root`, `data_root`, …
    pub project: Map<String, Value>,
    /// Where passwords are made and kept; without it a template that wants one is told that there is none.
    pub passwords: Option<Passwords>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("environment", &self.environment).finish_non_exhaustive()
    }
}

impl Facts {
    /// A grain that is a text.
    #[must_use]
    pub fn grain(&self, name: &str) -> Option<&str> {
        self.grains.get(name).and_then(Value::as_str)
    }
}

/// Whether Salt would render this text, by its first line: `#!yaml` says no, `#!jinja|yaml` yes, nothing too.
///
/// # Errors
/// If it asks for another renderer than these.
pub fn is_rendered(file: &str, text: &str) -> Result<bool> {
    let Some(rest) = text.strip_prefix("#!") else {
        return Ok(["{%", "{{", "{#"].iter().any(|sign| text.contains(sign)));
    };
    match rest.lines().next().unwrap_or("").trim() {
        "yaml" => Ok(false),
        "jinja|yaml" | "yaml|jinja" => Ok(true),
        _ => Err(Error::invalid(format!("{file}:1:1: templates of this kind are not available for a pillar"))
            .hint("#!jinja|yaml and #!yaml are; without such a line it is the former")),
    }
}

/// A rendered text, and the passwords in it that were made up.
pub type Rendered = (String, Vec<String>);

/// Renders a text; `known` is what the project's own defaults say. Whatever is not defined is an error.
///
/// # Errors
/// Of kind Invalid with file and line, and without any value.
pub fn render(file: &str, text: &str, facts: &Facts, known: &Value) -> Result<Rendered> {
    let made = Arc::new(Mutex::new(Vec::new()));
    let mut rendered = render_in(file, text, context(facts, known, &made), KNOWN_NAMES)?;
    rendered.push('\n');
    let made = made.lock().map_or_else(|_| Vec::new(), |mut made| std::mem::take(&mut *made));
    Ok((rendered, made))
}

/// Renders a file of a project with its configuration: each key of that is a name, and `config` the whole, `cfg` what
/// makina-states calls so, `grains` the machine, `mc` the deployment. Whatever is not defined is an error.
///
/// # Errors
/// Of kind Invalid with file and line, and without any value.
pub fn render_file(
    file: &str,
    text: &str,
    pillar: &Pillar,
    grains: &Map<String, Value>,
    mc: &Map<String, Value>,
) -> Result<String> {
    let plain = |value: &Value| Shown::from(Serde(value));
    let keys = pillar.config().as_object().into_iter().flatten();
    let mut context: BTreeMap<String, Shown> = keys.map(|(key, value)| (key.clone(), plain(value))).collect();
    context.insert("config".into(), plain(pillar.config()));
    context.insert("cfg".into(), plain(&Value::Object(pillar.project().clone())));
    context.insert("grains".into(), plain(&Value::Object(grains.clone())));
    context.insert("mc".into(), plain(&Value::Object(mc.clone())));
    let mut rendered =
        render_in(file, text, context, "there are the keys of the configuration, config, cfg, grains and mc")?;
    if text.ends_with('\n') {
        rendered.push('\n');
    }
    Ok(rendered)
}

/// Renders the text of a first pillar: `password(LENGTH)` is one that `make` makes up on the spot.
///
/// # Errors
/// Of kind Invalid with file and line.
pub fn first_pillar(file: &str, text: &str, facts: &Facts, random: fn(usize) -> Result<String>) -> Result<String> {
    let mut context = context(facts, &Value::Object(Map::new()), &Made::default());
    let password = Shown::from_function(move |length: Option<usize>| {
        random(length.unwrap_or(32))
            .map_err(|error| minijinja::Error::from(ErrorKind::InvalidOperation).with_source(error))
    });
    context.insert("password", password);
    context.insert("name", facts.project.get("name").map_or_else(|| Shown::from(""), |name| Shown::from(Serde(name))));
    render_in(file, text, context, "there are name, fqdn, environment, grains, cfg and password(LENGTH)")
}

/// Renders a text with these names; `hint` says which there are.
fn render_in<C: Into<Shown> + Send>(file: &str, text: &str, context: C, hint: &'static str) -> Result<String> {
    if text.len() > MOST_BYTES {
        return Err(Error::invalid(format!("{file}:1:1: a file with templates may have 64 KiB"))
            .hint("what needs none can stand in a file of its own; `#!yaml` in the first line of a pillar says that it has none"));
    }
    threads::with_stack(STACK, || render_here(file, text, context, hint))?
}

fn render_here<C: Into<Shown>>(file: &str, text: &str, context: C, hint: &'static str) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("json", |value: Shown| serde_json::to_string(&value).unwrap_or_default());
    environment.add_filter("yaml_dquote", |text: &str| Value::from(text).to_string());
    environment.add_filter("yaml_squote", |text: &str| format!("'{}'", text.replace('\'', "''")));
    let rendered = environment.template_from_named_str("template", text).and_then(|template| template.render(context));
    match rendered {
        Ok(rendered) if rendered.len() > MAX_BYTES => {
            Err(Error::invalid(format!("{file}:1:1: the file is larger than 1 MiB once it is rendered")))
        }
        Ok(rendered) => Ok(rendered),
        Err(error) => Err(refused(file, text, &error, hint)),
    }
}

fn context(facts: &Facts, known: &Value, made: &Made) -> BTreeMap<&'static str, Shown> {
    let plain = |value: &Value| Shown::from(Serde(value));
    let environment = facts.project.get("default_env").and_then(Value::as_str).unwrap_or(&facts.environment);
    let mut opts = facts.grains.clone();
    opts.insert("default_env".into(), environment.into());
    opts.insert("ms_project".into(), Value::Object(facts.project.clone()));
    let grains = Value::Object(facts.grains.clone());
    BTreeMap::from([
        ("salt", functions(facts, known, made)),
        ("grains", plain(&grains)),
        ("pillar", plain(known)),
        ("opts", plain(&Value::Object(opts))),
        ("cfg", plain(&Value::Object(facts.project.clone()))),
        ("fqdn", plain(&facts.grain("fqdn").unwrap_or_default().into())),
        ("environment", plain(&environment.into())),
    ])
}

/// Passwords that were made up.
type Made = Arc<Mutex<Vec<String>>>;

/// `salt['grains.get']` and so on.
fn functions(facts: &Facts, known: &Value, made: &Made) -> Shown {
    let get = |tree: Value| {
        Shown::from_function(move |key: &str, default: Option<Shown>, kwargs: Kwargs| {
            let default = default.or_else(|| kwargs.get("default").ok());
            let found = key.split(':').try_fold(&tree, |value, name| value.get(name));
            Ok(found.map(|value| Shown::from(Serde(value))).or(default).unwrap_or_else(|| Shown::from("")))
        })
    };
    let (passwords, made) = (facts.passwords.clone(), made.clone());
    let password = Shown::from_function(move |name: &str, length: Option<usize>, kwargs: Kwargs| {
        let length = length.or_else(|| kwargs.get("length").ok()).unwrap_or(16);
        let failed = |error: Error| minijinja::Error::from(ErrorKind::InvalidOperation).with_source(error);
        let Some(kept) = passwords.as_ref() else { return Err(failed(Error::invalid("no passwords are kept here"))) };
        let password = kept(name, length).map_err(failed)?;
        if let Ok(mut made) = made.lock() {
            made.push(password.clone());
        }
        Ok(password)
    });
    let grains = Value::Object(facts.grains.clone());
    Shown::from(BTreeMap::from([
        ("grains.get", get(grains.clone())),
        ("pillar.get", get(known.clone())),
        ("config.get", get(grains)),
        (PASSWORD, password),
    ]))
}

/// Says what is wrong in our words: what the engine says may hold values.
fn refused(file: &str, text: &str, error: &minijinja::Error, names: &'static str) -> Error {
    let line = error.line().unwrap_or(1);
    let source = text.lines().nth(line.saturating_sub(1)).unwrap_or("");
    if let Some(ours) = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Error>()) {
        return Error::invalid(format!("{file}:{line}:1: {}", ours.one_line()));
    }
    let is_missing = error.detail().is_some_and(|detail| detail.contains("undefined is not callable"));
    let (what, hint) = match error.kind() {
        ErrorKind::InvalidOperation if is_missing && source.contains("salt[") => {
            ("a function of Salt that is not available in a pillar", KNOWN_FUNCTIONS)
        }
        ErrorKind::InvalidOperation if is_missing => ("the template calls an unknown function", names),
        ErrorKind::UndefinedError => ("the template uses something that is not defined", names),
        ErrorKind::UnknownFilter => ("the template uses an unknown filter", ""),
        ErrorKind::UnknownFunction => ("the template calls an unknown function", names),
        ErrorKind::UnknownMethod => ("the template calls an unknown method", ""),
        ErrorKind::SyntaxError => ("the template has a syntax error", ""),
        ErrorKind::OutOfFuel => ("the template takes too long", "it may loop"),
        ErrorKind::TemplateNotFound | ErrorKind::BadInclude => {
            ("a template cannot include others", "includes and macros of other files are not available")
        }
        _ => ("the template cannot be rendered", ""),
    };
    let error = Error::invalid(format!("{file}:{line}:1: {what}"));
    let name = named(source).filter(|_| !is_secret_word(source));
    match (hint, name) {
        ("", None) => error,
        ("", Some(name)) => error.hint(format!("look at {name}")),
        (hint, None) => error.hint(hint),
        (hint, Some(name)) => error.hint(format!("look at {name}; {hint}")),
    }
}

const KNOWN_FUNCTIONS: &str =
    "there are grains.get, pillar.get, config.get and mc_utils.generate_stored_password; write the value out";
const KNOWN_NAMES: &str = "there are grains, pillar, opts, cfg, fqdn, environment and salt";

/// What a line calls or uses: the names that its first expression begins with, and texts only where they are keys.
fn named(line: &str) -> Option<String> {
    let at = line.find("{{").or_else(|| line.find("{%"))? + 2;
    let (mut name, mut in_key) = (String::new(), false);
    for c in line[at..].trim_start_matches(['-', '+', ' ']).chars().take(80) {
        let is_good = c.is_ascii_alphanumeric() || matches!(c, '_' | '.') || (in_key && c == '\'');
        match c {
            '[' if !in_key => in_key = true,
            ']' if in_key => in_key = false,
            _ if is_good => {}
            _ => break,
        }
        name.push(c);
    }
    (!name.is_empty()).then(|| format!("`{name}`"))
}
