//! An object together with its `ETag`. The link's client hands out no headers, and `If-Match` needs this one.

use std::time::Duration;

use http::header::ETAG;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lightbyte_link::client::{ANSWER_BYTES_MAX, ANSWER_WITHIN, CONNECT_WITHIN};
use lightbyte_link::{Client, ClientError, Endpoint, Problem};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// `GET path` of the first server that answers, with the version of what it shows.
pub(crate) async fn get<T: DeserializeOwned>(
    client: &Client,
    path: &str,
) -> Result<(T, String), ClientError> {
    let mut tried = Vec::new();
    for endpoint in client.endpoints() {
        match exchange(endpoint, path).await {
            Ok((status, version, body)) => return read(endpoint, status, version, &body),
            Err(cause) => tried.push(format!("{endpoint} ({cause})")),
        }
    }
    Err(ClientError::Unreachable { tried: tried.join(", ") })
}

fn read<T: DeserializeOwned>(
    endpoint: &Endpoint,
    status: u16,
    version: String,
    body: &[u8],
) -> Result<(T, String), ClientError> {
    if !(200..300).contains(&status) {
        let title = format!("the server answered {status}");
        let problem = serde_json::from_slice(body).unwrap_or(Problem { title, ..Problem::default() });
        return Err(ClientError::Refused(Problem { status, ..problem }));
    }
    let wrong = |source| ClientError::Answer { endpoint: endpoint.clone(), source };
    Ok((serde_json::from_slice(body).map_err(wrong)?, version))
}

async fn exchange(endpoint: &Endpoint, path: &str) -> Result<(u16, String, Bytes), Cause> {
    let stream = timeout(CONNECT_WITHIN, endpoint.connect()).await??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The connection ends with its one exchange; what goes wrong with it shows in the exchange.
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header("host", "lightbyte")
        .body(Empty::<Bytes>::new())?;
    let response = timeout(ANSWER_WITHIN, sender.send_request(request)).await??;
    let version = response.headers().get(ETAG).and_then(|version| version.to_str().ok());
    let version = version.unwrap_or_default().to_owned();
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    Ok((status, version, timeout(BODY_WITHIN, body.collect()).await??.to_bytes()))
}

/// How long the body of an answer that has begun may take.
const BODY_WITHIN: Duration = Duration::from_secs(20);
