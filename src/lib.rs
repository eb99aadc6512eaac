//! mc_project deploys to servers you own with `git push`.
//!
//! # The story of a push
//!
//! 1. git runs the hook, which is this very program under another name: [`cli`] sees the name, [`entrance::call`] learns
//!    from the environment and the directory which repository of which project was pushed to.
//! 2. [`entrance::proc_receive`] reads the commands that git hands over, [`entrance::options`] the push options, and
//!    [`entrance::receive`] decides of each ref whether it is refused, stored or deployed.
//! 3. On a whole-machine node the hook is the receiver's and may do nothing else: it asks root through a socket
//!    ([`entrance::door`], [`entrance::remote`]), where everything is checked again ([`entrance::serve`],
//!    [`entrance::check`]). For a deployment [`entrance::launch`] starts a worker that is nobody's child: a unit of systemd
//!    ([`entrance::unit`]), or a process with a watcher beside it; each recovers when the worker dies. From here on the
//!    hook only shows what it reads ([`entrance::relay`]), and may hang up.
//! 4. The worker ([`pipeline::worker`]) waits for its turn ([`pipeline::queue`]), takes the project's lock, finishes what
//!    was interrupted ([`pipeline::recover`]), and reads the ref again.
//! 5. [`pipeline::deploy`] is the main loop; it begins with [`pipeline::prepare`]: the configuration is put together
//!    ([`pipeline::configuration`], [`project::pillar`]) and its secrets are found ([`pipeline::secrets`]); what the spare is was proven when the last
//!    deployment had settled ([`pipeline::proof`]), or a thread walks it now ([`tree::scan`]), while [`pipeline::listing`]
//!    takes from git what the commit changes, and [`pipeline::checkout`] turns that into a manifest;
//!    [`pipeline::preflight`] refuses what would not fit on the disk.
//! 6. The recipe's steps ([`project::recipe`], [`pipeline::steps`]) build in a clean tree that they see at the path of
//!    `run`, each in a box ([`pipeline::boxes`]): as the project's account, in a view of its own ([`sys::step_exec`]), in a
//!    control group with limits ([`sys::cgroup`]); or [`pipeline::fetch`] finds what another
//!    node built ([`tree::deliverable`]), and brings it over ssh ([`pipeline::download`], [`entrance::handover`]).
//!    A project of makina-states has states of Salt for steps ([`project::recipe::salt`], [`pipeline::salt`]), and what they make
//!    in `run` becomes a part of its release ([`pipeline::made`]).
//! 7. The spare becomes the new version, strictly and only where it differs ([`tree::sync`]), its old contents going into
//!    the pool ([`tree::store`]); until now nothing that runs has changed.
//! 8. [`pipeline::activate`] stops the services ([`pipeline::services`]; systemd or our own supervisor keeps them running,
//!    [`service`]), makes the restore point ([`tree::snapshot`]), exchanges `run` and the spare by one system call
//!    ([`tree::switch`]), starts and upgrades the new version and asks for its health ([`pipeline::checks`]).
//! 9. What fails now is taken back by [`pipeline::undo`], data included; what succeeds becomes final by one durable record
//!    in the journal ([`report::journal`]), after which the ref and `deploy/current` move.
//!    Until then somebody may end it all ([`pipeline::cancel`]).
//! 10. [`pipeline::settle`] can only warn: it keeps and tells the drift, upon which the hook prints the verdict and git answers;
//!     then it packs the deliverable, removes what is too old, proves the trees for the next deployment, and
//!     [`pipeline::tell`] writes mails and webhooks ([`report::mail`], [`report::webhook`]). [`pipeline::outbox`] sends what
//!     was written, now or later.
//!
//! In editable mode `run` is a clone that somebody works in: [`pipeline::editable`] takes the place of sentences 5 to 9, and
//! [`entrance::watch`] runs steps again when a file is saved.
//!
//! Before all of that [`pipeline::setup`] has made the machine a node and [`pipeline::init`] the project on it
//! ([`pipeline::rights`]: who owns what); [`pipeline::people`] wrote down who may come in, and [`entrance::shell`] is all
//! that their keys can do.
//!
//! On a developer's machine the same program pushes and asks ([`entrance::push`], [`entrance::far`]): git and ssh carry
//! what is said, and [`entrance::event_lines`] is what a hook says to it instead of to a person.
//!
//! # In reading order
//!
//! - [`project`]: the words. Plain data, parsing without a disk, all defaults.
//! - [`pipeline`]: [`deploy`](pipeline::deploy) first. The only place that puts two acts in a row.
//! - [`tree`]: manifests, the two trees, the switch, the pool, snapshots, deliverables.
//! - [`report`]: one stream of events; journal, lines, mail, notes and history are its readers.
//! - [`service`]: what keeps services running (systemd, or a supervisor of our own), what holds their sockets meanwhile
//!   ([`service::sockets`], [`pipeline::held`]), and the door to systemd for steps about
//!   units.
//! - [`entrance`]: how work comes in: git's hooks, the forced command of a key, root's side of the socket; and the
//!   developer's side of all that. They hold no lock
//!   and change no tree themselves; only `watch` takes the lock, to run steps.
//! - [`sys`]: the only doors to the outside: programs, git, files, accounts, control groups, locks, mounts, keys, and errors.
//! - [`cli`] and [`demo`] stand on top of all.
//!
//! Arrows go down: entrance → pipeline → {tree, service, report} → project → sys; `tests/it/imports.rs` holds that.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod cli;
pub mod demo;
pub mod entrance;
pub mod pipeline;
pub mod project;
pub mod report;
pub mod service;
pub mod sys;
pub mod tree;
