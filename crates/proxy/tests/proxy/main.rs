//! The proxy on loopback ports, with small backends: real connections, and nothing made up between them.

mod backends;
mod hostile;
mod leaving;
mod limits;
mod protocols;
mod removal;
mod restart;
mod rig;
mod routing;
mod tls;
