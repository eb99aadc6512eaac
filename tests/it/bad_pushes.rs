//! Bad pushes and bad trees, as tables: each names the right reaction, and nothing but it may happen.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{Finished, Home, Tree, WorkTree, World, assert_has};

/// What must be the same after every refused or skipped push.
struct Before {
    node: Tree,
    run: Tree,
    serves: Option<String>,
    main: Option<String>,
    seq: Option<u64>,
}

impl Before {
    fn of(world: &World) -> Self {
        Self {
            node: world.unchangeable("shop"),
            run: world.run_tree("shop"),
            serves: world.serves("shop"),
            main: world.node_ref("shop", "refs/heads/main"),
            seq: world.last("shop").map(|last| last.seq),
        }
    }

    #[track_caller]
    fn assert_unchanged(&self, world: &World, what: &str) {
        world.settle("shop");
        let after = Self::of(world);
        self.run.assert_same(&after.run, &format!("run after {what}"));
        self.node.assert_same(&after.node, &format!("the node after {what}"));
        assert_eq!((&self.serves, &self.main), (&after.serves, &after.main), "{what}");
    }
}

#[test]
fn refs_that_are_not_the_deploy_branch_are_stored_and_never_deployed() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    let before = Before::of(&world);
    let long = format!("refs/heads/{}", vec!["x".repeat(200); 10].join("/"));
    for name in [
        "refs/heads/a;id",
        "refs/heads/$(touch${IFS}pwned)",
        "refs/heads/`id`",
        "refs/heads/a|b&c<d>e",
        "refs/heads/it's\"quoted\"",
        "refs/heads/-x",
        "refs/heads/--upload-pack=x",
        "refs/heads/main/x",
        "refs/heads/refs/heads/main",
        "refs/heads/MAIN",
        "refs/heads/%s%n{a,b}",
        "refs/heads/ünï\u{202e}cödé",
        "refs/tags/main",
        "refs/tags/master",
        "refs/notes/main",
        "refs/pull/1/head",
        "refs/replace/1111111111111111111111111111111111111111",
        long.as_str(),
    ] {
        // A file and a directory of one name cannot be: git itself refuses that one.
        let push = work.push(&[&format!("HEAD:{name}")]);
        if name == "refs/heads/main/x" {
            push.fails();
        } else {
            let push = push.ok().does_not_tell("deployed; run serves");
            assert!(!push.stderr.contains('\u{202e}') || !push.remote_text().contains('\u{202e}'), "{push}");
            assert!(push.remote().iter().all(|line| line.len() < 1200), "{push}");
        }
        before.assert_unchanged(&world, name);
        assert_eq!(world.last("shop").map(|last| last.seq), before.seq, "{name} began a deployment");
    }
}

#[test]
fn our_own_refs_cannot_be_pushed() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    let before = Before::of(&world);
    for name in ["refs/deploys/current", "refs/deploys/last-good", "refs/deploys/inflight/x", "refs/notes/deploys"] {
        let push = work.push(&["--force", &format!("HEAD:{name}")]).code(1);
        assert_has(&push.stderr, "remote rejected");
        before.assert_unchanged(&world, name);
    }
}

#[test]
fn what_is_no_commit_cannot_be_deployed() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    let before = Before::of(&world);
    for (what, object) in [("a blob", "HEAD:a"), ("a tree", "HEAD^{tree}")] {
        work.git(&["tag", "--force", "thing", object]).ok();
        // git does not store these on a branch; the command line has no such guard before it.
        work.push(&["--force", "thing^{}:refs/heads/main"]).fails();
        before.assert_unchanged(&world, what);
        work.push(&["--force", "refs/tags/thing"]).ok();
        world.mc(&["deploy", "shop", "--commit", "thing"]).fails().says("commit");
        before.assert_unchanged(&world, what);
    }
    work.git(&["tag", "-a", "annotated", "-m", "x", "HEAD"]).ok();
    work.push(&["annotated"]).ok();
    world.mc(&["deploy", "shop", "--commit", "annotated"]).ok();
    for revision in [
        "-x",
        "--help-me",
        "no-such-branch",
        "HEAD^{/x}",
        "main..main",
        "\n",
        "0000000000000000000000000000000000000000",
    ] {
        world.mc(&["deploy", "shop", &format!("--commit={revision}")]).fails();
        before.assert_unchanged(&world, revision);
    }
}

#[test]
fn a_shallow_push_is_refused_with_the_remedy() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    work.commit("three", &[("a", "3")]);
    let shallow = world.clone_of("shop");
    let source = format!("file://{}", work.dir().display());
    shallow.git(&["fetch", "--quiet", "--depth=1", &source, "main"]).ok();
    let before = Before::of(&world);
    for refspec in ["FETCH_HEAD:refs/heads/main", "FETCH_HEAD:refs/heads/new"] {
        let push = shallow.push(&["--force", refspec]).fails();
        assert!(!push.stderr.contains("BUG"), "{push}");
        before.assert_unchanged(&world, refspec);
    }
    shallow.git(&["fetch", "--quiet", "--unshallow", &source, "main"]).ok();
    shallow.push(&["FETCH_HEAD:refs/heads/main"]).ok();
}

/// Runs a hook as git would, with this on its standard input.
#[track_caller]
fn hook(world: &World, name: &str, stdin: &[u8], inside_git: bool) -> (Option<i32>, String) {
    let bare = world.project("shop").join("git/project");
    let mut command: Command = world.home().command(bare.join("hooks").join(name));
    if inside_git {
        command.current_dir(&bare).env("GIT_DIR", ".");
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = stdin.to_vec();
    // The hook may stop reading: a refused write is its answer, not our failure.
    let writer = std::thread::spawn(move || pipe.write_all(&input).is_ok());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_hook_survives_every_form_of_input() {
    // Well-formed lines are pre-receive's business only as far as names go: proc-receive looks at the objects.
    const NONE: &[&str] = &[];
    const POST: &[&str] = &["post-receive"];
    const BOTH: &[&str] = &["pre-receive", "post-receive"];
    let (world, first) = World::serving(&[("a", "1")]);
    let before = Before::of(&world);
    let zero = "0".repeat(40);
    let gone = "1".repeat(40);
    let refname = "refs/heads/main";
    let many = format!("{zero} {gone} refs/heads/x\n").repeat(200_000);
    for hook_name in ["post-receive", "pre-receive"] {
        for (input, complains) in [
            (String::new(), BOTH),
            (format!("{first} {first} {refname}\n"), NONE),
            (format!("{first} {gone} {refname}"), BOTH),
            (format!("{first} {gone} {refname}\n"), POST),
            (format!("{first}\n"), BOTH),
            (format!("{first} {gone}\n"), BOTH),
            (format!("{first} {gone} {refname} more\n"), BOTH),
            (format!("{first}  {gone} {refname}\n"), BOTH),
            (format!("{first} {gone} {refname}\r\n"), BOTH),
            (format!("{first} {gone} refs/heads/\0main\n"), BOTH),
            (format!("{first} {} {refname}\n", &gone[..39]), BOTH),
            (format!("{first} {gone}1 {refname}\n"), BOTH),
            (format!("{first} {} {refname}\n", "1".repeat(65)), BOTH),
            (format!("{first} {} {refname}\n", "A".repeat(40)), BOTH),
            (format!("{first} {gone} main\n"), BOTH),
            (format!("{first} {gone} refs/heads/../../x\n"), BOTH),
            ("\n\n\n".into(), BOTH),
            ("x".repeat(10 << 20), BOTH),
            (many.clone(), BOTH),
        ] {
            let shown = format!("{hook_name} with {:?}", input.chars().take(120).collect::<String>());
            let (code, said) = hook(&world, hook_name, input.as_bytes(), true);
            assert!(matches!(code, Some(0..=5)), "{shown}: {code:?}\n{said}");
            assert!(!said.contains("panicked"), "{shown}: {said}");
            assert!(said.len() < 1 << 20, "{shown}: {} bytes of complaint", said.len());
            assert_eq!(
                code != Some(0) || !said.is_empty(),
                complains.contains(&hook_name),
                "{shown}: {code:?}\n{said}"
            );
            before.assert_unchanged(&world, &shown);
        }
    }
}

#[test]
fn a_hook_outside_git_explains_itself_and_does_nothing() {
    let (world, first) = World::serving(&[("a", "1")]);
    let before = Before::of(&world);
    let line = format!("{} {first} refs/heads/main\n", "0".repeat(40));
    for name in ["pre-receive", "proc-receive", "post-receive"] {
        let (code, said) = hook(&world, name, line.as_bytes(), false);
        assert_eq!(code, Some(2), "{name}: {said}");
        assert_has(&said, "git push");
        before.assert_unchanged(&world, name);
    }
}

#[test]
fn what_is_too_large_is_refused_before_anything_is_written() {
    let world = World::with_config("limits: {files: 50, bytes: 2MiB, file_bytes: 1MiB}\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("small", &[("a", "1")]);
    work.push(&["main"]).ok();
    let before = Before::of(&world);
    let big = "x".repeat((1 << 20) + 1);
    let half = "y".repeat(900 << 10);
    let many: Vec<String> = (0..60).map(|n| format!("many/{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|path| (path.as_str(), "x")).collect();
    for (what, files, told) in [
        ("one file too large", vec![("big.bin", big.as_str())], "big.bin"),
        ("too much in all", vec![("h/1", half.as_str()), ("h/2", &half), ("h/3", &half)], "2 MiB"),
        ("too many files", many, "50"),
    ] {
        work.commit(what, &files);
        let push = work.push(&["main"]).code(1);
        assert!(push.remote_text().contains(told), "{what}: {told}\n{push}");
        before.assert_unchanged(&world, what);
        work.git(&["reset", "--quiet", "--hard", "node/main"]).ok();
    }
}

#[test]
fn an_empty_tree_is_deployed_only_where_the_recipe_allows_it() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.git(&["rm", "--quiet", "-r", "."]).ok();
    work.commit_all("nothing left");
    let before = Before::of(&world);
    let push = work.push(&["main"]).code(1).tells("allow_empty");
    assert_has(&push.rejected("main -> main"), "empty");
    before.assert_unchanged(&world, "an empty tree");
}

#[test]
fn a_repository_of_somebody_else_is_not_read() {
    if !nix::unistd::getuid().is_root() {
        return; // only root can give a directory away
    }
    let (world, _) = World::serving(&[("a", "1")]);
    let bare = world.project("shop").join("git/project");
    std::os::unix::fs::chown(&bare, Some(65534), Some(65534)).unwrap();
    let mut command = world.mc_command(&["deploy", "shop"]);
    command.env("SUDO_UID", "65534");
    Finished::of(command).fails().says("belongs to user 65534");
}

/// A repository in which raw trees can be made, whatever git thinks of them.
pub struct Planter<'a> {
    home: &'a Home,
    dir: std::path::PathBuf,
}

impl<'a> Planter<'a> {
    /// In this repository, or work tree.
    pub fn new(home: &'a Home, dir: &std::path::Path) -> Self {
        Self { home, dir: dir.to_path_buf() }
    }

    #[track_caller]
    fn object(&self, kind: &str, content: &[u8]) -> String {
        let mut command = self.home.command("git");
        command.current_dir(&self.dir).args(["hash-object", "-t", kind, "-w", "--stdin", "--literally"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    }

    /// A tree with exactly these entries in this order.
    fn tree(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut raw = Vec::new();
        for (mode, name, id) in entries {
            raw.extend_from_slice(mode.as_bytes());
            raw.push(b' ');
            raw.extend_from_slice(name);
            raw.push(0);
            raw.extend((0..id.len()).step_by(2).map(|i| u8::from_str_radix(&id[i..i + 2], 16).unwrap()));
        }
        self.object("tree", &raw)
    }

    /// A commit of a tree.
    pub fn commit(&self, tree: &str, parent: &str) -> String {
        let time = "Eve <eve@example.org> 1790000000 +0000";
        self.object(
            "commit",
            format!("tree {tree}\nparent {parent}\nauthor {time}\ncommitter {time}\n\nx\n").as_bytes(),
        )
    }

    /// `depth` directories in each other.
    fn nested(&self, name: &[u8], depth: usize, innermost: &str) -> String {
        (0..depth).fold(innermost.to_string(), |tree, _| self.tree(&[("40000", name, &tree)]))
    }
}

/// One hostile tree: what it is, how it is made, and a word of the refusal.
pub type Hostile = (&'static str, fn(&Planter) -> String, &'static str);

/// Trees that must never reach a disk.
pub const HOSTILE: [Hostile; 26] = [
    ("a setuid file", |p| p.tree(&[("104755", b"su", &p.object("blob", b"x"))]), "su"),
    ("a setgid file", |p| p.tree(&[("102755", b"su", &p.object("blob", b"x"))]), "su"),
    ("a sticky world-writable file", |p| p.tree(&[("101777", b"su", &p.object("blob", b"x"))]), "su"),
    ("a block device", |p| p.tree(&[("060000", b"sda", &p.object("blob", b"x"))]), "sda"),
    ("a character device", |p| p.tree(&[("020000", b"tty", &p.object("blob", b"x"))]), "tty"),
    ("a file without mode", |p| p.tree(&[("0", b"zero", &p.object("blob", b"x"))]), "zero"),
    ("..", |p| p.tree(&[("40000", b"..", &p.tree(&[("100644", b"x", &p.object("blob", b"x"))]))]), ".."),
    (".", |p| p.tree(&[("40000", b".", &p.tree(&[("100644", b"x", &p.object("blob", b"x"))]))]), "."),
    (".git", |p| p.tree(&[("40000", b".git", &p.tree(&[("100644", b"config", &p.object("blob", b"x"))]))]), ".git"),
    (".GIT", |p| p.tree(&[("100644", b".GIT", &p.object("blob", b"x"))]), ".GIT"),
    ("git~1", |p| p.tree(&[("100644", b"git~1", &p.object("blob", b"x"))]), "git~1"),
    (".g\\u{200c}it", |p| p.tree(&[("100644", ".g\u{200c}it".as_bytes(), &p.object("blob", b"x"))]), "git"),
    ("a name with a slash", |p| p.tree(&[("100644", b"../outside/pwn", &p.object("blob", b"x"))]), "outside"),
    ("an absolute name", |p| p.tree(&[("100644", b"/etc/pwn", &p.object("blob", b"x"))]), "/etc/pwn"),
    ("an empty name", |p| p.tree(&[("100644", b"", &p.object("blob", b"x"))]), "name"),
    (
        "a link and a directory of one name",
        |p| {
            let inner = p.tree(&[("100644", b"pwn", &p.object("blob", b"x"))]);
            p.tree(&[("120000", b"d", &p.object("blob", b"/tmp")), ("40000", b"d", &inner)])
        },
        "d",
    ),
    (
        "one file twice",
        |p| {
            let blob = p.object("blob", b"x");
            p.tree(&[("100644", b"twice", &blob), ("100644", b"twice", &blob)])
        },
        "twice",
    ),
    (
        "an unsorted tree",
        |p| {
            let blob = p.object("blob", b"x");
            p.tree(&[("100644", b"b", &blob), ("100644", b"a", &blob)])
        },
        "a",
    ),
    ("a name of 300 bytes", |p| p.tree(&[("100644", &[b'n'; 300], &p.object("blob", b"x"))]), "255"),
    ("directories 1500 deep", |p| p.nested(b"d", 1500, &p.tree(&[("100644", b"x", &p.object("blob", b"x"))])), "deep"),
    (
        "a path of 5000 bytes",
        |p| p.nested(&[b'p'; 250], 20, &p.tree(&[("100644", b"x", &p.object("blob", b"x"))])),
        "1024",
    ),
    ("a link target of 1 MiB", |p| p.tree(&[("120000", b"link", &p.object("blob", &vec![b't'; 1 << 20]))]), "link"),
    (
        "a tree bomb",
        |p| {
            let mut tree = p.tree(&[("100644", b"f", &p.object("blob", b"x"))]);
            for _ in 0..10 {
                let names = [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"];
                tree = p.tree(&names.map(|name| ("40000", name.as_slice(), tree.as_str())));
            }
            tree
        },
        "files",
    ),
    ("a missing file", |p| p.tree(&[("100644", b"lost", "1234567890123456789012345678901234567890")]), "lost"),
    (
        "a submodule that nobody allowed",
        |p| {
            let modules = p.object("blob", b"[submodule \"lib\"]\n\tpath = lib\n\turl = https://example.org/lib\n");
            p.tree(&[
                ("100644", b".gitmodules", &modules),
                ("160000", b"lib", "1234567890123456789012345678901234567890"),
            ])
        },
        "submodules: allow",
    ),
    ("our own names", |p| p.tree(&[("100644", b".mc_project.journal", &p.object("blob", b"x"))]), ".mc_project"),
];

#[test]
fn hostile_trees_are_refused_before_anything_is_written() {
    let (world, first) = World::serving(&[("a", "1")]);
    let before = Before::of(&world);
    for (what, make, told) in HOSTILE {
        // Pushed: git or we refuse it.
        let work = world.checkout_of("shop");
        let here = Planter::new(world.home(), work.dir());
        let commit = here.commit(&make(&here), &first);
        let push = work.push(&[&format!("{commit}:refs/heads/main")]).fails();
        assert!(!push.stderr.contains("panicked"), "{push}");
        before.assert_unchanged(&world, &format!("a push of {what}"));

        // In the repository by whatever way: we refuse it.
        let there = Planter::new(world.home(), &world.project("shop").join("git/project"));
        let commit = there.commit(&make(&there), &first);
        let said = world.mc(&["deploy", "shop", "--commit", &commit]).code(1);
        assert!(said.stdout.contains(told) || said.stderr.contains(told), "{what}: expected `{told}`\n{said}");
        assert!(said.took.as_secs() < 20, "{what}: {said}");
        before.assert_unchanged(&world, what);
    }
    let work = world.checkout_of("shop");
    let commit = work.commit("an honest one", &[("a", "2")]);
    work.push(&["main"]).ok();
    assert_eq!(world.serves("shop"), Some(commit));
}

#[test]
fn odd_but_honest_trees_are_deployed_byte_for_byte() {
    use std::os::unix::ffi::OsStrExt;
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    let p = Planter::new(world.home(), work.dir());
    let blob = p.object("blob", b"x");
    let link = |target: &str| p.object("blob", target.as_bytes());
    let names: [&[u8]; 8] = [
        b"A",
        b"a",
        b"back\\slash",
        b"esc\x1b[2J",
        b"new\nline",
        b"not-utf8\xff\xfe",
        b"tab\t",
        "u\u{308}-nfd".as_bytes(),
    ];
    let mut entries: Vec<(&str, &[u8], String)> = names.iter().map(|name| ("100644", *name, blob.clone())).collect();
    entries.push(("120000", b"z-absolute", link("/etc/passwd")));
    entries.push(("120000", b"z-dangling", link("no/where")));
    entries.push(("120000", b"z-environ", link("/proc/self/environ")));
    entries.push(("120000", b"z-loop", link("z-loop")));
    entries.push(("120000", b"z-outside", link("../../../../outside")));
    let entries: Vec<(&str, &[u8], &str)> = entries.iter().map(|(m, n, id)| (*m, *n, id.as_str())).collect();
    let commit = p.commit(&p.tree(&entries), &first);

    let push = work.push(&[&format!("{commit}:refs/heads/main")]).ok();

    assert!(!push.stderr.contains('\u{1b}'), "{push}");
    let run = world.project("shop").join("run");
    let mut seen: Vec<Vec<u8>> =
        std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    seen.sort();
    assert_eq!(seen, entries.iter().map(|(_, name, _)| name.to_vec()).collect::<Vec<_>>());
    assert_eq!(std::fs::read_link(run.join("z-absolute")).unwrap().to_str(), Some("/etc/passwd"));
    world.mc(&["verify", "shop"]).ok();
    // Every reading command can tell such a tree, and none of it reaches a terminal as it is.
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    for args in
        [vec!["show", "shop", &id], vec!["diff", "shop", "#1", "#2"], vec!["drift", "shop"], vec!["status", "shop"]]
    {
        let said = world.mc(&args).ok();
        assert!(!said.stdout.contains(['\u{1b}']), "{said}");
    }
}

#[test]
fn what_only_the_git_program_could_check_out_is_refused_with_the_line_to_add() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work: WorkTree = world.checkout_of("shop");
    let before = Before::of(&world);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    for (what, path, content, told) in [
        ("an LFS pointer", "film.mp4", pointer, "LFS"),
        ("a filter", ".gitattributes", "*.bin filter=crypt\n", "filter"),
        ("an encoding", "sub/.gitattributes", "*.txt working-tree-encoding=UTF-16\n", "working-tree-encoding"),
    ] {
        work.commit(what, &[(path, content)]);
        let push = work.push(&["main"]).code(1).tells("attributes: git").tells(told);
        assert_has(&push.stderr, "remote rejected");
        before.assert_unchanged(&world, what);
        work.git(&["reset", "--quiet", "--hard", "node/main"]).ok();
    }
}
