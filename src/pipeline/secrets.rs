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
use crate::sys::process::{StepStatus, run_captured_in};
use crate::sys::step_exec::StepOrder;
use crate::sys::{fs, seal};

/// The file beside a release that says which secrets it was given.
const RECORD: &str = "secrets.json";
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
            if let Err(error) = live.find_secrets(self.site) {
                tracing::warn!("of what serves: {}", error.one_line());
            }
            secrets.extend(live.secret_values());
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
        return Ok(Found { given: Given::default(), notes: Vec::new() });
    }
    let pinned = version.release.as_ref().map(|id| record_of(site, id)).transpose()?.flatten();
    if let Some(given) = pinned.as_ref().and_then(|record| still_there(site, record)) {
        return Ok(Found { given, notes: Vec::new() });
    }
    let (mut given, mut notes) = (Given::default(), Vec::new());
    for (name, source) in sources {
        let before = pinned.as_ref().and_then(|record| record.which.get(name));
        let failed = |error: Error| {
            let hint = error.hint_text().unwrap_or("mc_project config NAME shows where the pillar says so").to_string();
            Error::new(error.kind(), format!("secret `{name}` ({}): {}", source.word(), error.one_line())).hint(hint)
        };
        let (which, value) = one(site, version, (name, source), before).map_err(failed)?;
        if value.is_empty() || value.len() > MOST_BYTES {
            return Err(failed(Error::invalid("it is empty, or larger than 1 MiB")));
        }
        if let Some(note) = before.filter(|before| **before != which).map(|before| lost(name, before)) {
            notes.push(note);
        }
        given.values.insert(name.clone(), value);
        given.record.which.insert(name.clone(), which);
    }
    given.record.dir = print(site, &given.values)?[..16].to_string();
    given.dir = Some(put(site, &given)?);
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
        let bytes = fs::read_bounded(path, MOST_BYTES as u64)?;
        return bytes.ok_or_else(|| Error::invalid(format!("there is no file {}", path.display())));
    }
    let argv = ["/bin/cat".to_string(), "--".to_string(), path.display().to_string()];
    printed_by(site, version, &argv, None)
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
        // What it prints may be half of a secret: only its complaint is told, and that is not trusted with much.
        let words = String::from_utf8_lossy(&ended.stderr).lines().next_back().unwrap_or_default().to_string();
        let words = crate::sys::escape::in_sentence(&crate::sys::escape::visible(words.trim()));
        let said = if words.is_empty() { String::new() } else { format!(": {words}") };
        return Err(Error::invalid(format!("{} ended with {}{said}", argv[0], ended.status.words())));
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
            let env = crate::sys::process::base_environment(Path::new("/nonexistent"));
            let ended = crate::sys::process::run_captured("systemd-creds", &args, &env, &[], PATIENCE)?;
            if ended.status == StepStatus::Ok {
                return Ok(ended.stdout);
            }
            return Err(Error::invalid(format!("systemd-creds cannot open {}", path.display())));
        }
    }
    Err(Error::invalid(format!("the machine has no credential `{full}`"))
        .hint(format!("systemd-creds encrypt --name={full} - /etc/credstore.encrypted/{full}")))
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

/// Makes the directory, each part of it ours alone to write: somebody else may have put something in its place.
fn make_memory(site: &Site) -> Result<Dir> {
    let path = memory(site);
    let (base, below) = match site.rights {
        Rights::Separate { .. } => (site.place.node().root().join("run"), 3),
        Rights::OneUser => (PathBuf::from("/dev/shm"), 3),
    };
    fs::ensure_dir(&base, 0o755)?;
    let mut dir = Dir::open(&base)?;
    let names: Vec<_> = path.components().rev().take(below).collect();
    for name in names.into_iter().rev() {
        dir = dir.ensure_dir(Path::new(name.as_os_str()), 0o711)?;
        let meta = dir.stat_self()?;
        if meta.uid != rustix::process::geteuid().as_raw() || meta.mode & 0o022 != 0 {
            return Err(Error::failed(format!(
                "{} belongs to somebody else, and secrets go there",
                dir.path().display()
            )));
        }
    }
    Ok(dir)
}

/// Puts the secrets into their directory: a file of mode 0400 each, which the project's account can read. What is there
/// already under this name is the same.
fn put(site: &Site, given: &Given) -> Result<PathBuf> {
    let memory = make_memory(site)?;
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
    let memory = if fs::exists(&memory(site)) { make_memory(site).ok()? } else { return None };
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
    let Some(given) = given.filter(|given| given.dir.is_some()) else { return Ok(()) };
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
    let path = memory(site);
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if fs::exists(&path) => {
            let dir = Dir::open(parent)?;
            dir.remove_tree(Path::new(name))?;
            if let (Some(above), Some(name), true) = (parent.parent(), parent.file_name(), dir.names()?.is_empty()) {
                // Other projects of the node may have come meanwhile; of a whole machine it stays.
                let _ = Dir::open(above)?.remove_dir(Path::new(name));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Removes directories of secrets that nothing is given any more, and versions that no kept release was given.
///
/// # Errors
/// If something cannot be read or removed.
pub fn forget_old(site: &Site, kept: &[DeploymentId], live: Option<&DeploymentId>) -> Result<()> {
    let mut records = Vec::new();
    for id in kept {
        records.extend(record_of(site, id)?);
    }
    let store = SecretStore::of_project(site);
    let is_given = |name: &SecretName, version: u64| {
        let which = Which::OfProject(name.clone(), version);
        records.iter().any(|record| record.which.values().any(|given| *given == which))
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
    if fs::exists(&memory(site)) {
        let memory = make_memory(site)?;
        for name in memory.names()? {
            if live.as_ref().is_none_or(|live| name.as_os_str() != live.dir.as_str()) {
                memory.remove_tree(Path::new(&name))?;
            }
        }
        if memory.names()?.is_empty() {
            forget(site)?;
        }
    }
    Ok(())
}
