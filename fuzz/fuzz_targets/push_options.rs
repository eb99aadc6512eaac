//! Push options: what is understood says the same when it is written again, and the node finds nothing else in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::entrance::options::{self, MAX_OPTIONS, MAX_REASON};
use mc_project::project::recipe::salt::SlsName;
use mc_project::project::request::Options;
use mc_project::project::stage::Stage;
use mc_project_fuzz::{assert_error, assert_shown, facts};

/// The options as a pusher would have typed them.
fn written(options: &Options) -> Vec<String> {
    let stages = |name: &str, stages: &[Stage]| {
        let names: Vec<&str> = stages.iter().map(|stage| stage.name()).collect();
        (!names.is_empty()).then(|| format!("{name}={}", names.join(",")))
    };
    let states: Vec<&str> = options.only_steps.iter().map(SlsName::as_str).collect();
    let flags = [
        (options.plan, "plan"),
        (options.stage_only, "stage-only"),
        (options.asynchronous, "async"),
        (options.no_deploy, "no-deploy"),
        (options.deploy, "deploy"),
        (options.keep_aside, "keep-aside"),
        (options.events, "events=1"),
    ];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name.to_string());
    flags
        .chain(options.mode.map(|mode| format!("mode={}", mode.name())))
        .chain(stages("only", &options.only))
        .chain(stages("skip", &options.skip))
        .chain((!states.is_empty()).then(|| format!("only-steps={}", states.join(","))))
        .chain(options.reason.as_ref().map(|reason| format!("reason={reason}")))
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let given: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let options = match options::parse(&given) {
        Ok(options) => options,
        Err(error) => {
            assert_error(&error);
            assert_shown(&error.to_string(), true);
            return;
        }
    };
    assert!(given.len() <= MAX_OPTIONS);
    if let Some(reason) = &options.reason {
        assert_shown(reason, false);
        assert!(!reason.trim().is_empty() && reason.chars().count() <= 10 * MAX_REASON);
    }
    assert!(!options.only.iter().any(|stage| options.skip.contains(stage)));
    // A reason grows when it is escaped, and only what was typed is counted.
    let again = written(&options);
    if options.reason.as_ref().is_none_or(|reason| reason.chars().count() <= MAX_REASON) {
        assert_eq!(options::parse(&again).expect("what was understood is an option"), options);
    }
    // As data, on the way to root, it is judged again and is still the same.
    let facts = facts(0);
    let allowed = options.mode.is_none_or(|mode| facts.allowed_modes.contains(&mode));
    assert_eq!(options::check(&options, &facts).is_ok(), allowed);
    if allowed {
        assert_eq!(options::check_data(&options, &facts).expect("it was understood"), options);
    }
    let carried: Options = serde_json::from_str(&serde_json::to_string(&options).expect("JSON")).expect("JSON");
    assert_eq!(carried, Options { events: false, ..options });
});
