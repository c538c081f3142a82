//! A lab with its own state and its own contexts, removed with everything in it at the end of the test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const LIGHTBYTE: &str = env!("CARGO_BIN_EXE_lightbyte");
/// How long anything here may take that is waited for; a loaded machine is slow, a hang is a failure.
const WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) struct Bed {
    directory: PathBuf,
    start: Vec<String>,
    /// The words before those of lightbyte: what makes it another user, or puts it into another network.
    through: Vec<String>,
    lightbyte: PathBuf,
    environment: Vec<(String, PathBuf)>,
}

/// Says why a test cannot run: on standard error, and as a line of the file that `LIGHTBYTE_SKIPPED` names.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("append to the file of LIGHTBYTE_SKIPPED");
    }
}

/// etcd's program, where the set-up has put it.
pub(crate) fn etcd() -> Option<PathBuf> {
    let named = std::env::var_os("LIGHTBYTE_ETCD").map(PathBuf::from);
    let cached = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/lightbyte/etcd/usr/bin/etcd"));
    named.or_else(cached).filter(|path| path.is_file())
}

impl Bed {
    /// A place for a lab that is started with `words`; `None` where there is no etcd.
    pub(crate) fn new(test: &str, words: &[&str]) -> Option<Bed> {
        if etcd().is_none() {
            skip(test, "there is no etcd; `cargo xtask setup` fetches one");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("lb-{test}-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory for the lab");
        Some(Bed {
            directory,
            start: words.iter().map(|word| (*word).to_owned()).collect(),
            through: Vec::new(),
            lightbyte: LIGHTBYTE.into(),
            environment: Vec::new(),
        })
    }

    /// The same place, but every command is run by way of `words`, which run the words behind them.
    pub(crate) fn through(mut self, words: &[&str]) -> Bed {
        self.through = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The same place for a user who sees nothing of ours: with copies of the programs and images that it needs, and
    /// belonging to that user.
    pub(crate) fn given_to(mut self, user: u32, images: &Path) -> Bed {
        let lightbyte = self.directory.join("lightbyte");
        fs::copy(LIGHTBYTE, &lightbyte).expect("a copy of lightbyte");
        let etcd_copy = self.directory.join("etcd");
        fs::copy(etcd().expect("etcd"), &etcd_copy).expect("a copy of etcd");
        let images_copy = self.directory.join("images");
        let mut copy = Command::new("cp");
        copy.args(["-r", "--sparse=always", path(images), path(&images_copy)]);
        assert!(copy.status().expect("cp runs").success(), "the images are copied");
        for own in [&self.directory, &images_copy] {
            let mut give = Command::new("chown");
            give.args(["-R", &format!("{user}:{user}"), path(own)]);
            assert!(give.status().expect("chown runs").success(), "{user} gets {}", own.display());
        }
        let environment = [
            ("HOME", self.directory.clone()),
            // As Debian sets it for ordinary users.
            ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
            ("LIGHTBYTE_ETCD", etcd_copy),
            ("LIGHTBYTE_IMAGES", images_copy),
        ];
        self.environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
        self.lightbyte = lightbyte;
        self
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// A command that has not begun yet.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut line = self.through.iter().map(std::ffi::OsStr::new).chain([self.lightbyte.as_os_str()]);
        let mut command = Command::new(line.next().expect("a program"));
        command
            .args(line)
            .args(words)
            .env("XDG_CONFIG_HOME", self.directory.join("config"))
            .env_remove("LIGHTBYTE_API")
            .envs(etcd().map(|etcd| ("LIGHTBYTE_ETCD", etcd)))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Starts the lab in the background, and returns when its workers are ready.
    pub(crate) fn start(&self) {
        let state = self.state();
        let mut words = vec!["dev", "--detach", "--state", path(&state)];
        words.extend(self.start.iter().map(String::as_str));
        self.ok(&words);
    }

    /// Starts the lab as a child of this test, which can then be killed.
    pub(crate) fn start_as_child(&self) -> Child {
        let state = self.state();
        let mut words = vec!["dev", "--state", path(&state)];
        words.extend(self.start.iter().map(String::as_str));
        self.start_as_child_of(&words)
    }

    /// The same with words of the test's own.
    pub(crate) fn start_as_child_of(&self, words: &[&str]) -> Child {
        let state = self.state();
        let child = self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a lab");
        until("the lab is ready", || {
            let output = self.run(&["dev", "status", "--state", path(&state)]);
            String::from_utf8_lossy(&output.stdout).contains("is ready")
        });
        child
    }

    /// `lightbyte dev VERB HOST` on this lab.
    pub(crate) fn dev(&self, verb: &str, host: &str) {
        self.ok(&["dev", verb, host, "--state", path(&self.state())]);
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("lightbyte runs")
    }

    /// A command that runs beside the test, with its input and output in the test's hands.
    pub(crate) fn child(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("lightbyte runs")
    }

    /// What a command that must succeed prints.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {}\n{errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The exit code and the errors of a command that must fail.
    pub(crate) fn fails(&self, words: &[&str]) -> (i32, String) {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?} succeeds");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&words)).expect("JSON")
    }

    /// The host whose server leads, if any does.
    pub(crate) fn leader(&self) -> Option<String> {
        let output = self.run(&["status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(status["leader"].as_str()?.to_owned())
    }

    /// The path of a file of this test.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A file with manifests.
    pub(crate) fn manifests(&self, text: &str) -> PathBuf {
        let file = self.directory.join("manifests.yaml");
        fs::write(&file, text).expect("a file of manifests");
        file
    }

    /// What tells this lab from others on the machine.
    pub(crate) fn hash(&self) -> String {
        let rack = fs::read(self.state().join("rack.json")).expect("the rack");
        let rack: Value = serde_json::from_slice(&rack).expect("JSON");
        rack["hash"].as_str().expect("a hash").to_owned()
    }

    /// The network namespace of a host.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("lb-{}-{host}", self.hash())
    }

    /// The number of a process of the lab, such as `n1-worker`.
    pub(crate) fn process(&self, name: &str) -> i32 {
        let noted = fs::read(self.state().join("processes").join(name)).expect("a noted process");
        let noted: Value = serde_json::from_slice(&noted).expect("JSON");
        i32::try_from(noted["pid"].as_i64().expect("a number")).expect("a process number")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let state = self.state();
        if state.exists() {
            let output = self.run(&["dev", "delete", "--state", path(&state)]);
            if !output.status.success() {
                eprintln!("the lab is left behind: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Sends a signal, such as `KILL`, to one process by its number.
pub(crate) fn signal(name: &str, pid: i32) {
    // The shell's own word: the program of that name is not on every machine.
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().expect("a shell");
    assert!(status.success(), "process {pid} is gone already");
}

/// Looks until it is so, for a bounded time.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !so() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", WITHIN.as_secs());
        pause();
    }
}

fn pause() {
    pass(LOOK_EVERY);
}

/// Lets time pass: to look again later, or to meet what happens outside at another moment of it.
#[expect(
    clippy::disallowed_methods,
    reason = "processes outside are met at chosen moments; nothing is synchronised by it"
)]
pub(crate) fn pass(time: Duration) {
    std::thread::sleep(time);
}
