//! Pillars: as strict as recipes, whatever is merged, rendered and resolved, and no secret comes out of them by any of the ways
//! that are shown.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mc_project::project::ids::ProjectName;
use mc_project::project::pillar::template::Facts;
use mc_project::project::pillar::{FILE, Inputs, Merge, Pillar};
use mc_project::sys::error::{Error, Kind};
use mc_project_fuzz::{Input, assert_error, assert_shown};
use serde_json::{Map, Value, json};

/// Between the files of one input.
const NEXT: &[u8] = b"\n~~~\n";
/// What a template has made up; in no text that is shown.
const MADE: &str = "made-up-canary";

/// Every text in a value, keys aside.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|inner| texts(inner, found)),
        Value::Object(map) => map.values().for_each(|inner| texts(inner, found)),
        _ => {}
    }
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn facts() -> Facts {
    Facts {
        environment: "staging".into(),
        grains: map(json!({"os_family": "Debian", "fqdn": "node.example.org", "id": "node"})),
        project: map(json!({"name": "shop", "project_root": "/run"})),
        passwords: Some(Arc::new(|name, _| if name == "bad" { Err(Error::invalid("no")) } else { Ok(MADE.into()) })),
    }
}

fn assert_refused(error: &Error) {
    assert_error(error);
    assert_eq!(error.kind(), Kind::Invalid);
    let files = ["pillar/", "PILLAR.sample", "mc_project.yaml: config.defaults"];
    assert!(files.iter().any(|file| error.message().starts_with(file)), "{error}");
    assert_shown(&error.to_string(), true);
    // A line of a recipe is quoted with its number before it; one of a pillar never is.
    assert!(!error.hint_text().unwrap_or_default().contains(" | "), "{error}");
    assert!(!error.to_string().contains(MADE), "{error}");
}

fuzz_target!(|data: &[u8]| {
    let project: ProjectName = "shop".parse().expect("a name");
    let mut input = Input(data);
    let (first, more, sample) = (input.until(NEXT), input.until(NEXT), input.until(NEXT));
    let merge = match input.byte() {
        b'p' => Merge::Plain,
        b'm' => Merge::Makina,
        _ => Merge::Auto,
    };
    let files = |path: &str| {
        Ok(match path {
            FILE => Some(first.to_vec()),
            "more.sls" => Some(more.to_vec()),
            _ => None,
        })
    };
    let defaults = map(json!({"default": {"a": 1, "b": "{name}"}}));
    let inputs = Inputs {
        project: &project,
        merge,
        defaults: &defaults,
        sample: (!sample.is_empty()).then_some(("PILLAR.sample", sample)),
        files: &files,
        facts: &facts(),
    };
    let pillar = match Pillar::read(&inputs) {
        Ok(pillar) => pillar,
        Err(error) => return assert_refused(&error),
    };
    assert!(pillar.config().is_object());
    assert!(Pillar::read(&inputs).is_ok_and(|again| again == pillar), "the same twice");
    for (name, value) in pillar.exports() {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    }
    let explained = pillar.explain("").expect("all of it");
    let mut shown: Vec<String> = pillar.warnings().to_vec();
    texts(&pillar.masked(), &mut shown);
    for one in &explained {
        assert!(!one.said.is_empty() || one.is_resolved, "{one:?} comes from nowhere");
        texts(&one.value, &mut shown);
        one.said.iter().for_each(|said| texts(&said.value, &mut shown));
    }
    let (exports, secrets) = (pillar.exports().len(), pillar.secrets().len());
    assert_eq!(format!("{pillar:?}"), format!("Pillar({exports} exports, {secrets} secrets, hidden)"));
    for (_, secret) in pillar.secrets() {
        assert!(secret.chars().count() >= 8);
        // Stars may be the mask of something else.
        assert!(secret.contains('*') || !shown.iter().any(|text| text.contains(&secret)), "a secret is shown");
    }
});
