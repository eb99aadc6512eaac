//! The configuration of a version, from the commit, its recipe, the pillar's commit, and what is known of the node.

use std::path::Path;
use std::sync::Arc;

use ring::rand::SecureRandom;
use serde_json::{Map, Value};

use super::site::{Rights, Site};
use crate::project::ids::{ObjectId, ProjectName};
use crate::project::mode::Environment;
use crate::project::pillar::template::{self, Facts, Passwords};
use crate::project::pillar::{Inputs, Pillar, check};
use crate::project::recipe::{Defaults, FILE as RECIPE, Recipe};
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::git::Repo;
use crate::sys::path::TreePath;
use crate::sys::{fs, machine};
use crate::tree::hash::Hash;

/// Where a project of makina-states keeps the defaults of its pillar, the first one that is there.
const SAMPLES: [&str; 2] = [".salt/PILLAR.sample", "PILLAR.sample"];
/// Where a schema is looked for when the recipe names none.
const SCHEMAS: [&str; 2] = ["pillar.schema", ".salt/pillar.schema"];
/// The longest password that is made up.
const LONGEST: usize = 1024;
/// What made-up passwords consist of: nothing that a shell, a URL or YAML reads otherwise.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

/// Where the parts of a configuration are read.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The project.
    pub project: &'a ProjectName,
    /// The code's repository and commit.
    pub code: Option<(&'a Repo, &'a ObjectId)>,
    /// The pillar's repository and commit.
    pub pillar: Option<(&'a Repo, &'a ObjectId)>,
}

impl Sources<'_> {
    /// Reads the configuration and checks it against what the recipe asks for.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and reason and without any value.
    pub fn read(&self, recipe: &Recipe, facts: &Facts) -> Result<Pillar> {
        let sample = self.first_of(&SAMPLES)?;
        let files = |path: &str| match self.pillar {
            Some((repo, commit)) => repo.blob_at(commit, &TreePath::new(path.as_bytes())?, fs::CONFIG_LIMIT),
            None => Ok(None),
        };
        let config = &recipe.config;
        let pillar = Pillar::read(&Inputs {
            project: self.project,
            merge: config.merge,
            defaults: &config.defaults,
            sample: sample.as_ref().map(|(file, bytes)| (file.as_str(), bytes.as_slice())),
            files: &files,
            facts,
        })?;
        if self.code.is_none() {
            return Ok(pillar);
        }
        check::required(&pillar, &config.required)?;
        let schema = match &config.schema {
            Some(path) => Some(self.wanted(path, "config.schema")?),
            None => self.first_of(&SCHEMAS)?,
        };
        if let Some((file, schema)) = schema {
            check::fits(&pillar, &file, &schema)?;
        }
        Ok(pillar)
    }

    /// The recipe of the code.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn recipe(&self, defaults: &Defaults) -> Result<Recipe> {
        match self.code_file(RECIPE)? {
            Some(bytes) => Recipe::parse_with(RECIPE, &bytes, defaults),
            None => Ok(Recipe::without_file(defaults)),
        }
    }

    /// A file of the commit that the recipe names.
    ///
    /// # Errors
    /// Of kind Invalid: it is not there.
    pub fn wanted(&self, path: &TreePath, key: &str) -> Result<(String, Vec<u8>)> {
        let name = path.to_string();
        let bytes = self.code_file(&name)?;
        let bytes = bytes.ok_or_else(|| {
            Error::invalid(format!("{RECIPE}: `{key}` names `{name}`, which is no file of the commit"))
        })?;
        Ok((name, bytes))
    }

    fn first_of(&self, paths: &[&str]) -> Result<Option<(String, Vec<u8>)>> {
        for path in paths {
            if let Some(bytes) = self.code_file(path)? {
                return Ok(Some(((*path).to_string(), bytes)));
            }
        }
        Ok(None)
    }

    fn code_file(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some((repo, commit)) = self.code else { return Ok(None) };
        repo.blob_at(commit, &TreePath::new(path.as_bytes())?, fs::CONFIG_LIMIT)
    }

    /// A short name of everything that a configuration depends on beside the pillar: what changes it changes its file's name.
    ///
    /// # Errors
    /// If the commit cannot be read.
    pub fn key(&self, recipe: &Recipe, facts: &Facts) -> Result<String> {
        let sample = self.first_of(&SAMPLES)?.map(|(_, bytes)| Hash::of(&bytes).hex());
        let project = Value::Object(facts.project.clone());
        let all = format!("{sample:?} {:?} {} {} {:?}", recipe.config, facts.environment, project, facts.grains);
        Ok(Hash::of(all.as_bytes()).hex()[..12].to_string())
    }
}

/// What is known of a node and one of its projects.
///
/// # Errors
/// Never; what cannot be found out is left out.
#[must_use]
pub fn facts(site: &Site) -> Facts {
    let place = &site.place;
    let mut facts = facts_without_site(place.name(), site.config.environment);
    let user = match &site.rights {
        Rights::OneUser => std::env::var("USER").unwrap_or_default(),
        Rights::Separate { project, .. } => project.name.clone(),
    };
    let node = place.node();
    let paths = [
        ("project_dir", place.dir().to_path_buf()),
        // What makina-states deployed from `project` runs from `run` here.
        ("project_root", place.run()),
        ("data_root", place.data()),
        ("pillar_root", place.pillar()),
        ("salt_root", place.run().join(".salt")),
        ("archives_root", place.archives()),
        ("projects_dir", node.projects().to_path_buf()),
    ];
    let paths = paths.into_iter().map(|(name, path)| (name, path.display().to_string()));
    for (name, text) in paths.chain([("user", user.clone()), ("group", user)]) {
        facts.project.insert(name.to_string(), text.into());
    }
    facts.passwords = Some(kept_passwords(site));
    facts
}

/// The same where nothing of the project's state can be read: passwords are stood for by others.
#[must_use]
pub fn facts_without_site(project: &ProjectName, environment: Environment) -> Facts {
    let grains: Map<String, Value> = machine::grains();
    let mut known = Map::new();
    known.insert("name".into(), project.as_str().into());
    known.insert("fqdn".into(), grains.get("fqdn").cloned().unwrap_or_default());
    known.insert("default_env".into(), environment.name().into());
    let placeholder: Passwords = Arc::new(|_, length| Ok("x".repeat(length.min(LONGEST))));
    Facts { environment: environment.name().into(), grains, project: known, passwords: Some(placeholder) }
}

/// Passwords that were made up for this project, each in a file of its own that only root reads: made once, the same for ever.
fn kept_passwords(site: &Site) -> Passwords {
    let dir = site.place.state().join("passwords");
    Arc::new(move |name, length| {
        let known = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !known(name) || name.is_empty() || name.starts_with('.') || name.len() > 100 {
            return Err(Error::invalid(
                "the name of a password that is to be made up has letters, digits, - _ and . only",
            ));
        }
        if !(8..=LONGEST).contains(&length) {
            return Err(Error::invalid(format!("a password that is made up has 8 to {LONGEST} characters")));
        }
        fs::ensure_dir(&dir, 0o700)?;
        let file = dir.join(name);
        if let Some(bytes) = fs::read_if_there(&file)? {
            return Ok(String::from_utf8_lossy(&bytes).trim_end().to_string());
        }
        make_password(&dir, Path::new(name), length)
    })
}

fn random_text(length: usize) -> Result<String> {
    let mut bytes = vec![0; length.min(LONGEST)];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::failed("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])).collect())
}

fn make_password(dir: &Path, name: &Path, length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::failed("the system gives no random numbers"))?;
    let password: String = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])).collect();
    let temporary = format!(".{}.{}", name.display(), uuid::Uuid::now_v7());
    fs::write_durable(&dir.join(&temporary), password.as_bytes(), 0o600)?;
    let opened = Dir::open(dir)?;
    // Whoever was first has made it: the same name is one password for everybody.
    let renamed = opened.rename_new(Path::new(&temporary), &opened, name);
    if let Err(error) = renamed {
        fs::remove_file(&dir.join(&temporary))?;
        let kept = fs::read_if_there(&dir.join(name))?.ok_or(error)?;
        return Ok(String::from_utf8_lossy(&kept).trim_end().to_string());
    }
    opened.sync()?;
    Ok(password)
}

/// A first pillar from a template of the commit: it may use the names that a pillar may, and `password()` for one that is
/// made up on the spot.
///
/// # Errors
/// Of kind Invalid, with file and line.
pub fn first_pillar(site: &Site, file: &str, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::invalid(format!("{file}: the file is not UTF-8")))?;
    template::first_pillar(file, text, &facts(site), random_text)
}
