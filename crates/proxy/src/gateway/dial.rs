//! Connections to backends of HTTP/1, with a second handle by which a try can be taken away.

use std::os::fd::AsFd;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::ext;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{Digest, GetProxyDigest as _};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;

use crate::waits::Leash;

/// Connects as the library does, and hangs a leash on the stream. The library bounds the time of it.
#[derive(Debug)]
pub(super) struct Dial;

#[async_trait]
impl L4Connect for Dial {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let stream = connect(address).await?;
        // Without a second handle (no descriptors left) the try just waits as long as it may.
        let leash = stream.as_fd().try_clone_to_owned().ok().map(|socket| Arc::new(Leash::new(socket)));
        let mut stream: Stream = stream.into();
        stream.set_nodelay()?;
        if let Some(leash) = leash {
            // The one place where the library carries something of ours from the stream to the request.
            let header = Box::new(ResponseHeader::build(200, Some(0))?);
            stream.set_proxy_digest(ProxyDigest::new(header, Some(Box::new(leash))));
        }
        Ok(stream)
    }
}

/// Connects as the library does.
pub(super) async fn connect(address: &SocketAddr) -> Result<impl AsFd + Into<Stream>> {
    let address = address.as_inet().copied();
    let address = address.ok_or_else(|| Error::explain(ErrorType::ConnectError, "no address"))?;
    ext::connect(&address, None).await
}

/// The leash of the connection that the library has chosen.
pub(super) fn leash_of(digest: &Digest) -> Option<&Arc<Leash>> {
    digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
}
