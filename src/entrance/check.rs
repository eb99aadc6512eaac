//! Judges what a hook orders, as if the hook were hostile: root believes nothing that the receiver says.
//!
//! Everything here is decided from the order and the node's own facts. What needs a look at the repository or the state
//! (whether the id is unused, where the ref is) is asked by [`super::serve`] afterwards.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::entrance::call::is_push_id;
use crate::entrance::door::{Order, Pushed};
use crate::entrance::options;
use crate::entrance::receive::FIRST_BRANCHES;
use crate::entrance::{ProjectFacts, RepoKind, VerdictAt};
use crate::project::access::key::is_fingerprint;
use crate::project::ids::DeploymentId;
use crate::project::request::{RefUpdate, Request, Want};
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// How old, or how far ahead, an id may be: hook and service read the same clock.
const RECENT: SignedDuration = SignedDuration::from_mins(10);
/// The longest name of a pusher that is told, in bytes.
const MAX_PUSHER: usize = 300;

/// The request that an order is, if this project's node lets a hook order it.
///
/// # Errors
/// Why it is refused.
pub fn request(of: &Pushed, order: &Order, facts: &ProjectFacts, now: Timestamp) -> Result<Request> {
    check_id(&order.id, now)?;
    check_update(of.kind, order, facts)?;
    if let Some(push) = order.push.as_deref().filter(|push| !is_push_id(push)) {
        return Err(refused(&format!("`{}` names no push", visible_bounded(push.as_bytes(), 80))));
    }
    let options = options::check_data(&order.options, facts)?;
    if options.no_deploy {
        return Err(refused("no-deploy deploys nothing"));
    }
    let pusher = visible_bounded(order.pusher.trim().as_bytes(), MAX_PUSHER);
    if pusher.is_empty() {
        return Err(refused("nobody is named as the pusher"));
    }
    if order.key.as_deref().is_some_and(|key| !is_fingerprint(key)) {
        return Err(refused("the key is no fingerprint"));
    }
    let wait_seconds = match (order.wait_seconds, facts.wait_seconds) {
        (Some(wanted), Some(most)) => Some(wanted.min(most)),
        (None, most) | (most, None) => most,
    };
    Ok(Request {
        project: facts.name.clone(),
        id: order.id.clone(),
        want: Want::Deploy { commit: order.commit.clone() },
        update: order.update.clone(),
        options,
        pusher,
        key: order.key.clone(),
        push: order.push.clone(),
        wait_seconds,
    })
}

/// Whether the first push of this branch may make it the one that counts.
///
/// # Errors
/// If another one counts already, or it is none that is watched.
pub fn first_branch(branch: &str, facts: &ProjectFacts) -> Result<()> {
    match &facts.branch {
        Some(known) if known == branch => Ok(()),
        Some(known) => Err(refused(&format!("{known} is the branch of {} already", facts.name))),
        None if FIRST_BRANCHES.contains(&branch) => Ok(()),
        None => Err(refused("the first push of main or master chooses the branch")),
    }
}

fn check_id(id: &DeploymentId, now: Timestamp) -> Result<()> {
    let label = &id.as_str()[..16];
    let made = DateTime::strptime("%Y%m%dT%H%M%SZ", label).and_then(|time| time.to_zoned(TimeZone::UTC));
    let is_recent = made.is_ok_and(|made| made.timestamp().duration_since(now).abs() <= RECENT);
    if is_recent { Ok(()) } else { Err(refused(&format!("the id {id} was not made now"))) }
}

fn check_update(kind: RepoKind, order: &Order, facts: &ProjectFacts) -> Result<()> {
    let update = match (kind, &order.update) {
        (RepoKind::Project, Some(update)) => update,
        (RepoKind::Project, None) => return Err(refused("a push of code names its ref")),
        (RepoKind::Pillar, None) => return Ok(()),
        (RepoKind::Pillar, Some(_)) => return Err(refused("a push of the pillar deploys what serves")),
    };
    let RefUpdate { name, old, new, moved_by_worker } = update;
    let Some(branch) = name.branch() else {
        return Err(refused(&format!("{} is no branch", name.shown())));
    };
    match &facts.branch {
        Some(known) if known != branch => {
            return Err(refused(&format!("{} is not the deploy branch {known}", name.shown())));
        }
        Some(_) => {}
        None => first_branch(branch, facts)?,
    }
    if *new != order.commit || new.is_zero() || old == new {
        return Err(refused("the commit is not what the ref becomes"));
    }
    if old.as_str().len() != new.as_str().len() {
        return Err(refused("the ids have different lengths"));
    }
    if *moved_by_worker && facts.verdict == VerdictAt::Later {
        return Err(refused("the node answers a push before it deploys, so the worker moves no ref"));
    }
    Ok(())
}

fn refused(why: &str) -> Error {
    Error::refused(format!("the order is refused: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrance::fake::{facts, id, zero};
    use crate::project::mode::Mode;
    use crate::project::request::Options;
    use crate::project::stage::Stage;

    fn now() -> Timestamp {
        Timestamp::from_second(1_790_000_000).unwrap()
    }

    fn order() -> Order {
        let name = "refs/heads/main".parse().unwrap();
        Order {
            id: DeploymentId::new(now()),
            commit: id('b'),
            update: Some(RefUpdate { name, old: zero(), new: id('b'), moved_by_worker: true }),
            options: Options::default(),
            pusher: "alice from 192.0.2.7".into(),
            key: None,
            push: Some("77-8961".into()),
            wait_seconds: Some(60),
        }
    }

    fn of(kind: RepoKind) -> Pushed {
        Pushed { project: "shop".parse().unwrap(), kind }
    }

    fn judge(order: &Order, facts: &ProjectFacts) -> Result<Request> {
        request(&of(RepoKind::Project), order, facts, now())
    }

    #[test]
    fn an_honest_order_is_taken_as_it_is() {
        let (order, facts) = (order(), facts(Some("main")));
        let request = judge(&order, &facts).unwrap();
        assert_eq!(request.want, Want::Deploy { commit: id('b') });
        assert_eq!((request.update, request.pusher, request.push), (order.update, order.pusher, order.push));
        assert_eq!((request.project.as_str(), request.wait_seconds), ("shop", Some(60)));
    }

    #[test]
    fn what_an_honest_hook_would_not_order_is_refused() {
        type Change = fn(&mut Order);
        let hostile: [(&str, Change); 22] = [
            ("an id of the past", |o| o.id = DeploymentId::new(now() - SignedDuration::from_hours(1))),
            ("an id of the future", |o| o.id = DeploymentId::new(now() + SignedDuration::from_hours(1))),
            ("an id of no date", |o| o.id = format!("20269999T000000Z{}", &o.id.as_str()[16..]).parse().unwrap()),
            ("another branch", |o| o.update.as_mut().unwrap().name = "refs/heads/dev".parse().unwrap()),
            ("a tag of the name", |o| o.update.as_mut().unwrap().name = "refs/tags/main".parse().unwrap()),
            ("a ref of ours", |o| o.update.as_mut().unwrap().name = "refs/deploys/current".parse().unwrap()),
            ("a branch below it", |o| o.update.as_mut().unwrap().name = "refs/heads/main/x".parse().unwrap()),
            ("a note", |o| o.update.as_mut().unwrap().name = "refs/notes/main".parse().unwrap()),
            ("another commit than the ref's", |o| o.commit = id('c')),
            ("a deletion", |o| {
                o.commit = zero();
                o.update.as_mut().unwrap().new = zero();
            }),
            ("no change", |o| o.update.as_mut().unwrap().old = id('b')),
            ("two formats", |o| o.update.as_mut().unwrap().old = "0".repeat(64).parse().unwrap()),
            ("no ref", |o| o.update = None),
            ("a mode that the node does not allow", |o| o.options.mode = Some(Mode::Editable)),
            ("no-deploy", |o| o.options.no_deploy = true),
            ("plan and stage-only", |o| (o.options.plan, o.options.stage_only) = (true, true)),
            ("a stage without steps", |o| o.options.skip = vec![Stage::Accept]),
            ("a stage in both lists", |o| {
                (o.options.only, o.options.skip) = (vec![Stage::Build], vec![Stage::Build]);
            }),
            ("a reason without end", |o| o.options.reason = Some("x".repeat(60_000))),
            ("nobody", |o| o.pusher = " \n".into()),
            ("a path as push", |o| o.push = Some("../last.json".into())),
            ("a number without end as push", |o| o.push = Some(format!("1-{}", "1".repeat(1000)))),
        ];
        for (what, change) in hostile {
            let mut order = order();
            change(&mut order);
            assert!(judge(&order, &facts(Some("main"))).is_err(), "{what}");
        }
        let later = ProjectFacts { verdict: VerdictAt::Later, ..facts(Some("main")) };
        assert!(judge(&order(), &later).is_err(), "a ref that git has moved already");
        assert!(request(&of(RepoKind::Pillar), &order(), &facts(Some("main")), now()).is_err(), "a pillar's ref");
        let pillar = Order { update: None, ..order() };
        assert!(request(&of(RepoKind::Pillar), &pillar, &facts(None), now()).is_ok());
    }

    #[test]
    fn the_first_branch_is_main_or_master_and_the_known_one_stays() {
        assert!(judge(&order(), &facts(None)).is_ok());
        let mut other = order();
        other.update.as_mut().unwrap().name = "refs/heads/dev".parse().unwrap();
        assert!(judge(&other, &facts(None)).is_err());
        assert!(judge(&other, &facts(Some("dev"))).is_ok());
        for (branch, known, good) in [
            ("main", None, true),
            ("master", None, true),
            ("dev", None, false),
            ("main", Some("main"), true),
            ("master", Some("main"), false),
        ] {
            assert_eq!(first_branch(branch, &facts(known)).is_ok(), good, "{branch} {known:?}");
        }
    }

    #[test]
    fn texts_are_escaped_and_bounded_and_nobody_waits_longer_than_the_node_says() {
        let mut order = order();
        order.pusher = format!("ali\u{1b}[2Jce\n{}", "x".repeat(5000));
        order.options.reason = Some("new\u{202e} prices\n".into());
        order.wait_seconds = Some(u64::MAX);
        order.options.only = vec![Stage::Build; 1000];
        let request = judge(&order, &facts(Some("main"))).unwrap();
        assert!(request.pusher.starts_with("ali\\u{1b}[2Jce\\u{a}xx") && request.pusher.len() < 400);
        assert_eq!(request.options.reason.as_deref(), Some("new\\u{202e} prices"));
        assert_eq!(request.options.only, [Stage::Build]);
        assert_eq!(request.wait_seconds, Some(60));
        order.wait_seconds = None;
        assert_eq!(judge(&order, &facts(Some("main"))).unwrap().wait_seconds, Some(60));
    }
}
