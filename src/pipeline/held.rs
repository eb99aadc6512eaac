//! The sockets that are held for the services of a version (`listen:`): which they are, who holds them, and the pause while
//! services go and come.

use std::time::Duration;

use super::draft::Deployed;
use super::site::Site;
use crate::project::recipe::Service;
use crate::project::recipe::service::listen::{HOLDER, Listen};
use crate::project::recipe::service::{Kind, Restart, ServiceLimits, StopSignal, Unchanged};
use crate::service::definition::{Definition, Instance, Running};
use crate::service::sockets::{Held, Holder, PROTOCOL, Pause, Wanted, holder, take};
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::step_exec::StepOrder;
use crate::sys::{fs, process};

/// How long a holder may take to come up or to end.
const MOMENT: Duration = Duration::from_secs(10);
/// How many descriptors a holder may have: two for each connection that is passed on.
const DESCRIPTORS: u32 = 16_384;
/// How long a deployment waits for the answers to requests that were passed on.
const DRAIN: Duration = Duration::from_secs(10);

/// The services of a version that have sockets held for them.
fn listening(of: &Deployed) -> impl Iterator<Item = &Service> {
    let services = of.version.recipe.services.iter();
    services.filter(|service| !service.listen.is_empty() && service.applies(of.version.mode))
}

/// Whether an instance is what holds the sockets.
#[must_use]
pub fn is_holder(instance: &Instance) -> bool {
    instance.service.as_str() == HOLDER
}

/// What holds the sockets of a version, as the first of its services; `None` where it has none.
///
/// # Errors
/// If this program cannot be found.
pub fn definition(site: &Site, of: &Deployed) -> Result<Option<Definition>> {
    if listening(of).next().is_none() {
        return Ok(None);
    }
    let dir = site.place.sockets();
    let instance = Instance { service: HOLDER.parse()?, number: 1 };
    // As little as possible, and nothing that changes with a deployment: what changes would have to be started anew.
    let env = [
        ("PATH", process::PATH.to_string()),
        ("MC_PROJECT_DIR", site.place.dir().display().to_string()),
        ("MC_SERVICE", instance.service.to_string()),
        ("MC_INSTANCE", instance.number.to_string()),
        ("MC_HELD_PROTOCOL", PROTOCOL.to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_string(), value)).to_vec();
    let mut order = StepOrder::new(holder::command(&site.node.program()?, &dir), env, dir);
    order.run_as = site.project_identity();
    Ok(Some(Definition {
        instance,
        kind: Kind::Notify,
        restart: Restart::Always,
        stop_signal: StopSignal::Term,
        stop_timeout: MOMENT,
        start_timeout: MOMENT,
        limits: ServiceLimits { open_files: Some(DESCRIPTORS), ..ServiceLimits::default() },
        unchanged: Unchanged::Leave,
        order,
        running: Running { deployment: Some(of.id.clone()), commit: Some(of.version.commit.id.clone()) },
        secrets: Vec::new(),
    }))
}

/// Lets a service be started with its sockets, if it takes them.
///
/// # Errors
/// If this program cannot be found.
pub fn wrap(site: &Site, service: &Service, order: &mut StepOrder) -> Result<()> {
    if service.listen.is_empty() || service.port.is_some() {
        return Ok(());
    }
    let argv = std::mem::take(&mut order.argv);
    order.argv = take::command(&site.node.program()?, &site.place.sockets(), &service.name, &service.listen, argv);
    Ok(())
}

/// Says what is to be held for a version: before its services start.
///
/// # Errors
/// If it cannot be written.
pub fn prepare(site: &Site, of: &Deployed, ports: impl Fn(&Service) -> Result<Vec<u16>>) -> Result<()> {
    let mut sockets = Vec::new();
    for service in listening(of) {
        let ports = ports(service)?;
        for listen in &service.listen {
            let path = match listen {
                Listen::Unix(below) => Some(site.place.data().join(below.as_path())),
                Listen::Tcp(_) => None,
            };
            let (name, text) = (service.name.clone(), listen.to_string());
            sockets.push(Held { service: name, listen: text, path, ports: ports.clone() });
        }
    }
    if sockets.is_empty() {
        return Ok(());
    }
    let path = site.place.sockets();
    fs::ensure_dir(&path, 0o700)?;
    let owner = site.owners().map(|owners| owners.project);
    if let Some((uid, gid)) = owner {
        Dir::open_real(&path)?.give_to(uid, gid)?;
    }
    Wanted { sockets }.write(&path, owner.map(|(_, gid)| gid))?;
    // One that runs already closes now what the new version may want to have itself; one that does not is about to start.
    let _ = holder_of(site).and_then(|holder| holder.check());
    Ok(())
}

fn holder_of(site: &Site) -> Result<Holder> {
    Holder::at(&site.place.sockets(), site.own.uid)
}

/// Makes sure that everything is held, once the services have started.
///
/// # Errors
/// What cannot be listened at, and why.
pub fn check(site: &Site, of: &Deployed) -> Result<()> {
    if listening(of).next().is_none() { Ok(()) } else { holder_of(site)?.check() }
}

/// Why an instance could not be given its sockets, if that is what kept it from coming up.
#[must_use]
pub fn trouble(site: &Site, of: &Deployed, instance: &Instance) -> Option<String> {
    let is_concerned = listening(of).any(|service| service.name == instance.service);
    is_concerned.then(|| check(site, of).err()).flatten().map(|error| error.one_line())
}

/// Where a service can be asked at this machine, if it has no port of its own.
#[must_use]
pub fn local_port(service: &Service) -> Option<u16> {
    service.listen.iter().find_map(Listen::local_port)
}

/// Keeps connections that are to be passed on, and waits for the answers that are due. Where nobody holds anything there is
/// nothing to keep.
#[must_use]
pub fn pause(site: &Site) -> Option<Pause> {
    let wanted = Wanted::read(&site.place.sockets()).ok()?;
    let passes_on = wanted.sockets.iter().any(|held| !held.ports.is_empty());
    passes_on.then(|| holder_of(site).and_then(|holder| holder.pause(DRAIN)).ok()).flatten()
}
