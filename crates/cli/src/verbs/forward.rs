//! `lightbyte forward`: a port of this machine that is a port of a guest, over the cluster's own way into it. The guest
//! needs no network for it.

use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::object::ObjectRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{LocalSet, spawn_local};

use crate::arguments::{Forward, Ports};
use crate::cluster::Cluster;
use crate::failure::{self, Code, Failure};
use crate::remote::{self, AGENT, CHUNKS_MAX};
use crate::session::{self, CHUNK_BYTES};
use crate::target;
use crate::terminal::{say, say_error};

/// Connections at once, of all ports together: half of what a guest's agent serves, so that others reach it too.
const CONNECTIONS_MAX: usize = 32;

/// Ports that one command listens on.
const PORTS_MAX: usize = 32;

/// Pause after a failed accept, which could repeat at once for ever.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(cluster: Cluster, words: &Forward) -> Result<Code> {
    let object = target::read_vm(std::slice::from_ref(&words.target))?;
    // Ports are listened on before anybody connects, and nobody would be told then.
    cluster.object(&object).await?;
    if words.stdio {
        let [Ports { here, guest }] = words.ports.as_slice() else {
            return Err(Failure::usage("with `--stdio` one port of the guest is needed").into());
        };
        if here != guest {
            return Err(Failure::usage("with `--stdio` there is no port here").into());
        }
        return join_stdio(&cluster, &object, *guest).await;
    }
    if words.ports.len() > PORTS_MAX {
        return Err(Failure::usage(format!("more than {PORTS_MAX} ports")).into());
    }
    let mut listeners = Vec::new();
    for ports in &words.ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.here)).await;
        let listener = listener.with_context(|| format!("listen on 127.0.0.1:{}", ports.here))?;
        let address = listener.local_addr().context("ask for the port")?;
        say(&format!("{address} is port {} of {object}; Ctrl-C ends it", ports.guest));
        listeners.push((listener, ports.guest));
    }
    let shared = Rc::new(Shared { cluster, object });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut ended = session::Ended::listen()?;
    let serving = LocalSet::new();
    for (listener, guest) in listeners {
        serving.spawn_local(accept(shared.clone(), listener, guest, places.clone()));
    }
    // Dropping the set ends what is still carried.
    serving.run_until(ended.wait()).await;
    Ok(Code::Done)
}

struct Shared {
    cluster: Cluster,
    object: ObjectRef,
}

async fn accept(shared: Rc<Shared>, listener: TcpListener, guest: u16, places: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                say(&format!("accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shared = shared.clone();
        spawn_local(async move {
            if let Err(error) = serve(&shared, stream, guest).await {
                say_error(&failure::describe(&error));
            }
            drop(place);
        });
    }
}

/// Carries one connection until both ways have ended.
async fn serve(shared: &Shared, stream: TcpStream, guest: u16) -> Result<()> {
    let (from_client, to_client) = stream.into_split();
    let (input, heard) = mpsc::channel(CHUNKS_MAX);
    let (output, said) = mpsc::channel(CHUNKS_MAX);
    let reading = spawn_local(read(from_client, input));
    let mut writing = spawn_local(write(to_client, said));
    let port = guest.to_string();
    let command = [AGENT, "connect", &port];
    let running = remote::run(&shared.cluster, &shared.object, &command, Some(heard), output);
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => {
            // What was said last is still on its way to the client.
            let _ = writing.await;
            Some(ended)
        }
        is_heard = &mut writing => match is_heard {
            // The service has ended its way; the client's may go on.
            Ok(true) => Some(running.await),
            // Nobody hears it any more, and a service may speak for ever: dropping this ends it.
            _ => None,
        },
    };
    reading.abort();
    match ended {
        Some(ended) => Ok(ended?.check(|| format!("port {port} of `{}`", shared.object))?),
        None => Ok(()),
    }
}

async fn read(mut client: OwnedReadHalf, input: mpsc::Sender<Vec<u8>>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    // A client that resets the connection has ended, too.
    while let Ok(bytes @ 1..) = client.read(&mut chunk).await {
        if input.send(chunk[..bytes].to_vec()).await.is_err() {
            return;
        }
    }
}

/// Whether the client took everything.
async fn write(mut client: OwnedWriteHalf, mut said: mpsc::Receiver<Vec<u8>>) -> bool {
    while let Some(bytes) = said.recv().await {
        if client.write_all(&bytes).await.is_err() {
            return false;
        }
    }
    client.shutdown().await.is_ok()
}

/// Standard input and output are the connection.
async fn join_stdio(cluster: &Cluster, object: &ObjectRef, guest: u16) -> Result<Code> {
    let (output, mut said) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
    let port = guest.to_string();
    let command = [AGENT, "connect", &port];
    let writing = async move {
        while let Some(bytes) = said.recv().await {
            let mut stdout = io::stdout();
            stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("write what the guest says")?;
        }
        // Whoever reads it is told its end, and may go on writing.
        session::close_output()
    };
    let running = remote::run(cluster, object, &command, Some(session::input()?), output);
    let (ended, written) = tokio::join!(running, writing);
    ended?.check(|| format!("port {port} of `{object}`"))?;
    written.map(|()| Code::Done)
}
