//! Where the test runs: a network namespace with a bridge, a small tmpfs, and what is left in both.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lightbyte_api::ByteSize;
use lightbyte_api::kinds::image::Part;
use lightbyte_vmm::{Files, Network as _, Taps};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use sha2::{Digest as _, Sha256};

use crate::worker::{VM, VOLUME};

/// Set in the copy of this test that has a namespace of its own: the directory for its tmpfs.
const INSIDE: &str = "LIGHTBYTE_TEST_LEAKS";
/// The tmpfs: some disks, and quickly full.
const TMPFS: &str = "size=24m";
/// What of a disk's image is data.
pub(crate) const PART_BYTES: usize = 4 << 20;
/// What a full host has left: records fit, a disk does not.
pub(crate) const SPARE_BYTES: u64 = 1 << 20;

/// Everything that could be left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    links: Vec<String>,
    rules: String,
    files: BTreeSet<PathBuf>,
    descriptors: usize,
}

/// The content of a part of an image.
fn content_of(name: &str) -> Vec<u8> {
    name.repeat(PART_BYTES).into_bytes()
}

/// That part.
pub(crate) fn part_of(name: &str) -> Part {
    let digest = Sha256::digest(content_of(name));
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Part { sha256, size: ByteSize::from_bytes(PART_BYTES as u64) }
}

/// The test's own host.
pub(crate) struct Room {
    place: PathBuf,
    pub(crate) files: Files,
    pub(crate) run: PathBuf,
    /// A disk that somebody else has.
    held: RefCell<Option<OwnedFd>>,
}

impl Room {
    fn new(place: &Path) -> Room {
        let images = place.join("images");
        let run = place.join("run");
        for directory in [&images, &run] {
            fs::create_dir(directory).expect("make a directory");
        }
        let files = Files::new(&place.join("state"), &images).expect("make the state");
        for name in ["a", "b"] {
            let part = part_of(name);
            fs::write(files.parts().path(&part.sha256), content_of(name)).expect("make a part of an image");
            // What is noted of it when it is used first is not left by any VM.
            files.part(&part).expect("a part whose checksum is right");
        }
        Taps::new().expect("make the rules");
        Room { place: place.to_owned(), files, run, held: RefCell::default() }
    }

    /// What there is now.
    pub(crate) fn left(&self) -> Left {
        let links = output("ip", "-o link");
        let name = |line: &str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        Left {
            links: links.lines().map(name).collect(),
            rules: output("nft", "list ruleset"),
            files: everything(&self.place),
            descriptors: fs::read_dir("/proc/self/fd").expect("a directory").count(),
        }
    }

    /// Takes all room but so many bytes.
    pub(crate) fn fill(&self, spare: u64) {
        let filler = File::create(self.filler()).expect("make a file");
        let system = statvfs(&self.place).expect("the tmpfs");
        let free = (system.f_bavail * system.f_frsize).saturating_sub(spare);
        if free > 0 {
            fallocate(&filler, FallocateFlags::empty(), 0, free).expect("take the room");
        }
    }

    /// A worker starts: it sets up its files and rules, and finds what is there.
    pub(crate) fn start(&self) -> Taps {
        Files::new(&self.place.join("state"), &self.place.join("images")).expect("set up the state");
        Taps::new().expect("make the rules")
    }

    /// Somebody has a disk.
    pub(crate) fn hold(&self, disk: OwnedFd) {
        *self.held.borrow_mut() = Some(disk);
    }

    /// What stood in the way is gone.
    pub(crate) fn undo(&self) {
        self.held.borrow_mut().take();
        let _ = fs::remove_file(self.filler());
    }

    /// What an agent leaves that is killed in the midst of saving, of copying a disk, and of making a tap. A disk is copied
    /// only when its record is there.
    pub(crate) fn leave_halves(&self) {
        for (object, name) in [(VM, "record.new"), (VOLUME, "record.new"), (VOLUME, "disk.new")] {
            let directory = self.files.directory(object);
            fs::create_dir_all(&directory).expect("make a directory");
            if name == "record.new" || directory.join("record").exists() {
                fs::write(directory.join(name), "half").expect("write half a file");
            }
        }
        let element =
            "add element bridge lightbyte-taps sources { \"lbhalf\" . 02:00:00:00:00:01 . 10.0.0.1 }";
        output("nft", element);
    }

    /// Takes away the consoles of VMs that have ended, which are kept for a week.
    pub(crate) fn forget_ended(&self) {
        for ended in fs::read_dir(self.place.join("state/ended")).expect("a directory").flatten() {
            fs::remove_dir_all(ended.path()).expect("take it away");
        }
    }

    fn filler(&self) -> PathBuf {
        self.place.join("filler")
    }
}

fn everything(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(everything(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

/// What a program says to these words.
fn output(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("start {program}: {error}"));
    assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Takes away every tap, as the end of a kernel does.
pub(crate) fn lose_taps() {
    let taps = Taps {};
    for vm in taps.list().expect("a list") {
        taps.remove(vm).expect("a tap that nobody has open");
    }
    output("nft", "flush ruleset");
}

/// Why this machine cannot have such a namespace.
fn obstacle() -> Option<String> {
    if !fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0) {
        return Some("not root; run it as root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun; load the module tun".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| std::env::split_paths(&path).any(|place| place.join(tool).exists());
    let missing = ["ip", "nft", "unshare", "mount"].into_iter().find(|tool| !is_there(tool));
    missing.map(|tool| format!("no {tool}; run cargo xtask setup"))
}

/// As the tests of the store do: to standard error, and to the end of the file that `LIGHTBYTE_SKIPPED` names.
fn tell_skipped(why: &str) {
    let line = format!("skipped: leaks: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to LIGHTBYTE_SKIPPED");
    }
}

/// Runs the test of that name again in namespaces of its own, and there `test`.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce(Room)) {
    if let Some(why) = obstacle() {
        return tell_skipped(&why);
    }
    if let Some(place) = std::env::var_os(INSIDE).map(PathBuf::from) {
        output("mount", &format!("-t tmpfs -o {TMPFS} none {}", place.display()));
        for words in ["link set lo up", "link add br0 type bridge", "link set br0 up"] {
            output("ip", words);
        }
        return test(Room::new(&place));
    }
    let place = std::env::temp_dir().join(format!("lightbyte-leaks-{}", std::process::id()));
    fs::create_dir(&place).expect("make a directory");
    let this = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new("unshare");
    command.args(["-n", "-m", "--propagation", "private"]).arg(this);
    let status = command.args(["--exact", name, "--nocapture"]).env(INSIDE, &place).status();
    fs::remove_dir(&place).expect("a directory that is empty outside of the namespace");
    assert!(status.expect("start unshare").success(), "the test in its namespace failed");
}
