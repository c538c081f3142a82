//! Tells the host that the agent listens, so that nobody has to poll.

use std::time::Duration;

use lightbyte_guest::protocol::{READY_ANSWER, READY_PORT, Ready};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::agent::{VERSION, boot_ms};

/// First pause after a failed try: the host's worker may be restarting.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// Longest pause: what a restarted worker may have to wait for an already running guest, unless it asks by itself.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long one try may take.
const TRY_MAX: Duration = Duration::from_secs(10);

/// Dials the host until it has understood.
pub(crate) async fn tell() {
    let mut pause = PAUSE_FIRST;
    loop {
        let ready = Ready { ready: true, agent: VERSION.to_owned(), boot_ms: boot_ms() };
        if let Ok(Ok(true)) = timeout(TRY_MAX, say(&ready)).await {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Says one line to the host; whether it was understood.
///
/// # Errors
/// If the host does not listen.
pub(crate) async fn say(what: &impl Serialize) -> std::io::Result<bool> {
    let mut stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, READY_PORT)).await?;
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = [0; READY_ANSWER.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer == READY_ANSWER)
}
