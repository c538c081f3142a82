//! The HTTP library with the least that makes it a proxy: the baseline of `cargo xtask bench requests`.
//!
//! `bare LISTEN BACKEND…`: each request goes to the next backend, with nothing looked at, counted or bounded. Built like the
//! proxy itself, and with its allocator, so that what is between the two is ours.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bare {
    backends: Vec<SocketAddr>,
    turn: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.backends.len();
        Ok(Box::new(HttpPeer::new(self.backends[turn], false, String::new())))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let listen = words.next().ok_or("usage: bare LISTEN BACKEND…")?;
    let backends: Vec<SocketAddr> = words.map(|word| word.parse()).collect::<Result<_, _>>()?;
    if backends.is_empty() {
        return Err("usage: bare LISTEN BACKEND…".into());
    }
    let conf = ServerConf { upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let bare = Bare { backends, turn: AtomicUsize::new(0) };
    let mut service = http_proxy_service(&server.configuration, bare);
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    service.app_logic_mut().ok_or("the service has no logic")?.server_options = Some(options);
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever()
}
