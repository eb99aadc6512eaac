//! Names and ids: a value that exists is a good one, and reads back from what it is written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::project::ids::{DeploymentId, ObjectId, ProjectName, RefName};
use mc_project::project::recipe::ServiceName;
use mc_project::project::stage::Stage;
use mc_project::sys::path::{MAX_DEPTH, MAX_NAME, MAX_PATH, TreePath, escape, unescape};
use mc_project_fuzz::{Input, assert_error, assert_shown};

/// git-check-ref-format(1), word by word, for a full name.
fn git_takes(name: &str) -> bool {
    let bad = |b: u8| b < 0x20 || b == 0x7f || b" ~^:?*[\\".contains(&b);
    name.contains('/')
        && !name.starts_with('/')
        && !name.ends_with('/')
        && !name.contains("//")
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.bytes().any(bad)
        && name.split('/').all(|part| !part.starts_with('.') && !part.ends_with(".lock"))
}

fn ref_name(text: &str) {
    // Stricter than git in these, which are said in the type: a limit of length, no dot before a slash, no control
    // character of any kind.
    let ours = text.starts_with("refs/")
        && text.len() <= 8192
        && !text.split('/').any(|part| part.ends_with('.'))
        && !text.contains(char::is_control);
    match text.parse::<RefName>() {
        Ok(name) => {
            assert!(git_takes(text), "git does not take {text:?}");
            assert_eq!(name.as_str(), text);
            assert_shown(&name.shown(), false);
            let json = serde_json::to_string(&name).expect("JSON");
            assert_eq!(serde_json::from_str::<RefName>(&json).expect("JSON"), name);
            if let Some(branch) = name.branch() {
                assert_eq!(RefName::of_branch(branch).expect("a branch"), name);
            }
        }
        Err(error) => {
            assert!(!(ours && git_takes(text)), "git takes {text:?}");
            assert_error(&error);
        }
    }
}

fn path(bytes: &[u8]) {
    if let Ok(path) = TreePath::new(bytes) {
        let names: Vec<&[u8]> = bytes.split(|byte| *byte == b'/').collect();
        assert!(names.iter().all(|name| !matches!(*name, b"" | b"." | b"..") && name.len() <= MAX_NAME));
        assert!(bytes.len() <= MAX_PATH && names.len() <= MAX_DEPTH && !bytes.contains(&0));
        assert_eq!(TreePath::from_escaped(&path.escaped()).expect("our own text"), path);
        assert_shown(&path.to_string(), false);
        if let Some(parent) = path.parent() {
            assert!(path.is_within(&parent) && parent < path);
            let name = std::os::unix::ffi::OsStrExt::as_bytes(path.name());
            assert_eq!(parent.join(name).expect("the same path"), path);
        }
    }
    assert_eq!(unescape(&escape(bytes)).expect("our own text"), bytes);
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let bytes = input.0;
    path(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(path) = TreePath::from_escaped(text) {
        assert_eq!(TreePath::from_escaped(&path.escaped()).expect("our own text"), path);
    }
    match choice % 6 {
        0 => ref_name(text),
        1 => ref_name(&format!("refs/heads/{text}")),
        2 => match text.parse::<ProjectName>() {
            Ok(name) => {
                let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                assert!(text.len() <= 31 && text.bytes().all(good) && text.as_bytes()[0].is_ascii_lowercase());
                assert!(!["root", "git", "salt"].contains(&text) && !text.starts_with("mc-"));
                assert_eq!(name.as_str(), text);
            }
            Err(error) => assert_error(&error),
        },
        3 => match text.parse::<ObjectId>() {
            Ok(id) => {
                assert!(matches!(text.len(), 40 | 64) && text.bytes().all(|b| b"0123456789abcdef".contains(&b)));
                assert!(id.as_str() == text && id.zero_like().is_zero() && text.starts_with(id.short()));
            }
            Err(error) => assert_error(&error),
        },
        4 => match text.parse::<DeploymentId>() {
            Ok(id) => {
                assert_eq!(id.as_str(), text);
                assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && text.ends_with(id.short()));
            }
            Err(error) => assert_error(&error),
        },
        _ => {
            if let Ok(name) = text.parse::<ServiceName>() {
                assert!(name.as_str() == text && !text.contains(['/', '.', ' ', '@']));
            }
            if let Some(stage) = Stage::from_name(text) {
                assert_eq!(stage.name(), text);
            }
        }
    }
});
