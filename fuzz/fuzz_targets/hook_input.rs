//! The lines that git writes to pre-receive and post-receive, and what the hooks make of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::entrance::call::HookName;
use mc_project::entrance::receive::{Decision, Pushed, decide};
use mc_project::entrance::{RepoKind, options};
use mc_project::sys::error::ExitCode;
use mc_project_fuzz::{FuzzDesk, Input, assert_error, assert_shown, facts, run_hook};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (choice, more) = (input.byte(), input.byte());
    let kind = if more & 1 == 0 { RepoKind::Project } else { RepoKind::Pillar };
    let hook = if more & 2 == 0 { HookName::PreReceive } else { HookName::PostReceive };
    let given: Vec<Vec<u8>> = match more & 12 {
        4 => vec![b"no-deploy".to_vec()],
        8 => vec![b"deploy".to_vec()],
        _ => Vec::new(),
    };
    let lines = input.0;

    let read = Pushed::read(&mut &*lines);
    let desk = FuzzDesk::new(choice);
    let (code, output, told) = run_hook(hook, kind, &desk, given.clone(), lines);
    assert!(output.is_empty(), "only proc-receive answers git");
    told.iter().for_each(|line| assert_shown(line, false));
    let started = desk.started.borrow();
    let pushed = match read {
        Err(error) => {
            assert_error(&error);
            assert!(code != ExitCode::Done && started.is_empty(), "a push that is not understood does nothing");
            return;
        }
        Ok(pushed) => pushed,
    };

    // What was read is what was sent, whole.
    let line = |u: &mc_project::entrance::receive::Update| {
        [u.old.as_str().as_bytes(), b" ", u.new.as_str().as_bytes(), b" ", &u.name, b"\n"].concat()
    };
    assert_eq!(pushed.updates.iter().flat_map(line).collect::<Vec<u8>>(), lines);
    assert_eq!(pushed.bytes, lines);

    let facts = facts(choice);
    let options = options::parse(&given).expect("these are options");
    let decisions = decide(kind, &facts, &options, &pushed.updates);
    assert_eq!(decisions.len(), pushed.updates.len());
    let refused = decisions.iter().any(|decision| matches!(decision, Decision::Refuse { .. }));
    let mut deploys = 0;
    for (update, decision) in pushed.updates.iter().zip(&decisions) {
        if update.name.starts_with(b"refs/deploys/") || update.refname.is_none() && update.branch().is_some() {
            assert!(matches!(decision, Decision::Refuse { .. }), "{update:?}");
        }
        match decision {
            Decision::Deploy => {
                deploys += 1;
                let branch = update.branch().expect("a branch is deployed");
                assert!(facts.branch.as_deref().unwrap_or(branch) == branch && ["main", "master"].contains(&branch));
                assert!(
                    !update.new.is_zero()
                        && update.new != update.old
                        && kind == RepoKind::Project
                        && !options.no_deploy
                );
            }
            Decision::Store { message, .. } => assert_shown(message, false),
            Decision::Refuse { reason } => assert_shown(reason, false),
            Decision::Pillar { .. } | Decision::Nothing => {}
        }
    }
    assert!(
        deploys <= 1
            || pushed
                .updates
                .iter()
                .any(|one| pushed.updates.iter().filter(|other| one.name == other.name).count() > 1)
    );
    match hook {
        HookName::PreReceive => {
            assert!(started.is_empty() && desk.branches.borrow().is_empty(), "pre-receive changes nothing");
            assert!(!refused || code == ExitCode::Failed, "a refused ref refuses the push");
        }
        _ => assert!(started.len() <= pushed.updates.len()),
    }
    for request in started.iter() {
        assert!(request.update.as_ref().is_none_or(|update| !update.moved_by_worker), "git moved the ref already");
    }
});
