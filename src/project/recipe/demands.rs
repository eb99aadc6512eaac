//! What a recipe asks for and a node may refuse: the most of each thing, with the place where it stands.

use std::collections::BTreeMap;

use super::{Recipe, RecipeFile, step};
use crate::project::limits::{Asked, Demand, StepLimits};
use crate::project::service_limits::ServiceLimits;
use crate::project::yaml::Source;
use crate::project::yaml::locate::Step as Way;
use crate::sys::error::{Error, Result};

impl Recipe {
    /// Checks what the recipe asks for against what the node allows a project.
    ///
    /// # Errors
    /// Of kind Invalid, with the place of what is refused and both numbers.
    pub fn check_demands(&self, steps: &StepLimits, services: &ServiceLimits, trust_root: bool) -> Result<()> {
        for Demand { place, what } in &self.demands {
            if let Some(cap) = what.beyond(steps, services) {
                let (who, section) = what.asker();
                let message = format!("{place}: `{}` is more than this node allows {who}: {cap}", what.words());
                let hint = format!("ask for less, or raise `{section}: {{{}: …}}` in node.yaml", what.key());
                return Err(Error::invalid(message).hint(hint));
            }
            if *what == Asked::Root && !trust_root {
                return Err(Error::invalid(format!("{place}: `user: root` is not allowed to this project"))
                    .hint("`trust: root` for NAME in node.yaml makes everybody who may push to it root"));
            }
        }
        Ok(())
    }
}

impl RecipeFile {
    /// The most of each thing that is asked for anywhere, with its place. Only these are looked up: each look reads the
    /// file again.
    pub fn demands<'a>(&'a self, source: &Source<'_>, limits: &StepLimits) -> Vec<Demand> {
        let mut most: BTreeMap<(&str, &str), (Asked, Vec<Way<'a>>)> = BTreeMap::new();
        let mut see = |what: Asked, mut way: Vec<Way<'a>>| {
            let of = (what.asker().0, what.key());
            if most.get(&of).is_none_or(|(other, _)| what > *other) {
                way.push(Way::Key(what.key()));
                most.insert(of, (what, way));
            }
        };
        step::asked(limits).for_each(|what| see(what, vec![Way::Key("limits")]));
        self.services.asks().for_each(|(name, what)| see(what, vec![Way::Key("services"), Way::Key(name)]));
        let stages = self.stages.iter().map(|(key, steps)| ("stages", key.0.name(), &steps.0));
        let tasks = self.tasks.iter().map(|(key, steps)| ("tasks", key.0.as_str(), &steps.0));
        for (section, name, steps) in stages.chain(tasks) {
            for (index, step) in steps.iter().enumerate() {
                step.asks().for_each(|what| see(what, vec![Way::Key(section), Way::Key(name), Way::Index(index)]));
            }
        }
        most.into_values().map(|(what, way)| Demand { place: source.shown_place_of(&way), what }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::project::limits::{Asked, StepLimits, User};
    use crate::project::recipe::{FILE, Recipe};
    use crate::project::service_limits::ServiceLimits;
    use crate::project::stage::Stage;
    use crate::sys::error::Kind;
    use crate::sys::step_exec::Network;

    const LIMITED: &str = "\
limits: {memory: 256M, timeout: 10m}
stages:
  build:
    - run: make
      memory: 2G
      processes: 200
      network: off
    - make doc
  upgrade:
    - {run: ./up, user: root, timeout: 2h}
tasks:
  clean: {run: x, processes: 300}
";

    #[test]
    fn limits_hold_for_all_steps_and_a_step_may_say_otherwise() {
        let recipe = Recipe::parse(FILE, LIMITED.as_bytes()).unwrap();
        let build = recipe.steps(Stage::Build);
        assert_eq!((build[0].memory, build[0].processes, build[0].network), (Some(2 << 30), Some(200), Network::Off));
        assert_eq!((build[1].memory, build[1].processes, build[1].network), (Some(256 << 20), None, Network::On));
        assert_eq!((build[1].timeout, build[1].user), (Duration::from_mins(10), User::Project));
        let upgrade = &recipe.steps(Stage::Upgrade)[0];
        assert_eq!((upgrade.user, upgrade.timeout), (User::Root, Duration::from_hours(2)));
        assert_eq!(recipe.tasks["clean"][0].processes, Some(300));
    }

    #[test]
    fn what_a_node_does_not_allow_is_refused_at_its_place_with_both_numbers() {
        let recipe = Recipe::parse(FILE, LIMITED.as_bytes()).unwrap();
        assert_eq!(recipe.demands.len(), 4);
        assert_eq!(recipe.demands.iter().find(|d| d.what == Asked::Root).unwrap().place, "mc_project.yaml:10:19");
        let none = StepLimits::default();
        let free = ServiceLimits::default();
        recipe.check_demands(&none, &free, true).unwrap();
        let refused = |caps: StepLimits, trust| {
            let error = recipe.check_demands(&caps, &free, trust).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            error.message().to_string()
        };
        let of = refused(StepLimits { memory: Some(1 << 30), ..none }, true);
        assert_eq!(of, "mc_project.yaml:5:7: `memory: 2 GiB` is more than this node allows a step: 1 GiB");
        let of = refused(StepLimits { processes: Some(299), ..none }, true);
        assert!(of.contains("`processes: 300` is more than this node allows a step: 299"), "{of}");
        let of = refused(StepLimits { timeout: Some(Duration::from_hours(1)), ..none }, true);
        assert!(of.contains(":10:31: `timeout: 2h`") && of.ends_with(": 1h"), "{of}");
        let of = refused(none, false);
        assert!(of.contains(":10:19: `user: root` is not allowed"), "{of}");
        let caps = StepLimits { memory: Some(2 << 30), processes: Some(300), timeout: Some(Duration::from_hours(2)) };
        recipe.check_demands(&caps, &free, true).unwrap();
    }

    #[test]
    fn services_have_caps_of_their_own() {
        let text = "limits: {memory: 4G}\nservices:\n  a: {run: x, memory: 1G}\n  web:\n    run: x\n    memory: 2G\n    cpu: 150%\n";
        let recipe = Recipe::parse(FILE, text.as_bytes()).unwrap();
        let (steps, caps) =
            (StepLimits::default(), ServiceLimits { memory: Some(1 << 30), ..ServiceLimits::default() });
        let error = recipe.check_demands(&steps, &caps, true).unwrap_err();
        let told = "mc_project.yaml:6:5: `memory: 2 GiB` is more than this node allows a service: 1 GiB";
        assert_eq!(error.message(), told);
        assert!(error.hint_text().unwrap().contains("`services: {memory: …}` in node.yaml"));
        let caps = ServiceLimits { cpu: Some(100), ..ServiceLimits::default() };
        let error = recipe.check_demands(&steps, &caps, true).unwrap_err();
        assert!(error.message().contains(":7:5: `cpu: 150%`") && error.message().ends_with(": 100%"), "{error}");
        recipe.check_demands(&steps, &ServiceLimits { cpu: Some(150), ..caps }, true).unwrap();
    }
}
