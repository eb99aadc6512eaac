//! The configuration of a version, from the commit, its recipe, the pillar's commit, and what is known of the node.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};

use super::salt;
use super::secret_store::{SecretStore, made_up};
use super::site::{Rights, Site};
use crate::project::ids::{ObjectId, ProjectName};
use crate::project::mode::Environment;
use crate::project::pillar::check::{self, Misfits};
use crate::project::pillar::template::{self, Facts, Passwords};
use crate::project::pillar::{Inputs, Pillar};
use crate::project::recipe::{Defaults, FILE as RECIPE, Recipe};
use crate::project::secrets::{LENGTHS, SecretName};
use crate::project::system::System;
use crate::sys::error::{Context, Error, Result};
use crate::sys::git::Repo;
use crate::sys::path::TreePath;
use crate::sys::process::StepStatus;
use crate::sys::{fs, machine, process};
use crate::tree::hash::Hash;

/// Where a project of makina-states keeps the defaults of its pillar, the first one that is there.
const SAMPLES: [&str; 2] = [".salt/PILLAR.sample", "PILLAR.sample"];
/// Where a schema is looked for when the recipe names none.
const SCHEMAS: [&str; 2] = ["pillar.schema", ".salt/pillar.schema"];

/// Who runs the states of a project without a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The project's own account.
    Project,
    /// Root, because `node.yaml` says so.
    Root,
}

impl Trust {
    /// What holds for a project: in a directory node everything is one user's anyway.
    #[must_use]
    pub fn of(site: &Site) -> Self {
        match site.rights {
            Rights::Separate { .. } if site.config.trust_root => Self::Root,
            _ => Self::Project,
        }
    }
}

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
    /// Reads the configuration; with it comes a short name of everything that it depends on beside the pillar: what changes
    /// that changes the name of its file.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and reason and without any value.
    pub fn read(&self, recipe: &Recipe, facts: &Facts) -> Result<(Pillar, String)> {
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
        let sample = sample.map(|(_, bytes)| Hash::of(&bytes).hex());
        // What is known counts only where something asks for it.
        let known = if pillar.uses_facts() { format!("{:?} {:?}", facts.project, facts.grains) } else { String::new() };
        let all = format!("{sample:?} {config:?} {} {known}", facts.environment);
        Ok((pillar, Hash::of(all.as_bytes()).hex()[..12].to_string()))
    }

    /// Holds a configuration against what the recipe asks of it.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and reason and without any value.
    pub fn check(&self, recipe: &Recipe, pillar: &Pillar) -> Result<()> {
        if self.code.is_none() {
            return Ok(());
        }
        let config = &recipe.config;
        check::required(pillar, &config.required)?;
        let schema = match &config.schema {
            Some(path) => Some(self.wanted(path, "config.schema")?),
            None => self.first_of(&SCHEMAS)?,
        };
        let Some((file, schema)) = schema else { return Ok(()) };
        let schema = check::read_schema(&file, &schema)?;
        check::refuse(pillar, &file, &held_against(pillar.config(), &file, &schema)?)
    }

    /// The recipe of the code: its `mc_project.yaml`, else what its `.salt` means, which root runs where the project is trusted
    /// so far.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn recipe(&self, defaults: &Defaults, trust: Trust) -> Result<Recipe> {
        if let Some(bytes) = self.code_file(RECIPE)? {
            return Recipe::parse_with(RECIPE, &bytes, defaults);
        }
        let names = match self.code {
            Some((repo, commit)) => salt::names_of(repo, commit)?,
            None => Vec::new(),
        };
        let of_salt = Recipe::of_salt(&names, trust == Trust::Root, defaults)?;
        Ok(of_salt.unwrap_or_else(|| Recipe::without_file(defaults)))
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
}

/// The hidden command that holds a configuration against a schema.
pub const SCHEMA_CHECK: &str = "schema-check";
/// How long that may take, and how much memory.
const SCHEMA_TIME: Duration = Duration::from_secs(10);
const SCHEMA_MEMORY: u64 = 512 << 20;

/// Asks a process of its own, which can be ended: a small schema may ask for more than there is of time and memory.
fn held_against(config: &Value, file: &str, schema: &Value) -> Result<Misfits> {
    let doing = || format!("cannot check {file}");
    let asked = serde_json::to_vec(&(config, schema)).context(doing)?;
    let env = process::base_environment(Path::new("/nonexistent"));
    let ended = process::run_captured(process::self_exe(), &[SCHEMA_CHECK], &env, &asked, SCHEMA_TIME)?;
    match ended.status {
        StepStatus::Ok => serde_json::from_slice(&ended.stdout).context(doing),
        status => Err(Error::invalid(format!(
            "{file}: the schema asks for too much: its check ended with {}",
            status.words()
        ))
        .hint("definitions that refer to each other many times multiply")),
    }
}

/// The hidden `schema-check`: reads configuration and schema, and answers what does not fit.
///
/// # Errors
/// If nobody asks as [`Sources::check`] does.
pub fn schema_check() -> Result<u8> {
    let doing = || "cannot check a schema".to_string();
    crate::sys::step_exec::limit_memory(SCHEMA_MEMORY);
    let mut asked = Vec::new();
    std::io::stdin().lock().read_to_end(&mut asked).context(doing)?;
    let (config, schema): (Value, Value) = serde_json::from_slice(&asked).context(doing)?;
    let answer = serde_json::to_vec(&check::misfits(&config, schema)).context(doing)?;
    std::io::stdout().lock().write_all(&answer).context(doing)?;
    Ok(0)
}

/// What is known of a node and one of its projects.
///
/// # Errors
/// If the machine cannot be asked.
pub fn facts(site: &Site, passwords: &PasswordVersions) -> Result<Facts> {
    let place = &site.place;
    let user = match &site.rights {
        // By the account, not by the environment: a hook has another one than a person.
        Rights::OneUser => process::user_name(),
        Rights::Separate { project, .. } => project.name.clone(),
    };
    let mut facts = facts_without_site(place.name(), site.config.environment, place.dir())?;
    for name in ["user", "group"] {
        facts.project.insert(name.to_string(), user.clone().into());
    }
    facts.passwords = Some(kept_passwords(site, passwords.clone()));
    Ok(facts)
}

/// The same where nothing of the project's state can be read: passwords and accounts are stood for by others.
///
/// # Errors
/// If the machine cannot be asked.
pub fn facts_without_site(project: &ProjectName, environment: Environment, dir: &Path) -> Result<Facts> {
    let grains = machine::grains()?.clone();
    let mut known = Map::new();
    let account = System::project_account(project);
    let texts =
        [("name", project.as_str()), ("user", &account), ("group", &account), ("default_env", environment.name())];
    for (name, text) in texts {
        known.insert(name.to_string(), text.into());
    }
    known.insert("fqdn".into(), grains.get("fqdn").cloned().unwrap_or_default());
    let run = dir.join("run");
    let paths = [
        ("project_dir", dir.to_path_buf()),
        // What makina-states deployed from `project` runs from `run` here.
        ("project_root", run.clone()),
        ("salt_root", run.join(".salt")),
        ("data_root", dir.join("data")),
        ("pillar_root", dir.join("pillar")),
        ("archives_root", dir.join("archives")),
        ("projects_dir", dir.parent().unwrap_or(dir).to_path_buf()),
    ];
    known.extend(paths.map(|(name, path)| (name.to_string(), path.display().to_string().into())));
    let placeholder: Passwords = Arc::new(|name, length| {
        good_password(name, length)?;
        Ok("x".repeat(length))
    });
    Ok(Facts { environment: environment.name().into(), grains, project: known, passwords: Some(placeholder) })
}

/// The name of a password that may be made up with so many characters.
fn good_password(name: &str, length: usize) -> Result<SecretName> {
    if !u64::try_from(length).is_ok_and(|length| LENGTHS.contains(&length)) {
        let (least, most) = (LENGTHS.start(), LENGTHS.end());
        return Err(Error::invalid(format!("a password that is made up has {least} to {most} characters")));
    }
    name.parse().map_err(|error: Error| Error::invalid(error.message()))
}

/// Which version of each made-up password a configuration was given. It is filled while templates are rendered; of a kept
/// release it is what that one was given.
#[derive(Debug, Clone, Default)]
pub struct PasswordVersions(Arc<Mutex<BTreeMap<SecretName, u64>>>);

impl PasswordVersions {
    /// What a kept release was given.
    #[must_use]
    pub fn before(versions: BTreeMap<SecretName, u64>) -> Self {
        Self(Arc::new(Mutex::new(versions)))
    }

    /// The versions.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<SecretName, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, name: SecretName, version: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, version);
    }
}

/// Passwords that were made up for this project: made once, kept as its secrets are.
fn kept_passwords(site: &Site, given: PasswordVersions) -> Passwords {
    let store = SecretStore::of_project(site);
    Arc::new(move |name, length| {
        let name = good_password(name, length)?;
        let before = match given.versions().get(&name) {
            Some(version) => store.get(&name, *version)?.map(|password| (*version, password)),
            None => None,
        };
        let (version, password) = before.map_or_else(|| store.newest_or_made(&name, length), Ok)?;
        given.note(name, version);
        Ok(String::from_utf8_lossy(&password).trim_end().to_string())
    })
}

/// A first pillar from a template of the commit: it may use the names that a pillar may, and `password()` for one that is
/// made up on the spot.
///
/// # Errors
/// Of kind Invalid, with file and line.
pub fn first_pillar(site: &Site, file: &str, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::invalid(format!("{file}: the file is not UTF-8")))?;
    template::first_pillar(file, text, &facts(site, &PasswordVersions::default())?, made_up)
}
