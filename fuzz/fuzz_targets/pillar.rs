//! Pillars: as strict as recipes, and no secret comes out of them by any of the ways that are shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::project::ids::ProjectName;
use mc_project::project::pillar::{FILE, Pillar};
use mc_project::sys::error::Kind;
use mc_project_fuzz::{assert_error, assert_shown};
use serde_json::Value;

/// Every text in a value, keys aside.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|inner| texts(inner, found)),
        Value::Object(map) => map.values().for_each(|inner| texts(inner, found)),
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let project: ProjectName = "shop".parse().expect("a name");
    let pillar = match Pillar::parse(FILE, data, &project) {
        Ok(pillar) => pillar,
        Err(error) => {
            assert_error(&error);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().starts_with(FILE), "{error}");
            assert_shown(&error.to_string(), true);
            // A line of a recipe is quoted with its number before it; one of a pillar never is.
            assert!(!error.hint_text().unwrap_or_default().contains("look at"), "{error}");
            return;
        }
    };
    assert!(pillar.config().is_object());
    for (name, value) in pillar.exports() {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    }
    let mut shown = Vec::new();
    texts(&pillar.masked(), &mut shown);
    let (exports, secrets) = (pillar.exports().len(), pillar.secrets().len());
    assert_eq!(format!("{pillar:?}"), format!("Pillar({exports} exports, {secrets} secrets, hidden)"));
    for (_, secret) in pillar.secrets() {
        assert!(secret.chars().count() >= 8);
        assert!(!shown.contains(&secret) || secret == "********", "a secret is shown");
    }
});
