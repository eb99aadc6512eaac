//! What a step may use: as a recipe asks for it, and as the node allows it at most.

use std::time::Duration;

use serde::Deserialize;
use serde::de::Deserializer;

use super::service_limits::ServiceLimits;
use super::yaml::scalar::{Number, Span, from_text, parse_memory};
use crate::sys::size;

/// What a step may use; what is unset is not limited here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepLimits {
    /// Bytes of memory of all its processes, swap included.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

impl StepLimits {
    /// These limits, and where one is unset that of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            processes: self.processes.or(other.processes),
            timeout: self.timeout.or(other.timeout),
        }
    }

    /// The smaller one of each; what is unset in one is as in the other.
    #[must_use]
    pub fn within(self, caps: Self) -> Self {
        fn smaller<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            }
        }
        Self {
            memory: smaller(self.memory, caps.memory),
            processes: smaller(self.processes, caps.processes),
            timeout: smaller(self.timeout, caps.timeout),
        }
    }
}

/// Who a step runs as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    /// The project.
    #[default]
    Project,
    /// Root, if the node trusts the project so far.
    Root,
}

/// Something that a recipe asks for and a node may refuse, with the place where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// `mc_project.yaml:3:15`.
    pub place: String,
    /// What is asked for.
    pub what: Asked,
}

/// What is asked for: the most of each that stands in the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// Bytes of memory.
    Memory(u64),
    /// Processes.
    Processes(u32),
    /// Time.
    Timeout(Duration),
    /// To be root.
    Root,
    /// Bytes of memory for an instance of a service.
    ServiceMemory(u64),
    /// Processes of an instance.
    ServiceProcesses(u32),
    /// Hundredths of a processor for an instance.
    ServiceCpu(u32),
    /// Open descriptors of an instance.
    ServiceOpenFiles(u32),
}

impl Asked {
    /// The number that the node allows, in words, if it is less than what is asked for.
    #[must_use]
    pub fn beyond(self, steps: &StepLimits, services: &ServiceLimits) -> Option<String> {
        let number = |count: u32, cap: Option<u32>| cap.filter(|cap| count > *cap).map(|cap| cap.to_string());
        let bytes = |bytes: u64, cap: Option<u64>| cap.filter(|cap| bytes > *cap).map(size::words);
        match self {
            Self::Memory(asked) => bytes(asked, steps.memory),
            Self::Processes(count) => number(count, steps.processes),
            Self::Timeout(time) => steps.timeout.filter(|cap| time > *cap).map(time_words),
            Self::Root => None,
            Self::ServiceMemory(asked) => bytes(asked, services.memory),
            Self::ServiceProcesses(count) => number(count, services.processes),
            Self::ServiceCpu(percent) => number(percent, services.cpu).map(|cap| format!("{cap}%")),
            Self::ServiceOpenFiles(count) => number(count, services.open_files),
        }
    }

    /// Who asks: `a step` or `a service`, and the key of `node.yaml` that caps it.
    #[must_use]
    pub fn asker(self) -> (&'static str, &'static str) {
        match self {
            Self::Memory(_) | Self::Processes(_) | Self::Timeout(_) | Self::Root => ("a step", "steps"),
            _ => ("a service", "services"),
        }
    }

    /// The key and the value, as a recipe writes them.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Memory(bytes) | Self::ServiceMemory(bytes) => format!("memory: {}", size::words(bytes)),
            Self::Processes(count) | Self::ServiceProcesses(count) => format!("processes: {count}"),
            Self::ServiceCpu(percent) => format!("cpu: {percent}%"),
            Self::ServiceOpenFiles(count) => format!("open_files: {count}"),
            Self::Timeout(time) => format!("timeout: {}", time_words(time)),
            Self::Root => "user: root".to_string(),
        }
    }

    /// The key alone.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Memory(_) | Self::ServiceMemory(_) => "memory",
            Self::Processes(_) | Self::ServiceProcesses(_) => "processes",
            Self::ServiceCpu(_) => "cpu",
            Self::ServiceOpenFiles(_) => "open_files",
            Self::Timeout(_) => "timeout",
            Self::Root => "user",
        }
    }
}

/// A time as a recipe writes it: `90s`, `15m`, `2h`.
#[must_use]
pub fn time_words(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{}ms", time.as_millis()),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// The limits as they are written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepLimitsFile {
    memory: Option<Memory>,
    processes: Option<Number<1, 1_000_000>>,
    timeout: Option<Span>,
}

impl StepLimitsFile {
    /// The words as values.
    #[must_use]
    pub fn resolve(self) -> StepLimits {
        StepLimits {
            memory: self.memory.map(|memory| memory.0),
            processes: self.processes.map(|count| count.0),
            timeout: self.timeout.map(|span| span.0),
        }
    }
}

/// Memory: `512M`, `2G`, `512MiB`; enough for a program to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub u64);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "an amount of memory such as 512M or 2G", |text| parse_memory(text).map(Self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_takes_from_what_is_asked_and_stands_where_nothing_is() {
        let asked = StepLimits { memory: Some(10), processes: None, timeout: Some(Duration::from_mins(1)) };
        let caps = StepLimits { memory: Some(5), processes: Some(7), timeout: None };
        let both = StepLimits { memory: Some(5), processes: Some(7), timeout: Some(Duration::from_mins(1)) };
        assert_eq!(asked.within(caps), both);
        assert_eq!(asked.or(caps), StepLimits { memory: Some(10), ..both });
        let none = ServiceLimits::default();
        assert_eq!(
            Asked::Memory(3 << 30).beyond(&StepLimits { memory: Some(2 << 30), ..caps }, &none).unwrap(),
            "2 GiB"
        );
        assert_eq!(Asked::Memory(5).beyond(&caps, &none), None);
        assert_eq!(Asked::Timeout(Duration::from_hours(2)).beyond(&caps, &none), None);
        assert_eq!(time_words(Duration::from_secs(90)), "90s");
    }
}
