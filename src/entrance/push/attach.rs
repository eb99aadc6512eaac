//! Attaching again to a deployment whose connection was lost: the node is asked for its events by its id, with pauses that
//! grow, a bounded number of times.

use std::time::{Duration, Instant};

use super::Watched;
use super::git::FRAME;
use crate::entrance::far::{Errand, Far, SSH_FAILED, trouble};
use crate::project::ids::{DeploymentId, ProjectName};
use crate::sys::error::{Error, Kind, Result};
use crate::sys::process::{LINE_LIMIT, Said, StepStatus};

/// The pauses before each attempt, in seconds; where something new was heard they begin anew.
const PAUSES: [u64; 9] = [1, 2, 4, 8, 15, 30, 30, 30, 30];

/// Follows the deployment to its end.
///
/// # Errors
/// If the node stays away, refuses us, or does not know any more how the deployment ended.
pub fn attach(far: &Far, watched: &mut Watched<'_>) -> Result<()> {
    let Some((project, id)) = watched.ordered.clone() else { return Ok(()) };
    let mut attempt = 0;
    let goes_on = |error: &Error| {
        Error::failed(format!("deployment {id} goes on, and cannot be seen from here: {}", error.one_line()))
            .hint(format!("to see it: {}", far.typed(&format!("follow {project} {id}"))))
    };
    loop {
        let Some(pause) = PAUSES.get(attempt) else {
            return Err(goes_on(&Error::failed(format!("{} stayed away", far.name))));
        };
        watched.say(&format!(
            "the connection was lost; the deployment goes on there; attaching again in {pause} s ({} of {})",
            attempt + 1,
            PAUSES.len()
        ));
        wait(Duration::from_secs(*pause), watched);
        let before = watched.heard();
        match once(far, watched, &project, &id) {
            Ok(()) => return Ok(()),
            Err(Missed { error, may_pass: false }) => return Err(goes_on(&error)),
            Err(_) if watched.heard() > before => attempt = 0,
            Err(_) => attempt += 1,
        }
    }
}

/// Why an attempt did not show the end.
struct Missed {
    error: Error,
    may_pass: bool,
}

impl From<Error> for Missed {
    fn from(error: Error) -> Self {
        // Who answers and refuses will refuse again; a network that is away may come back.
        let may_pass = error.kind() == Kind::Failed;
        Self { error, may_pass }
    }
}

fn once(
    far: &Far,
    watched: &mut Watched<'_>,
    project: &ProjectName,
    id: &DeploymentId,
) -> std::result::Result<(), Missed> {
    let errand = Errand::new(["follow", project.as_str(), &id.to_string(), "--json"]);
    let (status, heard) = far.listen(&errand, FRAME, &mut |said| match said {
        Said::Out(line) => watched.hear(&crate::sys::escape::output_line(line, LINE_LIMIT)),
        Said::Err(_) => {}
        Said::Runs => watched.tick(),
    })?;
    if watched.outcome.is_some() {
        return Ok(());
    }
    if let (StepStatus::Exit(SSH_FAILED), Some(to)) = (&status, far.first_login()) {
        let trouble = trouble::of_ssh(&heard, to);
        return Err(Missed { error: trouble.error, may_pass: trouble.may_pass });
    }
    if matches!(status, StepStatus::Signal(_)) {
        return Err(Missed { error: Error::failed("ssh was killed"), may_pass: true });
    }
    let said = heard.last_words();
    Err(Missed {
        error: Error::failed(format!("its end is not known there ({}): {said}", status.words())),
        may_pass: false,
    })
}

fn wait(time: Duration, watched: &mut Watched<'_>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(FRAME.min(end.saturating_duration_since(Instant::now())));
        watched.tick();
    }
}
