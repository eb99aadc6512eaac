//! What one instance of a service may use: as a recipe asks for it, and as the node allows it at most.

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

use super::limits::{Asked, Memory};
use super::yaml::scalar::{Number, from_text};
use super::yaml::with_hint;
use crate::sys::escape::visible_bounded;

/// What one instance of a service may use; what is unset is not limited here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceLimits {
    /// Bytes of memory, swap included.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
    /// Processor time, in hundredths of one processor.
    pub cpu: Option<u32>,
    /// Open descriptors.
    pub open_files: Option<u32>,
}

impl ServiceLimits {
    /// These limits, and where one is unset that of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            processes: self.processes.or(other.processes),
            cpu: self.cpu.or(other.cpu),
            open_files: self.open_files.or(other.open_files),
        }
    }

    /// The smaller one of each; what is unset in one is as in the other.
    #[must_use]
    pub fn within(self, caps: Self) -> Self {
        fn smaller<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        Self {
            memory: smaller(self.memory, caps.memory),
            processes: smaller(self.processes, caps.processes),
            cpu: smaller(self.cpu, caps.cpu),
            open_files: smaller(self.open_files, caps.open_files),
        }
    }

    /// What is asked for with them.
    pub fn asked(self) -> impl Iterator<Item = Asked> {
        [
            self.memory.map(Asked::ServiceMemory),
            self.processes.map(Asked::ServiceProcesses),
            self.cpu.map(Asked::ServiceCpu),
            self.open_files.map(Asked::ServiceOpenFiles),
        ]
        .into_iter()
        .flatten()
    }
}

/// The limits as they are written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceLimitsFile {
    memory: Option<Memory>,
    processes: Option<Number<1, 1_000_000>>,
    cpu: Option<Percent>,
    open_files: Option<Number<16, 1_048_576>>,
}

impl ServiceLimitsFile {
    /// The words as values.
    #[must_use]
    pub fn resolve(self) -> ServiceLimits {
        ServiceLimits {
            memory: self.memory.map(|memory| memory.0),
            processes: self.processes.map(|count| count.0),
            cpu: self.cpu.map(|percent| percent.0),
            open_files: self.open_files.map(|count| count.0),
        }
    }
}

/// `50%`, `200%`: hundredths of one processor.
#[derive(Debug, Clone, Copy)]
pub struct Percent(pub u32);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a part of a processor such as 50% or 200%", |text| {
            let number = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            match number.and_then(|digits| digits.parse().ok()) {
                Some(percent @ 1..=100_000) => Ok(Self(percent)),
                _ => Err(with_hint(
                    &format!("`{}` is no part of a processor", visible_bounded(text.as_bytes(), 40)),
                    "50% is half of one processor, 200% two of them",
                )),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_takes_from_what_is_asked_and_stands_where_nothing_is() {
        let asked = ServiceLimits { memory: Some(10), cpu: Some(50), ..ServiceLimits::default() };
        let caps = ServiceLimits { memory: Some(5), cpu: Some(90), open_files: Some(7), processes: None };
        let both = ServiceLimits { memory: Some(5), cpu: Some(50), open_files: Some(7), processes: None };
        assert_eq!(asked.within(caps), both);
        assert_eq!(asked.or(caps), ServiceLimits { memory: Some(10), ..both });
        assert_eq!(asked.asked().collect::<Vec<_>>(), [Asked::ServiceMemory(10), Asked::ServiceCpu(50)]);
    }
}
