use std::sync::Arc;

use lightbyte_guest::protocol::{
    BODY_BYTES_MAX, BackendStatus, Problem, ProxyStatus, TOPOLOGY_BYTES_MAX, Told,
};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::*;
use crate::{children, serve};

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is between two looks of the watchdog of a test.
const LOOK: Duration = Duration::from_millis(20);

const TOPOLOGY: &str = r#"{"checksum":"CHECKSUM","topology":{"format":1,"revision":7,"routes":[{"name":"all","targets":[{"pool":"web"}]}],"pools":[{"name":"web","backends":[{"uid":"a","address":"127.0.0.1","port":9}]}]}}"#;

/// Of the text of its topology.
const CHECKSUM: &str = "bff084cc4da614d892e723547c68ed8660230d143535bf5047babbc1c8946d3c";

#[test]
fn pauses_double_and_have_an_end() {
    let pauses: Vec<u64> = (0..9).map(|starts| pause(starts).as_secs()).collect();
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(pause(u32::MAX), PAUSE_MAX);
}

/// An agent whose proxy is this program, in a directory of its own.
struct Bed {
    agent: Rc<Agent>,
    directory: PathBuf,
}

impl Bed {
    fn new(name: &str, program: PathBuf) -> Bed {
        let directory = std::env::temp_dir().join(format!("lightbyte-agent-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let places = Places {
            program,
            control: directory.join("run/control"),
            state: directory.join("state"),
            log: directory.join("log"),
        };
        let watchdog = Watchdog { every: LOOK * 15, start_every: LOOK, ..Watchdog::default() };
        Bed { agent: Agent::new(Proxy { places, watchdog, ..Proxy::default() }), directory }
    }

    /// Asks the agent as a host does, which sends everything before it reads anything.
    async fn ask(&self, method: Method, path: &str, body: impl AsRef<[u8]>) -> (u16, Vec<u8>) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("is open");
        spawn_local(serve::serve(self.agent.clone(), Rc::new(place), theirs));
        let body = body.as_ref();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        let asking = async {
            let (mut read, mut write) = tokio::io::split(ours);
            let sent = write.write_all(&[head.as_bytes(), body].concat()).await;
            assert!(sent.is_ok() || length > BODY_BYTES_MAX.max(TOPOLOGY_BYTES_MAX), "{path} is heard out");
            let mut answer = Vec::new();
            read.read_to_end(&mut answer).await.expect("comes");
            answer
        };
        let answer = timeout(DEADLINE, asking).await.expect("answers in time");
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("it has a head");
        let status = str::from_utf8(&answer[9..12]).ok().and_then(|code| code.parse().ok());
        (status.expect("it has a status"), answer[end + 4..].to_vec())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: impl AsRef<[u8]>,
    ) -> (u16, T) {
        let (status, body) = self.ask(method, path, body).await;
        let parsed = serde_json::from_slice(&body);
        (status, parsed.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body))))
    }

    /// Waits until the process is so.
    async fn until(&self, what: &str, is_so: impl FnMut(&Process) -> bool) -> Process {
        let mut process = self.agent.proxy.process.subscribe();
        let found = timeout(DEADLINE, process.wait_for(is_so)).await;
        *found.unwrap_or_else(|_| panic!("it never came: {what}")).expect("lives")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn an_image_without_a_proxy_says_so() {
    run(async {
        let bed = Bed::new("none", "/nonexistent/lightbyte-proxy".into());
        // It has nothing to do, and ends.
        supervise(bed.agent.clone()).await;
        for (method, path, bytes) in [
            (Method::PUT, "/v1/topology", TOPOLOGY_BYTES_MAX),
            (Method::GET, "/v1/proxy", 0),
            (Method::GET, "/v1/proxy/metrics", 0),
        ] {
            let (status, problem): (u16, Problem) = bed.json(method, path, vec![b' '; bytes]).await;
            assert_eq!(status, 404);
            assert!(problem.error.contains("has no proxy"), "{}", problem.error);
        }
    });
}

#[test]
fn a_proxy_that_is_not_up_is_unavailable_and_bodies_have_limits() {
    run(async {
        // Any file will do: it is never started.
        let bed = Bed::new("down", "/proc/self/exe".into());
        let (status, problem): (u16, Problem) = bed.json(Method::PUT, "/v1/topology", "{}").await;
        assert_eq!((status, problem.error.as_str()), (503, "the proxy does not run"));
        bed.agent.proxy.process.send_replace(Process { pid: Some(Pid::INIT), is_up: false });
        let (status, problem): (u16, Problem) = bed.json(Method::GET, "/v1/proxy", "").await;
        assert!(
            status == 503 && problem.error.starts_with("the proxy does not answer: connect to it"),
            "{problem:?}"
        );
        for (path, bytes, expected) in [
            ("/v1/topology", TOPOLOGY_BYTES_MAX, 503),
            ("/v1/topology", TOPOLOGY_BYTES_MAX + 1, 413),
            ("/v1/identity", BODY_BYTES_MAX + 1, 413),
        ] {
            let (status, _) = bed.ask(Method::PUT, path, vec![b' '; bytes]).await;
            assert_eq!(status, expected, "{bytes} bytes to {path}");
        }
    });
}

/// The proxy of this build, where it was built.
fn program() -> Option<PathBuf> {
    let test = std::env::current_exe().expect("this program");
    let program = test.parent()?.parent()?.join("lightbyte-proxy");
    program.is_file().then_some(program)
}

/// Says why a test cannot run: on standard error, and as a line of the file that `LIGHTBYTE_SKIPPED` names.
fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    let line = format!("skipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("append to the file of LIGHTBYTE_SKIPPED");
    }
}

#[test]
fn the_real_proxy_is_told_started_again_and_ended() {
    let Some(program) = program() else {
        skip(
            "the_real_proxy_is_told_started_again_and_ended",
            "there is no lightbyte-proxy beside this test",
        );
        return;
    };
    run(async {
        let bed = Bed::new("real", program);
        spawn_local(children::reaper(bed.agent.clone()));
        let supervising = spawn_local(supervise(bed.agent.clone()));
        bed.agent.set_up.send_replace(true);
        let first = bed.until("the proxy answers", |process| process.is_up).await;
        assert!(bed.agent.milestones().proxy.is_some());
        let (status, found): (u16, ProxyStatus) = bed.json(Method::GET, "/v1/proxy", "").await;
        assert_eq!((status, found.revision), (200, 0), "nothing was said yet");

        let sealed = TOPOLOGY.replace("CHECKSUM", CHECKSUM);
        let (status, refused): (u16, Problem) = bed.json(Method::PUT, "/v1/topology", TOPOLOGY).await;
        assert!(status == 422 && refused.error.starts_with("its checksum is"), "{refused:?}");
        let told: (u16, Told) = bed.json(Method::PUT, "/v1/topology", sealed).await;
        assert_eq!(told, (200, Told { revision: 7 }));
        let (status, metrics) = bed.ask(Method::GET, "/v1/proxy/metrics", "").await;
        assert!(status == 200 && metrics.ends_with(b"lightbyte_proxy_revision 7\n"));

        let address = "127.0.0.1:9".parse().expect("is good");
        let a = BackendStatus {
            pool: "web".into(),
            uid: "a".into(),
            address,
            health: "healthy".into(),
            for_ms: 0,
            reason: String::new(),
            requests: 0,
        };
        let check = async |before: Process, signal, what: &str| {
            let pid = before.pid.expect("it runs");
            kill_process_group(pid, signal).expect("it is ours");
            let after = bed.until(what, |now| now.is_up && now.pid != before.pid).await;
            let (_, found): (u16, ProxyStatus) = bed.json(Method::GET, "/v1/proxy", "").await;
            let backends: Vec<BackendStatus> =
                found.backends.into_iter().map(|backend| BackendStatus { for_ms: 0, ..backend }).collect();
            assert_eq!((found.revision, backends.as_slice()), (7, [a.clone()].as_slice()), "{what}");
            assert!(
                found.version == crate::agent::VERSION
                    && found.not_listening.is_empty()
                    && found.connections == 0
            );
            after
        };
        let second = check(first, Signal::KILL, "one that died is started again").await;
        let third = check(second, Signal::STOP, "one that stands still is killed and started again").await;

        bed.agent.shutting_down.set(true);
        kill_process_group(third.pid.expect("it runs"), Signal::TERM).expect("it is ours");
        bed.until("it ends", |process| process.pid.is_none()).await;
        supervising.abort();
    });
}
