//! The layout: the directories and links of a project, read from `layouts/*.yaml`, which are compiled in.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::Deserializer;

use super::ids::ProjectName;
use super::mode::Mode;
use super::place::Place;
use super::yaml;
use super::yaml::scalar::from_text;
use crate::sys::error::{Error, Result};
use crate::sys::path::TreePath;

/// Whom an entry belongs to on a whole-machine node; unused in a directory node, where everything is one user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The system.
    Root,
    /// The project's own user.
    Project,
    /// The user who receives pushes.
    Receiver,
}

/// A place in the node: below the project's directory or below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spot {
    /// The project's directory, or a path in it.
    Project(PathBuf),
    /// A path below the node's root.
    Node(PathBuf),
}

impl Spot {
    /// The path relative to the node's root.
    ///
    /// # Errors
    /// If the project's directory is not below the root.
    pub fn below_root(&self, place: &Place) -> Result<PathBuf> {
        match self {
            Self::Node(path) => Ok(path.clone()),
            Self::Project(path) => {
                let dir = place
                    .dir()
                    .strip_prefix(place.node().root())
                    .map_err(|_| Error::bug(format!("{} is not below the node's root", place.dir().display())))?;
                Ok(if path.as_os_str().is_empty() { dir.to_path_buf() } else { dir.join(path) })
            }
        }
    }
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Exactly this text.
    Text(PathBuf),
    /// To a path in the project's directory, by a relative way.
    Project(PathBuf),
}

/// What stands at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir {
        /// Its permission bits.
        mode: u32,
        /// Whether the mode of one that exists is left as it is.
        keep: bool,
    },
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: Target,
    },
}

/// One directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub spot: Spot,
    /// What it is.
    pub what: What,
    /// Whom it belongs to on a whole-machine node.
    pub owner: Owner,
    /// Whose group it has there.
    pub group: Owner,
    /// Who else may pass through it there.
    pub passes: Option<Owner>,
    /// Whether it is made on a whole-machine node only.
    pub machine: bool,
}

impl Entry {
    /// Whether it is a link outside of the project's directory.
    #[must_use]
    pub fn is_link_outside(&self) -> bool {
        matches!((&self.spot, &self.what), (Spot::Node(_), What::Link { .. }))
    }

    /// The text of the link that this entry is, `None` for a directory.
    ///
    /// # Errors
    /// If the project's directory is not below the root.
    pub fn link_text(&self, place: &Place) -> Result<Option<PathBuf>> {
        match &self.what {
            What::Dir { .. } => Ok(None),
            What::Link { target: Target::Text(text) } => Ok(Some(text.clone())),
            What::Link { target: Target::Project(path) } => {
                let to = Spot::Project(path.clone()).below_root(place)?;
                Ok(Some(relative(&self.spot.below_root(place)?, &to)))
            }
        }
    }
}

/// The directories and links of one project, parents before what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The entries, in the order in which they are made.
    pub entries: Vec<Entry>,
}

/// The layout of a project in a mode.
///
/// # Errors
/// Only if a compiled-in layout is bad, which a test rules out.
pub fn layout(mode: Mode, name: &ProjectName) -> Result<Layout> {
    let (file, text) = match mode {
        Mode::Cooking => ("layouts/cooking.yaml", include_str!("../../layouts/cooking.yaml")),
        Mode::Final => ("layouts/final.yaml", include_str!("../../layouts/final.yaml")),
        Mode::Editable => ("layouts/editable.yaml", include_str!("../../layouts/editable.yaml")),
    };
    parse(file, text, name)
}

/// Reads a layout for the project `name`.
///
/// # Errors
/// Of kind Invalid, with file, line and column.
pub fn parse(file: &str, text: &str, name: &ProjectName) -> Result<Layout> {
    let text = text.replace("{name}", name.as_str());
    let written: LayoutFile = yaml::parse(file, text.as_bytes())?;
    let entries = written.entries.into_iter().map(|entry| entry.resolve(file)).collect::<Result<_>>()?;
    Ok(Layout { entries })
}

/// The way from the directory that holds `from` to `to`, both relative to the same root.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let from: Vec<Component<'_>> = from.parent().unwrap_or(Path::new("")).components().collect();
    let to: Vec<Component<'_>> = to.components().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    up.chain(to[common..].iter().copied()).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutFile {
    entries: Vec<EntryFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryFile {
    path: SpotText,
    kind: Kind,
    mode: Option<ModeText>,
    target: Option<String>,
    owner: Owner,
    group: Option<Owner>,
    passes: Option<Owner>,
    #[serde(default)]
    machine: bool,
    #[serde(default)]
    keep: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Dir,
    Link,
}

impl EntryFile {
    fn resolve(self, file: &str) -> Result<Entry> {
        let what = match (self.kind, self.mode, self.target) {
            (Kind::Dir, Some(mode), None) => What::Dir { mode: mode.0, keep: self.keep },
            (Kind::Link, None, Some(target)) if !self.keep => What::Link {
                target: match target.strip_prefix("{project}/") {
                    Some(inner) => Target::Project(PathBuf::from(inner)),
                    None => Target::Text(PathBuf::from(target)),
                },
            },
            _ => {
                let message = format!("{file}: {:?}: a dir has a mode, a link has a target", self.path.0);
                return Err(Error::invalid(message));
            }
        };
        let group = self.group.unwrap_or(self.owner);
        Ok(Entry { spot: self.path.0, what, owner: self.owner, group, passes: self.passes, machine: self.machine })
    }
}

struct SpotText(Spot);

impl<'de> Deserialize<'de> for SpotText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a path", |text| {
            if text == "{project}" {
                return Ok(Self(Spot::Project(PathBuf::new())));
            }
            let (inner, in_project) = match text.strip_prefix("{project}/") {
                Some(inner) => (inner, true),
                None => (text, false),
            };
            let path = TreePath::new(inner.as_bytes()).map_err(|error| error.message().to_string())?;
            let path = path.as_path().to_path_buf();
            Ok(Self(if in_project { Spot::Project(path) } else { Spot::Node(path) }))
        })
    }
}

struct ModeText(u32);

impl<'de> Deserialize<'de> for ModeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "permission bits such as \"0750\"", |text| {
            let good = text.len() == 4 && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
            u32::from_str_radix(text, 8)
                .ok()
                .filter(|_| good)
                .map(Self)
                .ok_or_else(|| "expected four octal digits such as \"0750\"".into())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::{Spot, What, layout, parse, relative};
    use crate::project::ids::ProjectName;
    use crate::project::mode::Mode;
    use crate::project::place::NodePlace;

    fn name() -> ProjectName {
        "shop".parse().unwrap()
    }

    #[test]
    fn every_layout_names_parents_before_children_and_nothing_twice() {
        let place = NodePlace::new(Path::new("/node")).project(&name());
        for mode in [Mode::Editable, Mode::Cooking, Mode::Final] {
            let mut dirs = HashSet::from([Path::new("").to_path_buf(), "srv/projects".into()]);
            for entry in layout(mode, &name()).unwrap().entries {
                let path = entry.spot.below_root(&place).unwrap();
                assert!(dirs.contains(path.parent().unwrap()), "{mode:?}: {path:?}");
                assert!(!path.to_str().unwrap().contains('{'), "{path:?}");
                if matches!(entry.what, What::Dir { .. }) {
                    assert!(dirs.insert(path.clone()), "{mode:?}: {path:?} twice");
                }
            }
        }
    }

    #[test]
    fn a_cooking_layout_has_every_directory_of_the_contract() {
        let node = NodePlace::new(Path::new("/node"));
        let place = node.project(&name());
        let entries = layout(Mode::Cooking, &name()).unwrap().entries;
        let made: HashSet<_> =
            entries.iter().map(|e| Path::new("/node").join(e.spot.below_root(&place).unwrap())).collect();
        for dir in [
            place.git_project(),
            place.git_pillar(),
            place.project(),
            place.pillar(),
            place.data_shared(),
            place.build_tree(),
            place.build_home(),
            place.run(),
            place.spare(),
            place.store(),
            place.releases(),
            place.archives(),
            place.snapshot_store(),
            place.journals(),
            place.spool(),
            place.waiting(),
            place.logs(),
        ] {
            assert!(made.contains(&dir), "{dir:?}");
        }
        assert!(!made.contains(&place.snapshot()) && !made.contains(&place.current()));
    }

    #[test]
    fn links_into_the_project_are_relative_wherever_the_projects_are() {
        let moved = NodePlace::new(Path::new("/node")).with_projects_dir(Path::new("/home/sites")).project(&name());
        let entries = layout(Mode::Final, &name()).unwrap().entries;
        let pillar = Spot::Node("srv/pillar/makina-projects/shop".into());
        let entry = entries.iter().find(|entry| entry.spot == pillar).unwrap();
        assert_eq!(entry.link_text(&moved).unwrap().unwrap(), Path::new("../../../home/sites/shop/pillar"));
        assert_eq!(relative(Path::new("a/b/l"), Path::new("a/c")), Path::new("../c"));
    }

    #[test]
    fn a_bad_layout_is_refused() {
        for bad in [
            "entries: [{path: ../x, kind: dir, mode: '0755', owner: root}]",
            "entries: [{path: /x, kind: dir, mode: '0755', owner: root}]",
            "entries: [{path: x, kind: dir, mode: '0955', owner: root}]",
            "entries: [{path: x, kind: dir, owner: root}]",
            "entries: [{path: x, kind: link, mode: '0755', owner: root}]",
            "entries: [{path: x, kind: dir, mode: '0755', owner: nobody}]",
        ] {
            assert!(parse("l.yaml", bad, &name()).is_err(), "{bad}");
        }
    }
}
