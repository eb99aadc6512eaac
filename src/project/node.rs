//! The node's configuration, `etc/mc_project/node.yaml`: what the operator decides for all projects or for one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::Deserializer;

use super::ids::ProjectName;
use super::limits::{StepLimits, StepLimitsFile};
use super::mode::{Environment, Mode};
use super::recipe::Defaults;
use super::service_limits::{ServiceLimits, ServiceLimitsFile};
use super::yaml::locate::Step as Way;
use super::yaml::scalar::{Address, NodeVariables, Number, Size, Span, Text, from_text};
use super::yaml::{Source, with_hint};
use crate::sys::error::Result;

mod allow;
mod mail;
mod project;
mod source;
mod webhook;

use mail::MailFile;
use project::{Branch, Overrides, Permission, ProjectFile, ProjectKey};
use webhook::NodeWebhookFile;

pub use allow::{Allow, Enlarge};
pub use mail::{Login, Mail, Password, Smtp, Tls, Transport};
pub use source::{ReleaseSource, RemoteSource};
pub use webhook::NodeWebhook;

/// When a push is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// After the deployment: a failed one is a rejected push.
    #[default]
    Push,
    /// Before it: the push is accepted, the verdict comes later.
    Later,
}

/// What a pushed tree may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { files: 1_000_000, bytes: 20 << 30, file_bytes: 4 << 30 }
    }
}

/// The free space that a deployment must leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// At least so many bytes.
    pub bytes: u64,
    /// And at least this part of the file system.
    pub percent: u32,
}

impl Reserve {
    /// The bytes to leave free on a file system of this size: the larger one of both.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        self.bytes.max(total / 100 * u64::from(self.percent))
    }
}

impl Default for Reserve {
    fn default() -> Self {
        Self { bytes: 64 << 20, percent: 1 }
    }
}

/// An ed25519 public key whose releases are trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The configuration of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// What the node is for.
    pub environment: Environment,
    /// Where the projects are, below the node's root.
    pub projects_dir: PathBuf,
    /// The program `salt-call`, where it is not the one of `setup --salt`.
    pub salt: Option<PathBuf>,
    /// Where deliverables come from.
    pub release_sources: Vec<ReleaseSource>,
    /// How long a deliverable may take to come from another node, attempts and pauses included.
    pub fetch_within: Duration,
    /// Whose deliverables are accepted.
    pub trusted_release_keys: Vec<PublicKey>,
    /// How long a push waits for the lock.
    pub wait: Duration,
    /// Plain variables for every step.
    pub env: BTreeMap<String, String>,
    /// What a pushed tree may hold.
    pub limits: Limits,
    /// The free space that a deployment must leave.
    pub reserve: Reserve,
    /// What holds where a recipe says nothing.
    pub defaults: Defaults,
    /// How mail goes out.
    pub mail: Mail,
    /// Where outcomes are posted to.
    pub webhook: Option<NodeWebhook>,
    /// What a step may use at most.
    pub steps: StepLimits,
    /// What an instance of a service may use at most.
    pub services: ServiceLimits,
    modes: Option<Vec<Mode>>,
    branch: Option<String>,
    answer: Answer,
    force: bool,
    projects: BTreeMap<ProjectName, Overrides>,
}

/// What holds for one project on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectConfig {
    /// What the project is here for.
    pub environment: Environment,
    /// The mode of a deployment that asks for none.
    pub mode: Mode,
    /// The modes that may be asked for.
    pub modes: Vec<Mode>,
    /// The branch that deploys; `None`: the first of main and master that is pushed.
    pub branch: Option<String>,
    /// When a push is answered.
    pub answer: Answer,
    /// Whether a forced push may deploy.
    pub allow_force: bool,
    /// Whether the project's pushers may act as root.
    pub trust_root: bool,
    /// The account that the project runs as on a whole-machine node, if not its own.
    pub user: Option<String>,
    /// What a step may use at most; a step that asks for nothing gets it.
    pub steps: StepLimits,
    /// What an instance of a service may use at most; one that asks for nothing gets it.
    pub services: ServiceLimits,
    /// What the project may ask root for.
    pub allow: Allow,
    /// The most bytes that everything of the project may take; `None`: as many as there are.
    pub disk: Option<u64>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            environment: Environment::default(),
            projects_dir: PathBuf::from("/srv/projects"),
            salt: None,
            release_sources: Vec::new(),
            fetch_within: Duration::from_hours(1),
            trusted_release_keys: Vec::new(),
            wait: Duration::from_hours(1),
            env: BTreeMap::new(),
            limits: Limits::default(),
            reserve: Reserve::default(),
            defaults: Defaults::default(),
            mail: Mail::default(),
            webhook: None,
            steps: StepLimits::default(),
            services: ServiceLimits::default(),
            modes: None,
            branch: None,
            answer: Answer::default(),
            force: true,
            projects: BTreeMap::new(),
        }
    }
}

impl NodeConfig {
    /// Reads a node's configuration.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let source = Source::new(file, bytes)?;
        let written: NodeFile = source.read()?;
        written.resolve(&source)
    }

    /// Whether there is a source for deliverables of this project.
    #[must_use]
    pub fn is_fed(&self, name: &ProjectName) -> bool {
        self.release_sources.iter().any(|source| source.concerns(name))
    }

    /// What holds for a project; `recorded` is the environment that it was initialised with.
    ///
    /// The node's file is the newer word: what it says of the project wins over what was recorded, and that over what
    /// the file says of all projects.
    #[must_use]
    pub fn for_project(&self, name: &ProjectName, recorded: Option<Environment>) -> ProjectConfig {
        let own = self.projects.get(name).cloned().unwrap_or_default();
        let environment = own.environment.or(recorded).unwrap_or(self.environment);
        let is_fed = self.is_fed(name);
        let natural = environment.mode(is_fed);
        let modes = self.modes.clone().unwrap_or_else(|| modes_of(environment, is_fed));
        let allowed = if modes.contains(&natural) { natural } else { modes.first().copied().unwrap_or(natural) };
        ProjectConfig {
            environment,
            mode: own.mode.unwrap_or(allowed),
            modes,
            branch: own.branch.or_else(|| self.branch.clone()),
            answer: own.answer.unwrap_or(self.answer),
            allow_force: own.force.unwrap_or(self.force),
            trust_root: own.trust_root,
            user: own.user,
            steps: own.steps.or(self.steps),
            services: own.services.or(self.services),
            allow: own.allow,
            disk: own.disk,
        }
    }
}

/// The modes that an environment allows where the node names none. Production that has a source of releases never builds,
/// whoever asks.
fn modes_of(environment: Environment, has_release_sources: bool) -> Vec<Mode> {
    match environment {
        Environment::Dev => vec![Mode::Editable, Mode::Cooking, Mode::Final],
        Environment::Prod if has_release_sources => vec![Mode::Final],
        Environment::Prod => vec![Mode::Cooking, Mode::Final],
        Environment::Staging | Environment::Test | Environment::Qa | Environment::Preprod => {
            vec![Mode::Cooking, Mode::Final]
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeFile {
    environment: Option<Environment>,
    projects_dir: Option<AbsoluteDir>,
    modes: Option<Vec<Mode>>,
    salt: Option<AbsoluteDir>,
    release_sources: Vec<ReleaseSource>,
    fetch_within: Option<Span>,
    trusted_release_keys: Vec<KeyText>,
    branch: Option<Branch>,
    verdict: Answer,
    force: Option<Permission>,
    wait: Option<Span>,
    env: NodeVariables,
    limits: LimitsFile,
    reserve: ReserveFile,
    defaults: DefaultsFile,
    mail: MailFile,
    webhook: Option<NodeWebhookFile>,
    steps: StepLimitsFile,
    services: ServiceLimitsFile,
    projects: BTreeMap<ProjectKey, ProjectFile>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsFile {
    files: Option<Number<1, 100_000_000>>,
    bytes: Option<Size>,
    file_bytes: Option<Size>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReserveFile {
    bytes: Option<Size>,
    percent: Option<Number<0, 50>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DefaultsFile {
    keep_archives: Option<Number<1, 1000>>,
    step_timeout: Option<Span>,
}

impl NodeFile {
    fn resolve(self, source: &Source<'_>) -> Result<NodeConfig> {
        let base = NodeConfig::default();
        if self.modes.as_ref().is_some_and(Vec::is_empty) {
            return Err(source.error_at(&[Way::Key("modes")], "the list of modes is empty"));
        }
        let limits = Limits {
            files: self.limits.files.map_or(base.limits.files, |n| n.0.into()),
            bytes: self.limits.bytes.map_or(base.limits.bytes, |size| size.0),
            file_bytes: self.limits.file_bytes.map_or(base.limits.file_bytes, |size| size.0),
        };
        let reserve = Reserve {
            bytes: self.reserve.bytes.map_or(base.reserve.bytes, |size| size.0),
            percent: self.reserve.percent.map_or(base.reserve.percent, |n| n.0),
        };
        let defaults = Defaults {
            keep_archives: self.defaults.keep_archives.map_or(base.defaults.keep_archives, |n| n.0),
            step_timeout: self.defaults.step_timeout.map_or(base.defaults.step_timeout, |span| span.0),
        };
        let config = NodeConfig {
            environment: self.environment.unwrap_or(base.environment),
            projects_dir: self.projects_dir.map_or(base.projects_dir, |dir| dir.0),
            salt: self.salt.map(|path| path.0),
            release_sources: self.release_sources,
            fetch_within: self.fetch_within.map_or(base.fetch_within, |span| span.0),
            trusted_release_keys: self.trusted_release_keys.into_iter().map(|key| key.0).collect(),
            wait: self.wait.map_or(base.wait, |span| span.0),
            env: self.env.0,
            limits,
            reserve,
            defaults,
            mail: self.mail.resolve(source)?,
            webhook: self.webhook.map(|hook| hook.resolve(source)).transpose()?,
            steps: self.steps.resolve(),
            services: self.services.resolve(),
            modes: self.modes,
            branch: self.branch.map(|branch| branch.0),
            answer: self.verdict,
            force: self.force.map_or(base.force, |word| word == Permission::Allow),
            projects: self.projects.into_iter().map(|(name, project)| (name.0, project.resolve())).collect(),
        };
        check_projects_dir(source, &config.projects_dir)?;
        for (name, own) in &config.projects {
            let modes = config.for_project(name, None).modes;
            if own.mode.is_some_and(|mode| !modes.contains(&mode)) {
                let names: Vec<&str> = modes.iter().map(|mode| mode.name()).collect();
                let message = with_hint("the node does not allow this mode", &format!("allowed: {}", names.join(", ")));
                return Err(
                    source.error_at(&[Way::Key("projects"), Way::Key(name.as_str()), Way::Key("mode")], &message)
                );
            }
        }
        Ok(config)
    }
}

/// The projects' directory may not be one that the system lives in.
fn check_projects_dir(source: &Source<'_>, dir: &Path) -> Result<()> {
    const SYSTEM: [&str; 13] =
        ["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp", "usr"];
    let first = dir.components().nth(1).and_then(|part| part.as_os_str().to_str()).unwrap_or("");
    if first.is_empty() || SYSTEM.contains(&first) {
        let message = with_hint("the projects cannot be in this directory", "the usual one is /srv/projects");
        return Err(source.error_at(&[Way::Key("projects_dir")], &message));
    }
    Ok(())
}

/// An absolute path without `.` and `..`.
#[derive(Clone)]
pub struct AbsoluteDir(pub PathBuf);

impl<'de> Deserialize<'de> for AbsoluteDir {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "an absolute path", Self::parse)
    }
}

impl AbsoluteDir {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts = text.strip_prefix('/').map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let bad = |part: &str| matches!(part, "" | "." | "..");
        let good = parts.is_some_and(|parts| parts.is_empty() || !parts.split('/').any(bad));
        if !good || text.len() > 1024 || text.contains(char::is_control) {
            return Err(with_hint("this is no good path", "an absolute path without `.`, `..` and double slashes"));
        }
        Ok(Self(PathBuf::from(format!("/{}", parts.unwrap_or("")))))
    }
}

struct KeyText(PublicKey);

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a public key", |text| {
            public_key(text).map(Self).ok_or_else(|| {
                with_hint("this is no ed25519 public key", "64 hexadecimal digits, or 32 bytes in base64")
            })
        })
    }
}

/// Reads 32 bytes from hexadecimal digits or base64 (RFC 4648, padding optional).
fn public_key(text: &str) -> Option<PublicKey> {
    let bytes = if text.len() == 64 {
        let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
        digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect::<Option<Vec<u8>>>()?
    } else {
        let body = text.strip_suffix('=').unwrap_or(text);
        let mut bits = body.bytes().try_fold((Vec::new(), 0_u32, 0_u32), |(mut out, held, count), byte| {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            let (held, count) = (held << 6 | u32::from(six), count + 6);
            if count < 8 {
                return Some((out, held, count));
            }
            out.push(u8::try_from(held >> (count - 8)).ok()?);
            Some((out, held & ((1 << (count - 8)) - 1), count - 8))
        })?;
        // What is left over must be nothing, or two spellings would be one key.
        if body.len() != 43 || bits.1 != 0 {
            return None;
        }
        std::mem::take(&mut bits.0)
    };
    bytes.try_into().ok().map(PublicKey)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::{Answer, NodeConfig, Password, ReleaseSource, RemoteSource, Tls, Transport, public_key};
    use crate::project::ids::ProjectName;
    use crate::project::limits::StepLimits;
    use crate::project::mode::{Environment, Mode};
    use crate::sys::error::{Kind, Result};

    fn parse(text: &str) -> Result<NodeConfig> {
        NodeConfig::parse("node.yaml", text.as_bytes())
    }

    fn name(text: &str) -> ProjectName {
        text.parse().unwrap()
    }

    const WHOLE: &str = "\
environment: prod
projects_dir: /srv/sites/
modes: [final, cooking]
release_sources: [/srv/releases, 'ssh://mc@staging:2222/shop']
fetch_within: 20m
trusted_release_keys: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]
branch: live
verdict: later
force: refuse
wait: 15m
env: {http_proxy: 'http://proxy:3128', LC_ALL: C.UTF-8}
limits: {files: 10, bytes: 1GiB, file_bytes: 1024}
reserve: {bytes: 1MiB, percent: 0}
defaults: {keep_archives: 5, step_timeout: 2h}
mail:
  from: node@example.org
  to: [ops@example.org]
  transport: smtp
  smtp: {host: mail.example.org, user: node, password: hunter2hunter2, tls: tls, timeout: 9s}
steps: {memory: 2G, processes: 512}
projects:
  shop:
    {environment: staging, branch: main, verdict: push, force: allow, trust: root, steps: {memory: 3GiB, timeout: 1h}}
  blog: {mode: cooking}
";

    #[test]
    fn a_whole_file_is_read() {
        let node = parse(WHOLE).unwrap();
        assert_eq!(node.projects_dir, Path::new("/srv/sites"));
        let remote = RemoteSource::parse("ssh://mc@staging:2222/shop").unwrap();
        let sources = [ReleaseSource::Directory(PathBuf::from("/srv/releases")), ReleaseSource::Remote(remote)];
        assert_eq!((&node.release_sources[..], node.fetch_within), (&sources[..], Duration::from_mins(20)));
        assert_eq!(node.trusted_release_keys[0].0, [0; 32]);
        assert_eq!(node.wait, Duration::from_mins(15));
        assert_eq!(node.env["http_proxy"], "http://proxy:3128");
        assert_eq!((node.limits.files, node.limits.bytes, node.limits.file_bytes), (10, 1 << 30, 1024));
        assert_eq!((node.reserve.bytes, node.reserve.percent), (1 << 20, 0));
        assert_eq!((node.defaults.keep_archives, node.defaults.step_timeout), (5, Duration::from_hours(2)));
        let Transport::Smtp(smtp) = &node.mail.transport else { panic!("{node:?}") };
        assert_eq!((smtp.port, smtp.tls, smtp.timeout), (465, Tls::Tls, Duration::from_secs(9)));
        assert_eq!(smtp.login.as_ref().unwrap().password, Password::Text("hunter2hunter2".into()));
        assert!(!format!("{node:?}").contains("hunter2"));

        let shop = node.for_project(&name("shop"), Some(Environment::Dev));
        assert_eq!((shop.environment, shop.mode), (Environment::Staging, Mode::Cooking));
        assert_eq!((shop.branch.as_deref(), shop.answer), (Some("main"), Answer::Push));
        assert!(shop.allow_force && shop.trust_root);
        let hour = Some(Duration::from_hours(1));
        assert_eq!(shop.steps, StepLimits { memory: Some(3 << 30), processes: Some(512), timeout: hour });
        let other = node.for_project(&name("other"), None);
        assert_eq!(other.steps, StepLimits { memory: Some(2 << 30), processes: Some(512), timeout: None });
        assert_eq!((other.environment, other.mode), (Environment::Prod, Mode::Final));
        assert_eq!((other.branch.as_deref(), other.answer), (Some("live"), Answer::Later));
        assert!(!other.allow_force && !other.trust_root);
        assert_eq!(node.for_project(&name("blog"), None).mode, Mode::Cooking);
    }

    #[test]
    fn the_environment_decides_mode_and_modes() {
        let node = parse("{}").unwrap();
        assert_eq!(node, NodeConfig::default());
        let of = |environment| node.for_project(&name("a"), Some(environment));
        assert_eq!(node.for_project(&name("a"), None).environment, Environment::Staging);
        assert_eq!(of(Environment::Qa).modes, [Mode::Cooking, Mode::Final]);
        assert_eq!(of(Environment::Prod).modes, [Mode::Cooking, Mode::Final]);
        let fed = parse("release_sources: [/r]\n").unwrap().for_project(&name("a"), Some(Environment::Prod));
        assert_eq!(
            (fed.mode, fed.modes),
            (Mode::Final, vec![Mode::Final]),
            "nobody builds on it, whatever a push asks"
        );
        assert_eq!(of(Environment::Prod).mode, Mode::Cooking, "without a source of releases production cooks");
        assert_eq!(of(Environment::Dev).mode, Mode::Editable);
        let only = parse("modes: [final]\nrelease_sources: [/r]\n").unwrap();
        assert_eq!(only.for_project(&name("a"), None).mode, Mode::Final);
        // Another node's `shop` feeds `shop` and nobody else.
        let far = parse("environment: prod\nrelease_sources: ['ssh://mc@staging/shop']\n").unwrap();
        assert_eq!(far.for_project(&name("shop"), None).mode, Mode::Final);
        assert_eq!(far.for_project(&name("blog"), None).mode, Mode::Cooking);
    }

    #[test]
    fn every_fault_is_told_at_its_place_and_without_the_password() {
        let cases: [(&str, &str, &str); 21] = [
            ("enviroment: dev\n", "1:1: ", "unknown key `enviroment`"),
            ("environment: live\n", "1:14: ", "unknown word `live`"),
            ("projects_dir: srv\n", "1:15: ", "no good path"),
            ("projects_dir: /srv/../etc\n", "1:15: ", "no good path"),
            ("projects_dir: /\n", "1:1: ", "cannot be in this directory"),
            ("projects_dir: /etc/x\n", "1:1: ", "cannot be in this directory"),
            ("modes: []\n", "1:1: ", "empty"),
            ("trusted_release_keys: [abc]\n", "1:24: ", "no ed25519 public key"),
            ("branch: a..b\n", "1:9: ", "no ref name"),
            ("branch: refs/heads/main\n", "1:9: ", "this is a ref"),
            ("wait: 0s\n", "1:7: ", "not within"),
            ("limits: {bytes: 20GB}\n", "1:17: ", "`20GB` is no size"),
            ("limits: {bytes: 99999999999TiB}\n", "1:17: ", "is no size"),
            ("reserve: {percent: 51}\n", "1:20: ", "not within 0 and 50"),
            ("projects: {root: {}}\n", "1:12: ", "`root` is no project name"),
            ("projects: {a: {mode: editable}}\n", "1:16: ", "does not allow this mode"),
            ("mail: {transport: smtp}\n", "1:8: ", "needs a server"),
            ("mail:\n  smtp: {host: a, user: u}\n", "2:19: ", "needs `password`"),
            ("mail:\n  smtp: {host: a, tls: none, user: u, password: hunter2}\n", "2:19: ", "clear text"),
            ("mail:\n  smtp: {host: a, password: hunter2, prot: 5}\n", "2:38: ", "unknown key `prot`"),
            ("mail:\n  smtp: hunter2\n", "2:9: ", "expected a mapping, found a text"),
        ];
        for (text, place, words) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().starts_with(&format!("node.yaml:{place}")), "{text:?}: {error}");
            assert!(error.message().contains(words), "{text:?}: {error}");
            assert!(!error.message().contains("hunter2"), "{error}");
            assert!(!text.contains("password: hunter2") || !error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_key_has_one_value_in_both_spellings_and_no_loose_bits() {
        let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHv8";
        assert_eq!(public_key(hex).unwrap(), public_key(base64).unwrap());
        assert_eq!(public_key(&format!("{base64}=")), public_key(base64));
        assert!(public_key(&base64.replace("v8", "v9")).is_none());
        assert!(public_key(&format!("{base64}==")).is_none());
        assert_eq!(format!("{:?}", public_key(base64).unwrap()), hex);
    }

    #[test]
    fn a_described_way_out_is_taken_without_being_named() {
        let transport = |text: &str| parse(text).unwrap().mail.transport;
        assert!(matches!(transport("mail: {smtp: {host: a}}"), Transport::Smtp(smtp) if smtp.port == 587));
        assert_eq!(transport("mail: {maildir: /m}"), Transport::Maildir(Some("/m".into())));
        assert_eq!(transport("mail: {transport: sendmail}"), Transport::Sendmail("/usr/sbin/sendmail".into()));
        assert_eq!(transport("mail: {transport: none}"), Transport::None);
        assert_eq!(transport("{}"), Transport::Maildir(None));
    }
}
