//! A webhook: the outcome of a deployment as JSON, posted to a URL, with a signature over exactly the bytes of the body.
//!
//! The signature is HMAC-SHA256 in the form that GitHub made usual: `sha256=` and 64 hexadecimal digits. It is made when the
//! deployment is closed, so that no secret lies in the spool. The same deployment has the same delivery id at each attempt.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::{Entry, StageTime};
use super::mail::{CommitLine, MailFacts};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::outcome::{Serving, Verdict};
use crate::project::recipe::NotifyOn;
use crate::project::recipe::notify::shown_url;
use crate::project::stage::Stage;
use crate::report::event::Work;
use crate::sys::error::{Context, Error, Result};
use crate::sys::http::{self, Method, Request};
use crate::sys::{escape, fs, keys};

/// The header with the signature.
pub const SIGNATURE: &str = "X-Mc-Project-Signature-256";
/// The header with the id of the delivery.
pub const DELIVERY: &str = "X-Mc-Project-Delivery";
/// The header that names what the body is.
pub const EVENT: &str = "X-Mc-Project-Event";

const OUTCOME: &str = "outcome";
const FORMAT: u32 = 1;
const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: u64 = 4096;

/// A body on its way to a URL.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Where to.
    pub url: String,
    /// The JSON.
    pub body: String,
    /// The value of [`SIGNATURE`], if a secret is known.
    pub signature: Option<String>,
    /// The value of [`DELIVERY`].
    pub delivery: String,
    /// The value of [`EVENT`].
    pub event: String,
    /// A file with the certificate of an authority that is trusted beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hook({}, {})", shown_url(&self.url), self.delivery)
    }
}

/// The body (README, "Webhooks"). Fields may be added; none changes its meaning without another `format`.
#[derive(Serialize)]
struct Body<'a> {
    format: u32,
    event: &'static str,
    project: &'a str,
    environment: &'a str,
    node: &'a str,
    deployment: &'a DeploymentId,
    seq: u64,
    work: Work,
    mode: &'a str,
    verdict: Verdict,
    occasion: &'static str,
    stage: Option<Stage>,
    reason: Option<&'a str>,
    line: String,
    commit: &'a ObjectId,
    subject: &'a str,
    author: &'a str,
    branch: Option<&'a str>,
    pusher: &'a str,
    why: Option<&'a str>,
    started: jiff::Timestamp,
    ended: jiff::Timestamp,
    duration_ms: u64,
    serves: Option<&'a Serving>,
    before: Option<&'a Serving>,
    stages: &'a [StageTime],
    commits: &'a [CommitLine],
    more_commits: usize,
}

/// Where and how an outcome is posted; no token and no secret of it prints.
#[derive(Clone)]
pub struct Target {
    /// Where to.
    pub url: String,
    /// What the body is signed with.
    pub secret: Option<Secret>,
    /// A file with the certificate of an authority that is trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// What bodies are signed with.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", shown_url(&self.url))
    }
}

/// The outcome of a deployment, for this target.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn compose(entry: &Entry, facts: &MailFacts, target: &Target) -> Result<Hook> {
    let body = Body {
        format: FORMAT,
        event: OUTCOME,
        project: &facts.project,
        environment: entry.environment.name(),
        node: &facts.node,
        deployment: &entry.id,
        seq: entry.seq,
        work: entry.work,
        mode: entry.mode.name(),
        verdict: entry.verdict,
        occasion: match facts.occasion {
            NotifyOn::Failure => "failure",
            NotifyOn::Recovered => "recovered",
            NotifyOn::Success => "success",
        },
        stage: entry.stage,
        reason: entry.reason.as_deref(),
        line: entry.outcome().line(),
        commit: &entry.commit,
        subject: &entry.subject,
        author: &entry.author,
        branch: entry.branch.as_deref(),
        pusher: &entry.pusher,
        why: entry.why.as_deref(),
        started: entry.started,
        ended: entry.ended(),
        duration_ms: entry.duration_ms,
        serves: entry.serves.as_ref(),
        before: entry.before.as_ref(),
        stages: &entry.stages,
        commits: &facts.commits,
        more_commits: facts.more_commits,
    };
    let body = serde_json::to_string(&body).context(|| "cannot write the body of a webhook".to_string())?;
    let unique = blake3::hash(format!("{}\n{}", target.url, entry.ended()).as_bytes()).to_hex();
    let delivery = format!("{}.{}", entry.id, &unique.as_str()[..8]);
    Ok(signed(OUTCOME, body, delivery, target))
}

/// A body that only says that the way works.
#[must_use]
pub fn ping(node: &str, delivery: String, target: &Target) -> Hook {
    let event = "test";
    let body = serde_json::json!({"format": FORMAT, "event": event, "node": node}).to_string();
    signed(event, body, delivery, target)
}

fn signed(event: &str, body: String, delivery: String, target: &Target) -> Hook {
    let sign = |secret: &Secret| format!("sha256={}", keys::hmac_sha256_hex(secret.0.as_bytes(), body.as_bytes()));
    let signature = target.secret.as_ref().map(sign);
    Hook {
        url: target.url.clone(),
        signature,
        body,
        delivery,
        event: event.to_string(),
        ca_file: target.ca_file.clone(),
    }
}

/// Posts it, and tells what the server said.
///
/// # Errors
/// If the server did not take it: every status that is not 2xx is a refusal. The text names the host alone.
pub fn send(hook: &Hook) -> Result<String> {
    let authorities = match &hook.ca_file {
        Some(file) => fs::read_bounded(file, fs::CONFIG_LIMIT)?
            .ok_or_else(|| Error::invalid(format!("there is no certificate file {}", file.display())))?,
        None => Vec::new(),
    };
    let mut headers =
        vec![("Content-Type", "application/json"), (DELIVERY, hook.delivery.as_str()), (EVENT, hook.event.as_str())];
    headers.extend(hook.signature.as_deref().map(|signature| (SIGNATURE, signature)));
    let answer = http::ask(&Request {
        method: Method::Post,
        headers: &headers,
        body: hook.body.as_bytes(),
        limit: ANSWER_LIMIT,
        authorities: &authorities,
        ..Request::get(&hook.url, TIMEOUT)
    })?;
    let said = escape::visible_bounded(answer.body.trim_ascii(), 200);
    let said = if said.is_empty() { said } else { format!(": {said}") };
    let words = format!("{} answered {}{said}", shown_url(&hook.url), answer.status);
    match answer.status {
        200..=299 => Ok(words),
        300..=399 => Err(Error::failed(format!("{words} (a redirection is not followed)"))),
        _ => Err(Error::failed(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn target() -> Target {
        let secret = Some(Secret("It's a Secret to Everybody".into()));
        Target { url: "https://hooks.example.org/T0/token".into(), secret, ca_file: None }
    }

    #[test]
    fn a_signature_is_that_of_the_test_vector_and_over_the_bytes_that_are_sent() {
        // The example that GitHub documents for its own header of this form.
        let hook = signed("test", "Hello, World!".into(), "d".into(), &target());
        let want = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert_eq!(hook.signature.as_deref(), Some(want));
        let unsigned = Target { secret: None, ..target() };
        assert_eq!(signed("test", "x".into(), "d".into(), &unsigned).signature, None);
    }

    #[test]
    fn the_body_says_how_it_ended_and_a_repeated_one_has_the_same_delivery() {
        let (entry, facts) = (samples::rolled_back_entry(), samples::mail_facts());
        let hook = compose(&entry, &facts, &target()).unwrap();
        let body: serde_json::Value = serde_json::from_str(&hook.body).unwrap();
        for (key, want) in [
            ("event", "outcome"),
            ("project", "shop"),
            ("environment", "staging"),
            ("verdict", "rolled_back"),
            ("occasion", "failure"),
            ("stage", "upgrade"),
            ("reason", "exit 2"),
            ("work", "deploy"),
            ("line", "rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again"),
        ] {
            assert_eq!(body[key], want, "{key}");
        }
        assert_eq!(body["commits"][0]["subject"], "cart");
        assert_eq!(body["stages"][1]["ok"], false);
        assert_eq!(compose(&entry, &facts, &target()).unwrap().delivery, hook.delivery);
        let json = serde_json::to_string(&hook).unwrap();
        assert!(!json.contains("Everybody"), "no secret lies in the spool");
        assert!(!format!("{hook:?} {:?}", target()).contains("token"));
    }
}
