//! The UDP ports. Threads of our own block on them: a query costs two system calls, and nothing wakes when none comes.
//!
//! A thread asks for one message and sends one answer. Whoever wants more per call (`recvmmsg`), or a socket for each
//! thread (`SO_REUSEPORT`), changes this file alone.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::net::{Shutdown, shutdown, sockopt};

use crate::answer::Verdict;
use crate::forward::{Client, Forwarder};
use crate::reply::Transport;
use crate::state::Shared;
use crate::wire::QUERY_BYTES_MAX;

/// What the kernel keeps of queries that wait, in bytes: a burst of some thousands. The kernel has a limit of its own
/// (`net.core.rmem_max`), and takes less if that says so.
const WAITING_BYTES: usize = 1024 * 1024;

/// Errors in a row after which a thread gives up: by then the port is broken and not merely short of something.
const FAILURES_MAX: u32 = 1_000;

/// A port and the threads that answer on it. They end when it is dropped.
#[derive(Debug)]
pub(crate) struct Port {
    socket: Arc<UdpSocket>,
    is_ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What a thread works with.
struct Worker {
    socket: Arc<UdpSocket>,
    is_ending: Arc<AtomicBool>,
    shared: Arc<Shared>,
    forwarder: Option<Forwarder>,
}

impl Port {
    /// Starts to answer.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn start(
        socket: UdpSocket,
        threads: usize,
        shared: &Arc<Shared>,
        forwarder: Option<&Forwarder>,
    ) -> io::Result<Port> {
        // Less is no reason to fail: the kernel gives what it allows.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, WAITING_BYTES);
        let mut port = Port {
            socket: Arc::new(socket),
            is_ending: Arc::default(),
            threads: Vec::with_capacity(threads),
        };
        for index in 0..threads {
            let worker = Worker {
                socket: Arc::clone(&port.socket),
                is_ending: Arc::clone(&port.is_ending),
                shared: Arc::clone(shared),
                forwarder: forwarder.cloned(),
            };
            let thread = thread::Builder::new().name(format!("dns-udp-{index}"));
            port.threads.push(thread.spawn(move || worker.run())?);
        }
        Ok(port)
    }

    /// How many of its threads are at work.
    pub(crate) fn threads(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Release);
        // It wakes whoever waits there, and then says that there is no connection.
        let _ = shutdown(&self.socket, Shutdown::Both);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn run(&self) {
        // One byte more tells what is too long.
        let mut message = vec![0; QUERY_BYTES_MAX + 1];
        let mut reply = Vec::with_capacity(QUERY_BYTES_MAX);
        let mut failures = 0;
        loop {
            let received = self.socket.recv_from(&mut message);
            if self.is_ending.load(Ordering::Acquire) {
                return;
            }
            match received {
                Ok((length, from)) => {
                    failures = 0;
                    // Nobody is at port 0.
                    if length <= QUERY_BYTES_MAX && from.port() != 0 {
                        self.handle(&message[..length], from, &mut reply);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failures += 1;
                    if failures == FAILURES_MAX {
                        tracing::error!(%error, "a thread of the DNS port cannot receive, and ends");
                        return;
                    }
                }
            }
        }
    }

    fn handle(&self, message: &[u8], from: SocketAddr, reply: &mut Vec<u8>) {
        match self.shared.answer(Transport::Udp, message, reply) {
            Verdict::Silence => {}
            // An answer that cannot be sent is lost, as any may be on its way.
            Verdict::Send { .. } => drop(self.socket.send_to(reply, from)),
            Verdict::Forward => self.forward(message, None, from),
            Verdict::Follow => self.forward(message, Some(reply), from),
        }
    }

    fn forward(&self, message: &[u8], begun: Option<&[u8]>, from: SocketAddr) {
        if let Some(forwarder) = &self.forwarder {
            forwarder.take(message, begun, Client { socket: Arc::downgrade(&self.socket), address: from });
        }
    }
}
