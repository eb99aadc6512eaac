//! Making a project on this node, repairing it, and taking it away.

use std::path::{Path, PathBuf};

use super::people::People;
use super::proof::Proof;
use super::recover::finish_interrupted;
use super::site::{HOOKS_IDENTITY, Identity, Node, Rights, Site, read_identity};
use super::worker::new_id;
use super::{binding, links, parking, rights};
use crate::project::ids::{ProjectName, RefName};
use crate::project::mode::{Environment, Mode};
use crate::project::node::Answer;
use crate::project::place::Place;
use crate::project::system::System;
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::git::{ObjectFormat, Repo, program_version};
use crate::sys::lock::Lock;
use crate::sys::step_exec::RunAs;
use crate::sys::{fs, mount, seal};
use crate::tree::layout::{self as trees, Act, Change, Owners};

/// What `init` made or found.
#[derive(Debug)]
pub struct Initialised {
    /// The project.
    pub site: Site,
    /// Whether no project of the name was recorded here before.
    pub is_new: bool,
    /// What was changed; empty if everything was in order.
    pub changes: Vec<String>,
    /// Whether steps can be run at the path of `run` while it serves; else the reason.
    pub namespaces: std::result::Result<(), String>,
}

/// The hooks, by the name that git calls them by.
const HOOKS: [&str; 3] = ["pre-receive", "proc-receive", "post-receive"];
const IDENTITY: &str = "the project's identity";

/// Makes a project, or repairs it: layout, repositories, hooks, settings. May be repeated.
///
/// # Errors
/// If something is in the way or cannot be made.
pub fn init(
    node: &Node,
    name: &ProjectName,
    environment: Option<Environment>,
    format: ObjectFormat,
) -> Result<Initialised> {
    let place = node.place.project(name);
    let recorded = read_identity(&place.identity())?;
    let environment = environment.or(recorded.as_ref().and_then(|identity| identity.environment));
    let config = node.config.for_project(name, environment);
    fs::ensure_dir(node.place.root(), 0o755)?;
    let mut changes = Vec::new();
    // First of all: a project that came from a node without accounts cannot even be opened before it has its own.
    if rights::ensure_account(node, name, config.user.as_deref())? {
        changes.push(format!("account {}: made", System::project_account(name)));
    }
    if recorded.is_some() && config.mode != Mode::Editable {
        changes.extend(leave_editable(node, name)?);
    }
    let layout = links::expected(&place, config.mode)?;
    let owners = Rights::of(node, name, config.user.as_deref())?.owners();
    Proof::forget(&place)?;
    let built = trees::build(&place, &layout, owners.as_ref())?;
    changes.extend(built.iter().map(ToString::to_string));
    if let Some(owners) = &owners {
        changes.extend(adopt(&place, owners, &built)?);
    }
    let root = fs::canonical(node.place.root())?;
    let identity = Identity { format: 1, name: name.clone(), root, environment };
    if recorded.as_ref() != Some(&identity) {
        fs::write_durable(&place.identity(), &seal::pretty(&identity, IDENTITY)?, 0o644)?;
        changes.push("state/project.json: written".to_string());
    }
    let site = Site::open(node, name)?;
    for path in [place.git_project(), place.git_pillar()] {
        changes.extend(repository(&site, &path, format)?);
        changes.extend(known_to_hooks(&path, &identity)?);
        changes.extend(rights::repository(&site, &path, true)?);
        changes.extend(rights::trust_repository(node, &path)?);
    }
    let namespaces = mount::probe_namespace(&place.build())?;
    if parking::read(&site)?.is_some() {
        let was = binding::shown(&site)?;
        let notes = binding::bind(&site)?;
        if binding::shown(&site)? != was {
            changes.push(format!("{}: shows run again", site.place.project().display()));
        }
        changes.extend(notes);
    }
    Ok(Initialised { site, is_new: recorded.is_none(), changes, namespaces })
}

/// A project that is given another environment leaves editable mode at once: what ran before runs again.
fn leave_editable(node: &Node, name: &ProjectName) -> Result<Vec<String>> {
    let site = Site::open(node, name)?;
    if parking::read(&site)?.is_none() {
        return Ok(Vec::new());
    }
    let _lock = Lock::take(&site.place.lock(), Some(std::time::Instant::now()), |_| Ok(()))?;
    finish_interrupted(&site)?;
    let mut telling = Reporter::new(&site.place, &new_id(), None);
    let left = parking::leave(&site, &mut telling)?;
    telling.emit(Event::Closed)?;
    Ok(left.map(|left| left.words()).into_iter().collect())
}

/// A node that root ran alone becomes a whole-machine node: what root made in the project's trees is given to its account.
fn adopt(place: &Place, owners: &Owners, built: &[Change]) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    for tree in [place.run(), place.spare(), place.data(), place.build_tree(), place.build_home()] {
        let rel = tree.strip_prefix(place.node().root()).unwrap_or(&tree);
        let is_given = |change: &&Change| change.path == rel && matches!(change.act, Act::SetOwner { .. });
        let is_new = |change: &&Change| change.path == rel && matches!(change.act, Act::MakeDir { .. });
        if built.iter().any(|change| is_given(&change)) && !built.iter().any(|change| is_new(&change)) {
            let count = rights::give_below(&Dir::open_real(&tree)?, owners.project, &|_| false)?;
            changes.push(format!("{}: {count} entries given to the project's account", tree.display()));
        }
    }
    Ok(changes)
}

/// Writes the project's identity where the hooks can read it who may not read `state/`.
fn known_to_hooks(repository: &Path, identity: &Identity) -> Result<Option<String>> {
    let path = repository.join(HOOKS_IDENTITY);
    if read_identity(&path)?.as_ref() == Some(identity) {
        return Ok(None);
    }
    fs::ensure_dir(&repository.join("info"), 0o755)?;
    fs::write_durable(&path, &seal::pretty(identity, IDENTITY)?, 0o644)?;
    Ok(Some(format!("{}: written", path.display())))
}

/// Makes a bare repository with our hooks and settings, or repairs it.
fn repository(site: &Site, path: &Path, format: ObjectFormat) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    let is_new = !fs::exists(&path.join("HEAD"));
    if !is_new {
        changes.extend(rights::keep_common(site, path, true)?);
    }
    // As we are, also where the objects are the receiver's: only the configuration is read and written here.
    let repo = match &site.rights {
        _ if is_new => Repo::init_bare(path, format)?,
        Rights::OneUser => Repo::open(path)?,
        // libgit2 takes a repository with a `commondir` of its own for none.
        Rights::Separate { .. } => Repo::open_as(path, &RunAs { uid: 0, gid: 0, groups: vec![0] })?,
    };
    if is_new {
        changes.push(format!("{}: new repository", path.display()));
        repo.set_head(&RefName::of_branch("main")?)?;
    }
    let has_proc_receive = program_version()? >= (2, 29);
    let deploys_before_answer = has_proc_receive && site.config.answer == Answer::Push;
    let settings: [(&str, &str); 9] = [
        // So it is for a bare repository anyway, but git counts one with a `commondir` among the others.
        ("core.logAllRefUpdates", "false"),
        ("receive.denyCurrentBranch", "ignore"),
        ("receive.advertisePushOptions", "true"),
        ("receive.fsckObjects", "true"),
        // A mode such as 104755 would make a setuid file; git itself lets it pass.
        ("receive.fsck.badFilemode", "error"),
        ("receive.procReceiveRefs", if deploys_before_answer { "refs" } else { "" }),
        ("receive.denyDeleteCurrent", "refuse"),
        ("receive.autogc", "false"),
        ("transfer.hideRefs", "refs/deploys/inflight"),
    ];
    for (key, value) in settings {
        if repo.config(key)?.as_deref().unwrap_or_default() != value {
            repo.set_config(key, value)?;
            changes.push(format!("{}: {key} = {value}", path.display()));
        }
    }
    changes.extend(hooks(&site.node, path)?);
    Ok(changes)
}

/// Links the binary under the hooks' names; a foreign hook is kept beside as `<name>.local`, which ours runs too.
fn hooks(node: &Node, repository: &Path) -> Result<Vec<String>> {
    let (mut changes, program) = (Vec::new(), node.program()?);
    let dir = repository.join("hooks");
    fs::ensure_dir(&dir, 0o755)?;
    let binary = &program;
    for name in HOOKS {
        let path = dir.join(name);
        if fs::link_target(&path).as_ref() == Some(binary) {
            continue;
        }
        let is_ours = fs::link_target(&path).is_some_and(|target| target.file_name() == binary.file_name());
        if fs::exists(&path) && !is_ours {
            let kept = dir.join(format!("{name}.local"));
            if fs::exists(&kept) {
                return Err(Error::refused(format!(
                    "{} is no hook of ours, and {} is taken too",
                    path.display(),
                    kept.display()
                ))
                .hint("put both into one file named <hook>.local, then run init again"));
            }
            fs::rename_durable(&path, &kept)?;
            changes.push(format!("{}: kept as {name}.local, which runs too", path.display()));
        }
        fs::replace_symlink(&path, binary)?;
        changes.push(format!("{}: linked", path.display()));
    }
    Ok(changes)
}

/// What `init` would repair, without doing it.
///
/// # Errors
/// If the layout cannot be examined.
pub fn needed_repairs(site: &Site) -> Result<Vec<String>> {
    let layout = links::expected(&site.place, parking::layout_mode(site)?)?;
    let program = site.node.program()?;
    let mut repairs: Vec<String> =
        trees::check(&site.place, &layout, site.owners().as_ref())?.iter().map(ToString::to_string).collect();
    if parking::read(site)?.is_some() {
        repairs.extend(binding::problem(site)?);
    }
    for repository in [site.place.git_project(), site.place.git_pillar()] {
        repairs.extend(rights::repository(site, &repository, false)?);
        for name in HOOKS {
            let path = repository.join("hooks").join(name);
            match fs::link_target(&path) {
                // Of several copies of the program only the installed one can be run by the receiver.
                Some(target) if site.owners().is_some() && target != program => {
                    repairs.push(format!(
                        "{}: leads to {}, not to {}",
                        path.display(),
                        target.display(),
                        program.display()
                    ));
                }
                Some(target) if fs::exists(&target) => {}
                Some(target) => repairs.push(format!("{}: its program {} is gone", path.display(), target.display())),
                None => repairs.push(format!("{}: missing", path.display())),
            }
        }
    }
    Ok(repairs)
}

/// What `destroy` left, and what it took away beside the project's directory.
#[derive(Debug)]
pub struct Destroyed {
    /// Where the data are, if there were any and they shall stay.
    pub data: Option<PathBuf>,
    /// Where the clones and files are that editable mode kept, on the same terms.
    pub clones: Option<PathBuf>,
    /// Whose grants for the project are gone, in words.
    pub grants: Vec<String>,
    /// The account that was made for the project, which stays.
    pub account: Option<String>,
}

/// Removes a project, and what people were granted for it. Its data, and the clones and files that editable mode kept,
/// are moved aside unless they shall go too.
///
/// # Errors
/// If something cannot be removed.
pub fn destroy(site: &Site, with_data: bool) -> Result<Destroyed> {
    let place = &site.place;
    // First of all: nothing may be removed through a mount, and no boot may look for it.
    binding::unbind(site)?;
    let projects = Dir::open(place.node().projects())?;
    let grants = forget_grants(&site.node, place.name())?;
    if site.owners().is_some() && place.node().root() == Path::new("/") {
        for repository in [place.git_project(), place.git_pillar()] {
            crate::sys::git::remove_safe_directory(&repository)?;
        }
    }
    let label = crate::sys::clock::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let beside = |what: &str| place.node().projects().join(format!("{}.{what}-{label}", place.name()));
    let mut left = Destroyed { data: None, clones: None, grants, account: None };
    if !with_data && !fs::names(&place.data())?.is_empty() {
        let target = beside("data");
        fs::rename_durable(&place.data(), &target)?;
        left.data = Some(target);
    }
    let clones = parking::clones(site)?;
    if !with_data && !clones.is_empty() {
        let target = beside("kept");
        fs::ensure_dir(&target, 0o700)?;
        for clone in clones {
            fs::rename_durable(&clone, &target.join(clone.file_name().unwrap_or_default()))?;
        }
        left.clones = Some(target);
    }
    for link in ["srv/pillar/makina-projects", "srv/salt/makina-projects"] {
        fs::remove_file(&place.node().root().join(link).join(place.name().as_str()))?;
    }
    super::secrets::forget(site)?;
    projects.remove_tree(Path::new(place.name().as_str()))?;
    if let Ok(logs) = Dir::open(&place.node().root().join("var/log/mc_project")) {
        logs.remove_tree(Path::new(place.name().as_str()))?;
    }
    if let Rights::Separate { project, .. } = &site.rights {
        // An account that `node.yaml` names is not ours to speak of.
        left.account = Some(project.name.clone()).filter(|name| *name == System::project_account(place.name()));
    }
    Ok(left)
}

/// A later project of the same name must not be open to the people of this one.
fn forget_grants(node: &Node, name: &ProjectName) -> Result<Vec<String>> {
    if node.system.is_none() {
        return Ok(Vec::new());
    }
    let people = People::open(node)?;
    if !people.read()?.has_grants(name) {
        return Ok(Vec::new());
    }
    Ok(people.change(|access| Ok(access.forget(name)))?.done)
}
