//! Where deliverables come from: a directory of this machine, or another node that is reached over ssh.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Deserializer;

use super::AbsoluteDir;
use crate::project::ids::ProjectName;
use crate::project::yaml::scalar::from_text;
use crate::project::yaml::with_hint;

/// What a written source must look like.
const FORMS: &str = "an absolute directory, or ssh://[user@]node[:port]/NAME";

/// One entry of `release_sources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseSource {
    /// A directory with deliverables.
    Directory(PathBuf),
    /// A project of another node.
    Remote(RemoteSource),
}

/// A project of another node, reached over ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSource {
    /// The account there; `None`: as ssh is configured.
    pub user: Option<String>,
    /// The machine.
    pub host: String,
    /// The port; `None`: as ssh is configured.
    pub port: Option<u16>,
    /// The project, which has the same name on both nodes.
    pub project: ProjectName,
}

impl ReleaseSource {
    /// Whether it can have deliverables of this project.
    #[must_use]
    pub fn concerns(&self, project: &ProjectName) -> bool {
        match self {
            Self::Directory(_) => true,
            Self::Remote(remote) => remote.project == *project,
        }
    }
}

impl RemoteSource {
    /// Reads `ssh://[user@]node[:port]/NAME`; `None` if it is anything else. No part can begin with `-`, which ssh would take
    /// for an option of its own.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (node, project) = text.strip_prefix("ssh://")?.split_once('/')?;
        let (user, node) = match node.rsplit_once('@') {
            Some((user, node)) => (Some(user), node),
            None => (None, node),
        };
        if user.is_some_and(|user| !is_word(user, "._-", 32)) {
            return None;
        }
        let (host, port) = match node.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                address.parse::<std::net::Ipv6Addr>().ok()?;
                (address, port.strip_prefix(':').or_else(|| port.is_empty().then_some(""))?)
            }
            None => node.split_once(':').filter(|(_, port)| !port.is_empty()).or(Some((node, "")))?,
        };
        let is_host = is_word(host, ".-_", 253) || host.parse::<std::net::Ipv6Addr>().is_ok() && node.starts_with('[');
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse::<u16>().ok().filter(|port| *port > 0)?)
            }
            _ => return None,
        };
        let project = project.strip_suffix('/').unwrap_or(project).parse().ok()?;
        is_host.then(|| Self { user: user.map(str::to_string), host: host.to_string(), port, project })
    }

    /// What ssh calls the machine: `user@node`.
    #[must_use]
    pub fn destination(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        }
    }

    /// The machine and its port, as `keys host` takes them.
    #[must_use]
    pub fn node(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

/// Letters and digits, and in between these others.
fn is_word(text: &str, others: &str, longest: usize) -> bool {
    text.len() <= longest
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

impl fmt::Display for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        write!(f, "ssh://{user}{}/{}", self.node(), self.project)
    }
}

impl fmt::Display for ReleaseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => write!(f, "{}", dir.display()),
            Self::Remote(remote) => write!(f, "{remote}"),
        }
    }
}

impl<'de> Deserialize<'de> for ReleaseSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, FORMS, |text| {
            if text.starts_with('/') {
                return AbsoluteDir::parse(text).map(|dir| Self::Directory(dir.0));
            }
            let remote = RemoteSource::parse(text).map(Self::Remote);
            remote.ok_or_else(|| with_hint("this is no source of deliverables", FORMS))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::RemoteSource;

    #[test]
    fn addresses_are_read_and_written_the_same() {
        for (text, user, host, port) in [
            ("ssh://staging/shop", None, "staging", None),
            ("ssh://mc@staging.example.org/shop", Some("mc"), "staging.example.org", None),
            ("ssh://mc@10.0.0.7:2222/shop", Some("mc"), "10.0.0.7", Some(2222)),
            ("ssh://mc@[fd00::7]:2222/shop", Some("mc"), "fd00::7", Some(2222)),
            ("ssh://[::1]/shop", None, "::1", None),
        ] {
            let source = RemoteSource::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((source.user.as_deref(), source.host.as_str(), source.port), (user, host, port), "{text}");
            assert_eq!((source.to_string().as_str(), source.project.as_str()), (text, "shop"));
        }
    }

    #[test]
    fn what_ssh_could_take_for_an_option_and_what_is_no_address_is_refused() {
        for text in [
            "ssh://-oProxyCommand=x/shop",
            "ssh://-l@host/shop",
            "ssh://host",
            "ssh://host/",
            "ssh:///shop",
            "ssh://host/../shop",
            "ssh://host/shop/x",
            "ssh://host:0/shop",
            "ssh://host:70000/shop",
            "ssh://host:/shop",
            "ssh://host:+22/shop",
            "ssh://a b/shop",
            "ssh://a;b/shop",
            "ssh://a%h/shop",
            "ssh://u@v@host/shop",
            "ssh://::1/shop",
            "ssh://[::1/shop",
            "ssh://[host]/shop",
            "ssh://host/Shop",
            "http://host/shop",
            "host:shop",
        ] {
            assert_eq!(RemoteSource::parse(text), None, "{text}");
        }
    }
}
