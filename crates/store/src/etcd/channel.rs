//! A channel that stays with one member until somebody says that it is bad.
//!
//! Spreading requests over all members means that one bad member fails its share of them for ever (measured: 25 to
//! 45 %). Staying with one and moving on costs one failed try. Who judges is not this channel but whoever sees the
//! outcome of a call ([`super::call`]): a time limit or a broken stream is not visible from here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, Service};

use super::EtcdOptions;
use crate::error::{StoreError, cause};

/// The members and which of them is used.
pub(super) struct Members {
    /// The client URL of each member and its channel.
    channels: Vec<(String, Channel)>,
    turn: AtomicUsize,
}

/// The member that a call was made to, as the turn it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn(usize);

impl Members {
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        if options.endpoints.is_empty() {
            return Err(StoreError::Misconfigured(cause("no endpoint of etcd is given")));
        }
        let connect = |url: &String| -> Result<(String, Channel), StoreError> {
            let endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| StoreError::Misconfigured(Arc::new(error)))?;
            let channel = endpoint
                .connect_timeout(options.connect_timeout)
                .http2_keep_alive_interval(options.keep_alive_interval)
                .keep_alive_timeout(options.keep_alive_timeout)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .connect_lazy();
            Ok((url.clone(), channel))
        };
        let channels = options.endpoints.iter().map(connect).collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self { channels, turn: AtomicUsize::new(0) })
    }

    /// The turn that a call made now goes to.
    pub(super) fn turn(&self) -> Turn {
        Turn(self.turn.load(Ordering::Relaxed))
    }

    /// The member of this turn failed: the next one takes over, unless that has happened already (many calls fail
    /// together, and must not skip members).
    pub(super) fn leave(&self, Turn(turn): Turn) {
        let _ = self.turn.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Every member, in the order of the options.
    pub(super) fn endpoints(&self) -> &[(String, Channel)] {
        &self.channels
    }

    fn channel(&self) -> Channel {
        let Turn(turn) = self.turn();
        // There is at least one: `new` refuses an empty list.
        self.channels[turn % self.channels.len()].1.clone()
    }
}

/// The channel that etcd-client is given.
#[derive(Clone)]
pub(super) struct Failover(Arc<Members>);

impl Failover {
    pub(super) fn new(members: Arc<Members>) -> Self {
        Self(members)
    }
}

impl Service<http::Request<Body>> for Failover {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Which member is asked is decided per call, so readiness is awaited there.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut channel = self.0.channel();
        Box::pin(async move {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            Ok(channel.call(request).await?)
        })
    }
}
