//! The agent's servers: vsock for the host, and the page where the image asks for it. One thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lightbyte_guest::protocol::AGENT_PORT;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use crate::agent::Agent;
use crate::relay::Place;
use crate::{children, console, grow, notify, page, proxy, ready, routes, shutdown};

/// Connections served at once on each listener. The host needs a few; each console or command holds one.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// How long a peer may take to send a request's head.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// Largest head; the smallest that hyper allows is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Pause after a failed accept, which otherwise could repeat at once for ever (no descriptors left).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever.
///
/// # Errors
/// If the runtime or the vsock listener cannot be made.
pub(crate) fn run(agent: &Rc<Agent>) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make the runtime")?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        spawn_local(children::reaper(agent.clone()));
        // The page is for whoever is on the network, the vsock server for the host alone.
        spawn_local(page::serve(agent.clone()));
        let address = VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT);
        let listener = VsockListener::bind(address).context("listen on vsock")?;
        agent.reached(|milestones| &mut milestones.ready);
        spawn_local(ready::tell());
        spawn_local(proxy::supervise(agent.clone()));
        // After the start, which it would make longer. A thread of its own: it waits for the disk.
        tokio::task::spawn_blocking(grow::grow);
        if std::process::id() == 1 {
            spawn_local(console::serve(agent.clone()));
            spawn_local(shutdown::on_signals(agent.clone()));
        } else {
            spawn_local(async {
                tokio::time::sleep(notify::HOST_MAX).await;
                notify::ready();
            });
        }
        accept(agent, &listener).await
    })
}

async fn accept(agent: &Rc<Agent>, listener: &VsockListener) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.context("wait for a place")?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                println!("lightbyte-guest: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let agent = agent.clone();
        spawn_local(async move {
            serve(agent, Rc::new(place), stream).await;
        });
    }
}

/// Serves the agent's API on one connection. A peer that breaks off is no news.
pub(crate) async fn serve(
    agent: Rc<Agent>,
    place: Place,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let service = service_fn(move |request| {
        let (agent, place) = (agent.clone(), place.clone());
        async move { Ok::<_, std::convert::Infallible>(routes::answer(&agent, &place, request).await) }
    });
    let _ = builder().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// HTTP with this agent's limits.
pub(crate) fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(HEAD_BYTES_MAX);
    builder
}
