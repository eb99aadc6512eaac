//! The record of the campaigns: what each class of faults came to, in `target/reliability.json`.
//!
//! Tests run as processes of their own and at the same time, so each one replaces only its own class, under a lock.

use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// What one class of faults came to. A class that proves something says how its negative control ended.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// How many faults were injected.
    pub points: usize,
    /// How many there are: the denominator. The same number in full mode.
    pub of: usize,
    /// How many of the faults really hit (a fault may come after the end).
    pub hit: usize,
    /// A tree, or code and data, that are neither old nor new.
    pub half_states: usize,
    /// What was said (exit code, record, ref) is not what is.
    pub dishonest_exits: usize,
    /// A panic, or its words in any output.
    pub panics: usize,
    /// What did not end within its deadline, or left the next push waiting.
    pub hangs: usize,
    /// What was left behind after recovery: files, mounts, processes, refs.
    pub litter: usize,
    /// Anything else that is against a promise.
    pub other: usize,
    /// How many ended with "a person is needed" (promised for a fault inside the way back, nowhere else).
    pub needs_person: usize,
    /// The negative control: how many of its points were found half, of how many.
    pub control: Option<(usize, usize)>,
}

impl Record {
    /// How much was found that is against a promise.
    pub fn found(&self) -> usize {
        self.half_states + self.dishonest_exits + self.panics + self.hangs + self.litter + self.other
    }

    fn to_json(&self) -> Value {
        let control = self.control.map(|(caught, of)| json!({"caught": caught, "of": of}));
        json!({
            "mode": if is_full() { "full" } else { "sample" },
            "points": self.points,
            "of": self.of,
            "hit": self.hit,
            "half_states": self.half_states,
            "dishonest_exits": self.dishonest_exits,
            "panics": self.panics,
            "hangs": self.hangs,
            "litter": self.litter,
            "other": self.other,
            "needs_person": self.needs_person,
            "negative_control": control,
        })
    }
}

/// Whether the long campaigns are wanted (`tests/run --full`).
pub fn is_full() -> bool {
    std::env::var_os("MC_TEST_FULL").is_some()
}

/// Where the record is.
fn record_path() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("reliability.json")
}

/// Writes what a class came to into the record, in the place of what stood there for it, and prints it.
#[track_caller]
pub fn record(class: &str, record: &Record) {
    eprintln!("{class}: {}", record.to_json());
    record_at(&record_path(), class, record);
}

/// The same in this file, and says nothing.
#[track_caller]
pub fn record_at(path: &Path, class: &str, record: &Record) {
    let mut file = std::fs::File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap();
    file.lock().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let mut classes = serde_json::from_str::<Value>(&text).ok().and_then(classes_of).unwrap_or_default();
    classes.insert(class.to_string(), record.to_json());
    classes.sort_keys();
    let totals = totals(&classes);
    let text = serde_json::to_string_pretty(&json!({"format": 1, "totals": totals, "classes": classes})).unwrap();
    file.rewind().unwrap();
    file.set_len(0).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.write_all(b"\n").unwrap();
}

/// The sum over all classes: what must be zero, and how many faults stand behind it.
fn totals(classes: &Map<String, Value>) -> Map<String, Value> {
    let names =
        ["points", "hit", "half_states", "dishonest_exits", "panics", "hangs", "litter", "other", "needs_person"];
    let sum = |name: &str| classes.values().filter_map(|class| class[name].as_u64()).sum::<u64>();
    names.iter().map(|name| ((*name).to_string(), json!(sum(name)))).collect()
}

fn classes_of(mut whole: Value) -> Option<Map<String, Value>> {
    whole.get_mut("classes")?.as_object_mut().map(std::mem::take)
}

/// How many times the usual sample is taken (`MC_TEST_TIMES`), for a run between the usual one and a full one.
pub fn times() -> usize {
    std::env::var("MC_TEST_TIMES").map_or(1, |times| times.parse().expect("MC_TEST_TIMES is a number"))
}

/// Every `stride`-th of `all`, in full mode each of them. The offset changes with the day, so that runs on many days hit all.
pub fn sample<T: Clone>(all: &[T], wanted: usize) -> Vec<T> {
    let wanted = wanted * times();
    if is_full() || all.len() <= wanted {
        return all.to_vec();
    }
    let stride = all.len().div_ceil(wanted.max(1));
    let day = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
    let offset = usize::try_from(day).unwrap() % stride;
    all.iter().skip(offset).step_by(stride).cloned().collect()
}
