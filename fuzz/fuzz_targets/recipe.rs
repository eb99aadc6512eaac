//! Recipes: an error has its place, and what is accepted keeps the rules that the rest of the program relies on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::project::recipe::{Command, FILE, Recipe, Step};
use mc_project::sys::error::{Error, Kind};
use mc_project::sys::path::TreePath;
use mc_project_fuzz::{assert_error, assert_shown};

fn assert_placed(error: &Error) {
    assert_error(error);
    assert_eq!(error.kind(), Kind::Invalid);
    let rest = error.message().strip_prefix(FILE).expect("the name of the file");
    let mut parts = rest.splitn(4, ':').skip(1);
    let mut number = || parts.next().and_then(|part| part.trim_start().parse::<usize>().ok());
    // Only a file that is too large has no place.
    if !rest.starts_with(": the file has") {
        assert!(number().is_some_and(|line| line > 0) && number().is_some_and(|column| column > 0), "{error}");
    }
    assert_shown(&error.to_string(), true);
}

fn assert_step(step: &Step) {
    assert!(!step.timeout.is_zero(), "a step that may take no time");
    let title = step.title();
    assert!(title.chars().count() <= 120);
    assert_shown(&title, false);
    let words: Vec<&String> = match &step.command {
        Command::Shell(text) => vec![text],
        Command::Argv(words) => words.iter().collect(),
        Command::Unit { .. } => Vec::new(),
        Command::Salt(run) => {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            assert!(run.all().all(|name| !name.as_str().is_empty() && name.as_str().bytes().all(is_plain)));
            Vec::new()
        }
    };
    let values = step.env.iter().flat_map(|(name, value)| [name, value]);
    assert!(words.into_iter().chain(values).all(|text| !text.contains('\0')), "no NUL reaches execve");
    assert!(step.env.keys().all(|name| !name.is_empty() && !name.contains('=')));
}

fn assert_apart(paths: &[&TreePath]) {
    for (index, one) in paths.iter().enumerate() {
        assert!(paths[..index].iter().all(|other| !one.is_within(other) && !other.is_within(one)), "{paths:?}");
    }
}

fuzz_target!(|data: &[u8]| {
    let recipe = match Recipe::parse(FILE, data) {
        Ok(recipe) => recipe,
        Err(error) => return assert_placed(&error),
    };
    recipe.stages.values().chain(recipe.tasks.values()).flatten().for_each(assert_step);
    assert!(recipe.stages.values().all(|steps| !steps.is_empty()));
    assert!((1..=1000).contains(&recipe.keep_archives));
    assert_apart(&recipe.cache.iter().chain(recipe.shared.iter().map(|shared| &shared.path)).collect::<Vec<_>>());
    assert_apart(&recipe.snapshot.iter().flatten().collect::<Vec<_>>());
    for service in &recipe.services {
        assert!(service.count >= 1);
        for instance in 1..=service.count.min(1000) {
            let _ = service.port_of(instance, &recipe.env);
        }
        assert!(!matches!(service.command, Command::Unit { .. }), "a unit is no service");
    }
    let probe = TreePath::new(b"a/b.pyc").expect("a path");
    let _ = (recipe.exclude.matches(&probe, false), recipe.ignore_drift.matches(&probe, true));

    // Neither a byte order mark nor the line ends of another system change what is written.
    let marked = [b"\xef\xbb\xbf".as_slice(), data].concat();
    if !data.starts_with(b"\xef\xbb\xbf") {
        assert_eq!(Recipe::parse(FILE, &marked).expect("the same text"), recipe);
    }
    if !data.contains(&b'\r') {
        let other = String::from_utf8_lossy(data).replace('\n', "\r\n");
        assert_eq!(Recipe::parse(FILE, other.as_bytes()).expect("the same text"), recipe);
    }
});
