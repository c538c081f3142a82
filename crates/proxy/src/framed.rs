//! The stream that the HTTP library reads: a client's bytes, of HTTP/1 those alone that [`Framing`] lets pass.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::connection::Connection;
use crate::framing::Framing;

/// A connection's plain bytes.
pub(crate) struct Framed {
    stream: Stream,
    connection: Arc<Connection>,
    /// Read ahead and not yet taken.
    ahead: Vec<u8>,
    bytes: Bytes,
}

/// What the bytes are.
enum Bytes {
    Http1(Framing),
    /// Of HTTP/2, or of whatever a client has changed to: others look at those.
    Other,
    /// The client has broken the rules, and is heard no more. That is no end: what it asked for before is answered yet.
    Unheard,
    /// It has broken them in a body, which so has no end.
    Over,
}

impl Framed {
    /// Over TLS the protocol was agreed upon in the handshake; without it, the first bytes tell.
    pub(crate) fn new(stream: Stream, connection: Arc<Connection>) -> Framed {
        let is_h2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        let bytes = if is_h2 { Bytes::Other } else { Bytes::Http1(Framing::default()) };
        Framed { stream, connection, ahead: Vec::new(), bytes }
    }

    /// Looks at what was read behind `before`. A byte that breaks the rules becomes a NUL, which the library takes nowhere in a head
    /// or a size, and is the last: so it is the library that answers, as it does to everything that it cannot read.
    fn look(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        let Bytes::Http1(framing) = &mut self.bytes else { return };
        if self.connection.has_changed_protocol() {
            self.bytes = Bytes::Other;
        } else if let Err(flaw) = framing.read(&buffer.filled()[before..]) {
            let position = before + flaw.passes;
            buffer.filled_mut()[position] = 0;
            buffer.set_filled(position + 1);
            self.bytes = if flaw.is_in_body { Bytes::Over } else { Bytes::Unheard };
        }
    }
}

impl fmt::Debug for Framed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(formatter)
    }
}

impl AsyncRead for Framed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.bytes {
            // It was no request, but something that came too early: what is lost of it cannot be had again.
            Bytes::Unheard if self.connection.has_changed_protocol() => return Poll::Ready(Ok(())),
            // Nobody has to be woken: the NUL before this ends the connection as soon as it is read.
            Bytes::Unheard => return Poll::Pending,
            Bytes::Over => return Poll::Ready(Ok(())),
            Bytes::Http1(_) | Bytes::Other => {}
        }
        let before = buffer.filled().len();
        if self.ahead.is_empty() {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        } else {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.drain(..length);
        }
        self.look(buffer, before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Framed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Peek for Framed {
    /// The library asks for the preface of HTTP/2 (RFC 9113, 3.4). Bytes are read only while they could still be one: a short
    /// request of HTTP/1 is shorter than the preface, and to wait for the rest would be to wait for ever.
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut length = 0;
        while length < buffer.len() && PREFACE.starts_with(&buffer[..length]) {
            let read = self.stream.read(&mut buffer[length..]).await?;
            if read == 0 {
                break;
            }
            length += read;
        }
        buffer[length..].fill(0);
        if buffer == PREFACE {
            self.bytes = Bytes::Other;
        }
        self.ahead.splice(..0, buffer[..length].iter().copied());
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Framed {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

impl UniqueID for Framed {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Framed {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Framed {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for Framed {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Framed {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}
