//! The main loop: one deployment from its beginning to its outcome.

use super::draft::Draft;
use super::editable;
use super::halt::Step;
use crate::project::mode::Mode;
use crate::project::outcome::{Outcome, Serving, Verdict};
use crate::sys::fault;

/// Deploys: prepare while the old version serves, then the short switch, then the commit that makes it final. Whatever fails
/// is undone as far as it got, and the outcome says what serves now.
pub fn deploy(draft: &mut Draft<'_>) -> Outcome {
    if draft.begin.mode == Mode::Editable {
        return editable::deploy(draft);
    }
    if let Err(halt) = draft.prepare() {
        return draft.drop_candidate(halt);
    }
    if draft.options.stage_only {
        return draft.leave_prepared();
    }
    if let Err(halt) = draft.stop_and_back_up() {
        return draft.start_again(halt);
    }
    match switch_and_commit(draft) {
        Ok(serving) => deployed(serving),
        Err(halt) => draft.roll_back(halt, None),
    }
}

fn switch_and_commit(draft: &mut Draft<'_>) -> Step<Serving> {
    fault::point("backup.done")?;
    draft.activate()?;
    draft.commit()
}

/// The outcome of a deployment that became live.
#[must_use]
pub fn deployed(serving: Serving) -> Outcome {
    Outcome {
        verdict: Verdict::Deployed,
        stage: None,
        reason: None,
        serves: Some(serving),
        hints: Vec::new(),
        exit: None,
    }
}

impl Draft<'_> {
    /// `-o stage-only`: everything was prepared and nothing is switched.
    fn leave_prepared(&mut self) -> Outcome {
        let halt = super::halt::Halt::refused("everything is ready; without -o stage-only it would be switched");
        let mut outcome = self.drop_candidate(halt);
        outcome.verdict = Verdict::Prepared;
        outcome
    }
}
