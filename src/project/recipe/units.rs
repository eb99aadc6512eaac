//! Which steps ask for units of the machine, and whether the node allows them.

use std::collections::BTreeSet;

use super::{Command, Recipe, Step};
use crate::project::ids::ProjectName;
use crate::project::mode::Mode;
use crate::project::node::Allow;
use crate::project::stage::Stage;
use crate::project::unit::{UnitAction, UnitName};
use crate::project::yaml::Source;
use crate::project::yaml::locate::Step as Way;
use crate::sys::error::{Error, Result};

/// Who asks whom, for messages: the recipe's name and text, the node's file, the project.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The name of the recipe.
    pub file: &'a str,
    /// Its text.
    pub bytes: &'a [u8],
    /// Where `node.yaml` is.
    pub node_file: &'a str,
    /// The project.
    pub project: &'a ProjectName,
}

impl Recipe {
    /// The units that steps of these stages ask for in a mode, with the stage and the index of each step.
    fn unit_steps(&self, mode: Mode, stages: &[Stage]) -> Vec<(Stage, usize, UnitAction, &UnitName)> {
        let mut found = Vec::new();
        for stage in stages {
            for (index, step) in self.steps(*stage).iter().enumerate() {
                if let Some((action, unit)) = step.unit().filter(|_| step.applies(mode)) {
                    found.push((*stage, index, action, unit));
                }
            }
        }
        found
    }

    /// Whether a step of these stages asks for a unit in this mode.
    #[must_use]
    pub fn asks_for_units(&self, mode: Mode, stages: &[Stage]) -> bool {
        !self.unit_steps(mode, stages).is_empty()
    }

    /// Refuses steps of these stages that ask for a unit which the node does not allow.
    ///
    /// # Errors
    /// The first such step with its line, and the line that would allow all of them.
    pub fn refuse_units(&self, mode: Mode, stages: &[Stage], allow: &Allow, asking: &Asking<'_>) -> Result<()> {
        let steps = self.unit_steps(mode, stages);
        let refused: Vec<_> = steps.into_iter().filter(|(_, _, action, unit)| !allow.permits(*action, unit)).collect();
        let Some((stage, index, action, unit)) = refused.first() else { return Ok(()) };
        let way = [Way::Key("stages"), Way::Key(stage.name()), Way::Index(*index), Way::Key(action.word())];
        let (line, column) = Source::new(asking.file, asking.bytes)?.place_of(&way);
        let word = action.word();
        let missing: Vec<_> = refused.iter().map(|(_, _, action, unit)| (*action, *unit)).collect();
        Err(Error::refused(format!(
            "{}:{line}:{column}: this node does not allow the project to {word} {unit}",
            asking.file
        ))
        .hint(hint(allow, &missing, asking.node_file, asking.project)))
    }
}

/// The line that allows what is missing, beside what is allowed already.
#[must_use]
pub fn hint(allow: &Allow, missing: &[(UnitAction, &UnitName)], node_file: &str, project: &ProjectName) -> String {
    let list = |key: &str, known: &[UnitName]| {
        let new = missing.iter().filter(|(action, _)| Allow::key_for(*action) == key).map(|(_, unit)| unit.as_str());
        let all: BTreeSet<&str> = known.iter().map(UnitName::as_str).chain(new).collect();
        let quoted: Vec<String> =
            all.into_iter().map(|name| if name.contains('\\') { format!("'{name}'") } else { name.into() }).collect();
        (!quoted.is_empty()).then(|| format!("{key}: [{}]", quoted.join(", ")))
    };
    let lists: Vec<String> =
        [list("units", &allow.units), list("reload", &allow.reload)].into_iter().flatten().collect();
    format!(
        "whoever runs the node may write into {node_file}:\n    projects: {{{project}: {{allow: {{{}}}}}}}",
        lists.join(", ")
    )
}

impl Step {
    /// The unit that the step asks for, if it does.
    #[must_use]
    pub fn unit(&self) -> Option<(UnitAction, &UnitName)> {
        match &self.command {
            Command::Unit { action, unit } => Some((*action, unit)),
            Command::Shell(_) | Command::Argv(_) | Command::Salt(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::recipe::FILE;
    use crate::sys::error::Kind;

    const TEXT: &str = "\
stages:
  build: make
  stop: {stop: shop.service}
  start:
    - echo hello
    - restart: shop.service
      timeout: 1m
    - {reload: nginx.service, modes: [cooking]}
";

    fn refusal(allow: &Allow, mode: Mode) -> Option<Error> {
        let recipe = Recipe::parse(FILE, TEXT.as_bytes()).unwrap();
        let project = "shop".parse().unwrap();
        let asking =
            Asking { file: FILE, bytes: TEXT.as_bytes(), node_file: "/etc/mc_project/node.yaml", project: &project };
        recipe.refuse_units(mode, &[Stage::Build, Stage::Start], allow, &asking).err()
    }

    #[test]
    fn a_step_about_a_unit_is_read_with_its_timeout_and_modes() {
        let recipe = Recipe::parse(FILE, TEXT.as_bytes()).unwrap();
        let steps = recipe.steps(Stage::Start);
        assert_eq!(steps[0].unit(), None);
        let shop: UnitName = "shop.service".parse().unwrap();
        assert_eq!(steps[1].unit(), Some((UnitAction::Restart, &shop)));
        assert_eq!(steps[1].timeout.as_secs(), 60);
        assert_eq!(
            (steps[1].title(), steps[2].title()),
            ("restart shop.service".into(), "reload nginx.service".into())
        );
        assert!(steps[2].applies(Mode::Cooking) && !steps[2].applies(Mode::Final));
        assert_eq!(recipe.steps(Stage::Stop)[0].unit(), Some((UnitAction::Stop, &shop)));
        assert!(
            recipe.asks_for_units(Mode::Final, &[Stage::Stop]) && !recipe.asks_for_units(Mode::Final, &[Stage::Build])
        );
    }

    #[test]
    fn what_the_node_does_not_allow_is_refused_with_the_line_that_would() {
        let error = refusal(&Allow::default(), Mode::Cooking).unwrap();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.message().starts_with("mc_project.yaml:6:7: "), "{error}");
        assert!(error.message().contains("does not allow the project to restart shop.service"), "{error}");
        let line = "projects: {shop: {allow: {units: [shop.service], reload: [nginx.service]}}}";
        assert!(error.hint_text().unwrap().ends_with(line), "{error}");
        let text = line.as_bytes();
        let node = crate::project::node::NodeConfig::parse("node.yaml", text).unwrap();
        let allow = node.for_project(&"shop".parse().unwrap(), None).allow;
        assert!(refusal(&allow, Mode::Cooking).is_none(), "the line that is told is the line that helps");
        assert!(refusal(&Allow { units: Vec::new(), ..allow.clone() }, Mode::Cooking).is_some());
        let error = refusal(&Allow { reload: Vec::new(), ..allow.clone() }, Mode::Cooking).unwrap();
        assert!(error.message().starts_with("mc_project.yaml:8:"), "{error}");
        assert!(refusal(&Allow { reload: Vec::new(), ..allow }, Mode::Final).is_none(), "it does not run in this mode");
    }
}
