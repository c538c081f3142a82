//! The one place that opens listeners and dials peers, so that identity and encryption have one home.
//!
//! Today a link is plain: TCP within the lab, and a Unix socket for the local administrator. Nothing else in the
//! workspace may name `TcpListener` or `TcpStream`; `cargo xtask tidy` holds everybody to it.
//!
//! The client knows several servers and stays with the one that answered last. It opens a connection for each request:
//! requests are few (a person's command, a worker's report), and a pool would be one more thing that can be stale.

pub mod client;
pub mod endpoint;
pub mod file;
pub mod guard;
pub mod web_socket;

pub use client::{ByteStream, Client, ClientError, Lines, Problem, Response, Upgraded};
pub use endpoint::{Endpoint, EndpointError, Listener, Peer, Stream};
pub use web_socket::WebSocket;
