//! What the supervisor is about to do because somebody asked: stop some instances, then start some, in order.
//!
//! Instances of one service stop and start together, services one after the other. A service that only runs is up at once,
//! so that many start quickly; all of them must still run a moment later.

use std::collections::VecDeque;
use std::time::Duration;

use super::Surroundings;
use super::charge::Charge;
use crate::service::backend::Failure;
use crate::service::definition::{Definition, Instance};

/// How long a service must have run until its start is believed.
const SETTLED: Duration = Duration::from_secs(1);

/// How far a job is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Going,
    /// It is done.
    Done,
    /// A service did not come up.
    Failed(Failure),
    /// Something does not die.
    Stuck(String),
}

/// A job.
#[derive(Default)]
pub struct Job {
    stop: VecDeque<Vec<Instance>>,
    is_stopping: bool,
    /// The definitions that hold once everything has stopped; `None`: those that hold already.
    pub definitions: Option<Vec<Definition>>,
    start: VecDeque<Vec<Instance>>,
    begun: Vec<Instance>,
    /// All that are started.
    fresh: Vec<Instance>,
}

impl Job {
    /// Stops `stop` in the opposite order, then starts `start` in theirs.
    #[must_use]
    pub fn new(stop: &[Instance], start: &[Instance], definitions: Option<Vec<Definition>>) -> Self {
        let mut stop = by_service(stop);
        stop.make_contiguous().reverse();
        Self { stop, start: by_service(start), fresh: start.to_vec(), definitions, ..Self::default() }
    }

    /// The instances that are started.
    #[must_use]
    pub fn fresh(&self) -> &[Instance] {
        &self.fresh
    }

    /// Goes on with stopping; true once everything has stopped.
    ///
    /// # Errors
    /// What does not die.
    pub fn stop(&mut self, charges: &mut [Charge]) -> Result<bool, String> {
        while let Some(group) = self.stop.front() {
            let ours = |charge: &&mut Charge| group.contains(&charge.definition().instance);
            if !self.is_stopping {
                charges.iter_mut().filter(ours).for_each(Charge::stop);
                self.is_stopping = true;
            }
            if let Some(stuck) = charges.iter_mut().filter(ours).find_map(|charge| charge.stuck().map(str::to_string)) {
                return Err(stuck);
            }
            if !charges.iter_mut().filter(ours).all(|charge| charge.rests()) {
                return Ok(false);
            }
            self.stop.pop_front();
            self.is_stopping = false;
        }
        Ok(true)
    }

    /// Goes on with starting.
    pub fn start(&mut self, charges: &mut [Charge], around: &Surroundings) -> Progress {
        while let Some(group) = self.start.front() {
            for charge in charges.iter_mut().filter(|charge| group.contains(&charge.definition().instance)) {
                let instance = charge.definition().instance.clone();
                if !self.begun.contains(&instance) && charge.begin(around) {
                    self.begun.push(instance);
                }
            }
            if let Some(failure) = self.failure(charges) {
                return Progress::Failed(failure);
            }
            // What of an earlier run does not die is not waited for.
            let mut waited_for = charges.iter().filter(|charge| group.contains(&charge.definition().instance));
            if let Some(stuck) = waited_for.find_map(Charge::stuck) {
                return Progress::Stuck(stuck.to_string());
            }
            let mut ours = charges.iter().filter(|charge| group.contains(&charge.definition().instance));
            if !ours.all(Charge::is_up) {
                return Progress::Going;
            }
            self.start.pop_front();
        }
        if let Some(failure) = self.failure(charges) {
            return Progress::Failed(failure);
        }
        let is_settled = |charge: &Charge| charge.is_settled(SETTLED);
        let mut fresh = charges.iter().filter(|charge| self.fresh.contains(&charge.definition().instance));
        if fresh.all(is_settled) { Progress::Done } else { Progress::Going }
    }

    fn failure(&self, charges: &[Charge]) -> Option<Failure> {
        let mut begun = charges.iter().filter(|charge| self.begun.contains(&charge.definition().instance));
        begun.find_map(Charge::failure)
    }

    /// When it has to be looked at again, at the latest.
    #[must_use]
    pub fn pause() -> Duration {
        Duration::from_millis(100)
    }
}

/// The instances of each service together, in their order.
fn by_service(instances: &[Instance]) -> VecDeque<Vec<Instance>> {
    let mut groups: VecDeque<Vec<Instance>> = VecDeque::new();
    for instance in instances {
        match groups.iter_mut().find(|group| group[0].service == instance.service) {
            Some(group) => group.push(instance.clone()),
            None => groups.push_back(vec![instance.clone()]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_of_a_service_go_together_and_stop_in_the_opposite_order() {
        let one = |name: &str, number| Instance { service: name.parse().unwrap(), number };
        let all = [one("db", 1), one("web", 1), one("web", 2)];
        let job = Job::new(&all, &all, None);
        assert_eq!(job.stop, [vec![one("web", 1), one("web", 2)], vec![one("db", 1)]]);
        assert_eq!(job.start, [vec![one("db", 1)], vec![one("web", 1), one("web", 2)]]);
    }
}
