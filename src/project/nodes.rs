//! The developer's list of nodes, `~/.config/mc_project/nodes.yaml`: how each is reached and what is meant there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::Deserializer;

use super::address::Login;
use super::ids::ProjectName;
use super::yaml::locate::Step as Way;
use super::yaml::scalar::{Number, from_text, message_of};
use super::yaml::{Source, with_hint};
use crate::sys::error::Result;

/// A node as the list has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeEntry {
    /// Who pushes, and runs what the forced command serves.
    pub ssh: Option<Login>,
    /// Who sets the machine up, and runs everything else; root, or somebody who may use sudo.
    pub admin: Option<Login>,
    /// At which port.
    pub port: Option<u16>,
    /// A node in a directory: its root. Without `ssh` it is on this machine.
    pub root: Option<PathBuf>,
    /// Where the program is, if not in the `PATH` there.
    pub program: Option<PathBuf>,
    /// The project that is meant where none is named.
    pub project: Option<ProjectName>,
    /// The checkout of the pillar on this machine.
    pub pillar: Option<PathBuf>,
}

/// The list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Each node by its name.
    pub nodes: BTreeMap<String, NodeEntry>,
}

impl Nodes {
    /// Reads the list; `home` is what `~/` means in it.
    ///
    /// # Errors
    /// Of kind `Invalid`, with file, line and column.
    pub fn parse(file: &str, bytes: &[u8], home: &Path) -> Result<Self> {
        let source = Source::new(file, bytes)?;
        let written: NodesFile = source.read()?;
        let mut nodes = BTreeMap::new();
        for (name, entry) in written.nodes {
            if entry.ssh.is_none() && entry.admin.is_none() && entry.root.is_none() {
                let message =
                    with_hint("this node cannot be reached", "write `ssh: mc@host`, or `root: /its/directory`");
                return Err(source.error_at(&[Way::Key("nodes"), Way::Key(&name.0)], &message));
            }
            if entry.root.is_some() && entry.admin.is_some() {
                let message =
                    with_hint("a node in a directory has one user", "leave `admin` out, and let `ssh` name that user");
                return Err(source.error_at(&[Way::Key("nodes"), Way::Key(&name.0), Way::Key("admin")], &message));
            }
            nodes.insert(name.0, entry.resolve(home));
        }
        Ok(Self { nodes })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodesFile {
    nodes: BTreeMap<NodeName, EntryFile>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EntryFile {
    ssh: Option<LoginText>,
    admin: Option<LoginText>,
    port: Option<Number<1, 65535>>,
    root: Option<PathText>,
    program: Option<PathText>,
    project: Option<ProjectText>,
    pillar: Option<HomePath>,
}

impl EntryFile {
    fn resolve(self, home: &Path) -> NodeEntry {
        NodeEntry {
            ssh: self.ssh.map(|login| login.0),
            admin: self.admin.map(|login| login.0),
            port: self.port.and_then(|port| u16::try_from(port.0).ok()),
            root: self.root.map(|path| path.0),
            program: self.program.map(|path| path.0),
            project: self.project.map(|name| name.0),
            pillar: self.pillar.map(|path| path.below(home)),
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct NodeName(String);

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        from_text(deserializer, "the name of a node", |name| {
            if is_name(name) {
                return Ok(Self(name.to_string()));
            }
            Err(with_hint(
                "this is no name of a node",
                "letters, digits, . _ and -, at most 64, beginning with a letter",
            ))
        })
    }
}

/// Whether a word can name a node; all others are addresses.
#[must_use]
pub fn is_name(word: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    word.len() <= 64 && word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(is_good)
}

struct LoginText(Login);

impl<'de> Deserialize<'de> for LoginText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        from_text(deserializer, "an account on a machine: user@host", |text| {
            Login::parse(text).map(Self).map_err(|error| message_of(&error))
        })
    }
}

struct ProjectText(ProjectName);

impl<'de> Deserialize<'de> for ProjectText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        from_text(deserializer, "the name of a project", |text| {
            text.parse().map(Self).map_err(|error| message_of(&error))
        })
    }
}

/// An absolute path on the node.
struct PathText(PathBuf);

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        from_text(deserializer, "an absolute path", |text| {
            if !text.starts_with('/') || text.chars().any(char::is_control) {
                return Err(with_hint("this is no absolute path on the node", "it begins with /"));
            }
            Ok(Self(PathBuf::from(text)))
        })
    }
}

/// A path on this machine.
struct HomePath(String);

impl HomePath {
    fn below(&self, home: &Path) -> PathBuf {
        self.0.strip_prefix("~/").map_or_else(|| PathBuf::from(&self.0), |rest| home.join(rest))
    }
}

impl<'de> Deserialize<'de> for HomePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        from_text(deserializer, "a path", |text| {
            if (text.starts_with('/') || text.starts_with("~/")) && !text.chars().any(char::is_control) {
                return Ok(Self(text.to_string()));
            }
            Err(with_hint("this is no path that means the same everywhere", "it begins with / or ~/"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Nodes> {
        Nodes::parse("nodes.yaml", text.as_bytes(), Path::new("/home/me"))
    }

    #[test]
    fn every_key_is_understood() {
        let nodes = parse(
            "nodes:\n  prod: {ssh: mc@shop.example.org, admin: you@shop.example.org, port: 2222, project: shop, pillar: ~/src/shop-pillar}\n  mine: {root: /home/me/node, program: /opt/mc_project}\n",
        )
        .unwrap();
        let prod = &nodes.nodes["prod"];
        assert_eq!(prod.ssh.as_ref().unwrap().shown(), "mc@shop.example.org");
        assert_eq!(prod.admin.as_ref().unwrap().user.as_deref(), Some("you"));
        assert_eq!((prod.port, prod.project.as_ref().unwrap().as_str()), (Some(2222), "shop"));
        assert_eq!(prod.pillar.as_deref(), Some(Path::new("/home/me/src/shop-pillar")));
        assert_eq!(nodes.nodes["mine"].program.as_deref(), Some(Path::new("/opt/mc_project")));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_at_its_place() {
        for (text, part) in [
            ("nodes: {prod: {}}\n", "cannot be reached"),
            ("nodes: {prod: {shh: mc@host}}\n", "did you mean `ssh`?"),
            ("nodes: {prod: {ssh: '-oProxyCommand=id'}}\n", "no account on a machine"),
            ("nodes: {prod: {ssh: 'mc@host id'}}\n", "no account on a machine"),
            ("nodes: {prod: {ssh: mc@host, port: 0}}\n", "1"),
            ("nodes: {prod: {root: node}}\n", "no absolute path"),
            ("nodes: {prod: {ssh: mc@host, root: /x, admin: root@host}}\n", "has one user"),
            ("nodes: {prod: {ssh: mc@host, project: '../x'}}\n", "nodes.yaml:1:"),
            ("nodes: {prod: {ssh: mc@host, pillar: pillar}}\n", "means the same everywhere"),
            ("nodes: {-x: {ssh: mc@host}}\n", "no name of a node"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.starts_with("nodes.yaml:1:"), "{text}: {error}");
        }
    }
}
