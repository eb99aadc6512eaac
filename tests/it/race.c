/*
 * A hostile project account: while root works in its trees, it swaps what stands there as fast as it can.
 *
 *     race UID OUTSIDE ATTIC TREE...
 *
 * Directories become links to directories outside and back, files become links, hard links to files of root, fifos,
 * directories. Every swap is one renameat2(RENAME_EXCHANGE) with something in ATTIC. The trees are held open from the
 * beginning, as a process of the version before holds them: moving them elsewhere does not shake it off.
 *
 * A child that stays root makes the hard links anew that root's work uses up (the kernel's fs.protected_hardlinks must
 * not be what saves us).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define HARD 8
#define TREES 8

static int attic, trees[TREES], tree_count;
static const char *outside;
static const char *const secrets[] = {"secret", "shared", "su"};
static const char *const dirs[] = {"d", "d/e"};
static const char *const files[] = {
    "f", "d/f", "d/e/f", "gone", "d/gone", "l", "d/new",
    /* The names under which root makes what it is about to put in place. */
    ".mc_project.new-0", ".mc_project.new-1", ".mc_project.new-2", ".mc_project.new-3", ".mc_project.new-link",
    "d/.mc_project.new-0", "d/.mc_project.new-1", "d/.mc_project.new-2", "d/.mc_project.new-link",
    "d/e/.mc_project.new-0", "d/e/.mc_project.new-1", "d/e/.mc_project.new-link", ".mc_project.new-directory",
};
#define COUNT(a) (sizeof(a) / sizeof(*(a)))

static void die(const char *what) { perror(what); exit(1); }

static unsigned long long state = 88172645463325252ULL;
static unsigned rnd(unsigned below)
{
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (unsigned)(state >> 33) % below;
}

static void spin(void)
{
    for (volatile unsigned n = rnd(2000); n; n--) {}
}

static void end_with_parent(void)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL)) die("prctl");
    alarm(900);
}

static void refill(int from, pid_t account)
{
    char name[32];
    /* The account may not signal root, so that its end says nothing to us. */
    while (getppid() == account) {
        for (int i = 0; i < HARD; i++) {
            snprintf(name, sizeof name, "hard-%d", i);
            (void)!linkat(from, secrets[i % COUNT(secrets)], attic, name, 0);
        }
        usleep(1000);
    }
    exit(0);
}

/* What is swapped in; all of it is the account's own but the hard links. */
static void restock(void)
{
    char target[4096];
    snprintf(target, sizeof target, "%s/d", outside);
    (void)!symlinkat(target, attic, "to-d");
    snprintf(target, sizeof target, "%s/d/e", outside);
    (void)!symlinkat(target, attic, "to-e");
    snprintf(target, sizeof target, "%s/secret", outside);
    (void)!symlinkat(target, attic, "to-secret");
    snprintf(target, sizeof target, "%s/new", outside);
    (void)!symlinkat(target, attic, "to-new");
    (void)!mkfifoat(attic, "fifo", 0600);
    (void)!mkdirat(attic, "directory", 0777);
    int fd = openat(attic, "own", O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd >= 0) { (void)!write(fd, "mine\n", 5); close(fd); }
}

static void rebuild(int tree)
{
    (void)!mkdirat(tree, "d", 0755);
    (void)!mkdirat(tree, "d/e", 0755);
    for (unsigned i = 0; i < 6; i++) {
        int fd = openat(tree, files[i], O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_NONBLOCK, 0644);
        if (fd >= 0) { (void)!write(fd, "mine\n", 5); close(fd); }
    }
}

static void swap(int tree, const char *name, const char *other)
{
    if (renameat2(tree, name, attic, other, RENAME_EXCHANGE)) {
        /* Nothing stands there: put it there. */
        if (errno == ENOENT) (void)!renameat2(attic, other, tree, name, RENAME_NOREPLACE);
        return;
    }
    spin();
    if (rnd(8)) (void)!renameat2(tree, name, attic, other, RENAME_EXCHANGE);
}

int main(int argc, char **argv)
{
    if (argc < 5 || argc - 4 > TREES) { fprintf(stderr, "race UID OUTSIDE ATTIC TREE...\n"); return 2; }
    uid_t uid = (uid_t)strtoul(argv[1], NULL, 10);
    outside = argv[2];
    int from = open(outside, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    attic = open(argv[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (from < 0 || attic < 0) die("open");
    for (int i = 4; i < argc; i++) {
        trees[tree_count] = open(argv[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (trees[tree_count++] < 0) die(argv[i]);
    }
    end_with_parent();
    pid_t account = getpid(), child = fork();
    if (child < 0) die("fork");
    if (child == 0) refill(from, account);
    close(from);
    if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)) die("setresuid");
    /* A change of identity forgets it. */
    end_with_parent();
    restock();
    static const char *const others[] = {"to-secret", "fifo", "own", "directory", "to-new"};
    printf("racing\n");
    fflush(stdout);
    for (unsigned long n = 0;; n++) {
        int tree = trees[rnd((unsigned)tree_count)];
        if (n % 512 == 0) { restock(); rebuild(tree); }
        /* Now and then root shall come through. */
        if (n % 8192 == 0) usleep(3000);
        unsigned what = rnd(10);
        if (what < 4) {
            unsigned which = rnd(COUNT(dirs));
            swap(tree, dirs[which], which ? "to-e" : "to-d");
        } else if (what < 8) {
            char hard[32];
            snprintf(hard, sizeof hard, "hard-%u", rnd(HARD));
            swap(tree, files[rnd(COUNT(files))], hard);
        } else {
            swap(tree, files[rnd(COUNT(files))], others[rnd(COUNT(others))]);
        }
    }
}
