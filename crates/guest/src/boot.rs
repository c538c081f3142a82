//! From the kernel's hand-over to a mounted root: loads modules, mounts the root disk, moves into it.
//!
//! In a tiny image the agent stays the same process throughout. A second `exec` from the root disk, as `switch_root`
//! programs do, would cost another load of the binary in an emulated CPU and win nothing: its pages come from the
//! initramfs either way. A full image has an init of its own, which the command line names; it becomes process 1, and
//! starts the agent as a service.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::Timespec;
use rustix::mount::{MountFlags, mount, mount_move};

/// Names of modules, one a line, in the order of loading; beside it lie the files.
const MODULE_LIST: &str = "/modules/list";

/// Longest list that is read.
const MODULE_LIST_BYTES_MAX: u64 = 64 * 1024;

/// The root disk of a tiny image: the first disk.
const ROOT_DISK: &str = "/dev/vda";

/// How long the kernel may take to show the root disk.
const ROOT_DISK_MAX: Duration = Duration::from_secs(10);

/// Pause between looks at it. Its driver probes while its module loads, so the first look nearly always finds it.
const ROOT_DISK_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The word of the kernel's command line that names the init of a full image.
const INIT_WORD: &str = "lightbyte.init=";

/// Where the agent of a full image is: its service's file names this place.
const PLACE_AS_SERVICE: &str = "/run/lightbyte";

/// Longest command line that Linux takes on x86.
const COMMAND_LINE_BYTES_MAX: u64 = 4096;

/// Brings up the machine as process 1, and does not return where another init takes over. On a root that is not an initramfs only the file systems of the kernel are mounted.
pub(crate) fn boot() -> anyhow::Result<()> {
    mount_at("dev", "/dev", "devtmpfs", MountFlags::NOSUID)?;
    if Path::new(MODULE_LIST).exists() {
        load_modules();
        enter_root().context("enter the root disk")?;
    }
    mount_at("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)?;
    if let Some(init) = word_of_command_line(INIT_WORD) {
        // Without it this agent is better than a kernel panic: the host can look what is wrong.
        let Err(error) = hand_over(&init);
        println!("lightbyte-guest: hand over to {init}: {error:#}");
    }
    mount_at("sys", "/sys", "sysfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)?;
    mount_at("tmp", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV)?;
    mount_at("run", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV)?;
    fs::create_dir_all("/dev/pts").context("make /dev/pts")?;
    mount_at("pts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC)
}

/// Becomes the root's own init, which starts the agent again as a service: from a copy in memory, so that the agent is
/// always that of the initramfs, and the root disk needs none.
fn hand_over(init: &str) -> anyhow::Result<Infallible> {
    mount_at("run", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV)?;
    fs::create_dir_all(PLACE_AS_SERVICE).context("make the agent's directory")?;
    let place = Path::new(PLACE_AS_SERVICE).join("lightbyte-guest");
    fs::copy("/proc/self/exe", &place).context("copy the agent")?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).context("make it a program")?;
    Err(Command::new(init).env_clear().env("TERM", "linux").exec()).context("start it")
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags) -> anyhow::Result<()> {
    match mount(source, target, kind, flags, None) {
        // Mounted already: the kernel does that for /dev where it is built so.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {target}")),
    }
}

/// A module that does not load is said, and what needs it will say more.
fn load_modules() {
    let list = read_limited(Path::new(MODULE_LIST), MODULE_LIST_BYTES_MAX).unwrap_or_default();
    for name in list.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let loaded = File::open(format!("/modules/{name}"))
            .and_then(|file| Ok(rustix::system::finit_module(&file, c"", 0)?));
        if let Err(error) = loaded {
            println!("lightbyte-guest: load {name}: {error}");
        }
    }
}

fn enter_root() -> anyhow::Result<()> {
    let started = Instant::now();
    while !Path::new(ROOT_DISK).exists() {
        if started.elapsed() > ROOT_DISK_MAX {
            bail!("no {ROOT_DISK} within {} s", ROOT_DISK_MAX.as_secs());
        }
        let _ = rustix::event::poll(&mut [], Some(&ROOT_DISK_PAUSE));
    }
    fs::create_dir_all("/newroot").context("make /newroot")?;
    mount(ROOT_DISK, "/newroot", "ext4", MountFlags::NOATIME, None).context("mount it")?;
    // What the initramfs holds is memory; nothing needs it any more (our own pages stay as long as we run).
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    fs::create_dir_all("/newroot/dev").context("make /dev")?;
    mount_move("/dev", "/newroot/dev").context("move /dev")?;
    std::env::set_current_dir("/newroot").context("enter it")?;
    mount_move(".", "/").context("move it to /")?;
    rustix::process::chroot(".").context("make it the root")?;
    std::env::set_current_dir("/").context("enter the root")
}

/// What follows `beginning` in a word of the kernel's command line.
pub(crate) fn word_of_command_line(beginning: &str) -> Option<String> {
    let line = read_limited(Path::new("/proc/cmdline"), COMMAND_LINE_BYTES_MAX).ok()?;
    line.split_whitespace().find_map(|word| word.strip_prefix(beginning)).map(str::to_owned)
}

/// Reads a text file of at most so many bytes.
pub(crate) fn read_limited(path: &Path, bytes_max: u64) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    File::open(path)?.take(bytes_max).read_to_string(&mut text)?;
    Ok(text)
}
