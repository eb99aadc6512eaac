//! The forced command: all that a key in the receiver's `authorized_keys` can do.
//!
//! sshd runs it as the receiver, with what the person typed in `SSH_ORIGINAL_COMMAND`. Everything in there may come from
//! somebody who means harm. It is split without a shell ([`words`]), a repository is found in a table of what the
//! person may have and never by joining paths, and git gets an environment that is made here. [`answer`] only decides;
//! nothing is started or printed by it.
//!
//! Who has no role for a project is told what they would be told if there were none: not even its name is theirs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::hello::{self, Behind, Hello};
use super::remote::run_command;
use super::{RepoKind, door, handover};
use crate::project::access::key::is_fingerprint;
use crate::project::access::{self, Access, Person, Role, Scope, Who};
use crate::project::ids::ProjectName;
use crate::project::place::NodePlace;
use crate::project::wanted::Wanted;
use crate::sys::error::{Context, Error, Result};
use crate::sys::escape::{visible, visible_bounded};
use crate::sys::{fs, machine, process};

pub mod words;

/// What is to be done for a person who came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Print these lines.
    Say(Vec<String>),
    /// Become git.
    Git {
        /// The program and its arguments.
        argv: Vec<OsString>,
        /// The whole environment.
        env: BTreeMap<String, String>,
    },
    /// Hand over a part of a deliverable, with [`send_deliverable`].
    Send {
        /// Who asks.
        who: Who,
        /// The part.
        wanted: Wanted,
    },
    /// Ask the node, with [`remote_command`].
    Remote {
        /// Who asks.
        who: Who,
        /// The words of the command, checked.
        words: Vec<String>,
    },
}

/// One of git's two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Receive,
    Upload,
}

/// Somebody who came in with a key of theirs.
struct Visitor<'a> {
    name: &'a str,
    key: Option<&'a str>,
    person: &'a Person,
    place: NodePlace,
    environment: &'a BTreeMap<OsString, OsString>,
}

/// Decides what is done for the person whose key sshd has seen.
///
/// # Errors
/// Of kind `Usage` or `Refused`, with one line that says why.
pub fn answer(
    root: &Path,
    person: &str,
    key: Option<&str>,
    environment: &BTreeMap<OsString, OsString>,
) -> Result<Answer> {
    let place = NodePlace::new(root);
    let access = match fs::read_bounded(&place.access(), access::LIMIT)? {
        Some(bytes) => Access::parse(&place.access().display().to_string(), &bytes)?,
        None => Access::default(),
    };
    let known = access.person(person).filter(|known| {
        // A line that stands in authorized_keys longer than its key stands in the list lets nobody in.
        key.is_none_or(|key| known.keys.iter().any(|own| own.fingerprint() == key))
    });
    let Some(known) = known else {
        let shown = visible_bounded(person.as_bytes(), 32);
        return Err(
            Error::refused(format!("{shown} may not come in with this key any more")).hint("ask root of the node")
        );
    };
    let place = place.with_projects_dir(access.projects_dir());
    Visitor { name: person, key, person: known, place, environment }.answer()
}

/// Has a command done by the node, and shows what it says; the result is the exit code.
///
/// # Errors
/// If it is refused, or the node cannot be reached.
pub fn remote_command(root: &Path, who: &Who, words: &[String]) -> Result<u8> {
    run_command(root, &door::Person { name: who.person.clone(), key: who.key.clone() }, words)
}

/// Has a part of a deliverable handed over by the node, to standard output.
///
/// # Errors
/// If it is refused, or the node cannot be reached.
pub fn send_deliverable(root: &Path, who: &Who, wanted: &Wanted) -> Result<()> {
    handover::of_root(root, &door::Person { name: who.person.clone(), key: who.key.clone() }, wanted)
}

impl Visitor<'_> {
    fn answer(&self) -> Result<Answer> {
        let original = self.environment.get(OsStr::new("SSH_ORIGINAL_COMMAND"));
        let words = words::split(original.map_or(&[][..], |command| command.as_bytes()))?;
        let texts: Vec<&str> = words.iter().map(String::as_str).collect();
        let (service, arguments) = match texts[..] {
            [] => return Ok(Answer::Say(self.greeting())),
            ["git-receive-pack", ref rest @ ..] | ["git", "receive-pack", ref rest @ ..] => (Service::Receive, rest),
            ["git-upload-pack", ref rest @ ..] | ["git", "upload-pack", ref rest @ ..] => (Service::Upload, rest),
            ["git-upload-archive", ..] | ["git", "upload-archive", ..] => {
                return Err(Error::refused("git archive is not served here; git clone is"));
            }
            [hello::COMMAND] | ["mc_project", hello::COMMAND] => {
                let hello = serde_json::to_string(&Hello::ours(Behind::ForcedCommand));
                return Ok(Answer::Say(vec![hello.context(|| "cannot say hello".to_string())?]));
            }
            ["list"] | ["mc_project", "list"] => return Ok(Answer::Say(self.projects())),
            ["list", "--json"] | ["mc_project", "list", "--json"] => {
                return Ok(Answer::Say(vec![serde_json::Value::from(self.projects()).to_string()]));
            }
            ref question if Wanted::is_meant(question) => return self.send(Wanted::parse(question)?),
            _ => return self.remote(&words),
        };
        match *arguments {
            [path] if !path.starts_with('-') => self.git(service, path),
            _ => Err(Error::usage("git names one repository and nothing else").hint("git push mc@NODE:NAME main")),
        }
    }

    fn git(&self, service: Service, path: &str) -> Result<Answer> {
        let (project, kind) = repository(&self.place, path).ok_or_else(|| self.no_project(path))?;
        let place = self.place.project(&project);
        let (directory, what) = match kind {
            RepoKind::Project => (place.git_project(), format!("{project}")),
            RepoKind::Pillar => (place.git_pillar(), format!("the pillar of {project}")),
        };
        let role = self.role(&project)?;
        // The pillar holds secrets: who only looks does not see it.
        let (needed, doing) = match (service, kind) {
            (Service::Receive, RepoKind::Project) => (Role::Deploy, "deploy"),
            (Service::Receive, RepoKind::Pillar) => (Role::Deploy, "push"),
            (Service::Upload, RepoKind::Project) => (Role::Read, "fetch"),
            (Service::Upload, RepoKind::Pillar) => (Role::Deploy, "fetch"),
        };
        self.need(&project, role, needed, &format!("{doing} {what}"))?;
        let program = match service {
            Service::Receive => "receive-pack",
            Service::Upload => "upload-pack",
        };
        let argv = vec![OsString::from("git"), program.into(), directory.into_os_string()];
        Ok(Answer::Git { argv, env: self.git_environment(role) })
    }

    /// The environment of git and of the hooks that it runs: nothing that came over the connection but what is listed
    /// here and has the shape that it must have.
    fn git_environment(&self, role: Role) -> BTreeMap<String, String> {
        let mut env: BTreeMap<String, String> = [
            ("PATH", process::PATH),
            ("HOME", &self.place.receiver_home().to_string_lossy()),
            ("LANG", "C.UTF-8"),
            ("MC_PUSHER", self.name),
            ("MC_ROLE", role.name()),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .into();
        let given = |name: &str| self.environment.get(OsStr::new(name))?.to_str();
        let passed = [
            ("GIT_PROTOCOL", given("GIT_PROTOCOL").filter(|value| is_protocol(value))),
            ("SSH_CONNECTION", given("SSH_CONNECTION").filter(|value| is_connection(value))),
            ("MC_KEY", self.key.filter(|key| is_fingerprint(key))),
        ];
        env.extend(passed.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?.to_string()))));
        env
    }

    fn remote(&self, words: &[String]) -> Result<Answer> {
        let checked = words::check(words)?;
        let role = self.role(&checked.project)?;
        self.need(&checked.project, role, checked.role, &format!("run `{}` for {}", checked.command, checked.project))?;
        Ok(Answer::Remote { who: self.who(role), words: checked.words })
    }

    fn send(&self, wanted: Wanted) -> Result<Answer> {
        let role = self.role(&wanted.project)?;
        self.need(&wanted.project, role, Role::Read, &format!("fetch deliverables of {}", wanted.project))?;
        Ok(Answer::Send { who: self.who(role), wanted })
    }

    fn who(&self, role: Role) -> Who {
        Who { person: self.name.to_string(), key: self.key.map(str::to_string), role }
    }

    /// The person's role for a project that exists.
    fn role(&self, project: &ProjectName) -> Result<Role> {
        let role = self.person.role(project).filter(|_| self.exists(project));
        role.ok_or_else(|| self.no_project(project.as_str()))
    }

    fn exists(&self, project: &ProjectName) -> bool {
        fs::exists(&self.place.project(project).git_project())
    }

    fn need(&self, project: &ProjectName, role: Role, needed: Role, doing: &str) -> Result<()> {
        if role >= needed {
            return Ok(());
        }
        let (name, needed) = (self.name, needed.name());
        Err(Error::refused(format!("{name} may not {doing} (role {})", role.name())).hint(format!(
            "ask root of the node: {} keys add {name} --project {project} --role {needed}",
            self.command()
        )))
    }

    /// There is none, or none for them: the same words.
    fn no_project(&self, asked: &str) -> Error {
        let shown = visible_bounded(asked.as_bytes(), 64);
        Error::refused(format!("there is no project `{shown}` for {}", self.name)).hint("yours are shown by: list")
    }

    /// How the command is called on the node.
    fn command(&self) -> String {
        let root = self.place.root();
        if root == Path::new("/") { "mc_project".to_string() } else { format!("mc_project --root {}", root.display()) }
    }

    /// The names of the projects that exist and that the person has a role for, sorted.
    fn projects(&self) -> Vec<String> {
        let mut names: Vec<ProjectName> = Vec::new();
        for scope in self.person.grants.keys() {
            match scope {
                Scope::Project(name) => names.push(name.clone()),
                Scope::All => {
                    let all = fs::names(self.place.projects()).unwrap_or_default();
                    names.extend(all.iter().filter_map(|name| name.parse().ok()));
                }
            }
        }
        names.retain(|name| self.exists(name));
        names.sort();
        names.dedup();
        names.iter().map(ToString::to_string).collect()
    }

    /// What somebody reads who comes in without a command.
    fn greeting(&self) -> Vec<String> {
        let host = machine::host_name().unwrap_or_default();
        let host = visible(&host);
        let key = self.key.map(|key| format!(" (key {key})")).unwrap_or_default();
        let mut lines = vec![format!("{}{key}, this is {host}.", self.name)];
        let roles: Vec<(String, Role)> = self
            .projects()
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.person.role(&name.parse().ok()?)?)))
            .collect();
        let Some((first, _)) = roles.first() else {
            lines.push("There is no project for you here yet.".to_string());
            return lines;
        };
        lines.push("Your projects:".to_string());
        let width = roles.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        lines.extend(roles.iter().map(|(name, role)| format!("  {name:<width$}  {}", role.name())));
        let at = format!("{}@{host}", process::user_name());
        lines.push("For example:".to_string());
        if let Some((name, _)) = roles.iter().find(|(_, role)| *role >= Role::Deploy) {
            lines.push(format!("  git remote add node {at}:{name} && git push node main"));
        } else {
            lines.push(format!("  git clone {at}:{first}"));
        }
        lines.push(format!("  ssh {at} status {first}"));
        lines
    }
}

/// The repository that a path names, if it has one of the forms that are served: `NAME`, `NAME.git`, `NAME/pillar`, with
/// `/` or `~/` before it, or the path that the repository has on the node. Only names leave this function.
fn repository(place: &NodePlace, path: &str) -> Option<(ProjectName, RepoKind)> {
    let without_git = |text: &str| text.strip_suffix(".git").unwrap_or(text).to_string();
    let below_root = Path::new("/").join(place.projects().strip_prefix(place.root()).ok()?);
    let is_node_path = |projects: &Path| {
        let rest = path.strip_prefix(projects.to_str()?)?.strip_prefix('/')?;
        let (name, repository) = rest.split_once("/git/")?;
        Some((name.to_string(), without_git(repository)))
    };
    let projects: [PathBuf; 2] = [place.projects().to_path_buf(), below_root];
    let (name, repository) = projects.iter().find_map(|projects| is_node_path(projects)).or_else(|| {
        let short = path.strip_prefix("~/").or_else(|| path.strip_prefix('/')).unwrap_or(path);
        Some(match short.split_once('/') {
            None => (without_git(short), "project".to_string()),
            Some((name, repository)) => (name.to_string(), Some(without_git(repository)).filter(|it| it == "pillar")?),
        })
    })?;
    let kind = match repository.as_str() {
        "project" => RepoKind::Project,
        "pillar" => RepoKind::Pillar,
        _ => return None,
    };
    Some((name.parse().ok()?, kind))
}

/// `GIT_PROTOCOL` as git sends it: `version=2`, perhaps several with colons between them.
fn is_protocol(value: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'=' | b':');
    !value.is_empty() && value.len() <= 100 && value.bytes().all(is_plain)
}

/// `SSH_CONNECTION` as sshd sets it: address and port of the client, then of the server.
fn is_connection(value: &str) -> bool {
    let fields: Vec<&str> = value.split(' ').collect();
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    matches!(fields[..], [client, from, server, to] if is_address(client) && is_port(from) && is_address(server) && is_port(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::access::key::SshKey;
    use crate::sys::error::Kind;

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINDOy1tMe0274wIyCjomPt6qpGjkteQbcoqn84SKb2U1";
    const PRINT: &str = "SHA256:RahA0/9bIkZnOR4F7bnczYW/u0UX7ORWVnYm4xqQqkI";

    /// A node with the projects shop and blog; alice deploys shop, rita reads it, anna is admin of all.
    fn node() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let place = NodePlace::new(dir.path());
        for name in ["shop", "blog"] {
            std::fs::create_dir_all(place.project(&name.parse().unwrap()).git_project()).unwrap();
        }
        let mut access = Access::default();
        let mut add = |name: &str, scope: &str, role, keys| {
            access.add(&name.parse().unwrap(), keys, &[scope.parse().unwrap()], role).unwrap();
        };
        add("alice", "shop", Role::Deploy, vec![SshKey::parse(ED).unwrap()]);
        add("alice", "gone", Role::Admin, vec![]);
        add("rita", "shop", Role::Read, vec![]);
        add("anna", "*", Role::Admin, vec![]);
        std::fs::create_dir_all(place.access().parent().unwrap()).unwrap();
        std::fs::write(place.access(), access.to_json().unwrap()).unwrap();
        dir
    }

    fn ask(node: &tempfile::TempDir, person: &str, command: &str) -> Result<Answer> {
        let environment = [(OsString::from("SSH_ORIGINAL_COMMAND"), OsString::from(command))].into();
        answer(node.path(), person, None, &environment)
    }

    fn refusal(node: &tempfile::TempDir, person: &str, command: &str) -> String {
        let error = ask(node, person, command).unwrap_err();
        assert!(matches!(error.kind(), Kind::Usage | Kind::Refused), "{error}");
        error.message().to_string()
    }

    #[test]
    fn a_repository_is_found_by_each_of_its_names_and_by_no_other() {
        let place = NodePlace::new(Path::new("/"));
        let found = |path: &str| repository(&place, path).map(|(name, kind)| (name.to_string(), kind));
        for path in ["shop", "shop.git", "/shop", "/shop.git", "~/shop", "/srv/projects/shop/git/project"] {
            assert_eq!(found(path), Some(("shop".into(), RepoKind::Project)), "{path}");
        }
        assert_eq!(found("/srv/projects/shop/git/project.git"), Some(("shop".into(), RepoKind::Project)));
        for path in ["shop/pillar", "/shop/pillar.git", "~/shop/pillar", "/srv/projects/shop/git/pillar.git"] {
            assert_eq!(found(path), Some(("shop".into(), RepoKind::Pillar)), "{path}");
        }
        for path in [
            "",
            "/",
            "~",
            "~/",
            "..",
            ".",
            ".git",
            "../shop",
            "shop/..",
            "shop/../blog",
            "shop/project",
            "shop/pillar/x",
            "//shop",
            "/srv/projects/shop",
            "/srv/projects/shop/git",
            "/srv/projects/shop/git/x",
            "/srv/projects/shop/data",
            "/srv/projects/../git/project",
            "/srv/projects/a/../shop/git/project",
            "/srv/projects//git/project",
            "/srv/projects/shop/git/project/..",
            "/etc/passwd",
            "~alice/shop",
            "shop.git.git",
            "Shop",
            "-x",
            "shop ",
            "/srv/projects/shop/git/project/git/project",
            "mc-shop",
            "root",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
        let below = NodePlace::new(Path::new("/var/node")).with_projects_dir(Path::new("/data/p"));
        for path in ["/var/node/data/p/shop/git/project", "/data/p/shop/git/project.git", "shop"] {
            assert_eq!(repository(&below, path), Some(("shop".parse().unwrap(), RepoKind::Project)), "{path}");
        }
        assert_eq!(repository(&below, "/srv/projects/shop/git/project"), None);
    }

    #[test]
    fn each_role_may_do_what_it_says_and_no_more() {
        let node = node();
        let (push, fetch) = ("git-receive-pack 'shop'", "git-upload-pack 'shop'");
        let (push_pillar, fetch_pillar) = ("git-receive-pack 'shop/pillar'", "git upload-pack 'shop/pillar'");
        for (person, command) in [
            ("alice", push),
            ("alice", fetch),
            ("alice", push_pillar),
            ("alice", fetch_pillar),
            ("rita", fetch),
            ("anna", push),
            ("anna", "git receive-pack '/blog.git'"),
        ] {
            assert!(matches!(ask(&node, person, command), Ok(Answer::Git { .. })), "{person} {command}");
        }
        assert_eq!(refusal(&node, "rita", push), "rita may not deploy shop (role read)");
        assert_eq!(refusal(&node, "rita", push_pillar), "rita may not push the pillar of shop (role read)");
        assert_eq!(refusal(&node, "rita", fetch_pillar), "rita may not fetch the pillar of shop (role read)");
        let hint = ask(&node, "rita", push).unwrap_err().hint_text().unwrap().to_string();
        let command = format!("mc_project --root {}", node.path().display());
        assert_eq!(hint, format!("ask root of the node: {command} keys add rita --project shop --role deploy"));

        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        let who = |person: &str, role| Who { person: person.into(), key: None, role };
        let remote = |person: &str, role, text: &str| Answer::Remote { who: who(person, role), words: words(text) };
        assert_eq!(ask(&node, "rita", "status shop").unwrap(), remote("rita", Role::Read, "status shop"));
        let rollback = "rollback shop --to -1";
        assert_eq!(ask(&node, "anna", rollback).unwrap(), remote("anna", Role::Admin, rollback));
        assert_eq!(refusal(&node, "alice", rollback), "alice may not run `rollback` for shop (role deploy)");
        assert_eq!(refusal(&node, "rita", "config shop"), "rita may not run `config` for shop (role read)");
    }

    #[test]
    fn a_project_of_others_looks_like_none() {
        let node = node();
        for command in [
            "git-receive-pack 'X'",
            "git-upload-pack 'X/pillar'",
            "git-upload-pack '/srv/projects/X/git/project'",
            "status X",
            "rollback X",
        ] {
            // blog is there and is not alice's, none is not there, gone is alice's and is not there.
            let told = |name: &str| refusal(&node, "alice", &command.replace('X', name)).replace(name, "X");
            assert_eq!(told("blog"), told("none"), "{command}");
            assert_eq!(told("gone"), told("none"), "{command}");
        }
        assert_eq!(ask(&node, "alice", "list").unwrap(), Answer::Say(vec!["shop".into()]));
        assert_eq!(ask(&node, "anna", "list --json").unwrap(), Answer::Say(vec!["[\"blog\",\"shop\"]".into()]));
    }

    #[test]
    fn git_gets_an_environment_that_was_made_here() {
        let node = node();
        let environment: BTreeMap<OsString, OsString> = [
            ("SSH_ORIGINAL_COMMAND", "git-receive-pack 'shop'"),
            ("SSH_CONNECTION", "192.0.2.7 50000 2001:db8::1 22"),
            ("GIT_PROTOCOL", "version=2"),
            ("GIT_DIR", "/etc"),
            ("GIT_CONFIG_COUNT", "1"),
            ("LD_PRELOAD", "/tmp/x.so"),
            ("PATH", "/tmp"),
            ("MC_PUSHER", "root"),
            ("MC_KEY", "SHA256:forged"),
            ("MC_ROOT", "/tmp"),
            ("LANG", "de_DE"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        let Answer::Git { argv, env } = answer(node.path(), "alice", Some(PRINT), &environment).unwrap() else {
            panic!("git was asked for")
        };
        let repository = NodePlace::new(node.path()).project(&"shop".parse().unwrap()).git_project();
        assert_eq!(argv, [OsString::from("git"), "receive-pack".into(), repository.into_os_string()]);
        let home = node.path().join("var/lib/mc_project").display().to_string();
        let want = [
            ("GIT_PROTOCOL", "version=2"),
            ("HOME", home.as_str()),
            ("LANG", "C.UTF-8"),
            ("MC_KEY", PRINT),
            ("MC_PUSHER", "alice"),
            ("MC_ROLE", "deploy"),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("SSH_CONNECTION", "192.0.2.7 50000 2001:db8::1 22"),
        ];
        assert_eq!(env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), want);

        for (name, values) in [
            ("GIT_PROTOCOL", &["", "version=2;id", "V", "a\nb", "$(id)"][..]),
            (
                "SSH_CONNECTION",
                &["", "x", "192.0.2.7", "192.0.2.7 1 192.0.2.1", "a 1 b 2", "192.0.2.7 1 192.0.2.1 99999"],
            ),
        ] {
            for value in values {
                let mut environment = environment.clone();
                environment.insert(name.into(), value.into());
                let Ok(Answer::Git { env, .. }) = answer(node.path(), "alice", None, &environment) else {
                    panic!("git was asked for")
                };
                assert!(!env.contains_key(name) && !env.contains_key("MC_KEY"), "{name}={value}");
            }
        }
    }

    #[test]
    fn only_a_key_that_is_still_the_persons_comes_in() {
        let node = node();
        let silent = BTreeMap::new();
        assert!(answer(node.path(), "alice", Some(PRINT), &silent).is_ok());
        for (person, key) in [("alice", Some("SHA256:other")), ("rita", Some(PRINT)), ("bob", None), ("../alice", None)]
        {
            assert_eq!(answer(node.path(), person, key, &silent).unwrap_err().kind(), Kind::Refused, "{person}");
        }
        std::fs::remove_file(NodePlace::new(node.path()).access()).unwrap();
        assert_eq!(answer(node.path(), "alice", None, &silent).unwrap_err().kind(), Kind::Refused);
        std::fs::write(NodePlace::new(node.path()).access(), "{}").unwrap();
        assert!(answer(node.path(), "alice", None, &silent).is_err(), "a damaged list lets nobody in");
    }

    #[test]
    fn without_a_command_everybody_is_told_who_they_are() {
        let node = node();
        let Answer::Say(lines) = answer(node.path(), "alice", Some(PRINT), &BTreeMap::new()).unwrap() else {
            panic!("something is said")
        };
        let text = lines.join("\n");
        assert!(text.starts_with(&format!("alice (key {PRINT}), this is ")), "{text}");
        assert!(text.contains("\n  shop  deploy\n") && text.contains(":shop && git push node main"), "{text}");
        assert!(!text.contains("blog") && !text.contains("gone"), "{text}");
        let Answer::Say(lines) = ask(&node, "rita", "").unwrap() else { panic!("something is said") };
        assert!(lines.iter().any(|line| line.contains("git clone ")), "{lines:?}");
    }
}
