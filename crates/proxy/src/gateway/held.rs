//! Connections for WebSockets, on which an answer is not read before the request has ended.
//!
//! The library tells itself through a pipe that a request has no body. If the backend's 101 is read before that note is
//! taken, the note is held for the end of the tunnel, and the tunnel is closed. The library flushes a connection once
//! after the head and once more when it takes the note, so until the second flush this stream shows nothing to read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// After the head, and after the end of the request.
const FLUSHES: u8 = 2;

/// Connects with streams that hold back.
#[derive(Debug)]
pub(super) struct Dial;

#[async_trait]
impl L4Connect for Dial {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        // The library bounds the time of this.
        let mut stream: Stream = super::dial::connect(address).await?.into();
        stream.set_nodelay()?;
        let held = Held { stream, flushes: 0, waker: None };
        Ok(Stream::from(VirtualSocketStream::new(Box::new(held))))
    }
}

/// A stream that shows nothing to read before the second flush.
#[derive(Debug)]
struct Held {
    stream: Stream,
    flushes: u8,
    waker: Option<Waker>,
}

impl VirtualSocket for Held {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        // What the library sets on every connection was set when this one was made; no more is asked for.
        Ok(())
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.flushes < FLUSHES {
            self.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(result, Poll::Ready(Ok(()))) && self.flushes < FLUSHES {
            self.flushes += 1;
            if self.flushes == FLUSHES
                && let Some(waker) = self.waker.take()
            {
                waker.wake();
            }
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
