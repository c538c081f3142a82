//! How `lightbyte dev status|stop|kill|start` reach the supervisor: one line of JSON each way over a Unix socket that
//! only the owner of the state can open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::forward::Forwards;
use anyhow::{Context as _, Result, bail};
use lightbyte_link::{Endpoint, Listener, Stream};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// The longest request or answer.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// How long the supervisor may take to answer: it stops a whole lab within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How is the lab?
    Status,
    /// End everything.
    Stop,
    /// Cut the power of a host.
    Kill(String),
    /// Restore the power of a host.
    Start(String),
}

/// How a lab is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    /// Where its state is.
    pub state: PathBuf,
    /// Whether all its workers have been ready once.
    pub ready: bool,
    /// Its servers.
    pub servers: Vec<String>,
    /// Where it answers by DNS, if the machine reaches it there.
    #[serde(default)]
    pub resolver: Option<String>,
    /// Its hosts, and whether each has power.
    pub hosts: Vec<(String, bool)>,
    /// The ports that lead into it, when the machine does not reach it.
    #[serde(default)]
    pub forwards: Option<Forwards>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// How the lab is.
    Status(LabStatus),
    /// It is done.
    Done,
    /// It cannot be done.
    Refused(String),
}

fn endpoint(state: &Path) -> Endpoint {
    Endpoint::Unix(state.join("control"))
}

/// Listens for requests.
///
/// # Errors
/// What the system says.
pub async fn listen(state: &Path) -> Result<Listener> {
    Listener::bind(&endpoint(state)).await.context("listen at the control socket")
}

/// Whether a supervisor of `state` takes requests.
pub async fn is_answered(state: &Path) -> bool {
    endpoint(state).connect().await.is_ok()
}

/// Reads the one request of a connection.
///
/// # Errors
/// When it breaks, or is no request.
pub async fn read_request(stream: &mut BufReader<Stream>) -> Result<Request> {
    Ok(serde_json::from_slice(&read_line(stream).await?)?)
}

/// Answers it.
///
/// # Errors
/// When the connection breaks.
pub async fn answer(stream: &mut BufReader<Stream>, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(stream.flush().await?)
}

/// Asks the supervisor of `state`.
///
/// # Errors
/// When there is none, or it refuses.
pub async fn ask(state: &Path, request: &Request) -> Result<Answer> {
    let stream = endpoint(state).connect().await;
    let shown = state.display();
    let stream = stream.with_context(|| {
        format!("no lab runs with the state {shown}; `lightbyte dev --state {shown}` starts one")
    })?;
    let mut stream = BufReader::new(stream);
    let exchange = async {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        anyhow::Ok(serde_json::from_slice::<Answer>(&read_line(&mut stream).await?)?)
    };
    match tokio::time::timeout(ANSWER_WITHIN, exchange).await.context("the lab does not answer")?? {
        Answer::Refused(reason) => bail!("{reason}"),
        answer => Ok(answer),
    }
}

async fn read_line(stream: &mut BufReader<Stream>) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    Ok(line)
}
