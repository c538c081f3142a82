//! What is compared, each with what it is told.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::load::Workload;
use crate::bed::Bed;
use crate::processes::{GENERATOR_CORE, MEASURED_CORE, TASKSET, on_core, start};
use crate::proxies::{self, OURS, program};

/// Names of rows.
pub(super) const HAPROXY: &str = "haproxy";
const ORIGIN: &str = "none between";
const BARE: &str = "bare pingora";

/// Where the set-up has built our proxy as it is shipped, and bare pingora the same way.
const SHIPPED: &str = "LIGHTBYTE_SHIPPED_PROXY";
const LACKING: &str = "no proxy was built as it is shipped; `cargo xtask bench requests` builds it";

fn shipped() -> Option<PathBuf> {
    std::env::var_os(SHIPPED).map(PathBuf::from)
}

/// How long one may take until it listens.
const START_MAX: Duration = Duration::from_secs(20);

/// How long one may take to end: requests in flight may go on for half a minute.
const END_MAX: Duration = Duration::from_secs(40);

/// The pause between two looks whether it does.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A corner of the loopback network that nobody else uses.
const fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 98, 231, last)), port)
}

const HTTP1_PORT: u16 = 8_001;
const HTTP2_PORT: u16 = 8_002;

/// One that is asked.
pub(super) struct Peer {
    pub(super) name: &'static str,
    http1: SocketAddr,
    /// None if it does not speak it.
    http2: Option<SocketAddr>,
    child: Child,
}

impl Peer {
    pub(super) const fn address(&self, workload: Workload) -> Option<SocketAddr> {
        if workload.is_h2() { self.http2 } else { Some(self.http1) }
    }

    /// # Errors
    /// When it has ended.
    pub(super) fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it does not end well.
    pub(super) async fn end(mut self) -> Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("find it")?;
        kill_process(pid, Signal::TERM).context("ask it to end")?;
        let ended = timeout(END_MAX, self.child.wait()).await.context("wait for its end")?;
        let ended = ended.context("wait for its end")?;
        if ended.success() { Ok(()) } else { bail!("{} has ended with {ended}", self.name) }
    }
}

/// All that run.
pub(super) struct Peers {
    pub(super) all: Vec<Peer>,
}

impl Peers {
    /// Starts the origin and, last, ours, or says what of our own is lacking.
    ///
    /// # Errors
    /// When one does not listen.
    pub(super) async fn ours(bed: &Bed) -> Result<Result<Peers, String>> {
        let Some(shipped) = shipped() else { return Ok(Err(LACKING.into())) };
        let mut peers = Peers { all: Vec::new() };
        let origin = at(1, HTTP1_PORT);
        let own = std::env::current_exe().context("find this program")?;
        let words = [crate::ORIGIN_WORD.into(), origin.to_string().into()];
        let child = start_on(GENERATOR_CORE, &own, &words, &bed.path("origin.log"))?;
        peers.add(Peer { name: ORIGIN, http1: origin, http2: None, child }).await?;

        let arguments = proxies::lay_out(bed, &proxies::topology(at(2, HTTP1_PORT), &[origin])?)?;
        let child = start_on(MEASURED_CORE, &shipped.join(OURS), &arguments, &bed.path("ours.log"))?;
        let (http1, http2) = (at(2, HTTP1_PORT), Some(at(2, HTTP1_PORT)));
        peers.add(Peer { name: OURS, http1, http2, child }).await?;
        Ok(Ok(peers))
    }

    /// Starts all that are there, or says what of our own is lacking; says what would install the rest.
    ///
    /// # Errors
    /// When one that is there does not listen.
    pub(super) async fn start(bed: &Bed) -> Result<Result<Peers, String>> {
        let mut peers = match Peers::ours(bed).await? {
            Ok(peers) => peers,
            Err(lacking) => return Ok(Err(lacking)),
        };
        let (shipped, origin) = (shipped().unwrap_or_default(), at(1, HTTP1_PORT));
        let (http1, http2) = (at(3, HTTP1_PORT), Some(at(3, HTTP1_PORT)));
        let arguments = [http1.to_string().into(), origin.to_string().into()];
        let bare = shipped.join("examples/bare");
        let child = start_on(MEASURED_CORE, &bare, &arguments, &bed.path("bare.log"))?;
        peers.add(Peer { name: BARE, http1, http2, child }).await?;

        match program("haproxy") {
            None => eprintln!("requests: no haproxy: `apt-get install haproxy` installs it"),
            Some(haproxy) => {
                let (http1, http2) = (at(4, HTTP1_PORT), at(4, HTTP2_PORT));
                let file = bed.path("haproxy.cfg");
                fs::write(&file, haproxy_text(origin, http1, http2)).context("write a configuration")?;
                let arguments = ["-db".into(), "-f".into(), file.into_os_string()];
                let child = start_on(MEASURED_CORE, &haproxy, &arguments, &bed.path("haproxy.log"))?;
                peers.add(Peer { name: HAPROXY, http1, http2: Some(http2), child }).await?;
            }
        }
        match program("nginx") {
            None => eprintln!("requests: no nginx: `apt-get install nginx-light` installs it"),
            Some(nginx) => {
                let (http1, http2) = (at(5, HTTP1_PORT), at(5, HTTP2_PORT));
                let file = bed.path("nginx.conf");
                fs::write(&file, nginx_text(bed, origin, http1, http2)).context("write a configuration")?;
                let prefix = bed.make("nginx")?.into_os_string();
                let arguments =
                    ["-c".into(), file.into_os_string(), "-p".into(), prefix, "-e".into(), "stderr".into()];
                let child = start_on(MEASURED_CORE, &nginx, &arguments, &bed.path("nginx.log"))?;
                peers.add(Peer { name: "nginx", http1, http2: Some(http2), child }).await?;
            }
        }
        Ok(Ok(peers))
    }

    async fn add(&mut self, peer: Peer) -> Result<()> {
        let end = Instant::now() + START_MAX;
        for address in [Some(peer.http1), peer.http2].into_iter().flatten() {
            while TcpStream::connect(address).await.is_err() {
                if Instant::now() > end {
                    bail!("{} does not listen on {address}", peer.name);
                }
                sleep(LOOK_PAUSE).await;
            }
        }
        self.all.push(peer);
        Ok(())
    }
}

fn start_on(core: &str, program: &Path, arguments: &[OsString], log: &Path) -> Result<Child> {
    start(Path::new(TASKSET), &on_core(core, program, arguments), log)
}

/// One thread, no log, connections to the backend kept and shared.
fn haproxy_text(origin: SocketAddr, http1: SocketAddr, http2: SocketAddr) -> String {
    format!(
        "global\n    nbthread 1\n    maxconn 4096\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 50s\n    timeout server 50s\n    \
         http-reuse always\n    option forwardfor\n\
         backend all\n    server origin {origin} pool-max-conn 512 check\n\
         frontend web\n    bind {http1}\n    bind {http2} proto h2\n    default_backend all\n"
    )
}

/// One process, no log, connections to the backend kept.
fn nginx_text(bed: &Bed, origin: SocketAddr, http1: SocketAddr, http2: SocketAddr) -> String {
    let pid = bed.path("nginx.pid");
    format!(
        "pid {};\ndaemon off; master_process off; worker_processes 1;\nevents {{ worker_connections 4096; }}\n\
         http {{\n access_log off; keepalive_requests 100000000;\n upstream all {{ server {origin}; keepalive 512; \
         keepalive_requests 100000000; }}\n server {{\n  listen {http1} backlog=4096;\n  listen {http2} http2;\n  \
         location / {{ proxy_pass http://all; proxy_http_version 1.1; proxy_set_header Connection \"\";\n   \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}\n }}\n}}\n",
        pid.display()
    )
}
