//! A service: a program of the project that runs from one deployment to the next, as the recipe declares it.
//!
//! What stands here is plain data. Which account, which directories and which environment it gets is decided by the
//! pipeline; who keeps it running, by a back end of [`crate::service`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};

pub mod listen;

use super::Command;
use super::check::{Check, CheckFile, Probe};
use super::patterns::{Glob, Patterns};
use super::step::{CommandFile, Modes, NetworkWord};
use crate::project::limits::Memory;
use crate::project::mode::Mode;
use crate::project::service_limits::Percent;
pub use crate::project::service_limits::ServiceLimits;
use crate::project::yaml::scalar::{Number, Span, Variables, check_variable, from_text, message_of};
use crate::project::yaml::with_hint;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::path::TreePath;
use crate::sys::step_exec::Network;
use listen::{Listen, ListenFile};

mod list;

pub use list::ServicesFile;

/// How long a service may take to end after the signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a service may take until it is up.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// The name of a service, unique in its project: a small letter, then at most 30 of a-z 0-9 and -.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = text.len() <= 31 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(letter);
        if good {
            return Ok(Self(text.to_string()));
        }
        Err(Error::invalid(format!("`{}` is no name of a service", visible_bounded(text.as_bytes(), 80)))
            .hint("a small letter, then at most 30 of a-z 0-9 and -"))
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the name of a service", |text| text.parse().map_err(|error| message_of(&error)))
    }
}

/// When a service counts as up, and what its end means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is up when its program runs, and runs until it is stopped.
    #[default]
    Simple,
    /// It says itself when it is up (`READY=1`, sd_notify(3)).
    Notify,
    /// It does its work and ends; it is up when it has ended well.
    Oneshot,
}

/// When a service that ended by itself is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// If it ended with another exit code than 0 or by a signal.
    OnFailure,
    /// Never.
    Never,
}

/// What happens to a service that a deployment does not change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unchanged {
    /// It is restarted as every other one.
    #[default]
    Restart,
    /// It goes on, if its definition is the same and it does not work in `run`.
    Leave,
}

/// The signal that asks a service to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    /// SIGTERM.
    #[default]
    Term,
    /// SIGINT.
    Int,
    /// SIGQUIT.
    Quit,
    /// SIGHUP.
    Hup,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
    /// SIGWINCH.
    Winch,
}

impl StopSignal {
    /// The name as systemd.kill(5) writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
            Self::Winch => "SIGWINCH",
        }
    }
}

/// Where a service works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkDir {
    /// Below `run`; `None`: in `run` itself.
    Run(Option<TreePath>),
    /// Below `data`; `None`: in `data` itself.
    Data(Option<TreePath>),
}

/// The port of a service's first instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// This one.
    Number(u16),
    /// The value of this variable, which the recipe, the pillar or the node may set.
    Variable(String),
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// What it runs; never a step about a unit.
    pub command: Command,
    /// Where it works.
    pub dir: WorkDir,
    /// Variables for it alone.
    pub env: BTreeMap<String, String>,
    /// How many instances run; each knows its number, from 1, as `MC_INSTANCE`.
    pub count: u32,
    /// The port of its first instance, told as `PORT`; each further instance has the next one.
    pub port: Option<Port>,
    /// The sockets that are held for it: it is given them, or, where it has a port, connections are passed on to that.
    pub listen: Vec<Listen>,
    /// When it counts as up.
    pub kind: Kind,
    /// When it is started again.
    pub restart: Restart,
    /// What asks it to end.
    pub stop_signal: StopSignal,
    /// How long it may take to end; then it is killed.
    pub stop_timeout: Duration,
    /// How long it may take until it is up.
    pub start_timeout: Duration,
    /// What each instance may use.
    pub limits: ServiceLimits,
    /// Whether it reaches the network.
    pub network: Network,
    /// What a deployment that does not change it does with it.
    pub unchanged: Unchanged,
    /// The modes in which it runs; `None`: in all.
    pub modes: Option<Vec<Mode>>,
    /// The files that concern it while somebody works in editable mode: saving one restarts the services.
    pub watch: Patterns,
    /// What must hold before a deployment is final.
    pub check: Option<Check>,
}

impl Service {
    /// Whether the service runs in this mode.
    #[must_use]
    pub fn applies(&self, mode: Mode) -> bool {
        self.modes.as_ref().is_none_or(|modes| modes.contains(&mode))
    }

    /// Where both listen in some mode.
    #[must_use]
    pub fn listens_where(&self, other: &Self) -> Option<&Listen> {
        let mine = self.listen.iter().find(|mine| other.listen.iter().any(|theirs| mine.clashes_with(theirs)));
        mine.filter(|_| self.is_together_with(other))
    }

    fn is_together_with(&self, other: &Self) -> bool {
        match (&self.modes, &other.modes) {
            (Some(mine), Some(others)) => mine.iter().any(|mode| others.contains(mode)),
            _ => true,
        }
    }

    /// Whether both run in some mode and want the same port, as far as the recipe tells their ports.
    fn clashes_with(&self, other: &Self) -> bool {
        let (Some(Port::Number(one)), Some(Port::Number(two))) = (&self.port, &other.port) else { return false };
        let (one, two) = (u32::from(*one), u32::from(*two));
        self.is_together_with(other) && one < two + other.count && two < one + self.count
    }

    /// The port of an instance, from 1, where the environment that all instances share is this one.
    ///
    /// # Errors
    /// Of kind Invalid, if the variable that is to name it is missing or names none.
    pub fn port_of(&self, instance: u32, env: &BTreeMap<String, String>) -> Result<Option<u16>> {
        let first = match &self.port {
            None => return Ok(None),
            Some(Port::Number(number)) => *number,
            Some(Port::Variable(name)) => {
                let value = env.get(name).map(String::as_str).unwrap_or_default();
                let number = value.parse().ok().filter(|number| *number > 0);
                number.ok_or_else(|| {
                    let shown = visible_bounded(value.as_bytes(), 40);
                    Error::invalid(format!("the service {}: `{name}` is to name its port, but is `{shown}`", self.name))
                        .hint(format!("set it in `env:` of the recipe or of the pillar: env: {{{name}: \"8000\"}}"))
                })?
            }
        };
        let port = u16::try_from(instance.saturating_sub(1)).ok().and_then(|further| first.checked_add(further));
        let none = || Error::invalid(format!("the service {}: instance {instance} has no port left", self.name));
        port.map(Some).ok_or_else(none)
    }
}

/// One service as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFile {
    run: CommandFile,
    dir: Option<WorkDirText>,
    env: Option<Variables>,
    count: Option<Number<1, 64>>,
    port: Option<Port>,
    #[serde(default, rename = "type")]
    kind: Kind,
    restart: Option<Restart>,
    #[serde(default)]
    stop_signal: StopSignal,
    stop_timeout: Option<Span>,
    start_timeout: Option<Span>,
    memory: Option<Memory>,
    processes: Option<Number<1, 1_000_000>>,
    cpu: Option<Percent>,
    open_files: Option<Number<16, 1_048_576>>,
    network: Option<NetworkWord>,
    #[serde(default)]
    unchanged: Unchanged,
    modes: Option<Modes>,
    #[serde(default)]
    watch: Vec<Glob>,
    check: Option<CheckFile>,
    listen: Option<ListenFile>,
}

impl ServiceFile {
    fn limits(&self) -> ServiceLimits {
        ServiceLimits {
            memory: self.memory.map(|memory| memory.0),
            processes: self.processes.as_ref().map(|count| count.0),
            cpu: self.cpu.map(|percent| percent.0),
            open_files: self.open_files.as_ref().map(|count| count.0),
        }
    }

    fn resolve(self, name: ServiceName) -> Result<Service, String> {
        let limits = self.limits();
        let listen = self.listen.map(|listen| listen.0).unwrap_or_default();
        if self.kind == Kind::Oneshot && !listen.is_empty() {
            return Err("a oneshot service takes no `listen`: it does its work and ends".to_string());
        }
        let count = self.count.map_or(1, |count| count.0);
        let port = self.port;
        if let Some(Port::Number(first)) = port
            && u32::from(first) + count - 1 > 65_535
        {
            return Err(format!("{count} ports from {first} on: there are none above 65535"));
        }
        let restart = match (self.kind, self.restart) {
            (Kind::Oneshot, Some(Restart::Always)) => {
                return Err(with_hint(
                    "a oneshot service that is always restarted never ends its work",
                    "restart: on-failure",
                ));
            }
            (Kind::Oneshot, restart) => restart.unwrap_or(Restart::Never),
            (_, restart) => restart.unwrap_or_default(),
        };
        let dir = self.dir.map_or(WorkDir::Run(None), |dir| dir.0);
        if self.unchanged == Unchanged::Leave && matches!(dir, WorkDir::Run(_)) {
            return Err(with_hint(
                "`unchanged: leave` is for a service that does not work in run, which every deployment replaces",
                "dir: data",
            ));
        }
        let watch: Vec<String> = self.watch.into_iter().map(|glob| glob.0).collect();
        let check = self
            .check
            .map(|check| check.resolve(port.is_some() || listen.iter().any(|one| one.local_port().is_some())))
            .transpose()?;
        let network = self.network.map_or(Network::On, NetworkWord::network);
        if network == Network::Off && check.as_ref().is_some_and(|check| !matches!(check.probe, Probe::Run(_))) {
            return Err(with_hint(
                "a service with `network: off` cannot be asked over the network",
                "check: {run: a program that asks it another way}",
            ));
        }
        listen_fits(&listen, port.as_ref(), count, network)?;
        if self.kind == Kind::Oneshot && check.is_some() {
            return Err("a oneshot service takes no check: it is up when it has ended well".to_string());
        }
        Ok(Service {
            name,
            command: self.run.0,
            dir,
            env: self.env.unwrap_or_default().0,
            count,
            port,
            listen,
            kind: self.kind,
            restart,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout.map_or(STOP_TIMEOUT, |span| span.0),
            start_timeout: self.start_timeout.map_or(START_TIMEOUT, |span| span.0),
            limits,
            network,
            unchanged: self.unchanged,
            modes: self.modes.map(|modes| modes.0),
            watch: Patterns::new(&watch).map_err(|error| message_of(&error))?,
            check,
        })
    }
}

/// The sockets that are held agree with each other and with the rest of the service.
fn listen_fits(listen: &[Listen], port: Option<&Port>, count: u32, network: Network) -> Result<(), String> {
    let clashes = |(at, one): (usize, &Listen)| listen[..at].iter().any(|other| other.clashes_with(one));
    if let Some(twice) = listen.iter().enumerate().position(clashes) {
        return Err(format!("`listen` has `{}` twice", listen[twice]));
    }
    if let Some(&Port::Number(first)) = port
        && let Some(own) = listen.iter().find(|one| one.is_among(u32::from(first)..u32::from(first) + count))
    {
        return Err(with_hint(
            &format!("`{own}` is held, and the service is to listen there itself"),
            "another `port`, or none: then it is given the socket",
        ));
    }
    if network == Network::Off && port.is_some() && !listen.is_empty() {
        return Err(with_hint(
            "connections cannot be passed on to a service with `network: off`",
            "without `port:` it is given the socket itself",
        ));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;
        impl Visitor<'_> for NumberOrName {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, or a variable such as $PORT")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                let port = u16::try_from(number).ok().filter(|port| *port > 0);
                port.map(Port::Number).ok_or_else(|| E::custom(format!("{number} is no port: 1 to 65535")))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Port, E> {
                let Some(name) = text.strip_prefix('$') else {
                    return Err(E::custom(with_hint(
                        &format!("`{}` is no port", visible_bounded(text.as_bytes(), 40)),
                        "a number from 1 to 65535, or a variable: $PORT",
                    )));
                };
                check_variable(name, false).map_err(E::custom)?;
                Ok(Port::Variable(name.to_string()))
            }
        }
        deserializer.deserialize_any(NumberOrName)
    }
}

/// `web`, `data`, `data/queue`: a directory of the tree, or of `data/`.
struct WorkDirText(WorkDir);

impl<'de> Deserialize<'de> for WorkDirText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a directory of the tree, or `data` and a directory of it", |text| {
            if text.chars().any(char::is_control) || text.ends_with('\\') || text.trim() != text {
                return Err("no service works in a directory with a control character in its name, or a blank or a \
                            backslash at its end"
                    .to_string());
            }
            let path = |text: &str| TreePath::new(text.as_bytes()).map_err(|error| message_of(&error));
            let body = text.strip_suffix('/').unwrap_or(text);
            Ok(Self(match body {
                "." => WorkDir::Run(None),
                "data" => WorkDir::Data(None),
                _ => match body.strip_prefix("data/") {
                    Some(below) => WorkDir::Data(Some(path(below)?)),
                    None => WorkDir::Run(Some(path(body)?)),
                },
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::recipe::{FILE, Recipe};

    pub fn services(text: &str) -> Vec<Service> {
        Recipe::parse(FILE, format!("services:\n{text}").as_bytes()).unwrap().services
    }

    pub fn refusal(text: &str) -> String {
        let error = Recipe::parse(FILE, format!("services:\n{text}").as_bytes()).unwrap_err();
        format!("{}; {}", error.message(), error.hint_text().unwrap_or_default())
    }

    #[test]
    fn a_service_is_read_with_its_defaults_and_in_the_order_of_the_file() {
        let all = services("  web: {run: bin/web, port: 8000, count: 2}\n  a-worker: {run: [bin/work, -v]}\n");
        assert_eq!(all.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["web", "a-worker"]);
        let web = &all[0];
        assert_eq!((web.command.clone(), web.dir.clone()), (Command::Shell("bin/web".into()), WorkDir::Run(None)));
        assert_eq!((web.kind, web.restart, web.stop_signal), (Kind::Simple, Restart::Always, StopSignal::Term));
        assert_eq!((web.stop_timeout.as_secs(), web.start_timeout.as_secs()), (10, 60));
        let none = BTreeMap::new();
        let port = |service: &Service, instance| service.port_of(instance, &none).unwrap();
        assert_eq!((port(web, 1), port(web, 2), port(&all[1], 1)), (Some(8000), Some(8001), None));
        assert!(web.check.is_none() && web.applies(Mode::Final));
    }

    #[test]
    fn a_port_may_come_from_the_environment() {
        let web = &services("  web: {run: x, port: $PORT, count: 2, check: {http: /}}\n")[0];
        let with = |value: &str| BTreeMap::from([("PORT".to_string(), value.to_string())]);
        assert_eq!(web.port_of(2, &with("8010")).unwrap(), Some(8011));
        for bad in [BTreeMap::new(), with("eighty"), with("0"), with("65536")] {
            assert!(web.port_of(1, &bad).unwrap_err().message().contains("`PORT` is to name its port"));
        }
        assert!(web.port_of(2, &with("65535")).unwrap_err().message().contains("no port left"));
        for (bad, told) in [("'8000'", "is no port"), ("0", "is no port"), ("65536", "is no port"), ("$port", "")] {
            assert!(refusal(&format!("  web: {{run: x, port: {bad}}}\n")).contains(told), "{bad}");
        }
    }

    #[test]
    fn every_key_of_a_service_is_read() {
        let all = services(
            "  queue:\n    run: redis-server\n    dir: data/queue/\n    env: {A: b}\n    type: notify\n    restart: on-failure\n    \
             stop_signal: INT\n    stop_timeout: 90s\n    start_timeout: 2m\n    memory: 1G\n    processes: 20\n    cpu: 150%\n    \
             open_files: 4096\n    network: off\n    unchanged: leave\n    modes: [cooking]\n    port: 6379\n    watch: [src/]\n    \
             check: {run: bin/check, port: 6380, within: 20s, times: 3, every: 2s, timeout: 4s}\n",
        );
        let queue = &all[0];
        assert_eq!(queue.dir, WorkDir::Data(Some(TreePath::new(b"queue").unwrap())));
        let limits =
            ServiceLimits { memory: Some(1 << 30), processes: Some(20), cpu: Some(150), open_files: Some(4096) };
        assert_eq!((queue.limits, queue.unchanged, queue.kind), (limits, Unchanged::Leave, Kind::Notify));
        assert_eq!((queue.network, queue.stop_signal.name()), (Network::Off, "SIGINT"));
        assert!(!queue.applies(Mode::Final));
        assert!(queue.watch.matches(&TreePath::new(b"src/a").unwrap(), false));
        let check = queue.check.clone().unwrap();
        assert_eq!(
            (check.probe, check.port, check.times),
            (Probe::Run(Command::Shell("bin/check".into())), Some(6380), 3)
        );
        assert_eq!([check.within, check.every, check.timeout].map(|time| time.as_secs()), [20, 2, 4]);
    }

    #[test]
    fn a_check_asks_one_thing_and_knows_where() {
        let of =
            |text: &str| services(&format!("  web: {{run: x, port: 80, check: {text}}}\n"))[0].check.clone().unwrap();
        let http = of("{http: /healthz, expect: [200, 204], body: ok, host: shop.example.org}");
        let Probe::Http { path, host, expect, body } = http.probe else { panic!("{http:?}") };
        assert_eq!((path.as_str(), expect, body.as_deref()), ("/healthz", vec![200, 204], Some("ok")));
        assert_eq!(host.as_deref(), Some("shop.example.org"));
        let tcp = of("{tcp: 6380}");
        assert_eq!((tcp.probe, tcp.port), (Probe::Tcp, Some(6380)));
        assert_eq!(of("{run: [bin/check]}").probe, Probe::Run(Command::Argv(vec!["bin/check".into()])));
        for (bad, told) in [
            ("{}", "asks nothing"),
            ("{http: /, tcp: 8}", "two things"),
            ("{tcp: 8, body: x}", "`body` goes with `http`"),
            ("{tcp: 8, port: 9}", "names the port already"),
            ("{http: healthz}", "is no path of a URL"),
            ("{http: '/a b'}", "is no path of a URL"),
            ("{http: /, expect: 99}", "99 is no HTTP status"),
            ("{http: /, expect: []}", "the list of statuses is empty"),
            ("{http: /, expext: 200}", "unknown key `expext`"),
        ] {
            let error = refusal(&format!("  web: {{run: x, port: 80, check: {bad}}}\n"));
            assert!(error.contains(told), "{bad}: {error}");
        }
        assert!(refusal("  web: {run: x, check: {http: /}}\n").contains("does not know which port"));
    }

    #[test]
    fn what_does_not_go_together_is_refused_at_its_service() {
        for (bad, told) in [
            ("{run: x, unchanged: leave}", "does not work in run"),
            ("{run: x, type: oneshot, restart: always}", "never ends its work"),
            ("{run: x, type: oneshot, check: {tcp: 1}}", "takes no check"),
            ("{run: x, network: off, check: {tcp: 80}}", "cannot be asked over the network"),
            ("{run: x, port: 65535, count: 2}", "none above 65535"),
            ("{run: x, dir: ../x}", ""),
            ("{run: x, dir: \"web\\nExecStartPre=+/bin/sh\"}", "control character"),
            ("{run: x, dir: \"data/a\\\\\"}", "backslash at its end"),
            ("{run: x, cpu: 50}", "no part of a processor"),
            ("{run: x, count: 0}", ""),
            ("{count: 1}", "run"),
        ] {
            let error = refusal(&format!("  web: {bad}\n"));
            assert!(error.starts_with("mc_project.yaml:2:") && error.contains(told), "{bad}: {error}");
        }
        assert!(refusal("  Web: {run: x}\n").contains("is no name of a service"));
        for (bad, told) in [
            (
                "python3 web.py",
                "`services.web`: expected a mapping, found a text; a service is written so: web: {run: ",
            ),
            ("[web.py]", "`services.web`: expected a mapping, found a list; a service is written so: web: {run: "),
            ("{port: 80}", "`services.web`: missing key `run`"),
            ("{run: x, check: {}}", "`services.web`: the check asks nothing"),
            ("{run: x, check: {http: y}}", "services.web.check.http"),
        ] {
            let error = refusal(&format!("  web: {bad}\n"));
            assert!(error.contains(told), "{bad}: {error}");
        }
        let unknown = refusal("  web: {run: x, lisen: 80}\n");
        assert!(unknown.contains("unknown key `lisen`") && !unknown.contains("listen"), "{unknown}");
        assert!(refusal("  web: {run: x}\n  web: {run: y}\n").contains("web"));
        assert_eq!(services("  once: {run: x, type: oneshot}\n")[0].restart, Restart::Never);
    }
}
