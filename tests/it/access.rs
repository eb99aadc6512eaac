//! People, their keys and their roles: what a key can do over ssh, and what `keys` writes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mc_project::project::access::key::SshKey;
use mc_project::project::access::{Access, Forced, Role, with_block};

use crate::support::{Finished, Home, Sshd, World, assert_has, assert_lacks, digest, wait_until};

const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINDOy1tMe0274wIyCjomPt6qpGjkteQbcoqn84SKb2U1";
const PRINT: &str = "SHA256:RahA0/9bIkZnOR4F7bnczYW/u0UX7ORWVnYm4xqQqkI";

/// A list of people: each has a role for a project, and a key if one is given.
fn access(people: &[(&str, &str, Role, Option<&str>)]) -> Access {
    let mut access = Access::default();
    for (person, project, role, key) in people {
        let keys = key.map(|line| SshKey::parse(line.trim()).unwrap()).into_iter().collect();
        access.add(&person.parse().unwrap(), keys, &[project.parse().unwrap()], *role).unwrap();
    }
    access
}

fn write_access(root: &Path, access: &Access) {
    std::fs::create_dir_all(root.join("etc/mc_project")).unwrap();
    std::fs::write(root.join("etc/mc_project/access.json"), access.to_json().unwrap()).unwrap();
}

/// What sshd would run for this person.
fn shell(world: &World, person: &str, original: Option<&str>) -> Finished {
    let root = world.root();
    let mut command = world.home().command(env!("CARGO_BIN_EXE_mc_project"));
    command.arg("--root").arg(root).args(["shell", person]);
    if let Some(original) = original {
        command.env("SSH_ORIGINAL_COMMAND", original);
    }
    Finished::of(command)
}

/// Asserts that it was refused in one line, and returns that line.
#[track_caller]
fn refused(said: &Finished) -> String {
    assert!(matches!(said.exit_code(), Some(1 | 2)), "{said}");
    assert!(said.stdout.is_empty() && said.stderr.lines().count() == 1, "{said}");
    assert!(said.stderr.starts_with("mc_project: ") && said.stderr.len() < 1000, "{said}");
    said.stderr.trim_end().to_string()
}

#[test]
fn a_directory_node_has_one_user_and_says_so() {
    let world = World::with_shop();
    for args in [&["keys", "add", "alice", "--project", "shop"][..], &["keys", "remove", "alice"], &["keys", "list"]] {
        let said = world.mc(args).code(2);
        assert_has(&said.stderr, "is a directory node: everything in it belongs to one user");
        assert_has(&said.stderr, "hint: ");
    }
    assert!(!world.root().join("etc/mc_project/access.json").exists());
    world.mc(&["keys", "show"]).ok().says("this node signs with: ");
}

#[test]
fn hostile_commands_are_refused_in_one_line_and_change_nothing() {
    let world = World::with_shop();
    write_access(&world.root(), &access(&[("alice", "shop", Role::Admin, None)]));
    let before = digest(&world.root());
    let long = "a".repeat(64 * 1024);
    for command in [
        "git-receive-pack '../../etc'",
        "git-receive-pack 'shop' ; id",
        "git-receive-pack 'shop'; id",
        "git-receive-pack 'shop' && id",
        "git-receive-pack $(id)",
        "git-receive-pack `id`",
        "git-receive-pack 'shop' | id",
        "git-receive-pack shop > /tmp/x",
        "git-receive-pack",
        "git-receive-pack ''",
        "git-receive-pack '--upload-pack=id' 'shop'",
        "git-receive-pack --upload-pack=id",
        "git-receive-pack '-x'",
        "git-receive-pack 'shop' 'shop'",
        "git-receive-pack 'shop",
        "git-receive-pack '/etc'",
        "git-receive-pack '/srv/projects/shop/git/project/../../../../../etc'",
        "git-receive-pack '~root/x'",
        "git-receive-pack 'shop/../shop'",
        "git-receive-pack 'shop\nid'",
        "git-receive-pack 'shop'\nid",
        "git-receive-pack 'shop'\r",
        "git-receive-pack \"shop\"",
        "git-upload-pack --strict 'shop'",
        "git-upload-archive 'shop'",
        "git upload-archive 'shop'",
        "git shell",
        "git -c core.pager=id log",
        "git-shell -c id",
        "-x",
        "--upload-pack=id",
        "scp -t /",
        "scp -f /etc/passwd",
        "sftp",
        "internal-sftp",
        "/usr/lib/openssh/sftp-server",
        "rsync --server -vlogDtpre.iLsfxC . /",
        "id",
        "sh",
        "sh -c id",
        "/bin/sh",
        "env",
        "status shop --root /",
        "status --root=/ shop",
        "run shop id",
        "keys add eve --project shop",
        "shell alice",
        "init eve",
        "destroy shop --yes",
        "setup",
        "\u{1b}[31m",
        &long,
    ] {
        let line = refused(&shell(&world, "alice", Some(command)));
        assert!(!line.contains(['\u{1b}', '\r']), "{command:?}: {line}");
    }
    assert_eq!(digest(&world.root()), before);
}

#[test]
fn a_key_says_who_one_is_and_refuses_what_the_role_does_not_hold() {
    let world = World::with_shop();
    world.mc(&["init", "blog"]).ok();
    write_access(&world.root(), &access(&[("rita", "shop", Role::Read, None)]));
    for original in [None, Some("")] {
        let hello = shell(&world, "rita", original).ok();
        assert!(hello.stdout.starts_with("rita, this is "), "{hello}");
        assert_has(&hello.stdout, "  shop  read\n");
        assert_lacks(&hello.stdout, "blog");
    }
    let line = refused(&shell(&world, "rita", Some("git-receive-pack 'shop'")).code(1));
    let root = world.root().display().to_string();
    assert_eq!(
        line,
        format!(
            "mc_project: rita may not deploy shop (role read); ask root of the node: mc_project --root {root} keys add rita \
             --project shop --role deploy"
        )
    );
    refused(&shell(&world, "rita", Some("git-upload-pack 'shop/pillar'")).code(1));
    refused(&shell(&world, "rita", Some("restart shop")).code(1));
    refused(&shell(&world, "rita", Some("frobnicate shop")).code(2));
    let of = |name: &str| {
        refused(&shell(&world, "rita", Some(&format!("git-upload-pack '{name}'"))).code(1)).replace(name, "X")
    };
    assert_eq!(of("blog"), of("none"), "what is not hers looks like what is not there");
    refused(&shell(&world, "eve", None).code(1));
    assert_eq!(shell(&world, "rita", Some("list")).ok().stdout, "shop\n");
}

#[test]
fn the_root_of_a_forced_command_is_not_the_visitors_to_choose() {
    let world = World::with_shop();
    write_access(&world.root(), &access(&[("eve", "shop", Role::Admin, None)]));
    let mut command = world.mc_command(&["shell", "eve"]);
    command.env("SSH_ORIGINAL_COMMAND", "list");
    refused(&Finished::of(command).code(1));
}

/// A server whose forced commands are ours, for a directory node: its user is the receiver.
fn over_ssh(world: &World, people: &[(&str, &str, Role)]) -> Sshd {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    let keys = world.home().path("authorized_keys");
    let sshd = Sshd::start_for(world.home(), &user, &keys, &["UsePAM no", "StrictModes no"]);
    let public: Vec<String> = people.iter().map(|(person, _, _)| sshd.public_key(person)).collect();
    let people: Vec<_> = people
        .iter()
        .zip(&public)
        .map(|((name, project, role), key)| (*name, *project, *role, Some(key.as_str())))
        .collect();
    let access = access(&people);
    write_access(&world.root(), &access);
    let forced = Forced { binary: Path::new(env!("CARGO_BIN_EXE_mc_project")), root: &world.root() };
    std::fs::write(keys, with_block("", &access.lines(&forced).unwrap()).unwrap()).unwrap();
    sshd
}

/// The fingerprint of a public key, as OpenSSH sees it.
fn fingerprint(home: &Home, key: &Path) -> String {
    let mut command = home.command("ssh-keygen");
    command.arg("-lf").arg(key);
    Finished::of(command).ok().stdout.split(' ').nth(1).unwrap().to_string()
}

#[test]
fn a_push_by_a_key_deploys_and_everybody_can_see_whose_it_was() {
    let world = World::with_shop();
    let sshd = over_ssh(&world, &[("alice", "shop", Role::Deploy), ("bob", "shop", Role::Read)]);
    let print = fingerprint(world.home(), &sshd.public_key_file("alice"));
    let work = world.clone_of("shop");
    work.git(&["remote", "set-url", "node", &sshd.short_url("shop")]).ok();
    let commit = work.commit("one", &[("a", "1")]);
    let push = |person: &str| {
        let mut command = work.push_command(&["main"]);
        command.env("GIT_SSH_COMMAND", sshd.ssh_command_of(person));
        Finished::of(command)
    };

    let said = push("bob").fails();
    assert_has(&said.stderr, "mc_project: bob may not deploy shop (role read); ask root of the node: ");
    assert_eq!(world.serves("shop"), None);
    push("alice").ok().tells("deployed; run serves");
    assert_eq!(world.serves("shop"), Some(commit.clone()));

    let newest = world.newest("shop");
    assert_eq!(newest["key"], print.as_str());
    assert_eq!(newest["pusher"], "alice from 127.0.0.1");
    let by = format!("alice ({print}) from 127.0.0.1");
    world.mc(&["show", "shop"]).ok().says(&by);
    world.settle("shop");
    let id = newest["id"].as_str().unwrap().to_string();
    let journal = std::fs::read_to_string(world.project("shop").join(format!("state/journal/{id}.jsonl"))).unwrap();
    assert_has(&journal, &format!("\"key\":\"{print}\""));

    let fetched = |person: &str, name: &str| {
        let mut command = world.home().command("git");
        command.env("GIT_SSH_COMMAND", sshd.ssh_command_of(person)).args(["ls-remote", &sshd.short_url(name)]);
        Finished::of(command)
    };
    assert_has(&fetched("bob", "shop").ok().stdout, &commit);
    assert_has(&fetched("bob", "~/shop.git").ok().stdout, &commit);
    assert_has(&fetched("bob", "shop/pillar").fails().stderr, "bob may not fetch the pillar of shop (role read)");
    fetched("alice", "shop/pillar").ok();
    sshd.ssh(world.home(), "bob", "").ok().says("bob (key SHA256:");
    sshd.ssh(world.home(), "bob", "id; id").code(2).says("there is no shell here");
}

#[test]
fn a_mail_names_the_key() {
    let world = World::with_config("mail: {to: [dev@example.org]}\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", "stages: {build: ['exit 2']}\n")]);
    let mut command = work.push_command(&["main"]);
    command.env("MC_PUSHER", "alice").env("MC_KEY", PRINT).env("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22");
    Finished::of(command).code(1);
    world.settle("shop");
    wait_until("the mail is there", || !world.mails().is_empty());
    assert_has(&world.mails()[0].text, &format!("alice ({PRINT}) from 192.0.2.7 to main"));
}

/// A node of the whole machine below a directory of root's: a test as root has one, others are told that they have none.
struct Machine {
    home: Home,
    dir: tempfile::TempDir,
    receiver: nix::unistd::User,
    binary: PathBuf,
}

impl Machine {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can set up a node of the whole machine");
            return None;
        }
        let Some(receiver) = account_with_a_shell() else {
            eprintln!("skipped: no account of this machine but root has a shell to receive pushes with");
            return None;
        };
        // Below directories of root's, as on a real node: sshd's StrictModes wants it so.
        let dir = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/var/lib").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(dir.path().join("etc/mc_project")).unwrap();
        let system = format!("{{\"format\": 1, \"receiver\": \"{}\"}}", receiver.name);
        std::fs::write(dir.path().join("etc/mc_project/system.json"), system).unwrap();
        // Where the receiver can reach it.
        let binary = dir.path().join("mc_project");
        std::fs::copy(env!("CARGO_BIN_EXE_mc_project"), &binary).unwrap();
        Some(Self { home: Home::new(), dir, receiver, binary })
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(&self.binary);
        command.arg("--root").arg(self.dir.path()).args(args);
        command
    }

    fn mc(&self, args: &[&str]) -> Finished {
        Finished::of(self.command(args))
    }

    /// Adds a key through standard input.
    fn add_key(&self, args: &[&str], key: &str) -> Finished {
        let mut command = self.command(args);
        command.args(["--key", "-"]);
        let path = self.home.path("key");
        std::fs::write(&path, key).unwrap();
        command.stdin(Stdio::from(std::fs::File::open(path).unwrap()));
        crate::support::Running::start_reading(command).wait()
    }

    /// A bare repository as `init` makes it, with a hook that writes down what it was given.
    fn repository(&self, project: &str) -> PathBuf {
        let at = self.path(&format!("srv/projects/{project}/git/project"));
        std::fs::create_dir_all(&at).unwrap();
        self.home.git(&at, &["init", "--quiet", "--bare", "--initial-branch=main"]).ok();
        std::fs::create_dir_all(at.join("hooks")).unwrap();
        std::fs::write(at.join("hooks/post-receive"), "#!/bin/sh\nenv | sed 's/^/told /' >&2\n").unwrap();
        std::fs::set_permissions(at.join("hooks/post-receive"), PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&at, None, Some(self.receiver.gid.as_raw())).unwrap();
        std::fs::set_permissions(&at, PermissionsExt::from_mode(0o1775)).unwrap();
        let mut command = self.home.command("chown");
        command.args(["-R", &self.receiver.name]).arg(at.join("objects")).arg(at.join("refs"));
        Finished::of(command).ok();
        at
    }

    fn owner_and_mode(&self, rel: &str) -> (u32, u32, u32) {
        let meta = std::fs::symlink_metadata(self.path(rel)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    }

    fn authorized_keys(&self) -> String {
        std::fs::read_to_string(self.path("var/lib/mc_project/.ssh/authorized_keys")).unwrap()
    }
}

/// An account that sshd can run a command as: not root, with a shell that runs commands.
fn account_with_a_shell() -> Option<nix::unistd::User> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let names = passwd.lines().filter_map(|line| line.split(':').next());
    let mut users = names.filter_map(|name| nix::unistd::User::from_name(name).ok().flatten());
    let shells = ["/bin/sh", "/bin/bash", "/bin/dash", "/usr/bin/sh", "/usr/bin/bash", "/usr/bin/dash"];
    users.find(|user| !user.uid.is_root() && shells.iter().any(|shell| user.shell == Path::new(shell)))
}

#[test]
fn keys_are_written_for_sshd_and_for_nobody_else_to_change() {
    let Some(machine) = Machine::new() else { return };
    let first = machine.add_key(&["keys", "add", "alice", "--project", "shop"], ED).ok();
    assert_has(&first.stdout, &format!("alice: key {PRINT} (ssh-ed25519)\n"));
    assert_has(&first.stdout, "alice: deploy on shop\n");
    assert_has(&first.stdout, &format!("  git remote add node {}@", machine.receiver.name));
    assert_has(&first.stdout, ":shop && git push node main\n");
    assert_has(&first.stderr, "warning: there is no project shop here yet");

    let gid = machine.receiver.gid.as_raw();
    assert_eq!(machine.owner_and_mode("etc/mc_project/access.json"), (0, gid, 0o640));
    assert_eq!(machine.owner_and_mode("var/lib/mc_project"), (0, 0, 0o755));
    assert_eq!(machine.owner_and_mode("var/lib/mc_project/.ssh"), (0, 0, 0o755));
    assert_eq!(machine.owner_and_mode("var/lib/mc_project/.ssh/authorized_keys"), (0, 0, 0o644));
    let line = format!(
        "restrict,command=\"{} --root {} shell alice {PRINT}\" {ED} alice\n",
        machine.binary.display(),
        machine.dir.path().display()
    );
    assert_has(&machine.authorized_keys(), &line);

    let before = machine.authorized_keys();
    let again = machine.add_key(&["keys", "add", "alice", "--project", "shop"], ED).ok();
    assert_eq!(again.stdout, "nothing to do: it is so already\n");
    assert_eq!(machine.authorized_keys(), before);

    let file = machine.path("var/lib/mc_project/.ssh/authorized_keys");
    std::fs::write(&file, format!("# by hand\nssh-rsa AAAA somebody\n{before}{ED} once\n")).unwrap();
    let role = machine.mc(&["keys", "add", "alice", "--project", "shop", "--role", "read"]).ok();
    assert_has(&role.stdout, "alice: read on shop, was deploy\n");
    assert_has(
        &role.stderr,
        &format!("a line in authorized_keys that is not ours lets alice's key {PRINT} in as well"),
    );
    assert_eq!(machine.authorized_keys(), format!("{before}# by hand\nssh-rsa AAAA somebody\n{ED} once\n"));
}

#[test]
fn keys_are_listed_and_taken_away() {
    let Some(machine) = Machine::new() else { return };
    machine.mc(&["keys", "list"]).ok().says("nobody may come in yet");
    machine.add_key(&["keys", "add", "alice", "--project", "shop"], &format!("{ED} alice@laptop\n")).ok();
    machine.mc(&["keys", "add", "bob", "--project", "*", "--role", "admin"]).ok().says("bob has no key yet");
    machine.mc(&["keys", "add", "rita", "--project", "blog", "--role", "read"]).ok();
    let list = machine.mc(&["keys", "list"]).ok().stdout;
    assert_eq!(
        list,
        format!("alice\n  shop: deploy\n  {PRINT} ssh-ed25519 alice@laptop\nbob\n  *: admin\nrita\n  blog: read\n")
    );
    let json = machine.mc(&["keys", "list", "--project", "shop", "--json"]).ok().json();
    let names: Vec<&str> = json.as_array().unwrap().iter().map(|one| one["person"].as_str().unwrap()).collect();
    assert_eq!(names, ["alice", "bob"]);
    assert_eq!((&json[0]["keys"][0]["fingerprint"], &json[1]["grants"]["*"]), (&PRINT.into(), &"admin".into()));

    for args in [
        &["keys", "add", "bob"][..],
        &["keys", "add", "bob", "--role", "read"],
        &["keys", "add", "Bob", "--project", "shop"],
        &["keys", "add", "bob", "--project", "../x"],
        &["keys", "remove", "eve"],
        &["keys", "remove", "rita", "--project", "shop"],
        &["keys", "remove", "alice", "--key", "SHA256:x"],
        &["keys", "list", "eve"],
    ] {
        machine.mc(args).code(2);
    }
    machine.add_key(&["keys", "add", "bob"], ED).code(2).says("is alice's");
    machine.add_key(&["keys", "add", "bob"], &format!("command=\"id\" {ED}")).code(2).says("options in front");
    assert_eq!(machine.mc(&["keys", "list"]).ok().stdout, list);

    machine.mc(&["keys", "remove", "rita"]).ok().says("rita is gone, with 0 keys");
    machine.mc(&["keys", "remove", "alice", "--key", PRINT]).ok();
    assert_lacks(&machine.authorized_keys(), "ssh-ed25519");
    machine.mc(&["keys", "list", "rita"]).code(2);
}

#[test]
fn people_that_are_added_at_once_are_all_there() {
    let Some(machine) = Machine::new() else { return };
    let running: Vec<_> = (0..12)
        .map(|n| {
            let args = ["keys", "add", &format!("p{n}"), "--project", "shop"];
            crate::support::Running::start(machine.command(&args))
        })
        .collect();
    for one in running {
        one.wait().ok();
    }
    assert_eq!(machine.mc(&["keys", "list", "--json"]).ok().json().as_array().unwrap().len(), 12);
}

#[test]
fn a_home_that_others_can_write_to_is_refused() {
    let Some(machine) = Machine::new() else { return };
    let home = machine.path("var/lib/mc_project");
    std::fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(machine.receiver.uid.as_raw()), None).unwrap();
    let said = machine.mc(&["keys", "add", "alice", "--project", "shop"]).code(1);
    assert_has(&said.stderr, "can be written by others than root");
    assert!(!machine.path("etc/mc_project/access.json").exists(), "nothing was written");
    std::os::unix::fs::chown(&home, Some(0), None).unwrap();
    std::fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink("/etc", home.join(".ssh")).unwrap();
    machine.mc(&["keys", "add", "alice", "--project", "shop"]).code(1).says("never a link");
    assert_eq!(machine.owner_and_mode("var/lib/mc_project"), (0, 0, 0o755), "sshd can go through it");
}

#[test]
fn a_real_sshd_lets_people_push_as_the_receiver_until_their_key_is_taken_away() {
    let Some(machine) = Machine::new() else { return };
    let bare = machine.repository("shop");
    machine.repository("blog");
    // As setup does in the machine's own configuration, which a test leaves alone.
    std::fs::create_dir_all(machine.path("var/lib/mc_project")).unwrap();
    let trusted = format!("[safe]\n\tdirectory = {}\n", bare.display());
    std::fs::write(machine.path("var/lib/mc_project/.gitconfig"), trusted).unwrap();
    let keys = machine.path("var/lib/mc_project/.ssh/authorized_keys");
    let sshd = Sshd::start_for(&machine.home, &machine.receiver.name, &keys, &["UsePAM yes", "StrictModes yes"]);
    for (person, role) in [("alice", "deploy"), ("bob", "read")] {
        let key = sshd.public_key_file(person).display().to_string();
        machine.mc(&["keys", "add", person, "--project", "shop", "--role", role, "--key", &key]).ok();
    }
    let print = fingerprint(&machine.home, &sshd.public_key_file("alice"));

    let work = crate::support::WorkTree::new(&machine.home, machine.home.path("work"), &sshd.short_url("shop"));
    let commit = work.commit("one", &[("a", "1")]);
    let push = |person: &str| {
        let mut command = work.push_command(&["main"]);
        command.env("GIT_SSH_COMMAND", sshd.ssh_command_of(person));
        Finished::of(command)
    };
    let said = push("bob").fails();
    assert!(said.stderr.contains("bob may not deploy shop (role read)"), "{said}\n{}", sshd.log());
    let said = push("alice").ok();
    assert_eq!(machine.home.git_text(&bare, &["-c", "safe.directory=*", "rev-parse", "main"]), commit);
    for (name, value) in
        [("MC_PUSHER", "alice"), ("MC_ROLE", "deploy"), ("MC_KEY", print.as_str()), ("LANG", "C.UTF-8")]
    {
        assert!(said.remote().contains(&format!("told {name}={value}")), "{name}={value}\n{said}");
    }
    assert!(!said.remote_text().contains("SSH_ORIGINAL_COMMAND"), "{said}");
    let written = std::fs::metadata(bare.join("refs/heads/main")).unwrap().uid();
    assert_eq!(written, machine.receiver.uid.as_raw(), "git runs as the receiver");

    let of = |name: &str| {
        let said = sshd.ssh(&machine.home, "alice", &format!("git-upload-pack '{name}'")).code(1);
        said.stderr.replace(name, "X")
    };
    assert_eq!(of("blog"), of("none"));
    sshd.ssh(&machine.home, "alice", "scp -t /").code(2).says("mc_project: `scp` is not served here");
    sshd.ssh(&machine.home, "alice", "").ok().says("shop  deploy");

    machine.mc(&["keys", "remove", "alice", "--key", &print]).ok();
    assert_has(&push("alice").fails().stderr, "Permission denied");
    // Even a line that came back with a backup of authorized_keys lets nobody in.
    let line = machine.authorized_keys().lines().find(|line| line.contains("shell bob ")).unwrap().to_string();
    let hers = sshd.public_key("alice").split(' ').nth(1).unwrap().to_string();
    let own = line.split(' ').nth_back(1).unwrap();
    let bob = fingerprint(&machine.home, &sshd.public_key_file("bob"));
    let stale = line.replace(own, &hers).replace(&bob, &print).replace("shell bob", "shell alice");
    std::fs::write(&keys, format!("{stale}\n")).unwrap();
    assert_has(&push("alice").fails().stderr, "alice may not come in with this key any more");
}
