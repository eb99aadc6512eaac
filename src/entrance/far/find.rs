//! Which node is meant: a name of the developer's list, a remote of the checkout, or an address that is typed as it is.

use std::path::{Path, PathBuf};

use super::checkout::Checkout;
use super::ssh::Ssh;
use super::{Far, Way, list, list_file};
use crate::project::address::{Address, Login, path_below};
use crate::project::ids::ProjectName;
use crate::project::nodes::{NodeEntry, is_name};
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The remote that is a node by its name alone.
const USUAL: &str = "node";

/// The node that a word means.
///
/// # Errors
/// If there is none of this name.
pub fn node(checkout: &Checkout, word: &str) -> Result<Far> {
    if is_name(word) {
        let mut nodes = list()?;
        if let Some(entry) = nodes.nodes.remove(word) {
            return of_entry(checkout, word, &entry);
        }
        if let Some(far) = of_remote(checkout, word)? {
            return Ok(far);
        }
        let known: Vec<String> = nodes.nodes.into_keys().chain(candidates(checkout)?).collect();
        return Err(unknown(word, &known));
    }
    of_typed(checkout, word)
}

/// The node that a push from this checkout means, where none is named.
///
/// # Errors
/// If none is found, or several.
pub fn the_node(checkout: &Checkout) -> Result<Far> {
    let mut found = candidates(checkout)?;
    if found.iter().any(|name| name == USUAL) {
        found.retain(|name| name == USUAL);
    }
    match &found[..] {
        [only] => node(checkout, only),
        [] => Err(no_remote()?),
        several => Err(Error::usage(format!("several remotes are nodes: {}", several.join(", ")))
            .hint(format!("say which: mc_project push {}", several[0]))),
    }
}

/// No remote is a node. The list is not asked which node is meant: its only one may belong to another repository.
fn no_remote() -> Result<Error> {
    let listed: Vec<String> = list()?.nodes.into_keys().collect();
    Ok(Error::usage("no remote of this repository is a node").hint(match listed.first() {
        Some(name) => format!(
            "say which: mc_project push {name} (known are: {})\nor, once and for all: git remote add node mc@HOST:NAME",
            listed.join(", ")
        ),
        None => format!(
            "git remote add node mc@HOST:NAME\nor write the node into {}: nodes: {{prod: {{ssh: mc@HOST, project: NAME}}}}, \
             and: mc_project push prod",
            list_file()?.display()
        ),
    }))
}

/// The remotes of the checkout that are nodes: by their address, or by the name `node`.
fn candidates(checkout: &Checkout) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in checkout.remotes() {
        let address = checkout.push_address(&name)?;
        let is_node = |address: &Address| {
            address.is_plainly_a_node() || (name == USUAL && address.repository().is_some_and(|it| !it.is_pillar))
        };
        if address.as_ref().is_some_and(is_node) {
            found.push(name);
        }
    }
    Ok(found)
}

fn of_entry(checkout: &Checkout, name: &str, entry: &NodeEntry) -> Result<Far> {
    let command = checkout.ssh_command();
    let ssh = |login: &Login| Ssh::new(&command, login.clone(), entry.port);
    let mut ways: Vec<Way> = Vec::new();
    for login in [&entry.ssh, &entry.admin].into_iter().flatten() {
        ways.push(Way::Ssh { ssh: ssh(login), root: entry.root.clone(), program: entry.program.clone() });
    }
    if let (true, Some(root)) = (ways.is_empty(), &entry.root) {
        ways.push(Way::Here { root: root.clone() });
    }
    // A remote of this name says which repository is meant, and git keeps its branches up to date.
    let remote = checkout.remotes().into_iter().find(|remote| remote == name);
    let address = match &remote {
        Some(remote) => checkout.push_address(remote)?.filter(|address| address.repository().is_some()),
        None => None,
    };
    let remote = remote.filter(|_| address.is_some());
    let from_remote = address.as_ref().and_then(Address::repository).map(|repository| repository.project);
    let project = entry.project.clone().or(from_remote);
    let repository = address.or_else(|| project.as_ref().and_then(|project| repository_of(entry, project)));
    let pillar = entry.pillar.clone().or_else(|| checkout.pillar());
    Ok(Far { name: name.to_string(), ways, project, repository, remote, pillar })
}

/// Where a listed node has the code of a project.
fn repository_of(entry: &NodeEntry, project: &ProjectName) -> Option<Address> {
    let (login, port) = (entry.ssh.clone().or_else(|| entry.admin.clone()), entry.port);
    let is_root = login.as_ref().is_some_and(|login| login.user.as_deref() == Some("root"));
    Some(match (&entry.root, login) {
        (Some(root), login) => Address { port: login.as_ref().and(port), login, path: path_below(root, project) },
        (None, Some(login)) if is_root => {
            Address { login: Some(login), port, path: path_below(Path::new("/"), project) }
        }
        (None, Some(login)) => Address { login: Some(login), port, path: project.to_string() },
        (None, None) => return None,
    })
}

fn of_remote(checkout: &Checkout, name: &str) -> Result<Option<Far>> {
    if !checkout.remotes().iter().any(|remote| remote == name) {
        return Ok(None);
    }
    let not_a_node = || {
        Error::usage(format!("the remote {name} is no node of mc_project"))
            .hint("its address is like mc@HOST:NAME or USER@HOST:/NODE/srv/projects/NAME/git/project")
    };
    let address = checkout.push_address(name)?.ok_or_else(not_a_node)?;
    let mut far = of_address(checkout, name, address).ok_or_else(not_a_node)?;
    far.remote = Some(name.to_string());
    Ok(Some(far))
}

/// What is typed where a name could stand: `user@host`, `user@host:/the/root`, a repository's address, or a directory.
fn of_typed(checkout: &Checkout, word: &str) -> Result<Far> {
    let nothing = || {
        let shown = visible_bounded(word.as_bytes(), 100);
        Error::usage(format!("`{shown}` names no node")).hint("a name, user@host, user@host:/its/root, or a directory")
    };
    if word.starts_with('-') {
        return Err(nothing());
    }
    if word.contains('@') && !word.contains(['/', ':']) {
        let entry = NodeEntry { ssh: Some(Login::parse(word)?), ..NodeEntry::default() };
        return of_entry(checkout, word, &entry);
    }
    let address = Address::parse(word).ok_or_else(nothing)?;
    if let Some(far) = of_address(checkout, word, address.clone()) {
        return Ok(far);
    }
    let Address { login, port, path } = address;
    let root = match &login {
        None if !path.contains('/') => return Err(nothing()),
        None => crate::sys::fs::absolute(Path::new(&path))?,
        Some(_) if path.is_empty() => PathBuf::from("/"),
        Some(_) if path.starts_with('/') => PathBuf::from(path),
        Some(_) => return Err(nothing()),
    };
    let root = Some(root).filter(|root| login.is_none() || root != Path::new("/"));
    of_entry(checkout, word, &NodeEntry { ssh: login, port, root, ..NodeEntry::default() })
}

/// The node of a repository's address.
fn of_address(checkout: &Checkout, name: &str, address: Address) -> Option<Far> {
    let repository = address.repository().filter(|it| !it.is_pillar)?;
    let way = match &address.login {
        // Without a root in its path it is behind a forced command, or it cannot be told where the node begins.
        Some(login) => Way::Ssh {
            ssh: Ssh::new(&checkout.ssh_command(), login.clone(), address.port),
            root: repository.root.filter(|root| root != Path::new("/")),
            program: None,
        },
        None => Way::Here { root: repository.root? },
    };
    let pillar = checkout.pillar();
    let project = Some(repository.project);
    Some(Far { name: name.to_string(), ways: vec![way], project, repository: Some(address), remote: None, pillar })
}

fn unknown(word: &str, known: &[String]) -> Error {
    let file = list_file().map(|path| path.display().to_string()).unwrap_or_default();
    let known =
        if known.is_empty() { "there are none yet".to_string() } else { format!("known are: {}", known.join(", ")) };
    Error::usage(format!("there is no node `{word}`")).hint(format!(
        "{known}; they stand in {file} and among the remotes of the repository\nwithout a name: --node user@host"
    ))
}
