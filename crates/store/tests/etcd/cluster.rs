//! Members of etcd as child processes, each behind a proxy for clients and one for peers.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lightbyte_store::{EtcdOptions, EtcdStore, Store as _};
use tokio::time::Instant;

use crate::proxy::{Mode, Proxy};

const START_WITHIN: Duration = Duration::from_secs(60);

static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// One member.
pub(crate) struct Member {
    name: String,
    arguments: Vec<String>,
    binary: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    pub(crate) direct: SocketAddr,
    pub(crate) clients: Proxy,
    pub(crate) peers: Proxy,
}

impl Member {
    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("open the log");
        // Should this process be killed, its members go with it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("start etcd"));
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("the member runs").id()
    }

    fn signal(&self, signal: &str) {
        // The shell's own word: the program of that name is not on every machine.
        let line = format!("kill {signal} {}", self.pid());
        let done = Command::new("sh").args(["-c", &line]).status().expect("a shell");
        assert!(done.success(), "kill {signal} {}", self.name);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What is done to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// SIGKILL; healed by a new start.
    Kill,
    /// SIGSTOP; healed by SIGCONT.
    Stop,
    /// Cut off from the other members; clients still reach it.
    Isolate,
    /// Cut off from its clients only.
    Hide,
}

/// A running cluster; dropping it kills its processes and removes its files.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    directory: PathBuf,
}

impl Cluster {
    /// Starts `count` members and waits until they serve.
    pub(crate) async fn start(binary: &Path, count: usize) -> Self {
        Self::start_with(binary, count, &[]).await
    }

    /// The same, with more words for each member.
    pub(crate) async fn start_with(binary: &Path, count: usize, more: &[&str]) -> Self {
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("lightbyte-etcd-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make a directory");
        // All ports are held until all are known, the proxies' too, so that none is given twice.
        let listeners: Vec<[TcpListener; 2]> = (0..count).map(|_| [free(), free()]).collect();
        let ports: Vec<[SocketAddr; 2]> = listeners
            .iter()
            .map(|pair| pair.each_ref().map(|one| one.local_addr().expect("an address")))
            .collect();
        let mut members = Vec::new();
        for (index, [client, peer]) in ports.iter().enumerate() {
            let name = format!("m{index}");
            members.push(Member {
                arguments: Vec::new(),
                binary: binary.to_owned(),
                log: directory.join(format!("{name}.log")),
                name,
                child: None,
                direct: *client,
                clients: Proxy::new(*client).await,
                peers: Proxy::new(*peer).await,
            });
        }
        let peers: Vec<String> =
            members.iter().map(|member| format!("{}=http://{}", member.name, member.peers.address)).collect();
        drop(listeners);
        for (member, [_, peer]) in members.iter_mut().zip(&ports) {
            member.arguments = arguments(member, *peer, &directory, &peers.join(","));
            member.arguments.extend(more.iter().map(|word| (*word).to_owned()));
            member.start();
        }
        let cluster = Self { members, directory };
        cluster.serves().await;
        cluster
    }

    async fn serves(&self) {
        let store = self.store("/start/").await;
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let all = store.members().await.iter().all(|(_, status)| status.is_ok());
            if all && store.get("x").await.is_ok() {
                return;
            }
            let logs =
                || self.members.iter().map(|member| std::fs::read_to_string(&member.log).unwrap_or_default());
            assert!(Instant::now() < deadline, "etcd does not start:\n{}", logs().collect::<String>());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A store that reaches all members directly.
    pub(crate) async fn store(&self, root: &str) -> EtcdStore {
        connect(self.members.iter().map(|member| member.direct), root).await
    }

    /// A store that reaches all members through their proxies, beginning with one of them.
    pub(crate) async fn proxied_store(&self, root: &str, first: usize) -> EtcdStore {
        let count = self.members.len();
        connect((0..count).map(|index| self.members[(first + index) % count].clients.address), root).await
    }

    /// The index of the member that leads.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let members = self.store("/leader/").await.members().await;
            let leads = |status: &Result<lightbyte_store::etcd::MemberStatus, _>| {
                status.as_ref().is_ok_and(|status| status.is_leader)
            };
            if let Some(index) = members.iter().position(|(_, status)| leads(status)) {
                return index;
            }
            assert!(Instant::now() < deadline, "no member leads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn harm(&mut self, index: usize, harm: Harm) {
        match harm {
            Harm::Kill => self.members[index].kill(),
            Harm::Stop => self.members[index].signal("-STOP"),
            Harm::Isolate => self.isolate(index, true).await,
            Harm::Hide => self.members[index].clients.set(Mode::Hold),
        }
    }

    /// Undoes a harm and waits until all members serve again.
    pub(crate) async fn heal(&mut self, index: usize, harm: Harm) {
        match harm {
            Harm::Kill => self.members[index].start(),
            Harm::Stop => self.members[index].signal("-CONT"),
            Harm::Isolate => self.isolate(index, false).await,
            Harm::Hide => self.members[index].clients.set(Mode::Pass),
        }
        self.serves().await;
    }

    async fn isolate(&self, index: usize, isolated: bool) {
        let members = self.store("/isolate/").await.members().await;
        let id = members[index].1.as_ref().expect("an isolated member still answers").id;
        self.members[index].peers.set(if isolated { Mode::Hold } else { Mode::Pass });
        for (other, member) in self.members.iter().enumerate() {
            if other != index {
                member.peers.hold_member(id, isolated);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn free() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("bind a loopback port")
}

async fn connect(addresses: impl Iterator<Item = SocketAddr>, root: &str) -> EtcdStore {
    let endpoints: Vec<String> = addresses.map(|address| format!("http://{address}")).collect();
    EtcdStore::connect(EtcdOptions::new(endpoints, root)).await.expect("connect")
}

fn arguments(member: &Member, peer: SocketAddr, directory: &Path, peers: &str) -> Vec<String> {
    let client = format!("http://{}", member.direct);
    let data = directory.join(&member.name).display().to_string();
    let pairs = [
        ("--name", member.name.clone()),
        ("--data-dir", data),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", format!("http://{peer}")),
        ("--initial-advertise-peer-urls", format!("http://{}", member.peers.address)),
        ("--initial-cluster", peers.to_owned()),
        ("--initial-cluster-token", directory.display().to_string()),
        ("--experimental-watch-progress-notify-interval", "200ms".to_owned()),
    ];
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}
