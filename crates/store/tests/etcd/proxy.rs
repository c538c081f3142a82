//! A TCP proxy that loses what it is told to lose.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What the proxy does with what passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything passes.
    #[default]
    Pass,
    /// Nothing passes and nothing is closed: a network that swallows.
    Hold,
    /// Requests pass, answers are thrown away.
    DropAnswers,
    /// Requests pass, answers wait.
    HoldAnswers,
    /// The next bytes of a client are thrown away with their connection; then everything passes.
    CutNextRequest,
}

#[derive(Debug, Clone, Default)]
struct Control {
    mode: Mode,
    /// Connections of these etcd members (their ids in hex) are held too.
    held_members: BTreeSet<String>,
    /// A connection older than this is closed.
    generation: u64,
}

/// A running proxy; dropping it closes everything.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    control: watch::Sender<Control>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Begins to listen on a free loopback port.
    pub(crate) async fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a loopback port");
        let address = listener.local_addr().expect("an address");
        let control = watch::Sender::new(Control::default());
        let shared = control.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, target, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, control, accepting }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.control.send_modify(|control| control.mode = mode);
    }

    /// Closes every connection that is open now.
    pub(crate) fn cut(&self) {
        self.control.send_modify(|control| control.generation += 1);
    }

    pub(crate) fn hold_member(&self, id: u64, held: bool) {
        self.control.send_modify(|control| {
            let id = format!("{id:x}");
            if held {
                control.held_members.insert(id)
            } else {
                control.held_members.remove(&id)
            };
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, control: watch::Sender<Control>) {
    let mut changes = control.subscribe();
    let born = changes.borrow().generation;
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut from_member = None;
    loop {
        let now = changes.borrow_and_update().clone();
        if now.generation != born {
            return;
        }
        let held =
            now.mode == Mode::Hold || from_member.as_ref().is_some_and(|id| now.held_members.contains(id));
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            read = client.read(&mut up), if !held => {
                let Ok(count @ 1..) = read else { return };
                if now.mode == Mode::CutNextRequest {
                    control.send_modify(|control| control.mode = Mode::Pass);
                    return;
                }
                if from_member.is_none() {
                    from_member = Some(sender(&up[..count]));
                }
                if server.write_all(&up[..count]).await.is_err() { return }
            }
            read = server.read(&mut down), if !held && now.mode != Mode::HoldAnswers => {
                let Ok(count @ 1..) = read else { return };
                if now.mode != Mode::DropAnswers && client.write_all(&down[..count]).await.is_err() { return }
            }
        }
    }
}

/// The id of the etcd member that speaks, from the header that members send each other; empty for anybody else.
fn sender(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    let value = text.split_once("X-Server-From: ").map_or("", |(_, rest)| rest);
    value.chars().take_while(char::is_ascii_hexdigit).collect()
}
