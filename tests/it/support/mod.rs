//! What every test needs: a private node, work trees that push to it, and ways to look at what came of it.

mod broken_smtpd;
mod finished;
mod home;
mod letter;
mod machine;
mod ports;
mod relay;
