//! `cargo xtask nested`: runs what needs Firecracker on a machine that has no KVM for it.
//!
//! QEMU emulates a host whose CPU has hardware virtualisation; Debian's kernel with KVM runs in it, and there the tests of
//! the drivers start real VMs under a real Firecracker: the contract, a whole life with its jailer, and starters that
//! are killed. Then a cluster does so: etcd, a server, and a worker that is killed too; with the demo, and with Debian where
//! `cargo xtask images debian` has made it.
//!
//! ```text
//!   CACHE/nested/KEY/   initrd, state      the host, booted once and saved; KEY is a hash of what it is made from
//!   CACHE/nested/run-PID/                  one run: a disk with programs, tests and image; gone with the run
//!
//!   state --read in under a second--> host goes on --> mounts the disk --> one test after the other --> end
//! ```

mod archive;
mod machine;
mod modules;
mod payload;

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::archive::Archive;
use self::machine::{Machine, Plan};
use self::payload::Parts;
use crate::setup::{self, Cache, Consent, Scope};
use crate::workspace::{PROFILE, Workspace};
use crate::{WrongWords, images, process};

/// How long the host may take to boot, once in its life.
const BOOT_MAX: Duration = Duration::from_secs(180);
/// How long all tests together may take. Some five minutes are usual, on two cores that do nothing else.
const RUN_MAX: Duration = Duration::from_secs(30 * 60);
/// What begins lines of the host that are for us.
const MARK: &str = "nested: ";

/// The words of the command line.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    firecracker: PathBuf,
    jailer: Option<PathBuf>,
    /// Which tests, as a regular expression; nothing means all that are possible.
    only: Option<String>,
    is_yes: bool,
}

impl Words {
    fn parse(words: &[String]) -> Result<Words> {
        let (mut firecracker, mut jailer, mut only, mut is_yes) = (None, None, None, false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                // It goes into a script, between marks that it must not end.
                let value = words.next().filter(|value| !value.starts_with("--") && !value.contains('\''));
                value.ok_or_else(|| WrongWords::error(format!("`{word}` wants a word behind it")))
            };
            match word.as_str() {
                "--firecracker" => firecracker = Some(PathBuf::from(value()?)),
                "--jailer" => jailer = Some(PathBuf::from(value()?)),
                "--only" => only = Some(value()?.clone()),
                "--yes" => is_yes = true,
                _ => return Err(WrongWords::error(format!("unknown word `{word}`"))),
            }
        }
        let Some(firecracker) = firecracker else {
            return Err(WrongWords::error(
                "--firecracker PATH is missing; docs/guide/firecracker.md says how to get one",
            ));
        };
        Ok(Words { firecracker, jailer, only, is_yes })
    }
}

/// `cargo xtask nested --firecracker PATH [--jailer PATH] [--only REGEX] [--yes]`
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let words = Words::parse(words)?;
    if !cfg!(target_arch = "x86_64") {
        return Err(WrongWords::error("the emulated host is an x86_64 and wants programs of one"));
    }
    for program in std::iter::once(&words.firecracker).chain(&words.jailer) {
        if !program.is_file() {
            bail!("{} is not there", program.display());
        }
    }
    let consent = if words.is_yes { Consent::Given } else { Consent::Ask };
    let cache = setup::ensure(Scope::Everything, consent)?;
    let image = images::ensure(workspace, &cache)?;
    let tests = build_tests(workspace)?;
    let place = cache.directory.join("nested");
    sweep(&place)?;
    let work = Work::new(&place)?;
    let host = Host::ensure(&cache, &place, &work.0)?;
    let possible = match words.jailer {
        Some(_) => "firecracker|jailed|cluster|debian",
        None => "of_firecracker|and_firecracker|cluster|debian",
    };
    let debian = cache.directory.join("images/debian");
    let parts = Parts {
        tests: &tests,
        lightbyte: &workspace.binary("lightbyte"),
        etcd: &cache.etcd(),
        firecracker: &words.firecracker,
        jailer: words.jailer.as_deref(),
        image: &image,
        debian: Some(debian.as_path()).filter(|debian| debian.join("manifest.json").exists()),
        filter: words.only.as_deref().unwrap_or(possible),
    };
    let begin = Instant::now();
    let disk = payload::make(&parts, &work.0)?;
    println!("a disk with the programs: {}", seconds(begin.elapsed()));
    let outcomes = host.run(&disk, &work.0)?;
    Ok(report(&outcomes))
}

/// The program of the drivers' tests, as cargo names it.
fn build_tests(workspace: &Workspace) -> Result<PathBuf> {
    let mut command = workspace.cargo();
    command.args(["test", "--no-run", "--workspace", "--lib", "--bins", "--tests", "--profile", PROFILE]);
    command.arg("--message-format=json-render-diagnostics").stderr(std::process::Stdio::inherit());
    let text = process::output(&mut command).context("build the tests")?;
    let found =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let is_it = message["target"]["name"] == "drivers" && message["profile"]["test"] == true;
            is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        });
    found.context("find the program of the drivers' tests")
}

/// The directory of one run. It goes with this; what a killed run has left, the next one removes.
struct Work(PathBuf);

impl Work {
    fn new(place: &Path) -> Result<Work> {
        let work = place.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
        Ok(Work(work))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sweep(place: &Path) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
    for entry in fs::read_dir(place).with_context(|| format!("list {}", place.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("run-") else { continue };
        if !Path::new("/proc").join(pid).exists() {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The host, booted and saved.
struct Host {
    kernel: PathBuf,
    directory: PathBuf,
}

impl Host {
    /// Takes the saved host, or boots one and saves it.
    fn ensure(cache: &Cache, place: &Path, work: &Path) -> Result<Host> {
        let tree = cache.directory.join("kernel");
        let kernel = kernel_in(&tree.join("boot"))?;
        let initrd = initrd(&tree, &images::busybox(&cache.directory))?;
        let version = process::output(Command::new(machine::QEMU).arg("--version"))?;
        let mut hasher = DefaultHasher::new();
        let kernel_bytes = fs::read(&kernel).with_context(|| format!("read {}", kernel.display()))?;
        (kernel_bytes, &initrd, version, machine::fixed_words(), payload::DISK_BYTES).hash(&mut hasher);
        let host = Host { kernel, directory: place.join(format!("{:016x}", hasher.finish())) };
        if !host.state().exists() {
            let begin = Instant::now();
            host.make(&initrd, work)?;
            println!("a host, booted and saved: {}, {} MiB", seconds(begin.elapsed()), mib(&host.state()));
            host.forget_others(place);
        }
        Ok(host)
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }

    fn make(&self, initrd: &[u8], work: &Path) -> Result<()> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("create {}", self.directory.display()))?;
        fs::write(self.initrd(), initrd).context("write the host's initial file system")?;
        let disk = work.join("blank");
        fs::File::create(&disk)
            .and_then(|file| file.set_len(payload::DISK_BYTES))
            .context("make a blank disk")?;
        let (kernel, initrd) = (self.kernel.as_path(), self.initrd());
        let machine = Machine::start(&Plan { kernel, initrd: &initrd, disk: &disk, is_saved: false, work })?;
        let mut said = Vec::new();
        let warm = machine.hear(BOOT_MAX, |line| {
            said.push(line.to_owned());
            line.contains("nested: warm")
        });
        warm.with_context(|| format!("boot the host, which said:\n{}", said.join("\n")))?;
        // Whole or not at all: a run that is killed here begins anew.
        let growing = self.directory.join("growing");
        machine.save(&growing)?;
        fs::rename(&growing, self.state()).context("keep the state")?;
        fs::remove_file(&disk).context("remove the blank disk")
    }

    /// Hosts of other kernels or emulators are of no more use.
    fn forget_others(&self, place: &Path) {
        let entries = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_other = |path: &PathBuf| *path != self.directory && path.join("initrd").exists();
        entries.filter(is_other).for_each(|path| {
            let _ = fs::remove_dir_all(path);
        });
    }

    fn run(&self, disk: &Path, work: &Path) -> Result<Outcomes> {
        let begin = Instant::now();
        let initrd = self.initrd();
        let plan = Plan { kernel: &self.kernel, initrd: &initrd, disk, is_saved: true, work };
        let mut machine = Machine::start(&plan)?;
        let now = process::output(Command::new("date").arg("+%s"))?;
        machine.go_on(&self.state(), now.trim())?;
        println!("the saved host goes on: {}", seconds(begin.elapsed()));
        // QEMU has it open; a run that is killed leaves nothing of it.
        fs::remove_file(disk).context("remove the disk's name")?;
        let mut outcomes = Outcomes::default();
        let heard = machine.hear(RUN_MAX, |line| {
            println!("[{:>7}] {line}", seconds(begin.elapsed()));
            let _terminal_is_gone = std::io::stdout().flush().is_err();
            outcomes.read(line)
        });
        outcomes.end = heard.err().map(|error| format!("{error:#}"));
        outcomes.elapsed = begin.elapsed();
        Ok(outcomes)
    }
}

fn kernel_in(boot: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(boot).with_context(|| format!("list {}", boot.display()))?.flatten();
    let mut names = entries.map(|entry| entry.path());
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    names.find(is_kernel).with_context(|| format!("find a kernel in {}", boot.display()))
}

fn initrd(tree: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let modules = modules::find(&tree.join("lib/modules"))?;
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.directory("modules");
    archive.file("bin/busybox", &fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?);
    archive.file("init", include_bytes!("init.sh"));
    let mut order = String::new();
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&module).with_context(|| format!("read {}", module.display()))?;
        archive.file(&format!("modules/{name}"), &bytes);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// What the host said of its tests.
#[derive(Debug, Default)]
struct Outcomes {
    /// Name, what became of it (`0` is good), and its hundredths of a second on the host's clock.
    tests: Vec<(String, String, u64)>,
    /// What was left behind; nothing if that was not said.
    left: Option<String>,
    /// Why the host did not come to its end.
    end: Option<String>,
    elapsed: Duration,
}

impl Outcomes {
    /// Takes a line into account, and says whether it was the last.
    fn read(&mut self, line: &str) -> bool {
        let Some((_, text)) = line.split_once(MARK) else { return false };
        if let Some(left) = text.strip_prefix("left ") {
            self.left = Some(left.to_owned());
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        if let [code, hundredths, name] = words[..]
            && let Ok(hundredths) = hundredths.parse()
        {
            self.tests.push((name.to_owned(), code.to_owned(), hundredths));
        }
        text.trim() == "end"
    }

    fn complaints(&self) -> Vec<String> {
        let bad = self.tests.iter().filter(|(_, code, _)| code != "0");
        let mut complaints: Vec<String> = bad
            .map(|(name, code, _)| match code.as_str() {
                "skipped" => format!("{name} was skipped"),
                code => format!("{name} failed with {code}"),
            })
            .collect();
        if self.tests.is_empty() {
            complaints.push("no test ran".to_owned());
        }
        if self.left.as_deref().is_some_and(|left| left.trim() != "nothing") {
            complaints
                .push(format!("something was left behind: {}", self.left.as_deref().unwrap_or_default()));
        }
        complaints.extend(self.end.clone());
        complaints
    }
}

fn report(outcomes: &Outcomes) -> ExitCode {
    println!();
    for (name, code, hundredths) in &outcomes.tests {
        let word = if code == "0" { "ok" } else { code.as_str() };
        println!("{word:>8}  {:>9}  {name}", seconds(Duration::from_millis(hundredths * 10)));
    }
    println!("{} tests in {}", outcomes.tests.len(), seconds(outcomes.elapsed));
    let complaints = outcomes.complaints();
    complaints.iter().for_each(|complaint| eprintln!("error: {complaint}"));
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn mib(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len() >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Words> {
        Words::parse(&text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_understood_or_refused() {
        let both = words("--jailer j --yes --only a|b --firecracker f").expect("words");
        assert_eq!(
            both,
            Words {
                firecracker: "f".into(),
                jailer: Some("j".into()),
                only: Some("a|b".to_owned()),
                is_yes: true
            }
        );
        assert_eq!(words("--firecracker f").expect("words").jailer, None);
        for wrong in [
            "",
            "--jailer j",
            "--firecracker",
            "--firecracker --yes",
            "--firecracker f more",
            "--firecracker f --only it's",
        ] {
            words(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn what_the_host_says_is_counted() {
        let check = |lines: &[&str]| {
            let mut outcomes = Outcomes::default();
            let ends = lines.iter().filter(|line| outcomes.read(line)).count();
            (ends, outcomes.tests.len(), outcomes.complaints())
        };
        let good = [
            "nested: begin a::b",
            "test a::b ... ok",
            "nested: 0 123 a::b",
            "nested: left nothing",
            "x nested: end",
        ];
        assert_eq!(check(&good), (1, 1, Vec::new()));
        assert_eq!(check(&["nested: end"]), (1, 0, vec!["no test ran".to_owned()]));
        let bad = ["nested: 101 5 a", "nested: skipped 7 b", "nested: left lb7"];
        let complaints =
            ["a failed with 101", "b was skipped", "something was left behind: lb7"].map(ToOwned::to_owned);
        assert_eq!(check(&bad), (0, 2, complaints.to_vec()));
    }
}
