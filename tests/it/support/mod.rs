//! What every test needs: a private node, work trees that push to it, and ways to look at what came of it.

mod away;
mod broken_smtpd;
mod finished;
mod home;
mod letter;
pub mod load;
mod machine;
mod ports;
pub mod postgres;
mod python_server;
mod relay;
mod reliability;
pub mod salt;
pub mod server;
pub mod service_app;
mod smtpd;
mod sshd;
mod tree;
mod ward;
mod webhookd;
mod work;
mod world;

pub use away::{Away, cut, write_list};
pub use broken_smtpd::{Broken, BrokenSmtpd};
pub use finished::{Finished, Running};
pub use home::Home;
pub use letter::Mail;
pub use machine::{Machine, PROGRAM_AT, sweep};
pub use ports::free_port;
pub use python_server::PythonServer;
pub use relay::Relay;
pub use reliability::{Record, is_full, record, record_at, sample, times};
pub use smtpd::Smtpd;
pub use sshd::Sshd;
pub use tree::{Tree, digest, digest_without};
pub use ward::{Lines, Ward, is_alive, kill_9};
pub use webhookd::Webhookd;
pub use work::WorkTree;
pub use world::World;

use std::time::{Duration, Instant};

/// How long anything may take that is not expected to hang; generous, since machines that test are busy.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until `what` is so.
///
/// # Panics
/// If it is not so within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts that `text` holds `part`, and shows both where it does not.
#[track_caller]
pub fn assert_has(text: &str, part: &str) {
    assert!(text.contains(part), "expected to find\n    {part}\nin\n{text}");
}

/// Asserts that `text` does not hold `part`.
#[track_caller]
pub fn assert_lacks(text: &str, part: &str) {
    assert!(!text.contains(part), "expected not to find\n    {part}\nin\n{text}");
}
