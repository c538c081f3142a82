//! `cargo xtask fresh`: the user's way on a bare Debian 12, from a clone to the first page, with the words of README.
//!
//! ```text
//!   tree ──> clone ──> cargo xtask dev ─(set-up, build, images, ready)─> lightbyte run ──> curl ──> … ──> dev stop
//! ```
//!
//! Everything runs in a [`room`], so an interrupted run leaves nothing but files, which the next one removes. What is
//! timed is what a user waits for: making the tree and stopping are not.

mod room;
mod tree;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::room::Room;
use self::tree::Tree;
use crate::setup::{self, Consent, Scope};
use crate::stages::minutes;
use crate::workspace::Workspace;
use crate::{dev, flags, process};

/// README's first command, with the answer to its question.
const DEV: &[&str] = &["cargo", "xtask", "dev", "--yes"];

/// README's second command.
const RUN: &[&str] = &["lightbyte", "run", "demo", "--name", "hello"];

/// What README goes on with; the page comes before. `--yes` because nobody sits at the terminal.
const AFTERWARDS: &[&[&str]] = &[
    &["lightbyte", "why", "vm/hello"],
    &["lightbyte", "status"],
    &["lightbyte", "delete", "vm/hello", "--yes"],
];

/// README's command for tests.
const TEST: &[&str] = &["cargo", "xtask", "test", "--yes"];

/// What the VM's page must say.
const NAME: &str = "hello";

/// What `lightbyte dev` says when its hosts are ready.
const READY: &str = "hosts are ready";

/// How long dev may take until it is ready: a cold build on one slow core.
const DEV_WITHIN: Duration = Duration::from_secs(90 * 60);

/// How long the lab may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(90);

/// How long the page may take, in seconds: the VM has said that it is ready.
const PAGE_SECONDS_MAX: &str = "10";

/// `cargo xtask fresh [--yes] [--test] [--keep]`
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let flags = flags(words, &["--yes", "--test", "--keep"])?;
    setup::ensure(Scope::BareDebian, Consent::from_flags(&flags))?;
    let place = Place::take(workspace)?;
    let room = Room::open()?;
    eprintln!("making a bare Debian in {}", place.tree.display());
    let tree = Tree::make(&room, place.tree.clone())?;

    let mut phases = Phases::default();
    let walked = walk(workspace, &tree, &mut phases);
    let cleared = walked.and_then(|()| until_empty(&room));
    let tested = match cleared {
        Ok(()) if flags.contains(&"--test") => phases.time("tests", || process::run(&mut tree.command(TEST))),
        other => other,
    };
    // Also after a failure: how far it came, and how long that took.
    print!("{}", phases.table());
    drop(room);
    match flags.contains(&"--keep") {
        true => eprintln!("the tree stays in {}; the next run removes it", place.tree.display()),
        false => remove(&place.tree)?,
    }
    tested.map(|()| ExitCode::SUCCESS)
}

/// From the clone to the page and back to nothing.
fn walk(workspace: &Workspace, tree: &Tree<'_>, phases: &mut Phases) -> Result<()> {
    phases.time("clone", || tree.clone_head(workspace))?;
    let lab = Lab::start(tree, phases)?;
    let address = phases.time("first VM", || process::output(&mut tree.command(RUN)))?;
    let url = format!("http://{}/", address.trim());
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", PAGE_SECONDS_MAX, &url];
    let page = phases.time("page", || process::output(&mut tree.command(&curl)))?;
    phases.end_of_way();
    if !page.contains(NAME) {
        bail!("the page does not say `{NAME}`:\n{page}");
    }
    for words in AFTERWARDS {
        process::run(&mut tree.command(words))?;
    }
    phases.time("stop", || lab.stop(tree))
}

/// Waits until nothing runs in the room any more: a lab that is stopped takes everything with it.
fn until_empty(room: &Room) -> Result<()> {
    let deadline = Instant::now() + STOP_WITHIN;
    loop {
        match room.processes()? {
            0 => return Ok(()),
            left if Instant::now() >= deadline => {
                bail!("{left} processes run on, {} s after the lab was stopped", STOP_WITHIN.as_secs())
            }
            _ => pause(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when processes of others have ended; they are looked at"
)]
fn pause() {
    thread::sleep(Duration::from_millis(100));
}

// ------------------------------------------------------------------------------------------------------------ the lab

/// `cargo xtask dev` in the background.
struct Lab {
    lines: Receiver<String>,
    ended: JoinHandle<Result<ExitStatus>>,
}

impl Lab {
    /// Starts it and waits until its hosts are ready. It tells its own phases; what remains before the first is the
    /// building of xtask, and after the last the start of the hosts.
    fn start(tree: &Tree<'_>, phases: &mut Phases) -> Result<Self> {
        let begun = Instant::now();
        let mut command = tree.command(DEV);
        let (sender, lines) = channel();
        let ended = thread::spawn(move || {
            process::stream(&mut command, |line| {
                // Nobody listens any more once the hosts are ready; the lines are still passed on to the terminal.
                let _nobody_listens = sender.send(line.to_owned()).is_err();
            })
        });
        let lab = Self { lines, ended };
        let mut since = begun;
        loop {
            let left = DEV_WITHIN.saturating_sub(begun.elapsed());
            let line = match lab.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("no host is ready after {}", minutes(DEV_WITHIN)),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("`{}` ended before its hosts were ready", DEV.join(" "))
                }
            };
            if let Some((name, wall)) = dev::read_phase(&line) {
                if phases.is_first_of_dev() {
                    phases.add("xtask", since.elapsed().saturating_sub(wall));
                }
                phases.add(name, wall);
                since = Instant::now();
            } else if line.contains(READY) {
                phases.add("ready", since.elapsed());
                return Ok(lab);
            }
        }
    }

    /// Stops it as another terminal would, and waits until the command in the first one has ended.
    fn stop(self, tree: &Tree<'_>) -> Result<()> {
        process::run(&mut tree.command(&["lightbyte", "dev", "stop"]))?;
        let deadline = Instant::now() + STOP_WITHIN;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("`{}` runs on after the lab was stopped", DEV.join(" "))
                }
            }
        }
        let status = self.ended.join().map_err(|_| anyhow::anyhow!("reading the lab's words failed"))??;
        if !status.success() {
            bail!("`{}` failed ({status}) after the lab was stopped", DEV.join(" "));
        }
        Ok(())
    }
}

// ------------------------------------------------------------------------------------------------------------- phases

/// What the user waited for, in order.
#[derive(Default)]
struct Phases {
    rows: Vec<(String, Duration)>,
    /// How many of the rows belong to the way from the clone to the page.
    way: Option<usize>,
}

impl Phases {
    fn time<T>(&mut self, name: &str, deed: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let done = deed().with_context(|| format!("{name} failed"));
        self.add(name, begun.elapsed());
        done
    }

    fn add(&mut self, name: &str, wall: Duration) {
        self.rows.push((name.to_owned(), wall));
    }

    fn is_first_of_dev(&self) -> bool {
        self.rows.iter().all(|(name, _)| name == "clone")
    }

    fn end_of_way(&mut self) {
        self.way = Some(self.rows.len());
    }

    fn table(&self) -> String {
        let mut text = format!("\n{:<12}{:>9}\n", "phase", "wall");
        for (name, wall) in &self.rows {
            text.push_str(&format!("{name:<12}{:>9}\n", minutes(*wall)));
        }
        text.push_str(&match self.way {
            Some(way) => {
                let sum: Duration = self.rows.iter().take(way).map(|(_, wall)| *wall).sum();
                format!("{} from the clone to the first page\n", minutes(sum))
            }
            None => "the first page was not reached\n".to_owned(),
        });
        text
    }
}

// -------------------------------------------------------------------------------------------------------------- files

/// Where the tree is. One run at a time, for the lock ends with the process however that ends.
struct Place {
    tree: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes the place and removes what an earlier run has left there.
    fn take(workspace: &Workspace) -> Result<Self> {
        let directory = workspace.target.join("fresh");
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let lock = directory.join("lock");
        let lock = File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
        lock.try_lock().context("another run of fresh is at work")?;
        let tree = directory.join("tree");
        remove(&tree)?;
        Ok(Self { tree, _lock: lock })
    }
}

/// Removes a tree, but never through a mount: what a person has mounted there is not ours to remove.
fn remove(tree: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    if let Some(place) = mounted_below(&mounts, &tree.to_string_lossy()) {
        bail!("{place} is a mount; unmount it first");
    }
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", tree.display()))
        }
        _ => Ok(()),
    }
}

/// A mount at `directory` or below, in the form of /proc/mounts.
fn mounted_below<'a>(mounts: &'a str, directory: &str) -> Option<&'a str> {
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut places = places.filter(|place| {
        place.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    places.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_of_the_readme() {
        let readme = include_str!("../../../../README.md");
        let spoken = |words: &[&str]| {
            words.iter().filter(|word| **word != "--yes").copied().collect::<Vec<_>>().join(" ")
        };
        for words in [DEV, RUN, TEST].iter().chain(AFTERWARDS) {
            assert!(
                readme.contains(&format!("\n    {}", spoken(words))),
                "README does not say `{}`",
                spoken(words)
            );
        }
        assert!(readme.contains("curl http://<address>/"));
    }

    #[test]
    fn the_way_ends_at_the_page() {
        let mut phases = Phases::default();
        assert!(phases.is_first_of_dev());
        phases.add("clone", Duration::from_secs(1));
        assert!(phases.is_first_of_dev());
        phases.add("build", Duration::from_secs(60));
        assert!(!phases.is_first_of_dev() && phases.table().contains("not reached"));
        phases.end_of_way();
        phases.add("stop", Duration::from_secs(5));
        assert!(
            phases.table().ends_with("stop           0:05.0\n1:01.0 from the clone to the first page\n"),
            "{}",
            phases.table()
        );
    }

    #[test]
    fn a_tree_with_a_mount_in_it_is_left_alone() {
        let mounts = "proc /proc proc rw 0 0\ntmpfs /t/fresh/tree/run tmpfs rw 0 0\n";
        let table = [
            ("/t/fresh/tree", Some("/t/fresh/tree/run")),
            ("/t/fresh/tree/run", Some("/t/fresh/tree/run")),
            ("/t/fresh/tre", None),
            ("/t/other", None),
        ];
        for (directory, expected) in table {
            assert_eq!(mounted_below(mounts, directory), expected, "{directory}");
        }
    }
}
