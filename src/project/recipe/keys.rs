//! The keys of a recipe that are names: stages and tasks.

use serde::Deserialize;
use serde::de::Deserializer;

use crate::project::stage::Stage;
use crate::project::yaml::scalar::from_text;
use crate::project::yaml::{unknown, with_hint};
use crate::sys::escape::visible_bounded;

/// The name of a stage that takes steps.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct StageKey(pub Stage);

impl<'de> Deserialize<'de> for StageKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the name of a stage", |name| {
            let allowed = Stage::WITH_STEPS.map(Stage::name);
            match Stage::WITH_STEPS.into_iter().find(|stage| stage.name() == name) {
                Some(stage) => Ok(Self(stage)),
                None if Stage::from_name(name).is_some() => Err(with_hint(
                    &format!("stage `{name}` takes no steps"),
                    &format!("allowed: {}", allowed.join(", ")),
                )),
                None => Err(unknown("stage", name, &allowed)),
            }
        })
    }
}

/// The name of a task.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey(pub String);

impl<'de> Deserialize<'de> for TaskKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the name of a task", |name| {
            let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
            let good =
                name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(letter);
            if good {
                return Ok(Self(name.to_string()));
            }
            let message = format!("`{}` is no name of a task", visible_bounded(name.as_bytes(), 80));
            Err(with_hint(&message, "a small letter, then at most 63 of a-z 0-9 _ -"))
        })
    }
}
