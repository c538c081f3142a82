//! Putting the parts together, and the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use lightbyte_api::topology::maximum;
use pingora_core::apps::{HttpServerApp as _, HttpServerOptions};
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access::AccessLog;
use crate::clock;
use crate::control;
use crate::disk::Disk;
use crate::gateway::Gateway;
use crate::listeners::{Listeners, Shared};
use crate::lock::lock;
use crate::state::State;
use crate::table::Table;
use crate::waits;

/// Idle connections to backends that are kept, in each thread's pool.
const BACKEND_POOL_SIZE: usize = 512;

/// Requests at once on one connection of HTTP/2 of a client.
const CLIENT_STREAMS_MAX: u32 = 250;

/// How long requests in flight may go on once the proxy is told to end.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether they have ended.
const LEAVE_LOOK: Duration = Duration::from_millis(20);

/// What a proxy is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Unix socket on which it is told and asked.
    pub control: PathBuf,
    /// The directory of the last good topology.
    pub state: PathBuf,
    /// Whether a line is written to stdout for each request.
    pub access_log: bool,
    /// How long a fresh topology is waited for before the one on disk is served; zero serves that at once. For the first
    /// start after a boot, when what lies on disk may be of long ago. Who starts it again in a machine that runs does
    /// not wait: its topology is of a moment ago, and each second is an outage.
    pub wait_for_fresh: Duration,
}

/// A proxy that runs, on the runtime that it was started in.
pub struct Proxy {
    state: Arc<State>,
    gateway: Arc<HttpProxy<Gateway>>,
    stopping: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts with the topology that lies on disk, or with none; see [`Options::wait_for_fresh`]. When this returns, the
    /// control socket listens.
    ///
    /// # Errors
    /// If the socket cannot be made or the disk cannot be read.
    pub async fn start(options: Options) -> anyhow::Result<Proxy> {
        clock::now();
        let disk = Disk::open(&options.state).context("open the state's directory")?;
        let table = Arc::new(ArcSwap::from_pointee(Table::default()));
        let access = AccessLog::new(options.access_log).context("start the access log")?;
        let (stopping, stopped) = watch::channel(false);
        let gateway = http_proxy(Gateway::new(table.clone(), access.clone()))?;
        let shared = Shared::new(table.clone(), gateway.clone(), stopped).context("set up TLS")?;
        let state = Arc::new(State::new(table, Listeners::new(shared), disk, access));
        state.hold_back().await?;
        if options.wait_for_fresh.is_zero() {
            state.serve_held_back().await;
        }
        let listener = control::bind(&options.control)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(control::serve(state.clone(), listener));
        tasks.spawn(waits::watch(state.table.clone()));
        if !options.wait_for_fresh.is_zero() {
            let state = state.clone();
            tasks.spawn(async move { state.serve_held_back_after(options.wait_for_fresh).await });
        }
        Ok(Proxy { state, gateway, stopping, tasks })
    }

    /// Takes no more connections and returns when none is open and no request in flight any more, at most [`LEAVE_MAX`] later.
    pub async fn leave(mut self) {
        self.state.listeners.close();
        let _ = self.stopping.send(true);
        // Wakes connections that wait for a request, which then close.
        self.gateway.http_cleanup().await;
        let end = clock::now() + LEAVE_MAX;
        let is_idle = || {
            let mut in_flight = lock(&self.state.registry).in_flight().into_values();
            let listeners = &self.state.listeners;
            in_flight.all(|count| count == 0)
                && listeners.are_closed()
                && listeners.shared().connections() == 0
        };
        while !is_idle() && clock::now() < end {
            tokio::time::sleep(LEAVE_LOOK).await;
        }
        self.tasks.abort_all();
        let access = self.state.access.clone();
        // It blocks, and whoever cannot have a thread any more ends without it.
        let _ = tokio::task::spawn_blocking(move || access.finish()).await;
    }
}

/// The HTTP library around a gateway.
pub(crate) fn http_proxy(gateway: Gateway) -> anyhow::Result<Arc<HttpProxy<Gateway>>> {
    let conf = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        upstream_keepalive_pool_size: BACKEND_POOL_SIZE,
        // A route has its own limit; this one is only for the library's loop.
        max_retries: maximum::TRIES as usize,
        ..ServerConf::default()
    };
    let mut proxy = HttpProxy::new(gateway, Arc::new(conf));
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    proxy.server_options = Some(options);
    let mut h2 = H2Options::new();
    h2.max_concurrent_streams(CLIENT_STREAMS_MAX);
    h2.max_header_list_size(u32::try_from(maximum::HEADER_BYTES).context("fit the size of headers")?);
    proxy.h2_options = Some(h2);
    proxy.handle_init_modules();
    Ok(Arc::new(proxy))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use serde_json::{Value, json};

    use super::*;
    use crate::disk::checksum;
    use crate::gateway::POISON;
    use crate::state::NotApplied;

    fn sealed(revision: u64, port: u16, route: &str) -> bytes::Bytes {
        let topology: Value = json!({
            "format": 1, "revision": revision,
            "listeners": [{ "name": "web", "address": "127.0.0.1", "port": port, "protocol": "http" }],
            "routes": [{ "name": route, "targets": [{ "pool": "web" }] }],
            "pools": [{ "name": "web" }],
        });
        let text = topology.to_string();
        format!(r#"{{"checksum":"{}","topology":{text}}}"#, checksum(&text)).into()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_topology_that_breaks_its_rehearsal_changes_nothing() {
        let directory = std::env::temp_dir().join(format!("lightbyte-rehearsed-{}", std::process::id()));
        let (control, state) = (directory.join("control.sock"), directory.join("state"));
        std::fs::create_dir_all(&directory).expect("a directory");
        let options = Options { control, state, access_log: false, wait_for_fresh: Duration::ZERO };
        let proxy = Proxy::start(options.clone()).await.expect("starts");
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let ports = [free(), free()].map(|held| held.local_addr().expect("an address").port());
        proxy.state.apply(sealed(1, ports[0], "web")).await.expect("is good");
        let refused = proxy.state.apply(sealed(2, ports[1], POISON)).await.expect_err("breaks off");
        assert!(matches!(refused, NotApplied::Bad(_)), "{refused}");
        assert_eq!(proxy.state.table.load().revision, 1);
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, ports[1])).is_ok(), "nobody listens there");
        proxy.state.apply(sealed(3, ports[1], "web")).await.expect("it goes on");
        proxy.state.apply(sealed(4, ports[1], POISON)).await.expect_err("breaks off again");
        proxy.leave().await;
        let proxy = Proxy::start(options).await.expect("starts again");
        assert_eq!(proxy.state.table.load().revision, 3, "what lies on disk is the last that passed");
        proxy.leave().await;
        std::fs::remove_dir_all(&directory).expect("remove the directory");
    }
}
