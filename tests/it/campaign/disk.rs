//! A disk that remembers in which order it was written to: one file on a file system of our own (FUSE), on which a loop device
//! stands. What was written and not yet flushed may be lost at a power cut, in any part and any order.
//!
//! The kernel's own ext4 or xfs runs on it; its flushes arrive here as fsync. Needs root, /dev/fuse and loop devices, no
//! device mapper.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount, umount2};

/// What reached the disk, in order.
pub enum Entry {
    Write { offset: u64, data: Vec<u8> },
    Flush,
}

/// The log of a disk.
pub type Log = Arc<Mutex<Vec<Entry>>>;

/// The disk; it is gone with this value.
pub struct Disk {
    dir: PathBuf,
    log: Log,
    server: Option<JoinHandle<()>>,
}

/// The name of the one file.
const NAME: &str = "disk";

// Operations of the protocol (include/uapi/linux/fuse.h) that we know; every other one is refused, which the kernel accepts.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// The inodes of the root and of the file.
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// The most that is written at once.
const MOST: usize = 1 << 20;

impl Disk {
    /// Shows the image as a disk in this directory, which must be empty; what is written goes into the image and the log.
    pub fn show(image: &Path, dir: &Path) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let file = File::options().read(true).write(true).open(image).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("mc_disk"), dir, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let log = Log::default();
        let server = Server { device, size: file.metadata().unwrap().len(), file, log: Arc::clone(&log) };
        let server = std::thread::spawn(move || server.serve());
        Self { dir: dir.to_path_buf(), log, server: Some(server) }
    }

    /// The disk's file.
    pub fn file(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// How much was logged so far.
    pub fn logged(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// Takes the disk away; what it was told.
    pub fn end(mut self) -> Vec<Entry> {
        self.take_away();
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn take_away(&mut self) {
        let Some(server) = self.server.take() else { return };
        // The loop device lets go of it a moment after its file system was unmounted.
        for _ in 0..500 {
            if umount2(&self.dir, nix::mount::MntFlags::empty()).is_ok() {
                let _ = server.join();
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.take_away();
    }
}

struct Server {
    device: File,
    file: File,
    size: u64,
    log: Log,
}

/// Reads a number of the protocol.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(number(bytes, at))
}

impl Server {
    fn serve(mut self) {
        let mut buffer = vec![0; MOST + 4096];
        // The device ends when the file system is unmounted.
        while let Ok(length @ 40..) = self.device.read(&mut buffer) {
            let request = &buffer[..length];
            let (operation, unique, node) = (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
            let answer = self.answer(operation, node, &request[40..]);
            match answer {
                Some(Ok(body)) => self.reply(unique, 0, &body),
                Some(Err(errno)) => self.reply(unique, -errno, &[]),
                None => {}
            }
            if operation == DESTROY {
                return;
            }
        }
    }

    fn reply(&mut self, unique: u64, error: i32, body: &[u8]) {
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut text = length.to_ne_bytes().to_vec();
        text.extend(error.to_ne_bytes());
        text.extend(unique.to_ne_bytes());
        text.extend(body);
        // A request that was given up meanwhile takes no answer.
        let _ = self.device.write_all(&text);
    }

    /// The answer to a request; `None` where none is wanted.
    fn answer(&self, operation: u32, node: u64, body: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        Some(match operation {
            INIT => Ok(Self::init(body)),
            LOOKUP if body.strip_suffix(b"\0") == Some(NAME.as_bytes()) => Ok(self.entry()),
            LOOKUP => Err(nix::libc::ENOENT),
            GETATTR | SETATTR => Ok([&[0; 16][..], &self.attributes(node)].concat()),
            // Past the page cache (FOPEN_DIRECT_IO): every write is seen when it is made.
            OPEN => Ok(words(&[0, 0, 1, 0])),
            READ => Ok(self.read(body)),
            WRITE => Ok(self.write(body)),
            FSYNC => {
                self.log.lock().unwrap().push(Entry::Flush);
                Ok(Vec::new())
            }
            FLUSH | RELEASE | DESTROY => Ok(Vec::new()),
            STATFS => Ok(vec![0; 80]),
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            _ => Err(nix::libc::ENOSYS),
        })
    }

    fn init(body: &[u8]) -> Vec<u8> {
        const BIG_WRITES: u32 = 1 << 5;
        const MAX_PAGES: u32 = 1 << 22;
        let minor = u32_at(body, 4).min(31);
        let pages = u32::try_from(MOST / 4096).unwrap();
        let flags = u32_at(body, 12) & (BIG_WRITES | MAX_PAGES);
        let mut answer = vec![7, minor, u32_at(body, 8), flags, 0, u32::try_from(MOST).unwrap(), 1, pages];
        answer.resize(16, 0);
        words(&answer)
    }

    fn entry(&self) -> Vec<u8> {
        let mut answer = [FILE, 0, 0, 0].iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>();
        answer.extend([0; 8]);
        answer.extend(self.attributes(FILE));
        answer
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let (size, mode) = if node == ROOT { (0, 0o40755) } else { (self.size, 0o100_600) };
        let mut answer: Vec<u8> =
            [node, size, size.div_ceil(512), 0, 0, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
        answer.extend(words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]));
        answer
    }

    fn read(&self, body: &[u8]) -> Vec<u8> {
        let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
        let mut data = vec![0; size as usize];
        let n = self.file.read_at(&mut data, offset).unwrap_or(0);
        data.truncate(n);
        data
    }

    fn write(&self, body: &[u8]) -> Vec<u8> {
        let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
        let data = body[40..40 + size as usize].to_vec();
        let mut log = self.log.lock().unwrap();
        self.file.write_all_at(&data, offset).unwrap();
        log.push(Entry::Write { offset, data });
        words(&[size, 0])
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}
