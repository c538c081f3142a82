//! Disks on a file system that shares blocks and on one that does not: the same bytes, and very different room.
//!
//! Needs root, loop devices and mkfs.xfs (package xfsprogs); without one of them it says so and is skipped.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lightbyte_api::assigned::{Arriving, AssignedVolume, Source, WantedVolume};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Name, Uid, VolumeId, WorkerId};
use lightbyte_vmm::Files;
use lightbyte_vmm::driver::Disks;
use lightbyte_vmm::peers::{InProcess, PeerDisk};
use rustix::fs::statvfs;
use sha2::{Digest as _, Sha256};

/// Set in the copy of this test that has mounts of its own: its directory.
const INSIDE: &str = "LIGHTBYTE_TEST_REFLINK";
/// The smallest XFS has 300 MiB.
const FILESYSTEM_BYTES: u64 = 400 << 20;
const PART_BYTES: usize = 48 << 20;
/// What sharing may cost: extents and directories.
const METADATA_BYTES: u64 = 2 << 20;

const DISK: VolumeId = VolumeId::new(Uid::from_bits(1));
const SNAPSHOT: VolumeId = VolumeId::new(Uid::from_bits(2));

#[test]
fn disks_share_blocks_where_they_can_and_are_the_same_everywhere() {
    let test = "disks_share_blocks_where_they_can_and_are_the_same_everywhere";
    if let Some(place) = std::env::var_os(INSIDE) {
        inside(Path::new(&place));
        return;
    }
    if let Some(why) = missing() {
        return tell_skipped(&format!("skipped: {test}: {why}\n"));
    }
    let place = std::env::temp_dir().join(format!("lightbyte-reflink-{}", std::process::id()));
    fs::create_dir_all(&place).expect("a directory");
    // Mounts of its own end with it, however it ends.
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, &place)
        .status();
    let status = status.expect("run unshare");
    fs::remove_dir_all(&place).expect("remove the directory");
    assert!(status.success(), "it failed inside its mounts");
}

/// On standard error, and as a line of the file that `LIGHTBYTE_SKIPPED` names.
fn tell_skipped(line: &str) {
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to LIGHTBYTE_SKIPPED");
    }
}

fn missing() -> Option<String> {
    if !fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0) {
        return Some("not root; run it as root".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("no /dev/loop-control; load the module loop".to_owned());
    }
    let tools = [("mkfs.xfs", "xfsprogs"), ("mkfs.ext4", "e2fsprogs"), ("unshare", "util-linux")];
    let is_there =
        |tool: &str| ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|at| Path::new(at).join(tool).exists());
    let (tool, package) = tools.into_iter().find(|(tool, _)| !is_there(tool))?;
    Some(format!("no {tool}; `cargo xtask setup` installs {package}"))
}

fn inside(place: &Path) {
    let shared = used_by_clones(&mounted(place, "xfs", &["mkfs.xfs", "-q", "-m", "reflink=1"]));
    let copied = used_by_clones(&mounted(place, "ext4", &["mkfs.ext4", "-q", "-F"]));
    assert!(shared <= METADATA_BYTES, "a clone and a snapshot take {shared} bytes of an XFS");
    assert!(copied >= 2 * PART_BYTES as u64, "a clone and a snapshot take {copied} bytes of an ext4");
}

fn mounted(place: &Path, kind: &str, make: &[&str]) -> PathBuf {
    let (device, at) = (place.join(format!("{kind}.img")), place.join(kind));
    File::create(&device).expect("a file").set_len(FILESYSTEM_BYTES).expect("room");
    fs::create_dir(&at).expect("a directory");
    let run = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(words);
        assert!(command.status().expect("run it").success(), "{program} {words:?}");
    };
    let words: Vec<&str> = make[1..].iter().copied().chain([device.to_str().expect("text")]).collect();
    run(make[0], &words);
    run("mount", &["-o", "loop", device.to_str().expect("text"), at.to_str().expect("text")]);
    at
}

/// The life of a disk on one file system; gives what a clone of an image and a snapshot of that take.
fn used_by_clones(at: &Path) -> u64 {
    let images = at.join("images");
    fs::create_dir(&images).expect("a directory");
    let content: Vec<u8> = (0..PART_BYTES).map(|index| (index / 512 * 37 % 253) as u8).collect();
    let sha256: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut image = File::create(images.join(&sha256)).expect("an image");
    image.write_all(&content).and_then(|()| image.sync_all()).expect("an image");
    let files = Files::new(&at.join("n1"), &images).expect("a state directory");
    let before = used(at);
    let part = Part { sha256, size: ByteSize::from_bytes(PART_BYTES as u64) };
    files.ensure(DISK, &assigned(Source::Image(part)), None).expect("a clone");
    files.ensure(SNAPSHOT, &assigned(Source::Disk(DISK)), None).expect("a snapshot");
    let taken = used(at) - before;

    // What is written to the disk is not in its snapshot; both are what they are elsewhere too.
    let mut changed = content.clone();
    changed[7 << 20..9 << 20].fill(9);
    let disk = File::options().write(true).open(files.disk(DISK)).expect("the disk");
    disk.write_all_at(&changed[7 << 20..9 << 20], 7 << 20).expect("a guest writes");
    assert!(fs::read(files.disk(SNAPSHOT)).expect("the snapshot") == content, "the snapshot has changed");
    files.grow(DISK, ByteSize::from_bytes(PART_BYTES as u64 + (1 << 20))).expect("it grows");
    changed.resize(PART_BYTES + (1 << 20), 0);

    let other = Files::new(&at.join("n2"), &images).expect("a state directory");
    let other = other.with_peers({
        let source = Arc::new(files.clone());
        Arc::new(InProcess(move |_: &PeerDisk| Ok(source.clone() as Arc<dyn Disks>)))
    });
    fetch(&other, SNAPSHOT, None);
    assert!(fs::read(other.disk(SNAPSHOT)).expect("the copy") == content, "the copy differs");
    // What is much like it is there already: where blocks are shared only what differs takes room.
    let before = used(at);
    fetch(&other, DISK, Some(SNAPSHOT));
    assert!(fs::read(other.disk(DISK)).expect("the disk") == changed, "the disk differs");
    if taken <= METADATA_BYTES {
        assert!(used(at) - before < 8 << 20, "the difference takes {} bytes", used(at) - before);
    }
    files.quarantine(DISK).expect("it is put aside");
    assert!(files.size(DISK).expect("a size, or none").is_none());
    taken
}

fn fetch(files: &Files, disk: VolumeId, base: Option<VolumeId>) {
    let arriving =
        Arriving { from: WorkerId::new(Uid::from_bits(3)), address: String::new(), held: true, base };
    while !files.fetched(disk).expect("how far it is").is_some_and(|fetched| fetched.complete) {
        files.fetch(disk, &arriving).expect("a slice");
    }
    files.take_fetched(disk).expect("it has arrived");
}

fn assigned(source: Source) -> AssignedVolume {
    AssignedVolume {
        sequence: 1,
        generation: 1,
        name: Name::new("data").expect("a name"),
        wanted: WantedVolume::Present,
        size: ByteSize::from_bytes(PART_BYTES as u64),
        source,
        arriving: None,
    }
}

/// What is used of a file system, with all that was written.
fn used(at: &Path) -> u64 {
    rustix::fs::syncfs(File::open(at).expect("the file system")).expect("what was written is there");
    let found = statvfs(at).expect("how full it is");
    (found.f_blocks - found.f_bfree) * found.f_frsize
}
