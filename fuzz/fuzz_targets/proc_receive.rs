//! The packets of proc-receive: every update gets exactly one answer, in order, and none of it is a stranger's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::entrance::RepoKind;
use mc_project::entrance::call::HookName;
use mc_project::entrance::pktline;
use mc_project::sys::error::ExitCode;
use mc_project_fuzz::{FuzzDesk, Input, assert_shown, run_hook};

/// What receive-pack would send: the capabilities in the first line, a command in each further one, after an empty line
/// the options.
fn spoken(mut input: Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut section = |lines: &[u8]| {
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let _ = pktline::write(&mut bytes, line);
        }
        let _ = pktline::write_flush(&mut bytes);
    };
    section(&[b"version=1\0", input.until(b"\n")].concat());
    section(input.until(b"\n\n"));
    section(input.0);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (choice, more) = (input.byte(), input.byte());
    let kind = if more & 1 == 0 { RepoKind::Project } else { RepoKind::Pillar };
    let bytes = if more & 2 == 0 { input.0.to_vec() } else { spoken(input) };
    let desk = FuzzDesk::new(choice);
    let (code, output, told) = run_hook(HookName::ProcReceive, kind, &desk, Vec::new(), &bytes);
    told.iter().for_each(|line| assert_shown(line, false));
    let started = desk.started.borrow();
    assert!(started.len() <= 1, "one push is one deployment");

    let mut sent = &bytes[..];
    let mut heard = &output[..];
    if code != ExitCode::Done {
        assert!(started.is_empty(), "what is not understood starts nothing");
        return;
    }
    let _ = pktline::read_section(&mut sent, "lines", 10, 1000).expect("it was understood");
    let commands = pktline::read_section(&mut sent, "lines", 1_000_000, 65_520).expect("it was understood");
    let hello = pktline::read_section(&mut heard, "lines", 10, 1000).expect("our version");
    assert!(hello.len() == 1 && hello[0].starts_with(b"version=1"));
    let answers = pktline::read_section(&mut heard, "lines", 1_000_000, 65_520).expect("our answers");
    assert!(heard.is_empty());
    let mut answers = answers.iter().peekable();
    for command in &commands {
        let name = command.splitn(3, |byte| *byte == b' ').nth(2).expect("three fields");
        let answer = answers.next().expect("an answer for each command");
        let told = answer.strip_prefix(b"ok ").or_else(|| answer.strip_prefix(b"ng ")).expect("ok or ng");
        let rest = told.strip_prefix(name).expect("the same ref");
        if answer.starts_with(b"ng ") {
            let reason = std::str::from_utf8(rest.strip_prefix(b" ").expect("a reason")).expect("a text");
            assert!(!reason.is_empty() && reason.chars().count() <= 401, "{reason}");
            assert_shown(reason, false);
        } else {
            assert!(rest.is_empty());
        }
        while answers.peek().is_some_and(|line| line.starts_with(b"option ")) {
            assert!(answer.starts_with(b"ok "));
            let option = answers.next().expect("it was peeked");
            assert!(option.as_slice() == b"option fall-through" || option.starts_with(b"option new-oid "));
        }
    }
    assert!(answers.next().is_none());
    if let Some(update) = started.first().and_then(|request| request.update.as_ref()) {
        assert!(update.moved_by_worker && !update.new.is_zero());
        assert!(["refs/heads/main", "refs/heads/master"].contains(&update.name.as_str()));
    }
});
