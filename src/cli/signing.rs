//! Commands about the keys of nodes: who signs deliverables, whose are accepted, and how other nodes are reached for them.

use clap::Args;
use serde::Serialize;

use super::screen;
use super::{Cli, JsonArgs};
use crate::project::node::RemoteSource;
use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::keys::{PublicKey, ReleaseKey, TrustedKey};
use crate::sys::ssh_identity::{HostKey, SshIdentity};

/// The longest name of a key.
const NAME: usize = 64;

/// `keys trust`.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// The key, as `keys show` prints it on the other node
    pub key: String,
    /// Whose it is, for people
    #[arg(long)]
    pub name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `keys distrust`.
#[derive(Debug, Args)]
pub struct DistrustArgs {
    /// The key, its short form, or its name
    pub key: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `keys host`.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// The machine as `release_sources` names it: `node`, `node:port`
    pub node: String,
    /// Accept the key with this fingerprint, and ask nobody
    #[arg(long, value_name = "SHA256:…")]
    pub fingerprint: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A key whose deliverables are accepted, as it is told.
#[derive(Debug, Serialize)]
struct Trusted {
    key: String,
    short: String,
    name: Option<String>,
    from: &'static str,
}

impl Trusted {
    fn new(key: &PublicKey, name: Option<String>, from: &'static str) -> Self {
        Self { key: key.to_string(), short: key.short(), name, from }
    }
}

/// A machine that is known.
#[derive(Debug, Serialize)]
struct Known {
    node: String,
    kind: String,
    fingerprint: String,
}

impl Known {
    fn of(key: HostKey) -> Self {
        let node = key.line.split(' ').next().unwrap_or_default().to_string();
        Self { node, kind: key.kind, fingerprint: key.fingerprint }
    }
}

/// `keys show`.
///
/// # Errors
/// If a key cannot be read or made.
pub fn show(cli: &Cli, args: &JsonArgs) -> Result<u8> {
    let node = cli.node()?;
    let dir = node.place.keys();
    let own = ReleaseKey::load_or_make(&dir)?.public();
    let configured = node.config.trusted_release_keys.iter().map(|key| PublicKey::from_bytes(key.0));
    let mut trusted: Vec<Trusted> = configured.map(|key| Trusted::new(&key, None, "node.yaml")).collect();
    let by_command = TrustedKey::read_all(&dir)?;
    trusted.extend(by_command.into_iter().map(|known| Trusted::new(&known.key, known.name, "keys trust")));
    let identity = SshIdentity::new(&dir);
    let fetch = identity.ensure();
    let known: Vec<Known> = identity.known()?.into_iter().map(Known::of).collect();
    if args.json {
        screen::json(&serde_json::json!({
            "own": own.to_string(),
            "short": own.short(),
            "trusted": trusted,
            "fetch": fetch.ok(),
            "hosts": known,
        }))?;
        return Ok(0);
    }
    for key in &trusted {
        let name = key.name.as_deref().map(|name| format!(", {}", escape::visible(name))).unwrap_or_default();
        screen::line(format!("trusted: {} ({}{name}, by {})", key.key, key.short, key.from));
    }
    for host in &known {
        screen::line(format!("known: {} {} {}", escape::visible(&host.node), host.kind, host.fingerprint));
    }
    match fetch {
        Ok(public) => screen::line(format!("this node fetches with: {}", escape::visible(&public))),
        Err(error) => screen::line(format!("this node cannot fetch by ssh: {}", error.one_line())),
    }
    screen::line(format!("short form of the key below: {}", own.short()));
    screen::line(format!("this node signs with: {own}"));
    Ok(0)
}

/// `keys trust`.
///
/// # Errors
/// If the key is none, the name is not good, or it cannot be written.
pub fn trust(cli: &Cli, args: &TrustArgs) -> Result<u8> {
    let dir = cli.node()?.place.keys();
    let key = PublicKey::parse(&args.key)?;
    let name = args.name.as_deref().map(checked_name).transpose()?;
    let mut all = TrustedKey::read_all(&dir)?;
    if let Some(name) = &name
        && all.iter().any(|known| known.key != key && known.name.as_ref() == Some(name))
    {
        return Err(Error::usage(format!("another key is called {name} already"))
            .hint(format!("mc_project keys show; to take it away: mc_project keys distrust {name}")));
    }
    match all.iter_mut().find(|known| known.key == key) {
        Some(known) => known.name = name.or_else(|| known.name.take()),
        None => all.push(TrustedKey { key: key.clone(), name }),
    }
    TrustedKey::write_all(&dir, &all)?;
    if args.json {
        screen::json(&serde_json::json!({"trusted": key.to_string(), "short": key.short()}))?;
    } else {
        screen::line(format!("deliverables that are signed by {key} ({}) are accepted", key.short()));
    }
    Ok(0)
}

/// A name of a key: it stands on a line with it, and is shown.
fn checked_name(name: &str) -> Result<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if name.is_empty() || name.len() > NAME || !name.chars().all(is_plain) {
        return Err(Error::usage(format!("a name of a key has at most {NAME} letters, digits and . _ - @")));
    }
    Ok(name.to_string())
}

/// `keys distrust`.
///
/// # Errors
/// If no such key is trusted, or it is trusted by `node.yaml`.
pub fn distrust(cli: &Cli, args: &DistrustArgs) -> Result<u8> {
    let node = cli.node()?;
    let dir = node.place.keys();
    let configured = node.config.trusted_release_keys.iter();
    let configured = configured.map(|key| TrustedKey { key: PublicKey::from_bytes(key.0), name: None });
    let is_configured = configured.into_iter().any(|known| known.is_called(&args.key));
    let (gone, left): (Vec<_>, Vec<_>) =
        TrustedKey::read_all(&dir)?.into_iter().partition(|known| known.is_called(&args.key));
    if is_configured {
        return Err(Error::refused("this key is trusted by `trusted_release_keys`")
            .hint(format!("take it out of {}", node.place.config().display())));
    }
    let Some(first) = gone.first() else {
        return Err(Error::usage(format!("no key `{}` is trusted here", escape::visible(&args.key)))
            .hint("mc_project keys show lists them"));
    };
    TrustedKey::write_all(&dir, &left)?;
    if args.json {
        screen::json(&serde_json::json!({"distrusted": first.key.to_string()}))?;
    } else {
        screen::line(format!("deliverables that are signed by {} are no longer accepted", first.key));
    }
    Ok(0)
}

/// `keys host`.
///
/// # Errors
/// If the machine does not answer, or nobody confirms its key.
pub fn host(cli: &Cli, args: &HostArgs) -> Result<u8> {
    let node = cli.node()?;
    let source = RemoteSource::parse(&format!("ssh://{}/any", args.node)).filter(|source| source.user.is_none());
    let source = source.ok_or_else(|| {
        Error::usage(format!("`{}` is no machine", escape::visible(&args.node)))
            .hint("node, node:port or [address]:port")
    })?;
    let identity = SshIdentity::new(&node.place.keys());
    let found = identity.scan(&source.host, source.port)?;
    let chosen = match &args.fingerprint {
        Some(wanted) => named(&source, &found, wanted)?,
        None => confirmed(cli, args, &found)?,
    };
    identity.trust(chosen)?;
    if args.json {
        screen::json(&Known::of(chosen.clone()))?;
    } else {
        screen::line(format!("{} is known by {} ({})", source.node(), chosen.fingerprint, chosen.kind));
    }
    Ok(0)
}

/// The key with the fingerprint that somebody has compared already.
fn named<'k>(source: &RemoteSource, found: &'k [HostKey], wanted: &str) -> Result<&'k HostKey> {
    found.iter().find(|key| key.fingerprint == wanted).ok_or_else(|| {
        let prints: Vec<&str> = found.iter().map(|key| key.fingerprint.as_str()).collect();
        Error::refused(format!("{} has no key with this fingerprint", source.node()))
            .hint(format!("it has {}; somebody else may answer in its place", prints.join(", ")))
    })
}

/// The best key, if a person says that it is the right one.
fn confirmed<'k>(cli: &Cli, args: &HostArgs, found: &'k [HostKey]) -> Result<&'k HostKey> {
    let key = found.first().ok_or_else(|| Error::bug("a scan without keys"))?;
    screen::error_line(format!("{} shows the key {} ({})", args.node, key.fingerprint, key.kind));
    screen::error_line("compare it, on that machine: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
    let answer = screen::confirm("is it the same? type `yes`:", "yes").map_err(|error| {
        error.hint(format!("{} keys host {} --fingerprint {}", command(cli), args.node, key.fingerprint))
    })?;
    if answer { Ok(key) } else { Err(Error::refused("the key was not accepted; nothing was changed")) }
}

/// How the command is called for this node.
fn command(cli: &Cli) -> String {
    let root = cli.absolute_root().unwrap_or_default();
    if root == std::path::Path::new("/") {
        "mc_project".into()
    } else {
        format!("mc_project --root {}", root.display())
    }
}
