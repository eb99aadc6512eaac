//! Push options (`git push -o …`): strict, bounded, and refused as a whole when one is not understood.

use crate::entrance::ProjectFacts;
use crate::project::mode::Mode;
use crate::project::recipe::SlsName;
use crate::project::recipe::salt::PREFIX;
use crate::project::request::Options;
use crate::project::stage::Stage;
use crate::sys::error::{Error, Result};
use crate::sys::escape::{visible, visible_bounded};

/// The most push options of one push.
pub const MAX_OPTIONS: usize = 100;
/// The longest push option, in bytes.
pub const MAX_OPTION: usize = 64 * 1024;
/// The longest reason, in characters.
pub const MAX_REASON: usize = 500;

/// Every option, as it is told to people.
const KNOWN: [&str; 12] = [
    "mode=",
    "plan",
    "stage-only",
    "only=",
    "only-steps=",
    "skip=",
    "reason=",
    "async",
    "no-deploy",
    "deploy",
    "keep-aside",
    "events=",
];

/// The option of a pusher that is a program: what it hears are events ([`super::event_lines`]).
pub const EVENTS: &str = "events=1";

/// Whether the pusher reads events, known before anything else of the options is understood.
#[must_use]
pub fn wants_events<T: AsRef<[u8]>>(given: &[T]) -> bool {
    given.iter().any(|option| option.as_ref() == EVENTS.as_bytes())
}

/// Understands the push options of one push.
///
/// # Errors
/// If one is unknown, badly formed, given twice or in conflict with another; then nothing may happen.
pub fn parse<T: AsRef<[u8]>>(given: &[T]) -> Result<Options> {
    if given.len() > MAX_OPTIONS {
        return Err(Error::usage(format!("more than {MAX_OPTIONS} push options")));
    }
    let mut options = Options::default();
    for bytes in given {
        take(&mut options, bytes.as_ref())?;
    }
    reject_conflicts(&options)?;
    Ok(options)
}

/// Refuses what this project's node does not allow.
///
/// # Errors
/// If the mode is not one of the node's.
pub fn check(options: &Options, facts: &ProjectFacts) -> Result<()> {
    match options.mode {
        Some(mode) if !facts.allowed_modes.contains(&mode) => {
            let allowed: Vec<_> = facts.allowed_modes.iter().map(|m| m.name()).collect();
            Err(Error::usage(format!("push option `mode={}`: this node does not allow that mode", mode.name()))
                .hint(format!("the allowed modes are: {}", allowed.join(", "))))
        }
        _ => Ok(()),
    }
}

/// Judges options that came as data and not as words: everything that [`parse`] would not have made is refused.
///
/// # Errors
/// As [`parse`] and [`check`].
pub fn check_data(options: &Options, facts: &ProjectFacts) -> Result<Options> {
    let mut checked = options.clone();
    for (option, stages) in [("only", &mut checked.only), ("skip", &mut checked.skip)] {
        for stage in std::mem::take(stages) {
            add_stages(stages, option, stage.name())?;
        }
    }
    if let Some(reason) = &checked.reason {
        // What is escaped is longer than what was typed.
        if reason.trim().is_empty() || reason.chars().count() > 10 * MAX_REASON {
            return Err(Error::usage("push option `reason=` is empty or too long"));
        }
        checked.reason = Some(visible(reason.trim()));
    }
    reject_conflicts(&checked)?;
    check(&checked, facts)?;
    Ok(checked)
}

fn take(options: &mut Options, bytes: &[u8]) -> Result<()> {
    if bytes.len() > MAX_OPTION {
        return Err(Error::usage(format!("a push option is longer than {MAX_OPTION} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| unknown(bytes))?;
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    match (name, value) {
        ("mode", Some(value)) => set_once(&mut options.mode, parse_mode(value)?, name),
        ("reason", Some(value)) => set_once(&mut options.reason, parse_reason(value)?, name),
        ("only", Some(value)) => add_stages(&mut options.only, name, value),
        ("skip", Some(value)) => add_stages(&mut options.skip, name, value),
        ("only-steps", Some(value)) => add_states(&mut options.only_steps, value),
        ("mode" | "reason" | "only" | "only-steps" | "skip", None) => {
            Err(Error::usage(format!("push option `{name}` needs a value")).hint(format!("git push -o {name}=…")))
        }
        ("plan" | "stage-only" | "async" | "no-deploy" | "deploy" | "keep-aside", Some(_)) => {
            Err(Error::usage(format!("push option `{name}` takes no value")).hint(format!("git push -o {name}")))
        }
        ("events", Some("1")) => set_flag(&mut options.events),
        ("events", _) => Err(Error::usage("push option `events`: this node speaks `events=1`")),
        ("plan", None) => set_flag(&mut options.plan),
        ("stage-only", None) => set_flag(&mut options.stage_only),
        ("async", None) => set_flag(&mut options.asynchronous),
        ("no-deploy", None) => set_flag(&mut options.no_deploy),
        ("deploy", None) => set_flag(&mut options.deploy),
        ("keep-aside", None) => set_flag(&mut options.keep_aside),
        _ => Err(unknown(bytes)),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it stands in a match beside arms that can fail")]
fn set_flag(flag: &mut bool) -> Result<()> {
    *flag = true;
    Ok(())
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &str) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Error::usage(format!("push option `{name}=` is given twice")));
    }
    Ok(())
}

fn parse_mode(value: &str) -> Result<Mode> {
    [Mode::Editable, Mode::Cooking, Mode::Final].into_iter().find(|mode| mode.name() == value).ok_or_else(|| {
        Error::usage(format!("push option `mode={}`: no such mode", visible_bounded(value.as_bytes(), 80)))
            .hint("the modes are: editable, cooking, final")
    })
}

fn parse_reason(value: &str) -> Result<String> {
    let length = value.chars().count();
    if length > MAX_REASON {
        return Err(Error::usage(format!("push option `reason=` has {length} characters, the limit is {MAX_REASON}")));
    }
    if value.trim().is_empty() {
        return Err(Error::usage("push option `reason=` needs a value").hint("git push -o reason='new prices'"));
    }
    // It is shown in mails and tables: control characters have no business there.
    Ok(visible(value.trim()))
}

fn add_stages(stages: &mut Vec<Stage>, option: &str, value: &str) -> Result<()> {
    for name in value.split(',').map(str::trim) {
        let stage = Stage::from_name(name).filter(|stage| Stage::WITH_STEPS.contains(stage)).ok_or_else(|| {
            let names = Stage::WITH_STEPS.map(Stage::name);
            let shown = visible_bounded(name.as_bytes(), 80);
            Error::usage(format!("push option `{option}=`: `{shown}` is no stage with steps{}", meant(name, &names)))
                .hint(format!("the stages are: {}", names.join(", ")))
        })?;
        if !stages.contains(&stage) {
            stages.push(stage);
        }
    }
    Ok(())
}

fn add_states(states: &mut Vec<SlsName>, value: &str) -> Result<()> {
    for name in value.split(',').map(str::trim) {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        let state: SlsName = name.parse().map_err(|error: Error| {
            let error_of = Error::usage(format!("push option `only-steps=`: {}", error.message()));
            error_of.hint("the names of files in .salt, as -o only-steps=000_prepare,100_app")
        })?;
        if !states.contains(&state) {
            states.push(state);
        }
    }
    Ok(())
}

fn reject_conflicts(options: &Options) -> Result<()> {
    let pairs = [
        (options.no_deploy, "no-deploy", options.deploy, "deploy"),
        (options.no_deploy, "no-deploy", options.plan, "plan"),
        (options.no_deploy, "no-deploy", options.stage_only, "stage-only"),
        (options.plan, "plan", options.stage_only, "stage-only"),
    ];
    if let Some((_, one, _, other)) = pairs.into_iter().find(|(a, _, b, _)| *a && *b) {
        return Err(Error::usage(format!("push options `{one}` and `{other}` contradict each other")));
    }
    match options.only.iter().find(|stage| options.skip.contains(stage)) {
        Some(stage) => Err(Error::usage(format!("stage `{}` is in both `only=` and `skip=`", stage.name()))),
        None => Ok(()),
    }
}

fn unknown(bytes: &[u8]) -> Error {
    let shown = visible_bounded(bytes, 80);
    let name = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    let name = name.split('=').next().unwrap_or_default();
    Error::usage(format!("unknown push option `{shown}`{}", meant(name, &KNOWN)))
        .hint(format!("the push options are: {}", KNOWN.join(", ")))
}

/// `; did you mean `x`?` for the one known word that is near enough.
fn meant(given: &str, known: &[&str]) -> String {
    let given = given.to_lowercase().replace('_', "-");
    known
        .iter()
        .map(|word| (distance(&given, &word.trim_end_matches('=').replace('_', "-")), word))
        .filter(|(distance, word)| *distance <= 2 && *distance < word.len())
        .min()
        .map(|(_, word)| format!("; did you mean `{word}`?"))
        .unwrap_or_default()
}

/// How many characters must be changed, added or removed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(given: &[&str]) -> String {
        parse(given).unwrap_err().to_string()
    }

    #[test]
    fn every_option_is_understood() {
        let all = [
            "mode=final",
            "only=build, post_build",
            "only=build",
            "skip=upgrade",
            "reason= new prices ",
            "async",
            "only-steps=000_a, salt:b.sls",
        ];
        let options = parse(&all).unwrap();
        assert_eq!(options.mode, Some(Mode::Final));
        assert_eq!(options.only_steps.iter().map(SlsName::as_str).collect::<Vec<_>>(), ["000_a", "b"]);
        assert_eq!(options.only, [Stage::Build, Stage::PostBuild]);
        assert_eq!(options.skip, [Stage::Upgrade]);
        assert_eq!(options.reason.as_deref(), Some("new prices"));
        assert!(options.asynchronous && !options.plan);
        assert!(parse(&["plan"]).unwrap().plan);
        assert!(parse(&["stage-only"]).unwrap().stage_only);
        assert!(parse(&["no-deploy"]).unwrap().no_deploy);
        assert!(parse(&["deploy"]).unwrap().deploy);
        assert!(parse(&["keep-aside"]).unwrap().keep_aside);
        assert!(parse(&[EVENTS]).unwrap().events && wants_events(&["plan", EVENTS]) && !wants_events(&["plan"]));
        assert_eq!(parse::<&str>(&[]).unwrap(), Options::default());
    }

    #[test]
    fn an_unknown_option_is_an_error_that_lists_the_known_ones_and_guesses() {
        let text = error(&["pln"]);
        assert!(text.starts_with("unknown push option `pln`; did you mean `plan`?"), "{text}");
        assert!(
            text.contains(
                "mode=, plan, stage-only, only=, only-steps=, skip=, reason=, async, no-deploy, deploy, keep-aside, events="
            ),
            "{text}"
        );
        assert!(error(&["nodeploy"]).contains("did you mean `no-deploy`?"));
        assert!(error(&["reson=x"]).contains("did you mean `reason=`?"));
        assert!(!error(&["cmd=rm -rf /"]).contains("did you mean"));
        assert!(error(&["x\u{1b}[31m"]).contains("x\\u{1b}[31m"));
        assert!(parse(&[b"\xff\xfe"]).unwrap_err().message().contains("\\xff"));
    }

    #[test]
    fn bad_values_and_contradictions_are_errors() {
        for (given, part) in [
            (vec!["mode"], "needs a value"),
            (vec!["mode=fast"], "editable, cooking, final"),
            (vec!["mode=final", "mode=cooking"], "given twice"),
            (vec!["plan=yes"], "takes no value"),
            (vec!["only=biuld"], "did you mean `build`?"),
            (vec!["only=post-build"], "did you mean `post_build`?"),
            (vec!["only="], "no stage"),
            (vec!["only-steps=../a"], "is no name of a file of states"),
            (vec!["only-steps"], "needs a value"),
            (vec!["skip=accept"], "no stage with steps"),
            (vec!["only=build", "skip=build"], "in both"),
            (vec!["events=2"], "this node speaks `events=1`"),
            (vec!["no-deploy", "deploy"], "contradict"),
            (vec!["plan", "stage-only"], "contradict"),
            (vec!["reason= "], "needs a value"),
        ] {
            let text = error(&given);
            assert!(text.contains(part), "{given:?}: {text}");
        }
    }

    #[test]
    fn lengths_and_counts_are_bounded() {
        assert!(parse(&["reason=".to_string() + &"é".repeat(500)]).is_ok());
        assert!(error(&[&("reason=".to_string() + &"é".repeat(501))]).contains("limit is 500"));
        assert!(parse(&vec!["plan"; 100]).is_ok());
        assert!(error(&vec!["plan"; 101]).contains("more than 100"));
        let long = "x".repeat(MAX_OPTION + 1);
        assert!(error(&[&long]).contains("longer than"));
        assert!(error(&["y".repeat(60_000).as_str()]).len() < 400);
    }
}
