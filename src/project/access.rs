//! Who may come in on a whole-machine node, and what they may do: `etc/mc_project/access.json`.
//!
//! A person has public keys and grants. A grant is a role for one project or for all of them (`*`); grants add up. Each
//! key becomes one line of the receiver's `authorized_keys`, with a forced command that names the person and the key,
//! so that nothing else can be done with it. Our lines stand in a block at the top of that file: sshd takes the first
//! line that fits, so a line that was added by hand gives nobody of ours more than their block does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::ProjectName;
use crate::sys::error::{Context, Error, Result};
use crate::sys::escape::visible_bounded;

pub mod key;

use key::SshKey;

/// The most that is read of `access.json`.
pub const LIMIT: u64 = 16 * 1024 * 1024;

/// The first line of our block in `authorized_keys`.
const BEGIN: &str = "# mc_project keys: begin (written by `mc_project keys`; put your own lines below the end)";
/// What the first line of our block begins with, whatever words follow.
const BEGIN_MARK: &str = "# mc_project keys: begin";
/// The last line of our block.
const END: &str = "# mc_project keys: end";

/// The name of a person: a letter, then at most 31 of `a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PersonName(String);

impl PersonName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PersonName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(rest) {
            return Ok(Self(text.to_string()));
        }
        Err(Error::usage(format!("`{}` is no name of a person", visible_bounded(text.as_bytes(), 64)))
            .hint("a letter, then at most 31 of a-z 0-9 . _ -"))
    }
}

impl TryFrom<String> for PersonName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PersonName> for String {
    fn from(name: PersonName) -> Self {
        name.0
    }
}

impl fmt::Display for PersonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What somebody may do with a project; each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Fetch the code, look at the deployments.
    Read,
    /// Push code and configuration: deploy.
    Deploy,
    /// Everything that can be asked of the node for this project.
    Admin,
}

impl Role {
    /// The name as it stands in messages and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

/// What a grant is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// Every project of the node, those that come later too: `*`.
    All,
    /// One project.
    Project(ProjectName),
}

impl Scope {
    /// Whether the scope holds this project.
    #[must_use]
    pub fn holds(&self, project: &ProjectName) -> bool {
        match self {
            Self::All => true,
            Self::Project(name) => name == project,
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "*" { Ok(Self::All) } else { text.parse().map(Self::Project) }
    }
}

impl TryFrom<String> for Scope {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Project(name) => f.write_str(name.as_str()),
        }
    }
}

/// Somebody who came in over ssh, and what they may do with the project that they ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Who {
    /// The person's name.
    pub person: String,
    /// The fingerprint of the key that they came with, where it is known.
    pub key: Option<String>,
    /// Their role for the project.
    pub role: Role,
}

/// One person's keys and grants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Their public keys.
    #[serde(default)]
    pub keys: Vec<SshKey>,
    /// What they may do.
    #[serde(default)]
    pub grants: BTreeMap<Scope, Role>,
}

impl Person {
    /// Their role for a project: the highest of what is granted for it and for all; `None` if nothing is.
    #[must_use]
    pub fn role(&self, project: &ProjectName) -> Option<Role> {
        self.grants.iter().filter(|(scope, _)| scope.holds(project)).map(|(_, role)| *role).max()
    }
}

/// Everybody who may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    format: u32,
    /// Where the node's projects are, below its root: the receiver need not read `node.yaml`, which may hold secrets.
    projects_dir: PathBuf,
    people: BTreeMap<PersonName, Person>,
}

impl Default for Access {
    fn default() -> Self {
        Self { format: 1, projects_dir: PathBuf::from("/srv/projects"), people: BTreeMap::new() }
    }
}

/// How the forced command of a key begins.
#[derive(Debug, Clone)]
pub struct Forced<'a> {
    /// The program, as an absolute path.
    pub binary: &'a Path,
    /// The node's root.
    pub root: &'a Path,
}

impl Access {
    /// Reads `access.json`.
    ///
    /// # Errors
    /// If it is damaged or of a newer version.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let access: Self = serde_json::from_slice(bytes).context(|| format!("cannot understand {file}"))?;
        if access.format > 1 {
            return Err(Error::refused(format!("{file} was written by a newer mc_project")));
        }
        Ok(access)
    }

    /// The text of `access.json`.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context(|| "cannot write the list of people".to_string())?;
        text.push(b'\n');
        Ok(text)
    }

    /// Where the node's projects are, below its root.
    #[must_use]
    pub fn projects_dir(&self) -> &Path {
        &self.projects_dir
    }

    /// Says where the node's projects are.
    pub fn set_projects_dir(&mut self, dir: &Path) {
        self.projects_dir = dir.to_path_buf();
    }

    /// Everybody, by name.
    #[must_use]
    pub fn people(&self) -> &BTreeMap<PersonName, Person> {
        &self.people
    }

    /// The person of this name; a text that is no name is nobody's.
    #[must_use]
    pub fn person(&self, name: &str) -> Option<&Person> {
        self.people.get(&PersonName::from_str(name).ok()?)
    }

    /// Adds keys and grants to a person, who is new or not; tells what changed, in words.
    ///
    /// # Errors
    /// Of kind `Usage`, if a key is another person's: whoever comes with it could be both.
    pub fn add(&mut self, name: &PersonName, keys: Vec<SshKey>, scopes: &[Scope], role: Role) -> Result<Vec<String>> {
        for key in &keys {
            let holds = |person: &Person| person.keys.iter().any(|known| known.blob() == key.blob());
            if let Some((other, _)) = self.people.iter().find(|(other, person)| *other != name && holds(person)) {
                return Err(Error::usage(format!("the key {} is {other}'s", key.fingerprint())).hint(format!(
                    "one key, one person; to take it away first: mc_project keys remove {other} --key {}",
                    key.fingerprint()
                )));
            }
        }
        let mut changes = Vec::new();
        let person = self.people.entry(name.clone()).or_default();
        for key in keys {
            if person.keys.iter().all(|known| known.blob() != key.blob()) {
                changes.push(format!("{name}: key {}", shown(&key)));
                person.keys.push(key);
            }
        }
        for scope in scopes {
            let before = person.grants.insert(scope.clone(), role);
            if before != Some(role) {
                let before = before.map(|before| format!(", was {}", before.name())).unwrap_or_default();
                changes.push(format!("{name}: {} on {}{before}", role.name(), scope_words(scope)));
            }
        }
        Ok(changes)
    }

    /// Takes grants, a key, or with neither the whole person away; tells what changed, in words.
    ///
    /// # Errors
    /// Of kind `Usage`, if there is nothing of the kind: who mistypes a name must not believe it is gone.
    pub fn remove(&mut self, name: &PersonName, scopes: &[Scope], fingerprint: Option<&str>) -> Result<Vec<String>> {
        let Some(person) = self.people.get_mut(name) else {
            let known: Vec<&str> = self.people.keys().map(PersonName::as_str).collect();
            let known = if known.is_empty() { "nobody is known here".into() } else { known.join(", ") };
            return Err(Error::usage(format!("there is no {name} here")).hint(format!("people: {known}")));
        };
        let mut changes = Vec::new();
        if let Some(wanted) = fingerprint {
            let at = person.keys.iter().position(|key| key.fingerprint() == wanted).ok_or_else(|| {
                let known: Vec<&str> = person.keys.iter().map(SshKey::fingerprint).collect();
                let shown = visible_bounded(wanted.as_bytes(), 100);
                Error::usage(format!("{name} has no key {shown}")).hint(format!("keys: {}", known.join(" ")))
            })?;
            changes.push(format!("{name}: key {} is gone", shown(&person.keys.remove(at))));
        }
        for scope in scopes {
            let role = person.grants.remove(scope).ok_or_else(|| {
                let error = Error::usage(format!("{name} has no grant for {scope}"));
                error.hint(format!("mc_project keys list {name}"))
            })?;
            changes.push(format!("{name}: no longer {} on {}", role.name(), scope_words(scope)));
        }
        if scopes.is_empty() && fingerprint.is_none() {
            let keys = person.keys.len();
            changes.push(format!("{name} is gone, with {keys} key{}", if keys == 1 { "" } else { "s" }));
            self.people.remove(name);
        }
        Ok(changes)
    }

    /// Whether anybody has a grant for this very project.
    #[must_use]
    pub fn has_grants(&self, project: &ProjectName) -> bool {
        let scope = Scope::Project(project.clone());
        self.people.values().any(|person| person.grants.contains_key(&scope))
    }

    /// Takes everybody's grants for a project away; who has one for all projects keeps that. Tells what changed, in words.
    pub fn forget(&mut self, project: &ProjectName) -> Vec<String> {
        let scope = Scope::Project(project.clone());
        let gone = self.people.iter_mut().filter_map(|(name, person)| Some((name, person.grants.remove(&scope)?)));
        gone.map(|(name, role)| format!("{name}: no longer {} on {}", role.name(), scope_words(&scope))).collect()
    }

    /// The lines of `authorized_keys`: one for each key of everybody.
    ///
    /// # Errors
    /// If the program or the node's root have characters in their paths that a shell would understand.
    pub fn lines(&self, forced: &Forced) -> Result<Vec<String>> {
        let mut command = vec![plain(forced.binary)?];
        if forced.root != Path::new("/") {
            command.extend(["--root".to_string(), plain(forced.root)?]);
        }
        let command = command.join(" ");
        let line = |name: &PersonName, key: &SshKey| {
            let (kind, blob, fingerprint) = (key.kind(), key.blob(), key.fingerprint());
            format!("restrict,command=\"{command} shell {name} {fingerprint}\" {kind} {blob} {name}")
        };
        Ok(self.people.iter().flat_map(|(name, person)| person.keys.iter().map(move |key| line(name, key))).collect())
    }
}

/// A path for the forced command. The words stand unquoted between sshd's double quotes and go through a shell, so
/// nothing that either of them understands may be in it.
fn plain(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b'+' | b'@' | b',');
        text.starts_with('/') && text.bytes().all(is_plain)
    });
    text.map(str::to_string).ok_or_else(|| {
        Error::refused(format!(
            "`{}` cannot stand in authorized_keys",
            visible_bounded(path.as_os_str().as_encoded_bytes(), 256)
        ))
        .hint("the paths of the program and of the node's root may hold letters, digits and / . _ - + @ , only")
    })
}

fn shown(key: &SshKey) -> String {
    let comment = if key.comment().is_empty() { String::new() } else { format!(", {}", key.comment()) };
    format!("{} ({}{comment})", key.fingerprint(), key.kind())
}

fn scope_words(scope: &Scope) -> &str {
    match scope {
        Scope::All => "every project (*)",
        Scope::Project(name) => name.as_str(),
    }
}

/// The text of `authorized_keys` with these lines as our block, at its top; all other lines stay as they are.
///
/// # Errors
/// If the marks of our block are damaged: what is ours and what is not cannot be told apart.
pub fn with_block(text: &str, lines: &[String]) -> Result<String> {
    let mut all = vec![BEGIN];
    all.extend(lines.iter().map(String::as_str));
    all.push(END);
    let foreign = foreign_lines(text)?;
    all.extend(foreign);
    Ok(all.join("\n") + "\n")
}

/// The lines of `authorized_keys` that are not ours.
///
/// # Errors
/// If the marks of our block are damaged.
pub fn foreign_lines(text: &str) -> Result<Vec<&str>> {
    let (mut foreign, mut inside) = (Vec::new(), false);
    for line in text.lines() {
        match (line.starts_with(BEGIN_MARK), line == END) {
            (true, _) if inside => return Err(damaged("begins twice")),
            (true, _) => inside = true,
            (_, true) if !inside => return Err(damaged("ends without a beginning")),
            (_, true) => inside = false,
            _ if inside => {}
            _ => foreign.push(line),
        }
    }
    if inside { Err(damaged("has no end")) } else { Ok(foreign) }
}

fn damaged(how: &str) -> Error {
    Error::refused(format!("our block in authorized_keys {how}"))
        .hint(format!("take the lines `{BEGIN_MARK} …` and `{END}` out of the file, and our lines between them, then repeat the command"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::error::Kind;

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINDOy1tMe0274wIyCjomPt6qpGjkteQbcoqn84SKb2U1";
    const PRINT: &str = "SHA256:RahA0/9bIkZnOR4F7bnczYW/u0UX7ORWVnYm4xqQqkI";

    fn key() -> SshKey {
        SshKey::parse(&format!("{ED} alice@laptop")).unwrap()
    }

    fn name(text: &str) -> PersonName {
        text.parse().unwrap()
    }

    fn scopes(all: &[&str]) -> Vec<Scope> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn alice() -> Access {
        let mut access = Access::default();
        access.add(&name("alice"), vec![key()], &scopes(&["shop"]), Role::Deploy).unwrap();
        access
    }

    #[test]
    fn names_of_people_are_plain() {
        for good in ["a", "alice", "alice.b_c-2", &"a".repeat(32)] {
            assert!(good.parse::<PersonName>().is_ok(), "{good}");
        }
        for bad in ["", "Alice", "1a", "-a", ".a", "a b", "a\"b", "a;b", "a\n", "é", "*", "../a", &"a".repeat(33)] {
            assert!(bad.parse::<PersonName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn grants_add_up_and_nothing_is_granted_by_itself() {
        let mut access = alice();
        let (shop, blog) = ("shop".parse().unwrap(), "blog".parse().unwrap());
        let role = |access: &Access, project| access.person("alice").unwrap().role(project);
        assert_eq!((role(&access, &shop), role(&access, &blog)), (Some(Role::Deploy), None));
        access.add(&name("alice"), Vec::new(), &scopes(&["*"]), Role::Read).unwrap();
        assert_eq!((role(&access, &shop), role(&access, &blog)), (Some(Role::Deploy), Some(Role::Read)));
        access.add(&name("alice"), Vec::new(), &scopes(&["*"]), Role::Admin).unwrap();
        assert_eq!((role(&access, &shop), role(&access, &blog)), (Some(Role::Admin), Some(Role::Admin)));
        assert!(Role::Read < Role::Deploy && Role::Deploy < Role::Admin);
        assert!(access.person("bob").is_none() && access.person("../alice").is_none());
    }

    #[test]
    fn adding_twice_changes_nothing_and_a_role_can_be_lowered() {
        let mut access = alice();
        let again = access.add(&name("alice"), vec![key()], &scopes(&["shop"]), Role::Deploy).unwrap();
        assert_eq!((again, access.clone()), (Vec::new(), alice()));
        let lowered = access.add(&name("alice"), Vec::new(), &scopes(&["shop"]), Role::Read).unwrap();
        assert_eq!(lowered, ["alice: read on shop, was deploy"]);
    }

    #[test]
    fn a_key_is_one_persons() {
        let mut access = alice();
        let error = access.add(&name("bob"), vec![key()], &scopes(&["shop"]), Role::Read).unwrap_err();
        assert_eq!(error.message(), format!("the key {PRINT} is alice's"));
        assert_eq!(access, alice(), "nothing of it was done");
    }

    #[test]
    fn removing_takes_what_was_named_and_a_mistake_is_an_error() {
        let mut access = alice();
        for (who, scope, key) in [("bob", None, None), ("alice", Some("blog"), None), ("alice", None, Some("SHA256:x"))]
        {
            let scope: Vec<Scope> = scope.iter().map(|text: &&str| text.parse().unwrap()).collect();
            assert_eq!(access.remove(&name(who), &scope, key).unwrap_err().kind(), Kind::Usage);
        }
        let gone = access.remove(&name("alice"), &scopes(&["shop"]), Some(PRINT)).unwrap();
        assert_eq!(gone.len(), 2);
        assert_eq!(access.person("alice"), Some(&Person::default()), "the person stays");
        assert_eq!(access.remove(&name("alice"), &[], None).unwrap(), ["alice is gone, with 0 keys"]);
        assert_eq!(access, Access::default());
    }

    #[test]
    fn the_file_reads_back_and_a_damaged_or_newer_one_does_not() {
        let access = alice();
        let text = access.to_json().unwrap();
        assert_eq!(Access::parse("a", &text).unwrap(), access);
        let text = String::from_utf8(text).unwrap();
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("\"deploy\"", "\"root\""),
            ("\"alice\": {", "\"al ice\": {"),
            ("\"shop\"", "\"../shop\""),
            ("RahA0", "RahA1"),
            ("\"people\"", "\"persons\""),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(Access::parse("a", text.replace(from, to).as_bytes()).is_err(), "{from}");
        }
    }

    #[test]
    fn each_key_is_one_line_that_can_do_one_thing_only() {
        let access = alice();
        let forced = Forced { binary: Path::new("/usr/local/bin/mc_project"), root: Path::new("/") };
        let want = format!("restrict,command=\"/usr/local/bin/mc_project shell alice {PRINT}\" {ED} alice");
        assert_eq!(access.lines(&forced).unwrap(), [want]);
        let elsewhere = access.lines(&Forced { root: Path::new("/var/node"), ..forced }).unwrap();
        assert!(elsewhere[0].contains("\"/usr/local/bin/mc_project --root /var/node shell alice SHA256:"));
        for bad in ["relative", "/a b", "/a\"b", "/a'b", "/a$b", "/a\nb", "/a;b", "/a\\b", "/a%b"] {
            let binary = Path::new(bad);
            assert!(access.lines(&Forced { binary, root: Path::new("/") }).is_err(), "{bad:?}");
            let binary = Path::new("/bin/x");
            assert!(access.lines(&Forced { binary, root: Path::new(bad) }).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn foreign_lines_of_authorized_keys_stay_below_ours() {
        let ours = vec!["one".to_string(), "two".to_string()];
        let first = with_block("# mine\nssh-rsa X\n", &ours).unwrap();
        assert_eq!(first, format!("{BEGIN}\none\ntwo\n{END}\n# mine\nssh-rsa X\n"));
        assert_eq!(with_block(&first, &ours).unwrap(), first);
        assert_eq!(with_block(&first, &[]).unwrap(), format!("{BEGIN}\n{END}\n# mine\nssh-rsa X\n"));
        assert_eq!(with_block("", &[]).unwrap(), format!("{BEGIN}\n{END}\n"));
        for damaged in [format!("{BEGIN}\nx\n"), format!("x\n{END}\n"), format!("{BEGIN}\n{BEGIN}\n{END}\n")] {
            assert_eq!(with_block(&damaged, &ours).unwrap_err().kind(), Kind::Refused, "{damaged}");
        }
    }
}
