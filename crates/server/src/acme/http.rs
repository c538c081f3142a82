//! The way to a certification authority: HTTPS, a connection for each request, with limits.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http::header::HOST;
use http::uri::Scheme;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a request may take.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// The largest answer. A chain has some kilobytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// A client that trusts whom this machine trusts.
pub(super) struct Https {
    connector: TlsConnector,
}

impl Https {
    /// Reads the machine's certificates of authorities: those in `SSL_CERT_FILE`, if that is set.
    pub(super) fn new() -> Result<Https> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs()
            .context("read the authorities that this machine trusts")?;
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            bail!("this machine trusts no certification authority; install ca-certificates");
        }
        Https::trusting(roots)
    }

    /// A client that trusts these.
    pub(super) fn trusting(roots: RootCertStore) -> Result<Https> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Https { connector: TlsConnector::from(Arc::new(config)) })
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let connector = self.connector.clone();
        Box::pin(async move {
            let uri = request.uri().clone();
            let asked = timeout(REQUEST_WITHIN, ask(connector, request)).await;
            let asked = asked.map_err(|_| anyhow!("no answer in time")).and_then(|asked| asked);
            asked.map_err(|error| Error::Other(error.context(format!("ask {uri}")).into()))
        })
    }
}

async fn ask(connector: TlsConnector, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse> {
    let (mut parts, body) = request.into_parts();
    // What the authority says leads on, and only to where nobody listens in.
    let (host, port) = place(&parts.uri)?;
    let body = body.collect().await.map_err(|error| anyhow!("{error}"))?.to_bytes();
    parts.headers.insert(HOST, HeaderValue::from_str(parts.uri.authority().context("no host")?.as_str())?);
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let stream = TcpStream::connect((host.as_str(), port)).await.context("connect")?;
    let stream = connector.connect(ServerName::try_from(host)?, stream).await.context("greet by TLS")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = answer.into_parts();
        let body =
            Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!("{error}"))?;
        Ok(http::Response::from_parts(parts, Full::new(body.to_bytes())).into())
    };
    // The connection is driven for as long as it has something to say.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

fn place(uri: &Uri) -> Result<(String, u16)> {
    if uri.scheme() != Some(&Scheme::HTTPS) {
        bail!("{uri} is no address of HTTPS");
    }
    let host = uri.host().with_context(|| format!("{uri} names no host"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443)))
}
