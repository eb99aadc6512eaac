//! Where a repository or a node is, as git and ssh write it: `user@host:path`, `ssh://user@host:port/path`, or a path of
//! this machine. What a project's repository is called is told here too, so that a remote can be known as a node's.

use std::path::{Path, PathBuf};

use super::ids::ProjectName;
use super::system::System;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The longest address that is read.
const LIMIT: usize = 4096;

/// An account on a machine that is reached by ssh. Both parts hold nothing that ssh or a shell could understand otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login {
    /// The account; `None`: what ssh's configuration says.
    pub user: Option<String>,
    /// The machine, or what ssh's configuration calls it.
    pub host: String,
}

impl Login {
    /// Reads `user@host` or `host`; an IPv6 address may stand in brackets.
    ///
    /// # Errors
    /// Of kind `Usage`, if it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_user = |text: &str| is_word(text, &['.', '_', '-', '+', '\\']);
        if !user.is_none_or(is_user) || !is_word(bare, &['.', '_', '-', ':', '%']) {
            let shown = visible_bounded(text.as_bytes(), 100);
            return Err(
                Error::usage(format!("`{shown}` is no account on a machine")).hint("user@host, as ssh takes it")
            );
        }
        Ok(Self { user: user.map(str::to_string), host: bare.to_string() })
    }

    /// As ssh takes it.
    #[must_use]
    pub fn shown(&self) -> String {
        self.user.as_ref().map_or_else(|| self.host.clone(), |user| format!("{user}@{}", self.host))
    }

    /// As it stands in a URL.
    fn in_url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.user.as_ref().map_or_else(|| host.clone(), |user| format!("{user}@{host}"))
    }
}

/// Letters, digits and these characters, and no flag.
fn is_word(text: &str, more: &[char]) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
    !text.is_empty() && text.len() <= 255 && !text.starts_with('-') && text.chars().all(is_good)
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Through which account; `None`: on this machine.
    pub login: Option<Login>,
    /// At which port, where the address says so.
    pub port: Option<u16>,
    /// The path there.
    pub path: String,
}

/// Which repository of which project an address means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The project.
    pub project: ProjectName,
    /// Where the node's root is, if the path says so; `None`: it is named by a short word, as behind a forced command.
    pub root: Option<PathBuf>,
    /// Whether it is the pillar's.
    pub is_pillar: bool,
}

impl Address {
    /// Reads an address; `None` if it is none that ssh reaches and no path of this machine (`https://…`), or holds what
    /// no such address needs.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > LIMIT || text.starts_with('-') || text.chars().any(char::is_control) {
            return None;
        }
        if let Some(rest) = text.strip_prefix("ssh://").or_else(|| text.strip_prefix("git+ssh://")) {
            let (at, path) = rest.split_at(rest.find('/')?);
            let is_port = |text: &str| text.parse::<u16>().ok();
            // The colon of a port stands behind the brackets of an IPv6 address.
            let (login, port) = match at.rsplit_once(':') {
                Some((login, port)) if !port.ends_with(']') => (login, Some(is_port(port)?)),
                _ => (at, None),
            };
            return Some(Self { login: Some(Login::parse(login).ok()?), port, path: path.to_string() });
        }
        if let Some(path) = text.strip_prefix("file://") {
            return Some(Self { login: None, port: None, path: path.to_string() });
        }
        if text.contains("://") || text.contains("::") && !text.contains('[') {
            return None;
        }
        let end_of_host = text.find(']').map_or(0, |at| at + 1);
        match text[end_of_host..].find(':').map(|at| at + end_of_host) {
            // As git reads it: a slash before the first colon makes it a path.
            Some(colon) if !text[..colon].contains('/') => {
                let login = Login::parse(&text[..colon]).ok()?;
                Some(Self { login: Some(login), port: None, path: text[colon + 1..].to_string() })
            }
            _ => Some(Self { login: None, port: None, path: text.to_string() }),
        }
    }

    /// Which repository of a node this is, if it has the form of one.
    #[must_use]
    pub fn repository(&self) -> Option<Repository> {
        let path = self.path.trim_end_matches('/');
        let without_git = |text: &'_ str| text.strip_suffix(".git").unwrap_or(text).to_string();
        if let Some((before, last)) = path.rsplit_once("/git/") {
            let last = without_git(last);
            let (projects, name) = before.rsplit_once('/')?;
            let root = projects.strip_suffix("/srv/projects").map(|root| if root.is_empty() { "/" } else { root });
            let is_pillar = match last.as_str() {
                "project" => false,
                "pillar" => true,
                _ => return None,
            };
            return Some(Repository { project: name.parse().ok()?, root: root.map(PathBuf::from), is_pillar });
        }
        self.login.as_ref()?;
        let short = path.strip_prefix("~/").or_else(|| path.strip_prefix('/')).unwrap_or(path);
        let (name, is_pillar) = match short.split_once('/') {
            None => (without_git(short), false),
            Some((name, rest)) if without_git(rest) == "pillar" => (name.to_string(), true),
            Some(_) => return None,
        };
        Some(Repository { project: name.parse().ok()?, root: None, is_pillar })
    }

    /// Whether the address is plainly that of a node's repository of code: by its path, or by the receiver's usual name.
    #[must_use]
    pub fn is_plainly_a_node(&self) -> bool {
        let is_receiver = self.login.as_ref().is_some_and(|login| login.user.as_deref() == Some(System::RECEIVER));
        self.repository().is_some_and(|it| !it.is_pillar && (it.root.is_some() || is_receiver))
    }

    /// The address of the pillar that belongs to this repository of code.
    #[must_use]
    pub fn pillar(&self) -> Option<Self> {
        self.repository().filter(|it| !it.is_pillar)?;
        let path = self.path.trim_end_matches('/');
        let path = match path.rsplit_once("/git/") {
            Some((before, _)) => format!("{before}/git/pillar"),
            None => format!("{}/pillar", path.strip_suffix(".git").unwrap_or(path)),
        };
        Some(Self { path, ..self.clone() })
    }

    /// As git takes it.
    #[must_use]
    pub fn url(&self) -> String {
        let Some(login) = &self.login else { return self.path.clone() };
        match self.port {
            None if !self.path.starts_with('/') => format!("{}:{}", login.in_url(), self.path),
            None => format!("ssh://{}{}", login.in_url(), self.path),
            Some(port) => format!("ssh://{}:{port}/{}", login.in_url(), self.path.trim_start_matches('/')),
        }
    }
}

/// The repositories of a project on a node whose root is known.
#[must_use]
pub fn path_below(root: &Path, project: &ProjectName) -> String {
    let root = root.display().to_string();
    format!("{}/srv/projects/{project}/git/project", root.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(url: &str) -> Option<(String, Option<String>, bool)> {
        let it = Address::parse(url)?.repository()?;
        Some((it.project.to_string(), it.root.map(|root| root.display().to_string()), it.is_pillar))
    }

    #[test]
    fn the_repositories_of_nodes_are_known_by_every_form_of_their_address() {
        let at = |name: &str, root: &str, is_pillar| Some((name.to_string(), Some(root.to_string()), is_pillar));
        let short = |name: &str, is_pillar| Some((name.to_string(), None, is_pillar));
        for (url, want) in [
            ("mc@host:shop", short("shop", false)),
            ("mc@host:shop.git", short("shop", false)),
            ("mc@host:/shop/pillar", short("shop", true)),
            ("ssh://mc@host:2222/shop", short("shop", false)),
            ("mc@[2001:db8::1]:shop", short("shop", false)),
            ("ssh://mc@[::1]:22/shop", short("shop", false)),
            ("u@host:/home/u/node/srv/projects/shop/git/project", at("shop", "/home/u/node", false)),
            ("ssh://root@host/srv/projects/shop/git/project.git", at("shop", "/", false)),
            ("/home/u/node/srv/projects/shop/git/pillar/", at("shop", "/home/u/node", true)),
            ("file:///n/srv/projects/shop/git/project", at("shop", "/n", false)),
            ("u@host:/else/shop/git/project", Some(("shop".into(), None, false))),
            ("git@github.com:owner/repo.git", None),
            ("https://example.org/srv/projects/shop/git/project", None),
            ("ext::sh -c id", None),
            ("-oProxyCommand=id:shop", None),
            ("mc@-oProxyCommand=id:shop", None),
            ("a b@host:shop", None),
            ("host;id:shop", None),
            ("mc@host:UPPER", None),
            ("mc@host:", None),
            ("../elsewhere", None),
            ("", None),
        ] {
            assert_eq!(repository(url), want, "{url}");
        }
        let plain = |url| Address::parse(url).unwrap().is_plainly_a_node();
        assert!(plain("mc@host:shop") && plain("/n/srv/projects/shop/git/project"));
        assert!(!plain("mc@host:shop/pillar") && !plain("git@host:shop"));
    }

    #[test]
    fn the_pillar_stands_beside_the_code() {
        for (url, want) in [
            ("mc@host:shop", "mc@host:shop/pillar"),
            ("mc@host:shop.git", "mc@host:shop/pillar"),
            ("ssh://mc@host:2222/shop", "ssh://mc@host:2222/shop/pillar"),
            ("u@h:/n/srv/projects/shop/git/project.git", "ssh://u@h/n/srv/projects/shop/git/pillar"),
            ("/n/srv/projects/shop/git/project", "/n/srv/projects/shop/git/pillar"),
            ("mc@[::1]:shop", "mc@[::1]:shop/pillar"),
        ] {
            assert_eq!(Address::parse(url).unwrap().pillar().unwrap().url(), want, "{url}");
        }
        assert!(Address::parse("mc@host:shop/pillar").unwrap().pillar().is_none());
    }
}
