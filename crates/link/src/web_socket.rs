//! A WebSocket as a stream of bytes: what is in one message and what in the next means nothing here.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::client::{ClientError, Upgraded};
use crate::endpoint::Endpoint;

/// The longest message that is read: what comes is cut by servers of ours into much smaller ones.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// How long the other side may say nothing: servers of ours ask every twenty seconds whether we are still there. A machine
/// that lost its power says nothing either.
const SILENCE_MAX: Duration = Duration::from_secs(65);

/// An open WebSocket.
pub struct WebSocket {
    endpoint: Endpoint,
    stream: WebSocketStream<Upgraded>,
}

/// The half that sends.
pub struct Sender {
    endpoint: Endpoint,
    sink: SplitSink<WebSocketStream<Upgraded>, Message>,
}

/// The half that receives. It has to be read: it also answers the pings of the other side.
pub struct Receiver {
    endpoint: Endpoint,
    stream: SplitStream<WebSocketStream<Upgraded>>,
}

impl WebSocket {
    /// The client's side of a connection whose handshake is done.
    pub(crate) async fn of_client(endpoint: Endpoint, stream: Upgraded) -> WebSocket {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let stream = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
        WebSocket { endpoint, stream }
    }

    /// Two halves, so that neither direction waits for the other.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        let (sink, stream) = self.stream.split();
        (Sender { endpoint: self.endpoint.clone(), sink }, Receiver { endpoint: self.endpoint, stream })
    }
}

impl Sender {
    /// Sends bytes, and waits until the connection has taken them.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub async fn send(&mut self, bytes: Vec<u8>) -> Result<(), ClientError> {
        let sent = self.sink.send(Message::Binary(bytes.into())).await;
        sent.map_err(|error| broken(&self.endpoint, error))
    }

    /// Says goodbye. The other side may have gone already.
    pub async fn close(&mut self) {
        let _ = self.sink.close().await;
    }
}

impl Receiver {
    /// The next bytes; `None` when the other side has said goodbye. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`ClientError::Broken`], also when the other side has been silent for longer than it may.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let message = timeout(SILENCE_MAX, self.stream.next()).await.map_err(|silent| {
                ClientError::Broken { endpoint: self.endpoint.clone(), source: silent.into() }
            })?;
            match message {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(broken(&self.endpoint, error)),
            }
        }
    }
}

fn broken(endpoint: &Endpoint, error: tokio_tungstenite::tungstenite::Error) -> ClientError {
    ClientError::Broken { endpoint: endpoint.clone(), source: error.into() }
}
