//! A whole machine for a test: Debian whose init is systemd, reached over ssh from a developer's side of a wire.
//!
//! `tests/machine.sh` keeps it (and says how); this is the test's end. A test begins with
//! `let Some(machine) = Machine::boot("node1") else { return };` and lies in a module named `machine…`, for which
//! `.config/nextest.toml` sets limits of its own.

use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{Finished, Home, PATIENCE, Running, WorkTree, wait_until};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_mc_project");

/// What keeps the machine.
const KEEPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine.sh");

/// Where [`Machine::boot`] puts the program: where somebody's scp would leave it.
pub const PROGRAM_AT: &str = "/root/mc_project";

/// The person whose key opens root's account.
pub const ROOTS_KEY: &str = "root";

/// The variable that says what to do where no machine can run: `require` fails, `skip` never tries.
const WISH: &str = "MC_TEST_MACHINES";

/// Goes into the control groups of the machine's init, and becomes the program.
const ENTER: &str = "cd /sys/fs/cgroup && for at in */init.scope init.scope memory pids cpu cpuacct; do
    [ ! -w $at/cgroup.procs ] || echo $$ > $at/cgroup.procs
done 2> /dev/null
cd /root && exec \"$@\"";

/// A machine and the developer's account beside it; it is taken down when this value goes away.
pub struct Machine {
    home: Home,
    keeper: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    number: u32,
    directory: PathBuf,
    group: PathBuf,
}

impl Machine {
    /// Boots a fresh machine of this host name and waits until all its services run.
    ///
    /// `None`, and a line on standard error, where this cannot be done; with `MC_TEST_MACHINES=require` a failure.
    #[track_caller]
    pub fn boot(name: &str) -> Option<Self> {
        let wish = std::env::var(WISH).ok();
        may_boot(wish.as_deref(), ability).then(|| Self::start(name))
    }

    #[track_caller]
    fn start(name: &str) -> Self {
        let home = Home::new();
        std::fs::create_dir(home.path("keys")).unwrap();
        let (private, log) = (make_key(&home, ROOTS_KEY), std::fs::File::create(home.path("keeper.log")).unwrap());
        let mut command = keeper("keep");
        command.arg(name).arg(private.with_extension("pub"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // A group of its own: the keeper outlives whoever kills the test's, and takes the machine down.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut keeper = command.spawn().unwrap();
        let mut answers = BufReader::new(keeper.stdout.take().unwrap());
        let mut told = String::new();
        answers.read_line(&mut told).unwrap();
        let words: Vec<&str> = told.split_whitespace().collect();
        let [number, directory, group] = words[..] else {
            panic!("no machine: {}", std::fs::read_to_string(home.path("keeper.log")).unwrap());
        };
        let (number, directory, group) = (number.parse().unwrap(), PathBuf::from(directory), PathBuf::from(group));
        let orders = keeper.stdin.take();
        let mut machine = Self { home, keeper, orders, answers, number, directory, group };
        std::fs::copy(PROGRAM, machine.root().join(PROGRAM_AT.trim_start_matches('/'))).unwrap();
        machine.plug_in();
        let state = machine.state();
        assert!(state == "running", "after its boot the machine is {state}\n{}", machine.failed_units());
        machine
    }

    /// The developer's account: keys, work trees, and a git that knows nothing of the machine that tests.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The machine's address, as the developer's side reaches it.
    pub fn address(&self) -> String {
        format!("10.77.{}.2", self.number)
    }

    /// The address of the developer's side, as the machine reaches it.
    pub fn developers_address(&self) -> String {
        format!("10.77.{}.1", self.number)
    }

    /// The machine's root directory as this test sees it, also while its plug is pulled; absolute links in it lead astray.
    pub fn root(&self) -> PathBuf {
        let within = self.directory.join("root");
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(within.strip_prefix("/").unwrap())
    }

    /// The process id that the machine's init has for this test.
    ///
    /// # Panics
    /// If the machine does not run.
    #[track_caller]
    pub fn leader(&self) -> i32 {
        self.find_leader().unwrap_or_else(|| panic!("the machine does not run\n{}", self.log()))
    }

    /// The process that is number 1 two process namespaces below ours (the keeper has one, the machine another).
    fn find_leader(&self) -> Option<i32> {
        processes_in(&self.group).into_iter().find(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            matches!(ids.split_whitespace().collect::<Vec<_>>()[..], [_, _, "1"])
        })
    }

    // --- programs in the machine

    /// A program in the machine, as root, not through ssh: fast, but in no session and in the control group of init.
    #[track_caller]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.leader().to_string()).args(["--all", "--", "sh", "-c", ENTER, "sh", program]);
        command.env_clear().env("PATH", super::home::PATH).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command
    }

    /// The same for a line of sh, which begins in `/root`.
    #[track_caller]
    pub fn run(&self, line: &str) -> Finished {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        Finished::of(command)
    }

    /// A line of sh as root, over ssh: with a session and all that belongs to it.
    #[track_caller]
    pub fn ssh_root(&self, line: &str) -> Finished {
        self.ssh_as("root", ROOTS_KEY, &[line])
    }

    /// `ssh user@machine args…` from the developer's side with the key of `person`; ssh joins `args` with blanks.
    #[track_caller]
    pub fn ssh_as(&self, user: &str, person: &str, args: &[&str]) -> Finished {
        Finished::of(self.ssh_command(user, person, args))
    }

    /// The same, ready to run.
    #[track_caller]
    pub fn ssh_command(&self, user: &str, person: &str, args: &[&str]) -> Command {
        let mut command = self.developer("ssh");
        command.args(self.ssh_options(person)).arg(format!("{user}@{}", self.address())).args(args);
        command
    }

    // --- the developer's side

    /// A program on the developer's side of the wire, with the account's environment; the child is the program itself.
    pub fn developer(&self, program: &str) -> Command {
        let mut command = self.home.command("nsenter");
        command.arg(self.wire()).args(["--", program]);
        command
    }

    /// The option with which nsenter goes to the developer's side.
    fn wire(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.keeper.id())
    }

    fn ssh_options(&self, person: &str) -> Vec<String> {
        let known = self.home.path("known_hosts");
        let key = self.private_key(person);
        let mut options = vec!["-F".into(), "/dev/null".into(), "-i".into(), key.display().to_string()];
        for option in [
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "StrictHostKeyChecking=accept-new",
            "LogLevel=ERROR",
            "ConnectTimeout=20",
            &format!("UserKnownHostsFile={}", known.display()),
        ] {
            options.extend(["-o".into(), option.into()]);
        }
        options
    }

    /// The value of `GIT_SSH_COMMAND` with which git reaches the machine with the key of `person`.
    pub fn git_ssh_command(&self, person: &str) -> String {
        // `exec` (and nsenter does the same), so that the child of git is ssh itself.
        format!("exec nsenter {} -- ssh {}", self.wire(), self.ssh_options(person).join(" "))
    }

    /// Runs git in `dir` on the developer's side, with the key of `person` for what it does over ssh.
    #[track_caller]
    pub fn git(&self, dir: &Path, person: &str, args: &[&str]) -> Finished {
        let mut command = self.home.command("git");
        command.current_dir(dir).env("GIT_SSH_COMMAND", self.git_ssh_command(person)).args(args);
        Finished::of(command)
    }

    /// The address of a path on the machine for git.
    pub fn url(&self, user: &str, path: &str) -> String {
        format!("ssh://{user}@{}{path}", self.address())
    }

    /// A new, empty work tree of `person`, whose pushes go to `path` in the account `user` of the machine.
    #[track_caller]
    pub fn work_tree(&self, person: &str, user: &str, path: &str) -> WorkTree<'_> {
        let dir = tempfile::Builder::new().prefix("work-").tempdir_in(self.home.dir()).unwrap().keep();
        let work = WorkTree::new(&self.home, dir, &self.url(user, path));
        work.git(&["config", "core.sshCommand", &self.git_ssh_command(person)]).ok();
        work
    }

    /// The file with the private key of `person`, made at the first question.
    pub fn private_key(&self, person: &str) -> PathBuf {
        make_key(&self.home, person)
    }

    /// The line of the public key of `person`.
    pub fn public_key(&self, person: &str) -> String {
        std::fs::read_to_string(self.private_key(person).with_extension("pub")).unwrap().trim_end().to_string()
    }

    /// Lays a wire to another machine: this one is 10.78.0.1 on it, the other one 10.78.0.2.
    #[track_caller]
    pub fn join(&self, other: &Self) {
        let (own, others) = (self.leader(), other.leader());
        let line = format!(
            "ip link add join type veth peer name join netns {others} && ip link set join up && \
             ip addr add 10.78.0.1/24 dev join && \
             nsenter --net=/proc/{others}/ns/net sh -c 'ip link set join up && ip addr add 10.78.0.2/24 dev join'"
        );
        let mut command = self.home.command("nsenter");
        command.arg(format!("--net=/proc/{own}/ns/net")).args(["--", "sh", "-c", &line]);
        Finished::of(command).ok();
    }

    // --- files and accounts in the machine

    /// Writes a file as root, with the directories above it; links are followed as the machine follows them.
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) {
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(content.as_ref()).unwrap();
        input.rewind().unwrap();
        self.write_from(path, input, mode);
    }

    /// Puts the program at another place than [`PROGRAM_AT`].
    #[track_caller]
    pub fn install_program(&self, path: &str) {
        self.write_from(path, std::fs::File::open(PROGRAM).unwrap(), 0o755);
    }

    #[track_caller]
    fn write_from(&self, path: &str, content: std::fs::File, mode: u32) {
        let mut command = self.command("sh");
        command.args(["-euc", "mkdir -p \"${1%/*}/\"; cat > \"$1\"; chmod \"$2\" \"$1\"", "sh", path]);
        command.arg(format!("{mode:o}")).stdin(content);
        Running::start_reading(command).wait().ok();
    }

    /// The bytes of a file, read as root in the machine.
    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        let mut command = self.command("cat");
        let output = command.args(["--", path]).output().unwrap();
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The same as text.
    #[track_caller]
    pub fn read_text(&self, path: &str) -> String {
        String::from_utf8(self.read(path)).unwrap()
    }

    /// Whether there is something at this path; a link counts as itself.
    #[track_caller]
    pub fn exists(&self, path: &str) -> bool {
        let mut command = self.command("stat");
        command.args(["--", path]);
        Finished::of(command).exit_code() == Some(0)
    }

    /// Makes an account with a home and a shell; it is opened by the key of the person of the same name.
    #[track_caller]
    pub fn useradd(&self, name: &str) {
        self.run(&format!("useradd --create-home --shell /bin/bash {name}")).ok();
        let file = format!("/home/{name}/.ssh/authorized_keys");
        self.write(&file, format!("{}\n", self.public_key(name)), 0o600);
        self.run(&format!("chown -R {name}:{name} /home/{name}/.ssh && chmod 0700 /home/{name}/.ssh")).ok();
    }

    // --- systemd and the plug

    /// What systemd says of the whole machine: `running`, `degraded`, …
    #[track_caller]
    pub fn state(&self) -> String {
        self.run("systemctl is-system-running").stdout.trim().to_string()
    }

    /// What the journal has of a unit, in this boot and those before.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        let mut command = self.command("journalctl");
        command.args(["--no-pager", "--quiet", "--all", "--output=short-iso-precise", "--unit", unit]);
        Finished::of(command).ok().stdout
    }

    /// The units that failed, and what the journal has of errors.
    #[track_caller]
    pub fn failed_units(&self) -> String {
        self.run("systemctl --failed --no-pager --no-legend; journalctl --no-pager --quiet --boot --priority=4").stdout
    }

    /// Reboots the machine from within, in good order, and waits until it runs again.
    #[track_caller]
    pub fn reboot(&mut self) {
        let before = self.leader();
        // It may end before it can say so.
        self.run("systemctl reboot");
        wait_until("the machine has gone down", || self.find_leader().is_none_or(|now| now != before));
        self.wait_until_it_runs();
    }

    /// Kills everything in the machine at once and boots it again; what the kernel had not yet written is *not* lost.
    #[track_caller]
    pub fn power_cut(&mut self) {
        self.pull_plug();
        self.plug_in();
    }

    /// The first half of [`Machine::power_cut`]: afterwards only [`Machine::root`] can be looked at.
    #[track_caller]
    pub fn pull_plug(&mut self) {
        self.order("off");
    }

    /// The second half.
    #[track_caller]
    pub fn plug_in(&mut self) {
        self.order("on");
        self.wait_until_it_runs();
    }

    #[track_caller]
    fn order(&mut self, word: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{word}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(answer.trim_end() == word, "the keeper did not obey: {}", self.log());
    }

    /// Waits until no job is left of the boot; some units may have failed.
    #[track_caller]
    fn wait_until_it_runs(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            // Before systemd has set up its bus, entering fails, or the answer is empty.
            if self.find_leader().is_some_and(|_| matches!(self.state().as_str(), "running" | "degraded")) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "not up within {PATIENCE:?}\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Kills the keeper as an outsider would, so that nothing can be tidied up; for the tests of this harness.
    pub fn kill_keeper(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }

    /// What there is of this machine on the host; for the tests of this harness.
    pub fn traces(&self) -> Traces {
        let processes = [self.leader().to_string(), self.keeper.id().to_string()];
        Traces { number: self.number, processes: processes.map(|pid| Path::new("/proc").join(pid)) }
    }

    /// What the keeper and the machine's console said.
    pub fn log(&self) -> String {
        let console = self.root().parent().unwrap().join("log");
        let texts = [self.home.path("keeper.log"), console].map(|path| std::fs::read(path).unwrap_or_default());
        texts.map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.answers.read_to_end(&mut Vec::new());
        let _ = self.keeper.wait();
    }
}

/// The places where a machine can be seen from outside.
pub struct Traces {
    number: u32,
    processes: [PathBuf; 2],
}

impl Traces {
    /// Whether the init that the machine had still runs.
    pub fn runs(&self) -> bool {
        self.processes[0].exists()
    }

    /// Those that exist, of the machine that had this number; waits while another machine has it.
    #[track_caller]
    pub fn left(&self) -> Vec<PathBuf> {
        let lock = std::fs::File::create(Path::new("/run/lock/mc-machine").join(self.number.to_string())).unwrap();
        wait_until("the machine's number is free", || lock.try_lock().is_ok());
        let name = format!("mc-machine-{}", self.number);
        let mut places = self.processes.to_vec();
        places.push(Path::new("/var/tmp").join(&name));
        for hierarchy in ["", "systemd", "unified", "memory", "pids", "cpu"] {
            places.push(Path::new("/sys/fs/cgroup").join(hierarchy).join(&name));
        }
        places.retain(|place| place.exists());
        places
    }
}

/// Removes what killed runs left; every boot does the same.
pub fn sweep() {
    Finished::of(keeper("sweep")).ok();
}

fn keeper(word: &str) -> Command {
    let mut command = Command::new("/bin/bash");
    command.arg(KEEPER).arg(word);
    command
}

/// Whether machines can run here, or why not.
fn ability() -> Result<(), String> {
    let output = keeper("can").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(said.trim_end().to_string()) }
}

/// Whether to boot one, for this value of `MC_TEST_MACHINES`.
#[track_caller]
fn may_boot(wish: Option<&str>, ability: impl FnOnce() -> Result<(), String>) -> bool {
    let why = match wish.unwrap_or_default() {
        "skip" => format!("{WISH}=skip"),
        known @ ("" | "require") => match ability() {
            Ok(()) => return true,
            Err(why) if known == "require" => panic!("{WISH}=require, but no machine can run here: {why}"),
            Err(why) => why,
        },
        unknown => panic!("{WISH}={unknown}: it knows `require` and `skip`"),
    };
    eprintln!("NOT TESTED: this test needs a machine of its own, and none can run here: {why}");
    false
}

fn make_key(home: &Home, person: &str) -> PathBuf {
    let path = home.path("keys").join(person);
    if !path.exists() {
        let mut command = home.command("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", person, "-f"]).arg(&path);
        Finished::of(command).ok();
    }
    path
}

/// The ids of all processes in a control group and in those below it.
fn processes_in(group: &Path) -> Vec<i32> {
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes_in(&entry.path()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::may_boot;

    #[test]
    fn a_machine_is_booted_where_it_can_be_and_not_wished_away() {
        assert!(may_boot(None, || Ok(())));
        assert!(may_boot(Some("require"), || Ok(())));
        assert!(!may_boot(None, || Err("no root".into())));
        assert!(!may_boot(Some("skip"), || Ok(())));
    }

    #[test]
    #[should_panic(expected = "no machine can run here: no root")]
    fn a_machine_that_is_required_and_cannot_be_had_is_a_failure() {
        may_boot(Some("require"), || Err("no root".into()));
    }

    #[test]
    #[should_panic(expected = "it knows `require` and `skip`")]
    fn a_misspelt_wish_does_not_pass_for_none() {
        may_boot(Some("required"), || Ok(()));
    }
}
