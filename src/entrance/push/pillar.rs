//! The pillar before the code: pushed only where it changed, and deployed by itself where the code did not.

use super::git::{GitPush, Pushed};
use super::{Show, Wanted, Watched, conclude};
use crate::entrance::far::Far;
use crate::entrance::far::checkout::{Checkout, PILLAR_KEY};
use crate::entrance::far::trouble;
use crate::entrance::options::EVENTS;
use crate::project::address::Address;
use crate::sys::error::{Error, Result};

/// What is left to do after the pillar.
pub enum Then {
    /// The code is to be pushed.
    PushCode,
    /// The code is there already; the pillar was deployed with it, and this is the exit code.
    Done(u8),
}

/// The push of the pillar, if it is said where it is.
///
/// # Errors
/// If what is said is no checkout with a commit.
pub fn push_of(far: &Far, to: &Address, wanted: &Wanted) -> Result<Option<GitPush>> {
    let (Some(dir), Some(address)) = (&far.pillar, to.pillar()) else { return Ok(None) };
    let checkout = Checkout::around(dir).map_err(|error| no_pillar(&dir.display().to_string(), &error.one_line()))?;
    if checkout.top.is_none() || !checkout.has_commit()? {
        return Err(no_pillar(&dir.display().to_string(), "it is no checkout with a commit"));
    }
    let branch = checkout.branch()?;
    Ok(Some(GitPush {
        dir: dir.clone(),
        to: address.url(),
        ssh: far.ssh_for(to),
        shown: "the node".to_string(),
        refs: vec![format!("refs/heads/{branch}:refs/heads/{branch}")],
        options: wanted.options.iter().filter(|option| *option != EVENTS && !is_about_code(option)).cloned().collect(),
        force: wanted.force,
        dry_run: false,
    }))
}

/// Options that say what becomes of the code, and would contradict the storing of the pillar.
fn is_about_code(option: &str) -> bool {
    ["plan", "stage-only", "no-deploy", "deploy", "async"].contains(&option)
}

fn no_pillar(dir: &str, why: &str) -> Error {
    Error::usage(format!("the pillar cannot be pushed from {dir}: {why}")).hint(format!(
        "where it is, is said by `pillar:` in nodes.yaml and by: git config {PILLAR_KEY} DIR\nto leave it out: --no-pillar"
    ))
}

/// Pushes the pillar where it differs from the node's. `code` is the push that would follow.
///
/// # Errors
/// If it is refused, or the code would be.
pub fn push_first(pillar: GitPush, code: &GitPush, far: &Far, show: &mut dyn Show) -> Result<Then> {
    let mut watched = Watched::new(show);
    if look(&pillar, &mut watched)?.is_up_to_date() {
        return Ok(Then::PushCode);
    }
    // Looked at before anything is pushed: a code that will be refused leaves the pillar at home.
    let code_is_there = look(code, &mut watched)?.is_up_to_date();
    if Checkout::around(&pillar.dir)?.is_changed()? {
        watched.say("the pillar has changes that are not committed; they stay here");
    }
    let stops_short = code.options.iter().any(|option| is_about_code(option) && option != "deploy");
    let mut pillar = pillar;
    if code_is_there && !stops_short {
        watched.say("the pillar changed and the code did not: deploying with the new pillar");
        pillar.options.extend(["deploy".to_string(), EVENTS.to_string()]);
        let pushed = pillar.run(&mut watched)?;
        return conclude(far, &pillar, &pushed, &mut watched).map(Then::Done);
    }
    pillar.options = vec![EVENTS.to_string()];
    let mut pushed = pillar.run(&mut watched)?;
    if pushed.is_option_unknown() {
        watched.held.clear();
        pillar.options.clear();
        pushed = pillar.run(&mut watched)?;
    }
    watched.say_held();
    good(&pillar, &pushed)?;
    Ok(Then::PushCode)
}

/// What would be pushed.
fn look(push: &GitPush, watched: &mut Watched<'_>) -> Result<Pushed> {
    let looking = GitPush { dry_run: true, options: Vec::new(), ..push.clone() };
    let pushed = looking.run(watched)?;
    good(push, &pushed)?;
    Ok(pushed)
}

fn good(push: &GitPush, pushed: &Pushed) -> Result<()> {
    if let Some(line) = pushed.rejected().next() {
        return Err(pushed.refusal(line, push));
    }
    if pushed.is_ok() { Ok(()) } else { Err(trouble::of_push(&pushed.heard, push.login(), &push.shown).error) }
}
