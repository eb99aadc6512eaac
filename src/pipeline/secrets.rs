//! Secrets of a version: found when it is deployed, given to its programs as files on a memory file system, and where the
//! recipe says so as variables. What was found is never written to a disk; the release keeps which version each secret was of,
//! so that a rollback has the same ones again or says that it cannot.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::draft::{Draft, Version};
use super::environment::environment;
use super::halt::Step;
use super::secret_store::{MOST_BYTES, SecretStore};
use super::site::{Rights, Site};
use crate::project::ids::DeploymentId;
use crate::project::secrets::{SecretName, Source};
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::path::TreePath;
use crate::sys::process::{self, StepStatus, run_captured_in};
use crate::sys::step_exec::StepOrder;
use crate::sys::{fs, seal};

/// The file beside a release that says which secrets it was given.
const RECORD: &str = "secrets.json";
/// The largest variable, in bytes: Linux takes 128 KiB.
const MOST_OF_A_VARIABLE: usize = 100 << 10;
/// How often the directory in memory is opened again when it went away meanwhile.
const TRIES: usize = 10;
/// How long a program may take that finds a secret.
const PATIENCE: Duration = Duration::from_mins(1);

/// Which secret it was, without saying it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// A version that the project keeps.
    OfProject(SecretName, u64),
    /// A version that the node keeps.
    OfNode(SecretName, u64),
    /// What was found elsewhere: a digest that only this node can make.
    Seen(String),
}

/// Which secrets a release was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name of the directory that they were in.
    pub dir: String,
    /// Each by its name.
    pub which: BTreeMap<SecretName, Which>,
    /// Which made-up passwords its configuration has.
    #[serde(default)]
    pub passwords: BTreeMap<SecretName, u64>,
}

/// Secrets as programs are given them.
#[derive(Clone, Default)]
pub struct Given {
    /// The directory with a file for each; `None` where there is no secret.
    pub dir: Option<PathBuf>,
    /// Their values.
    values: BTreeMap<SecretName, Vec<u8>>,
    /// Which they are.
    pub record: Record,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Given({} secrets, hidden)", self.values.len())
    }
}

impl Given {
    /// A secret as the value of a variable: a text without the line feed at its end.
    #[must_use]
    pub fn variable(&self, name: &SecretName) -> Option<String> {
        let text = std::str::from_utf8(self.values.get(name)?).ok()?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        (!text.contains('\0')).then(|| text.to_string())
    }

    /// All values, for those who must keep them out of what they write.
    pub fn values(&self) -> impl Iterator<Item = String> + '_ {
        self.values.values().map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

/// What a version is given, and what is to be told about it.
#[derive(Debug)]
pub struct Found {
    /// The secrets.
    pub given: Given,
    /// What a rollback cannot bring back, a sentence each.
    pub notes: Vec<String>,
}

impl Draft<'_> {
    /// Finds what the new version and the one that serves are given, before anything changes; from here on no text holds it.
    ///
    /// # Errors
    /// Which secret cannot be had, and why.
    pub fn find_secrets(&mut self) -> Step {
        for note in self.next.find_secrets(self.site)? {
            self.warn(note);
        }
        let mut secrets = self.next.secret_values();
        if let Some(live) = self.live.as_ref().and_then(|live| live.version.as_ref()) {
            // What cannot be had any more of the old one is no reason against the new one.
            let lost = live.find_secrets(self.site).err();
            secrets.extend(live.secret_values());
            if let Some(error) = lost {
                let text = error.one_line();
                self.warn(format!("what serves cannot be started again if this fails: {text}"));
            }
        }
        self.telling.set_secrets(&secrets);
        Ok(())
    }
}

/// Finds the secrets of a version and puts them where its programs see them. Of a release that is kept, those that it was
/// given before.
///
/// # Errors
/// Of kind Invalid or Failed: which secret cannot be had, and why; never a value.
pub fn find(site: &Site, version: &Version) -> Result<Found> {
    let sources = version.pillar.secret_sources();
    refuse_unknown(version)?;
    if sources.is_empty() {
        let mut given = Given::default();
        given.record.passwords.clone_from(&version.passwords);
        return Ok(Found { given, notes: Vec::new() });
    }
    // Of a damaged record nothing is known: then the present ones are given.
    let pinned = version.release.as_ref().and_then(|id| record_of(site, id).ok().flatten());
    if let Some(given) = pinned.as_ref().and_then(|record| still_there(site, record)) {
        return Ok(Found { given, notes: Vec::new() });
    }
    let (mut given, mut notes) = (Given::default(), Vec::new());
    given.record.passwords.clone_from(&version.passwords);
    for (name, source) in sources {
        let before = pinned.as_ref().and_then(|record| record.which.get(name));
        let failed = |error: Error| {
            let hint = error.hint_text().unwrap_or("mc_project config NAME shows where the pillar says so").to_string();
            Error::new(error.kind(), format!("secret `{name}` ({}): {}", source.word(), error.one_line())).hint(hint)
        };
        let (which, value) = one(site, version, (name, source), before).map_err(failed)?;
        if value.is_empty() {
            return Err(failed(Error::invalid("it is empty")));
        }
        if value.len() > MOST_BYTES {
            return Err(failed(Error::invalid("it is larger than 1 MiB")));
        }
        refuse_as_variable(version, name, &value).map_err(failed)?;
        if let Some(note) = before.filter(|before| **before != which).map(|before| lost(name, before)) {
            notes.push(note);
        }
        given.values.insert(name.clone(), value);
        given.record.which.insert(name.clone(), which);
    }
    given.record.dir = print(site, &given.values)?[..16].to_string();
    given.dir = Some(put(site, &given)?);
    if let (Some(id), true) = (&version.release, pinned.is_some_and(|pinned| pinned != given.record)) {
        // What it is given from now on is what must stay.
        keep_record(site, id, Some(&given))?;
    }
    Ok(Found { given, notes })
}

fn lost(name: &SecretName, before: &Which) -> String {
    let why = match before {
        Which::OfProject(_, version) | Which::OfNode(_, version) => {
            format!("its version {version} is not kept any more")
        }
        Which::Seen(_) => "it is another now, and this node does not keep it".to_string(),
    };
    format!("the secret {name} cannot be brought back: {why}; the present one is used")
}

/// The recipe can ask only for what the pillar has.
fn refuse_unknown(version: &Version) -> Result<()> {
    let sources = version.pillar.secret_sources();
    let missing = version.recipe.secrets.iter().find(|(_, name)| !sources.contains_key(*name));
    let Some((variable, name)) = missing else { return Ok(()) };
    Err(Error::invalid(format!(
        "mc_project.yaml: `secrets.{variable}` is the secret `{name}`, which the pillar does not have"
    ))
    .hint(format!(
        "write it in the pillar: secrets: {{{name}: {{secret: {name}}}}}, or {{generate: 32}}, {{file: /PATH}}, …"
    )))
}

/// What the recipe wants as a variable must be able to be one (execve(2)).
fn refuse_as_variable(version: &Version, name: &SecretName, value: &[u8]) -> Result<()> {
    let Some((variable, _)) = version.recipe.secrets.iter().find(|(_, secret)| *secret == name) else { return Ok(()) };
    let why = match std::str::from_utf8(value) {
        Err(_) => "it is not UTF-8",
        Ok(text) if text.contains('\0') => "it holds a zero byte",
        Ok(text) if text.len() > MOST_OF_A_VARIABLE => "it is larger than 100 KiB",
        Ok(_) => return Ok(()),
    };
    Err(Error::invalid(format!("{why}, and cannot be the variable {variable}"))
        .hint("programs can read it from the file of its name in $MC_SECRETS_DIR"))
}

/// Which secret it is, and its value; `before` is the one that this release was given.
fn one(
    site: &Site,
    version: &Version,
    (name, source): (&SecretName, &Source),
    before: Option<&Which>,
) -> Result<(Which, Vec<u8>)> {
    let (of_project, of_node) = (SecretStore::of_project(site), SecretStore::of_node(&site.node));
    let again = match before {
        Some(Which::OfProject(name, version)) => of_project.get(name, *version)?,
        Some(Which::OfNode(name, version)) => of_node.get(name, *version)?,
        _ => None,
    };
    if let (Some(which), Some(value)) = (before, again) {
        return Ok((which.clone(), value));
    }
    let seen = |value: Vec<u8>| -> Result<(Which, Vec<u8>)> {
        let one = BTreeMap::from([(name.clone(), value.clone())]);
        Ok((Which::Seen(print(site, &one)?[..16].to_string()), value))
    };
    match source {
        Source::Here(text) => seen(text.clone().into_bytes()),
        Source::Kept(name) => {
            if let Some((version, value)) = of_project.newest(name)? {
                return Ok((Which::OfProject(name.clone(), version), value));
            }
            let found = of_node.newest(name)?;
            let project = site.place.name();
            let (version, value) = found.ok_or_else(|| {
                Error::invalid(format!("nobody has set `{name}` on this node"))
                    .hint(format!("{} secret set {name} --project {project}", site.command()))
            })?;
            Ok((Which::OfNode(name.clone(), version), value))
        }
        Source::Generate(length) => {
            let (version, value) = of_project.newest_or_made(name, *length)?;
            Ok((Which::OfProject(name.clone(), version), value))
        }
        Source::File(path) => seen(read_file(site, version, path)?),
        Source::Variable(name) => seen(variable(site, name)?.into_bytes()),
        Source::Exec { argv, input } => seen(printed_by(site, version, argv, input.as_deref())?),
        Source::Credential(name) => seen(credential(site, name)?),
    }
}

/// A file, read with the rights of the project's account: the pillar's author gets no more by a name than by a step.
fn read_file(site: &Site, version: &Version, path: &Path) -> Result<Vec<u8>> {
    if matches!(site.rights, Rights::OneUser) {
        // No other rights than ours are in play: links are followed, as everywhere.
        let bytes = fs::read_if_there(path)?;
        return bytes.ok_or_else(|| Error::invalid(format!("there is no file {}", path.display())));
    }
    let argv = ["/bin/cat".to_string(), "--".to_string(), path.display().to_string()];
    printed_by(site, version, &argv, None).map_err(|_| {
        let user = user_of(site);
        Error::invalid(format!("{user} cannot read {}", path.display()))
            .hint(format!("it is read with the rights of the project: sudo -u {user} cat {}", path.display()))
    })
}

/// Who runs what finds a secret.
fn user_of(site: &Site) -> String {
    match &site.rights {
        Rights::Separate { project, .. } => project.name.clone(),
        Rights::OneUser => process::user_name(),
    }
}

/// A variable that the node sets for this project.
fn variable(site: &Site, name: &str) -> Result<String> {
    let own = || matches!(site.rights, Rights::OneUser).then(|| std::env::var(name).ok()).flatten();
    let found = site.node.config.env.get(name).cloned().or_else(own);
    found
        .ok_or_else(|| Error::invalid(format!("the node has no variable {name}")).hint("env: {…} in node.yaml sets it"))
}

/// What a program prints: it runs as the project's user, in the box of a step, and reads a file of the pillar or nothing.
fn printed_by(site: &Site, version: &Version, argv: &[String], input: Option<&str>) -> Result<Vec<u8>> {
    let stdin = match input {
        Some(path) => {
            let commit = version.pillar_commit.as_ref().ok_or_else(|| Error::invalid("there is no pillar"))?;
            let bytes = site.pillar_repo()?.blob_at(commit, &TreePath::new(path.as_bytes())?, MOST_BYTES as u64)?;
            bytes.ok_or_else(|| Error::invalid(format!("the pillar has no file `{path}`")))?
        }
        None => Vec::new(),
    };
    let env = environment(site, &version.recipe, &version.pillar, &version.setting(site, None), &BTreeMap::new());
    let words = argv.iter().map(std::ffi::OsString::from).collect();
    let mut order = StepOrder::new(words, env.into_iter().collect(), PathBuf::from("/"));
    super::boxes::close_for_secret(site, &mut order);
    let ended = run_captured_in(&order, &stdin, PATIENCE)?;
    if ended.status != StepStatus::Ok {
        // Whatever it prints may hold a secret: nothing of that is told.
        let user = user_of(site);
        let shown = crate::sys::escape::visible(&argv[0]);
        return Err(Error::invalid(format!("{shown} ended with {}", ended.status.words()))
            .hint(format!("what it says is not told, because it may hold a secret; run it by hand as {user}")));
    }
    Ok(ended.stdout)
}

/// A credential of the machine that is meant for this project: `mc_project.NAME.CREDENTIAL` in systemd's stores. Those that
/// are encrypted are opened by systemd-creds(1).
fn credential(site: &Site, name: &SecretName) -> Result<Vec<u8>> {
    let full = format!("mc_project.{}.{name}", site.place.name());
    let root = site.place.node().root();
    for store in ["run/credstore", "etc/credstore"] {
        if let Some(bytes) = fs::read_bounded(&root.join(store).join(&full), MOST_BYTES as u64)? {
            return Ok(bytes);
        }
    }
    for store in ["run/credstore.encrypted", "etc/credstore.encrypted"] {
        let path = root.join(store).join(&full);
        if fs::exists(&path) {
            let option = format!("--name={full}");
            let args = ["decrypt", &option, &path.display().to_string(), "-"];
            let env = process::base_environment(Path::new("/nonexistent"));
            let ended = process::run_captured("systemd-creds", &args, &env, &[], PATIENCE)?;
            if ended.status == StepStatus::Ok {
                return Ok(ended.stdout);
            }
            return Err(Error::invalid(format!("systemd-creds cannot open {}", path.display())));
        }
    }
    let store = root.join("etc/credstore.encrypted");
    Err(Error::invalid(format!("there is no credential `{full}`"))
        .hint(format!("systemd-creds encrypt --name={full} - {}", store.join(&full).display())))
}

/// A digest of secrets that nobody can guess them by: it is keyed with what only this project's state holds.
fn print(site: &Site, values: &BTreeMap<SecretName, Vec<u8>>) -> Result<String> {
    let keys = SecretStore::at(site.place.state().join("secrets-key"));
    let (_, key) = keys.newest_or_made(&"key".parse()?, 64)?;
    let mut digest = blake3::Hasher::new_derive_key("mc_project secrets 1");
    digest.update(&key);
    for (name, value) in values {
        for part in [name.as_str().as_bytes(), value] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
    }
    Ok(digest.finalize().to_hex().to_string())
}

/// The directory in memory below which this project's secrets lie.
fn memory(site: &Site) -> PathBuf {
    let (root, project) = (site.place.node().root(), site.place.name().as_str());
    match site.rights {
        Rights::Separate { .. } => root.join("run/mc_project/secrets").join(project),
        Rights::OneUser => {
            let node = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
            let own = format!("mc_project-{}", rustix::process::geteuid().as_raw());
            Path::new("/dev/shm").join(own).join(&node.as_str()[..16]).join(project)
        }
    }
}

/// The directory, each part of it ours alone to write and none a link: somebody else may have put something in its place.
/// `None` where it is not there and is not to be made.
fn open_memory(site: &Site, is_made: bool) -> Result<Option<Dir>> {
    // Another project of the node may take an empty directory away in this very moment.
    for _ in 0..TRIES {
        match try_memory(site, is_made) {
            Err(error) if error.is_not_found() => {}
            other => return other,
        }
    }
    try_memory(site, is_made)
}

fn try_memory(site: &Site, is_made: bool) -> Result<Option<Dir>> {
    let path = memory(site);
    let base = match site.rights {
        Rights::Separate { .. } => site.place.node().root().join("run"),
        Rights::OneUser => PathBuf::from("/dev/shm"),
    };
    if is_made {
        fs::ensure_dir(&base, 0o755)?;
    } else if !fs::exists(&base) {
        return Ok(None);
    }
    let mut dir = Dir::open(&base)?;
    let below = path.strip_prefix(&base).map_err(|_| Error::bug("secrets lie somewhere else"))?;
    for name in below.components() {
        let name = Path::new(name.as_os_str());
        dir = match dir.stat(name)? {
            None if !is_made => return Ok(None),
            None => dir.ensure_dir(name, 0o711)?,
            Some(_) => dir.dir(name)?,
        };
        let meta = dir.stat_self()?;
        if meta.uid != rustix::process::geteuid().as_raw() || meta.mode & 0o022 != 0 {
            let shown = dir.path().display().to_string();
            return Err(Error::failed(format!("{shown} belongs to somebody else, and secrets go there"))
                .hint(format!("whoever it is blocks you: ls -ld {shown}")));
        }
    }
    Ok(Some(dir))
}

/// Puts the secrets into their directory: a file of mode 0400 each, which the project's account can read. What is there
/// already under this name is the same.
fn put(site: &Site, given: &Given) -> Result<PathBuf> {
    let memory = open_memory(site, true)?.ok_or_else(|| Error::bug("it was made"))?;
    let name = Path::new(&given.record.dir);
    let path = memory.path().join(name);
    let temporary = format!(".{}", uuid::Uuid::now_v7());
    memory.make_dir(Path::new(&temporary), 0o700)?;
    let dir = memory.dir(Path::new(&temporary))?;
    let written = (|| -> Result<()> {
        for (name, value) in &given.values {
            let mut file = dir.create_file(Path::new(name.as_str()), 0o400)?;
            std::io::Write::write_all(&mut file, value)
                .map_err(|error| Error::failed("cannot write a secret").because(error))?;
            fs::give_file(&file, site.own.uid, site.own.gid, 0o400)?;
        }
        dir.give_to(site.own.uid, site.own.gid)?;
        if memory.stat(name)?.is_some() {
            memory.exchange(Path::new(&temporary), &memory, name)
        } else {
            memory.rename_new(Path::new(&temporary), &memory, name)
        }
    })();
    if written.is_err() || memory.stat(Path::new(&temporary))?.is_some() {
        memory.remove_tree(Path::new(&temporary))?;
    }
    written.map(|()| path)
}

/// What a kept release was given, if it is all still there.
#[must_use]
pub fn recall(site: &Site, id: &DeploymentId) -> Option<Given> {
    still_there(site, &record_of(site, id).ok()??)
}

/// What a release was given, if it is all still there: then nobody is asked again.
fn still_there(site: &Site, record: &Record) -> Option<Given> {
    let memory = if record.which.is_empty() { return None } else { open_memory(site, false).ok()?? };
    let dir = memory.dir(Path::new(&record.dir)).ok()?;
    let mut values = BTreeMap::new();
    for name in record.which.keys() {
        let mut value = Vec::new();
        let file = dir.open_file(Path::new(name.as_str())).ok()?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MOST_BYTES as u64 + 1), &mut value).ok()?;
        values.insert(name.clone(), value);
    }
    // The project's account may write there: what it changed is found again instead.
    let is_same = print(site, &values).ok().is_some_and(|print| print[..16] == record.dir);
    is_same.then(|| Given { dir: Some(dir.path().to_path_buf()), values, record: record.clone() })
}

/// Records which secrets a release was given.
///
/// # Errors
/// If it cannot be written.
pub fn keep_record(site: &Site, id: &DeploymentId, given: Option<&Given>) -> Result<()> {
    let says = |given: &&Given| given.dir.is_some() || !given.record.passwords.is_empty();
    let Some(given) = given.filter(says) else { return Ok(()) };
    let dir = site.place.release(id);
    fs::ensure_dir(&dir, 0o750)?;
    fs::write_durable(&dir.join(RECORD), &seal::pretty(&given.record, "a record of secrets")?, 0o600)
}

/// Which secrets a kept release was given; `None` where it had none.
///
/// # Errors
/// If the record is damaged.
pub fn record_of(site: &Site, id: &DeploymentId) -> Result<Option<Record>> {
    seal::read(&site.place.release(id).join(RECORD))
}

/// Removes everything in memory that was given to this project.
///
/// # Errors
/// If it cannot be removed.
pub fn forget(site: &Site) -> Result<()> {
    let Some(memory) = open_memory(site, false)? else { return Ok(()) };
    for name in memory.names()? {
        memory.remove_tree(Path::new(&name))?;
    }
    // Empty now; of a node in a directory the one above may be, too.
    let path = memory.path().to_path_buf();
    for path in [Some(path.as_path()), path.parent()].into_iter().flatten() {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            let _ = Dir::open_real(parent).and_then(|parent| parent.remove_dir(Path::new(name)));
        }
    }
    Ok(())
}

/// Removes directories of secrets that nothing is given any more, and versions that no kept release was given.
///
/// # Errors
/// If something cannot be read or removed.
pub fn forget_old(site: &Site, kept: &[DeploymentId], live: Option<&DeploymentId>) -> Result<()> {
    let mut records = Vec::new();
    for id in kept {
        match record_of(site, id) {
            Ok(record) => records.extend(record),
            // Nobody knows which versions it was given: all stay.
            Err(error) => {
                tracing::warn!("{}", error.one_line());
                return Ok(());
            }
        }
    }
    let store = SecretStore::of_project(site);
    let is_given = |name: &SecretName, version: u64| {
        let which = Which::OfProject(name.clone(), version);
        records.iter().any(|record| {
            record.which.values().any(|given| *given == which) || record.passwords.get(name) == Some(&version)
        })
    };
    for kept in store.list()? {
        let newest = kept.versions.last().copied();
        for version in kept.versions.iter().filter(|version| Some(**version) != newest) {
            if !is_given(&kept.name, *version) {
                store.remove(&kept.name, *version)?;
            }
        }
    }
    let live = live.map(|id| record_of(site, id)).transpose()?.flatten();
    if let Some(memory) = open_memory(site, false)? {
        for name in memory.names()? {
            if live.as_ref().is_none_or(|live| name.as_os_str() != live.dir.as_str()) {
                memory.remove_tree(Path::new(&name))?;
            }
        }
    }
    Ok(())
}
