//! The house rules that no compiler holds: import directions, the doors to the outside, the size of files.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A source file and its text without the unit tests at its end.
struct Source {
    path: String,
    whole: String,
    code: String,
}

impl Source {
    /// The files of the modules that this one declares behind `#[cfg(test)]`.
    fn modules_for_tests(&self) -> Vec<String> {
        let folder = self.path.strip_suffix("mod.rs").map_or_else(|| self.path.replace(".rs", "/"), str::to_string);
        let after = |text: &str| text.lines().next().and_then(|line| line.strip_suffix(';')).map(str::to_string);
        let declared = self.whole.split("#[cfg(test)]\n").skip(1).filter_map(after);
        declared.filter_map(|line| Some(format!("{folder}{}.rs", line.rsplit_once("mod ")?.1))).collect()
    }

    /// `sys`, `project`, `tree`, …; `main` for the files above the folders.
    fn layer(&self) -> &str {
        match self.path.split_once('/') {
            // The command line and the demonstration stand on top of everything.
            None | Some(("cli", _)) => "main",
            Some((folder, _)) => folder,
        }
    }
}

/// The text before the first module that is written here for tests only.
fn before_tests(whole: &str) -> &str {
    let is_module = |at: &usize| {
        let line = whole[*at..].lines().nth(1).unwrap_or_default();
        line.ends_with('{') && (line.starts_with("mod ") || line.starts_with("pub mod "))
    };
    let found = whole.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(is_module);
    &whole[..found.unwrap_or(whole.len())]
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<PathBuf> = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let read = |path: PathBuf| {
        let whole = std::fs::read_to_string(&path).unwrap();
        // Unit tests stand at the end of a file, and are free to look at the disk with their own eyes.
        let code = before_tests(&whole);
        let code = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .fold(String::new(), |text, line| text + line + "\n");
        Source { path: path.strip_prefix(&root).unwrap().to_str().unwrap().to_string(), whole, code }
    };
    let mut found: Vec<Source> =
        files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).map(read).collect();
    // What a module declares for its tests only is no code of the program.
    let for_tests: Vec<String> = found.iter().flat_map(Source::modules_for_tests).collect();
    found.iter_mut().filter(|source| for_tests.contains(&source.path)).for_each(|source| source.code.clear());
    assert!(found.len() > 15, "the sources were not found");
    found
}

/// What each layer may import, from the top down.
const MAY_IMPORT: [(&str, &[&str]); 8] = [
    ("main", &["entrance", "pipeline", "tree", "service", "report", "project", "sys", "cli", "demo"]),
    ("entrance", &["pipeline", "tree", "service", "report", "project", "sys"]),
    ("pipeline", &["tree", "service", "report", "project", "sys"]),
    ("tree", &["project", "sys"]),
    ("service", &["project", "sys"]),
    ("report", &["project", "sys"]),
    ("project", &["sys"]),
    ("sys", &[]),
];

/// The modules of this crate that a text names by `crate::…`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        let list = rest.strip_prefix('{').map_or_else(
            || vec![rest],
            |list| {
                // Top level of `use crate::{a::b, c::{d, e}}` only.
                let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            parts.push(&list[from..i]);
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            parts.push(&list[from..i]);
                            from = i + 1;
                        }
                        _ => {}
                    }
                }
                parts
            },
        );
        for part in list {
            let name: String = part.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                found.insert(name);
            }
        }
    }
    found
}

#[test]
fn imports_are_read_in_all_their_forms() {
    let code =
        "use crate::sys::fs;\nuse crate::{project::ids, report::{event, journal}};\nlet x = crate::tree::walk();\n";
    assert_eq!(imports(code), ["project", "report", "sys", "tree"].map(str::to_string).into());
}

#[test]
fn imports_go_down_only() {
    let mut wrong = String::new();
    for source in sources() {
        let layer = source.layer();
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == layer) else {
            panic!("src/{} is in a folder that the design does not name", source.path)
        };
        for import in imports(&source.code) {
            if import != layer && !allowed.contains(&import.as_str()) && import.starts_with(|c: char| c.is_lowercase())
            {
                let _ = writeln!(wrong, "  src/{} imports crate::{import}", source.path);
            }
        }
    }
    assert!(wrong.is_empty(), "entrance -> pipeline -> {{tree, service, report}} -> project -> sys:\n{wrong}");
}

/// Whether a line names this path: `File::open`, but not as the end of `LineFile::open`.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Asserts that `words` stand in no code but that of the files whose path begins with one of `doors`.
#[track_caller]
fn only_behind(doors: &[&str], words: &[&str]) {
    let mut wrong = String::new();
    for source in sources() {
        if doors.iter().any(|door| source.path.starts_with(door)) {
            continue;
        }
        for (n, line) in source.code.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| names(line, word)) {
                let _ =
                    writeln!(wrong, "  src/{}: `{word}` (line {} of its code): {}", source.path, n + 1, line.trim());
            }
        }
    }
    assert!(wrong.is_empty(), "only {doors:?} may name {words:?}:\n{wrong}");
}

#[test]
fn git2_is_used_behind_one_door() {
    only_behind(&["sys/git"], &["git2::", "use git2"]);
}

#[test]
fn programs_are_started_behind_one_door() {
    only_behind(&["sys/process", "sys/step_exec", "sys/git", "sys/pipe"], &["Command::new", "process::Command"]);
}

#[test]
fn files_are_touched_behind_one_door() {
    only_behind(
        &["sys/"],
        &["std::fs", "File::open", "File::create", "OpenOptions", "tokio::fs", "rustix::fs", "nix::fcntl"],
    );
}

#[test]
fn project_and_its_parsing_touch_no_disk_and_no_clock() {
    for source in sources().into_iter().filter(|source| source.layer() == "project") {
        for word in [
            "sys::fs",
            "sys::dir",
            "sys::git",
            "sys::process",
            "Timestamp::now",
            "SystemTime",
            "Instant::now",
            "std::env",
        ] {
            assert!(!source.code.contains(word), "src/{} uses {word}", source.path);
        }
    }
}

#[test]
fn the_limits_that_we_hold_ourselves_to() {
    let mut wrong = String::new();
    for source in sources() {
        let lines = source.whole.lines().count();
        if lines > 600 {
            let _ = writeln!(wrong, "  src/{} has {lines} lines, more than 600", source.path);
        }
        let name = Path::new(&source.path).file_stem().unwrap().to_str().unwrap();
        if ["utils", "util", "helpers", "common", "misc"].contains(&name) {
            let _ = writeln!(wrong, "  src/{} has a name that says nothing", source.path);
        }
        if !source.whole.starts_with("//!") {
            let _ = writeln!(wrong, "  src/{} does not begin with its responsibility (//!)", source.path);
        }
        for (n, line) in source.code.lines().enumerate() {
            let line = line.trim();
            let has = |word: &str| line.contains(word);
            if has("pub(crate)") || (line.starts_with("use ") && has("::*")) || has("todo!(") || has("unimplemented!(")
            {
                let _ = writeln!(wrong, "  src/{} (line {} of its code): {line}", source.path, n + 1);
            }
        }
    }
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rs") {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            if lines > 600 {
                let _ = writeln!(wrong, "  {} has {lines} lines, more than 600", path.display());
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The names of the fault points that a text passes: `fault::point("…")`, or `point: "…"` and a last argument "…" for
/// the engine of [`mc_project::tree::sync`], which passes it at each file.
fn points_passed(code: &str) -> BTreeSet<String> {
    let literal = |rest: &str| rest.split('"').next().unwrap_or_default().to_string();
    let mut found = BTreeSet::new();
    for start in ["point(\"", "point: \""] {
        found.extend(code.match_indices(start).map(|(at, start)| literal(&code[at + start.len()..])));
    }
    let syncs = ["sync_tree(", "sync_seen("].into_iter().flat_map(|start| code.match_indices(start));
    for (at, start) in syncs {
        let call = code[at + start.len()..].split(';').next().unwrap_or_default();
        found.extend(call.split_once('"').map(|(_, rest)| literal(rest)));
    }
    found
}

#[test]
fn every_fault_point_is_passed_somewhere_and_every_passed_one_is_listed() {
    let code = sources().into_iter().filter(|source| source.path != "sys/fault.rs");
    let passed: BTreeSet<String> = code.flat_map(|source| points_passed(&source.code)).collect();
    let listed: BTreeSet<String> = mc_project::sys::fault::POINTS.iter().map(ToString::to_string).collect();
    let missing: Vec<_> = listed.difference(&passed).collect();
    assert!(missing.is_empty(), "listed in sys/fault.rs, passed nowhere: {missing:?}");
    let unlisted: Vec<_> = passed.difference(&listed).collect();
    assert!(unlisted.is_empty(), "passed, but not listed in sys/fault.rs: {unlisted:?}");
    assert_eq!(listed.len(), mc_project::sys::fault::POINTS.len(), "a name is listed twice");
}
