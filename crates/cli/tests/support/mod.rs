//! A cluster for one test: servers in this process over one store in memory, workers and commands as processes.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lightbyte_api::{Name, Uid};
use lightbyte_link::Endpoint;
use lightbyte_store::MemoryStore;
use tokio::runtime::Runtime;

/// How long anything may take on a machine that does other things.
const PATIENCE: Duration = Duration::from_secs(40);

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("lbc-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("make a temporary directory");
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) struct Cluster {
    directory: Directory,
    store: MemoryStore,
    servers: Vec<(Endpoint, Runtime)>,
    workers: Vec<Process>,
}

impl Cluster {
    /// A server, a worker of 4 CPUs and 2 GiB, the default network, and the image `demo`.
    pub(crate) fn start() -> Cluster {
        let store = MemoryStore::new();
        let mut cluster =
            Cluster { directory: Directory::new(), store, servers: Vec::new(), workers: Vec::new() };
        cluster.add_server();
        cluster.add_worker("n1", "2GiB");
        cluster.ok("lightbyte apply -f tests/manifests/ground.yaml");
        cluster
    }

    /// The first server.
    pub(crate) fn api(&self) -> String {
        self.servers[0].0.to_string()
    }

    /// One more server; where it is.
    pub(crate) fn add_server(&mut self) -> String {
        let name = format!("s{}", self.servers.len() + 1);
        let endpoint = Endpoint::Unix(self.directory.0.join(format!("{name}.sock")));
        let config = lightbyte_server::Config {
            name: Name::new(&name).expect("a name"),
            listen: vec![endpoint.clone()],
            url: endpoint.to_string(),
            etcd: Vec::new(),
            root: String::new(),
            sealing_keys: None,
            parts: None,
            zone: lightbyte_api::zone::NAME_DEFAULT.to_owned(),
            keeps_room_for_a_loss: false,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("make a runtime");
        let store = self.store.clone();
        runtime.spawn(async move {
            lightbyte_server::init(&store, Uid::from_bits(1)).await.expect("set up the cluster");
            let served = lightbyte_server::serve(Arc::new(store), None, config, std::future::pending()).await;
            served.expect("serve");
        });
        let url = endpoint.to_string();
        self.servers.push((endpoint, runtime));
        self.until(&format!("LIGHTBYTE_API={url} lightbyte status"));
        url
    }

    /// Ends the newest server, as `kill -9` does.
    pub(crate) fn kill_server(&mut self) {
        let (_, runtime) = self.servers.pop().expect("a server");
        runtime.shutdown_background();
    }

    /// Starts a worker, and waits until it is ready.
    pub(crate) fn add_worker(&mut self, name: &str, memory: &str) {
        let state = self.directory.0.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lightbyte"));
        command.args(["worker", "--vmm=fake", "--cpus=4"]);
        command.arg(format!("--name={name}")).arg(format!("--memory={memory}"));
        command.arg(format!("--state={}", state.display())).arg(format!("--server={}", self.api()));
        command.arg(format!("--listen=unix:{}.sock", state.display()));
        let log = std::fs::File::create(self.directory.0.join(format!("{name}.log"))).expect("make a log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.workers.push(Process(child.expect("start a worker")));
        self.until(&format!("lightbyte wait worker/{name}"));
    }

    /// A shell line with `lightbyte` in the path and this cluster in the environment, in the crate's directory.
    pub(crate) fn shell(&self, line: &str) -> Command {
        let binaries = Path::new(env!("CARGO_BIN_EXE_lightbyte")).parent().expect("a directory");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command.arg("-c").arg(line).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        command.env_clear().env("PATH", format!("{}:{path}", binaries.display()));
        command
            .env("LIGHTBYTE_API", self.api())
            .env("LIGHTBYTE_WHO", "ana@laptop")
            .env("HOME", &self.directory.0)
            .env("TMPDIR", &self.directory.0);
        command
    }

    /// Runs a line that must end well.
    pub(crate) fn ok(&self, line: &str) {
        let output = self.shell(line).output().expect("run the shell");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a line until it ends well.
    fn until(&self, line: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.shell(line).output().expect("run the shell");
            if output.status.success() {
                return;
            }
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < deadline, "{line} does not end well: {stderr}");
        }
    }

    /// Starts a line, whose stderr is read line by line.
    pub(crate) fn start_shell(&self, line: &str) -> Running {
        let mut command = self.shell(&format!("exec env {line}"));
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start the shell");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        Running { process: Process(child), stderr }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A runtime that waits for its tasks would wait for ever.
        for (_, runtime) in self.servers.drain(..) {
            runtime.shutdown_background();
        }
    }
}

/// A command that runs.
pub(crate) struct Running {
    process: Process,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    /// The next line of its stderr; the test runner's own limit bounds the time.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("read stderr");
        line.trim_end().to_owned()
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        // The shell's own word: the program of that name is not on every machine.
        let line = format!("kill -INT {}", self.process.0.id());
        let status = Command::new("sh").args(["-c", &line]).status().expect("a shell");
        assert!(status.success());
    }

    /// Its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.process.0.wait().expect("wait for it").code()
    }
}

/// Output without what differs from run to run: times, identities, and the directory of the test.
pub(crate) fn normal(output: &[u8], cluster: &Cluster) -> String {
    let text = String::from_utf8_lossy(output).replace(&cluster.directory.0.display().to_string(), "DIR");
    text.lines().map(|line| normal_line(line) + "\n").collect()
}

fn normal_line(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    // Columns are as wide as their widest cell, which may be a time.
    if let Some((name, millis)) = line.trim().split_once(": ")
        && (name.contains("_to_") && millis.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return format!("{}{name}: MILLIS", &line[..indent]);
    }
    let line = without_revisions(line);
    let gaps = line.trim().split("  ").filter(|cell| !cell.is_empty());
    let cells = gaps.map(|cell| cell.trim().split(' ').map(normal_word).collect::<Vec<_>>().join(" "));
    format!("{}{}", &line[..indent], cells.collect::<Vec<_>>().join("  "))
}

/// Revisions depend on how often the worker reported meanwhile.
fn without_revisions(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for index in 1..words.len() {
        if matches!(words[index - 1].as_str(), "revision" | "read") {
            let bare = words[index].trim_end_matches(',').to_owned();
            if !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit()) {
                words[index] = words[index].replace(&bare, "N");
            }
        }
    }
    words.join(" ")
}

fn normal_word(word: &str) -> String {
    let bare = word.trim_matches(['"', ',', '`', ';', ':', '(', ')']);
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_age = bare.strip_suffix("ms").or_else(|| bare.strip_suffix(['s', 'm'])).is_some_and(is_digits);
    let is_time = bare.len() >= 20 && bare.starts_with("20") && bare.ends_with('Z');
    let is_uid = bare.len() == 36 && bare.bytes().filter(|byte| *byte == b'-').count() == 4;
    let is_process = bare.split('-').any(|part| part.strip_suffix(".yaml").is_some_and(is_digits));
    match (is_age, is_time, is_uid, is_process) {
        (true, ..) => word.replace(bare, "AGE"),
        (_, true, ..) => word.replace(bare, "TIME"),
        (_, _, true, _) => word.replace(bare, "UID"),
        (.., true) => {
            let (before, _) = bare.rsplit_once('-').unwrap_or((bare, ""));
            word.replace(bare, &format!("{before}-PID.yaml"))
        }
        _ => word.to_owned(),
    }
}
