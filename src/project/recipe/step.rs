//! A step: one program of the recipe, written as text, as a list of arguments or as a mapping.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::patterns::{Glob, Patterns};
use super::salt::{self, SaltRun};
use crate::project::limits::{Asked, Memory, StepLimits, User};
use crate::project::mode::Mode;
use crate::project::unit::{UnitAction, UnitName};
use crate::project::yaml::scalar::{Number, Span, Variables, check_value, message_of};
use crate::project::yaml::with_hint;
use crate::sys::escape::visible;
use crate::sys::step_exec::Network;

/// The longest title of a step, in characters.
const MAX_TITLE: usize = 120;

/// What a step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A text for `/bin/sh -euc`.
    Shell(String),
    /// A program and its arguments.
    Argv(Vec<String>),
    /// States of Salt, from the commit's `.salt`.
    Salt(SaltRun),
    /// Something done with a unit of the machine's service manager, which `node.yaml` must allow.
    Unit {
        /// What is done.
        action: UnitAction,
        /// With which unit.
        unit: UnitName,
    },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is run.
    pub command: Command,
    /// How long it may take.
    pub timeout: Duration,
    /// The modes in which it runs; `None`: in all.
    pub modes: Option<Vec<Mode>>,
    /// Variables for this step alone.
    pub env: BTreeMap<String, String>,
    /// Bytes of memory that all its processes may use; `None`: what the node allows.
    pub memory: Option<u64>,
    /// How many processes it may have; `None`: what the node allows.
    pub processes: Option<u32>,
    /// Whether it reaches the network.
    pub network: Network,
    /// Who it runs as.
    pub user: User,
    /// The files whose saving runs it again, while `watch` looks after a project in editable mode.
    pub watch: Patterns,
}

impl Command {
    /// The command as written, on one line, escaped, at most 120 characters long.
    #[must_use]
    pub fn title(&self) -> String {
        let line = match self {
            Self::Shell(text) => {
                text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
            }
            Self::Argv(words) => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
            Self::Salt(run) => run.words(),
            Self::Unit { action, unit } => format!("{} {unit}", action.word()),
        };
        let shown = visible(&line);
        if shown.chars().count() <= MAX_TITLE {
            return shown;
        }
        let mut short: String = shown.chars().take(MAX_TITLE - 1).collect();
        short.push('…');
        short
    }
}

impl Step {
    /// A step with nothing but a command, as long as a step may take.
    #[must_use]
    pub fn of(command: Command) -> Self {
        StepFile::of(command).resolve(StepLimits::default(), Duration::MAX)
    }

    /// What it may use as the recipe has it.
    #[must_use]
    pub fn limits(&self) -> StepLimits {
        StepLimits { memory: self.memory, processes: self.processes, timeout: Some(self.timeout) }
    }

    /// The command as written: see [`Command::title`].
    #[must_use]
    pub fn title(&self) -> String {
        self.command.title()
    }

    /// The states that it runs, if it is such a step.
    #[must_use]
    pub fn salt(&self) -> Option<&SaltRun> {
        match &self.command {
            Command::Salt(run) => Some(run),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn salt_mut(&mut self) -> Option<&mut SaltRun> {
        match &mut self.command {
            Command::Salt(run) => Some(run),
            _ => None,
        }
    }

    /// Whether the step runs in this mode.
    #[must_use]
    pub fn applies(&self, mode: Mode) -> bool {
        self.modes.as_ref().is_none_or(|modes| modes.contains(&mode))
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_string() } else { format!("'{word}'") }
}

/// A step as written, without the defaults.
#[derive(Debug, Clone)]
pub struct StepFile {
    command: Command,
    limits: StepLimits,
    modes: Option<Vec<Mode>>,
    env: BTreeMap<String, String>,
    network: Network,
    user: User,
    watch: Patterns,
}

impl StepFile {
    /// What the step itself asks for, with the keys that ask.
    pub fn asks(&self) -> impl Iterator<Item = Asked> {
        let root = (self.user == User::Root).then_some(Asked::Root);
        asked(&self.limits).chain(root)
    }

    /// The step with the default limits where it has none of its own.
    #[must_use]
    pub fn resolve(self, defaults: StepLimits, timeout: Duration) -> Step {
        let limits = self.limits.or(defaults);
        Step {
            command: self.command,
            timeout: limits.timeout.unwrap_or(timeout),
            modes: self.modes,
            env: self.env,
            memory: limits.memory,
            processes: limits.processes,
            network: self.network,
            user: self.user,
            watch: self.watch,
        }
    }

    fn of(command: Command) -> Self {
        Self {
            command,
            limits: StepLimits::default(),
            modes: None,
            env: BTreeMap::new(),
            network: Network::default(),
            user: User::default(),
            watch: Patterns::default(),
        }
    }
}

/// What limits ask for.
pub fn asked(limits: &StepLimits) -> impl Iterator<Item = Asked> + use<> {
    [limits.memory.map(Asked::Memory), limits.processes.map(Asked::Processes), limits.timeout.map(Asked::Timeout)]
        .into_iter()
        .flatten()
}

impl<'de> Deserialize<'de> for StepFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StepVisitor)
    }
}

/// The mapping form of a step.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StepMap {
    run: Option<CommandFile>,
    restart: Option<UnitName>,
    reload: Option<UnitName>,
    start: Option<UnitName>,
    stop: Option<UnitName>,
    timeout: Option<Span>,
    modes: Option<Modes>,
    env: Option<Variables>,
    memory: Option<Memory>,
    processes: Option<Number<1, 1_000_000>>,
    network: Option<NetworkWord>,
    user: Option<User>,
    #[serde(default)]
    watch: Vec<Glob>,
}

/// Whether a step reaches the network: `on` or `off`. YAML 1.2 reads both as texts.
#[derive(Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkWord {
    /// It does.
    On,
    /// It does not.
    Off,
}

impl NetworkWord {
    /// What it means.
    #[must_use]
    pub fn network(self) -> Network {
        match self {
            Self::On => Network::On,
            Self::Off => Network::Off,
        }
    }
}

impl StepMap {
    /// The one thing that the step does; the error is the message for its place.
    fn command(&mut self) -> Result<Command, String> {
        let units = [
            (UnitAction::Restart, self.restart.take()),
            (UnitAction::Reload, self.reload.take()),
            (UnitAction::Start, self.start.take()),
            (UnitAction::Stop, self.stop.take()),
        ];
        let units = units.into_iter().filter_map(|(action, unit)| Some(Command::Unit { action, unit: unit? }));
        let run = self.run.take().map(|run| states_or(run.0)).transpose()?;
        let mut all = run.into_iter().chain(units);
        let hint = "a step has one of: run, restart, reload, start, stop";
        match (all.next(), all.next()) {
            (Some(command), None) => {
                if let (Command::Unit { .. }, Some(key)) = (&command, self.key_of_a_program()) {
                    return Err(format!("a step about a unit takes no `{key}`"));
                }
                Ok(command)
            }
            (None, _) => Err(with_hint("missing key `run`", hint)),
            (Some(_), Some(_)) => Err(with_hint("the step does two things", hint)),
        }
    }

    /// A key that only a program of the project has a use for.
    fn key_of_a_program(&self) -> Option<&'static str> {
        let keys = [
            ("env", self.env.is_some()),
            ("memory", self.memory.is_some()),
            ("processes", self.processes.is_some()),
            ("network", self.network.is_some()),
            ("user", self.user.is_some()),
        ];
        keys.into_iter().find(|(_, is_there)| *is_there).map(|(key, _)| key)
    }
}

struct StepVisitor;

impl<'de> Visitor<'de> for StepVisitor {
    type Value = StepFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a step: a text, a list of arguments or a mapping with `run`, `restart`, `reload`, `start` or `stop`",
        )
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StepFile, E> {
        let command = CommandVisitor.visit_str(text)?;
        states_or(command).map(StepFile::of).map_err(E::custom)
    }

    // `- true` and `- false` are the programs.
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<StepFile, E> {
        CommandVisitor.visit_bool(value).map(StepFile::of)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<StepFile, A::Error> {
        CommandVisitor.visit_seq(items).map(StepFile::of)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<StepFile, A::Error> {
        let mut map = StepMap::deserialize(MapAccessDeserializer::new(entries))?;
        let watch: Vec<String> = std::mem::take(&mut map.watch).into_iter().map(|glob| glob.0).collect();
        Ok(StepFile {
            watch: Patterns::new(&watch).map_err(|error| A::Error::custom(message_of(&error)))?,
            command: map.command().map_err(A::Error::custom)?,
            limits: StepLimits {
                memory: map.memory.map(|memory| memory.0),
                processes: map.processes.map(|count| count.0),
                timeout: map.timeout.map(|span| span.0),
            },
            modes: map.modes.map(|modes| modes.0),
            env: map.env.unwrap_or_default().0,
            network: map.network.map_or(Network::On, NetworkWord::network),
            user: map.user.unwrap_or_default(),
        })
    }
}

/// The command, or the states that its text names; the error is the message for its place.
fn states_or(command: Command) -> Result<Command, String> {
    let Command::Shell(text) = &command else { return Ok(command) };
    match salt::parse(text) {
        Ok(Some(run)) => Ok(Command::Salt(run)),
        Ok(None) => Ok(command),
        Err(error) => Err(message_of(&error)),
    }
}

/// The value of `run`.
pub struct CommandFile(pub Command);

impl<'de> Deserialize<'de> for CommandFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CommandVisitor).map(Self)
    }
}

struct CommandVisitor;

impl<'de> Visitor<'de> for CommandVisitor {
    type Value = Command;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command: a text for the shell or a list of arguments")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Command, E> {
        check_value(text).map_err(E::custom)?;
        if text.trim().is_empty() {
            return Err(E::custom("the command is empty"));
        }
        Ok(Command::Shell(text.to_string()))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Command, E> {
        Ok(Command::Shell(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Command, A::Error> {
        let mut words = Vec::new();
        while let Some(Word(word)) = items.next_element()? {
            words.push(word);
        }
        if words.first().is_none_or(|program| program.trim().is_empty()) {
            return Err(A::Error::custom("the command is empty"));
        }
        Ok(Command::Argv(words))
    }
}

/// One argument; a number or `true` is the text that was written.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::project::yaml::scalar::from_text(deserializer, "an argument: a text", |text| {
            check_value(text).map(|()| Self(text.to_string()))
        })
    }
}

/// A list of modes with at least one.
pub struct Modes(pub Vec<Mode>);

impl<'de> Deserialize<'de> for Modes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Modes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of modes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Modes, A::Error> {
                let modes = Vec::<Mode>::deserialize(SeqAccessDeserializer::new(items))?;
                if modes.is_empty() {
                    let hint = "leave `modes` out to run in every mode";
                    return Err(A::Error::custom(with_hint("the list of modes is empty", hint)));
                }
                Ok(Modes(modes))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// The value of a stage: a list of steps or a single one.
#[derive(Debug, Default)]
pub struct StepsFile(pub Vec<StepFile>);

impl<'de> Deserialize<'de> for StepsFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Steps;
        impl<'de> Visitor<'de> for Steps {
            type Value = StepsFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of steps or one step")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StepsFile, E> {
                StepVisitor.visit_str(text).map(|step| StepsFile(vec![step]))
            }

            fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<StepsFile, E> {
                StepVisitor.visit_bool(value).map(|step| StepsFile(vec![step]))
            }

            // A stage whose steps are all commented out.
            fn visit_unit<E: serde::de::Error>(self) -> Result<StepsFile, E> {
                Ok(StepsFile::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<StepsFile, A::Error> {
                StepVisitor.visit_map(entries).map(|step| StepsFile(vec![step]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<StepsFile, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(StepsFile)
            }
        }
        deserializer.deserialize_any(Steps)
    }
}
