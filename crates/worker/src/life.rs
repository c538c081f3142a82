//! Registration and heartbeats: what makes the cluster believe that this worker is there.

use std::time::Duration;

use lightbyte_api::observed::ObservedWorker;
use lightbyte_api::wire::{Heartbeat, HeartbeatAnswer};
use lightbyte_api::{Timestamp, WorkerId};
use lightbyte_link::{Client, ClientError};
use tokio::sync::watch;
use tokio::time::timeout;

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a server may take to acknowledge a heartbeat: less than half of a lease, so that another can be asked in time.
const BEAT_WITHIN: Duration = Duration::from_secs(2);
/// How many heartbeats a lease should see in its life: two may be lost.
const BEATS_PER_LEASE: u64 = 3;

/// How long a worker waits before it counts as alive, for its reports to be those of this run: something that cannot be
/// reported must not keep a host away.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);

/// Registers, waits until its reports are true, and beats until the end of the task. A worker that came to life before would
/// vouch for what an earlier run has said of VMs that a power cut has ended.
pub(crate) async fn keep_alive(
    worker: WorkerId,
    mut said: watch::Receiver<ObservedWorker>,
    client: Client,
    mut caught_up: watch::Receiver<bool>,
    acknowledged: watch::Sender<Option<Timestamp>>,
) {
    loop {
        let now = said.borrow_and_update().clone();
        register(worker, &now, &client).await;
        // Its sender lives as long as the agent, which ends this task.
        let _ = timeout(CATCH_UP_WITHIN, caught_up.wait_for(|caught_up| *caught_up)).await;
        tokio::select! {
            () = beat_while_known(worker, &now.boot_id, &client, &acknowledged) => {}
            // What it says of itself is another now. A worker that can say nothing new goes on beating.
            () = changed(&mut said) => {}
        }
    }
}

async fn changed(said: &mut watch::Receiver<ObservedWorker>) {
    if said.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn register(worker: WorkerId, said: &ObservedWorker, client: &Client) {
    let path = format!("/v1/workers/{worker}/register");
    let mut told = String::new();
    loop {
        match client.post::<_, ()>(&path, said).await {
            Ok(_) => {
                tracing::info!(name = %said.name, %worker, "registered");
                return;
            }
            Err(error) => {
                // The same answer again is no news.
                let text = describe(&error);
                if text != told {
                    tracing::warn!("cannot register as `{}`: {text}", said.name);
                    told = text;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Beats until a server says that it does not know this worker.
async fn beat_while_known(
    worker: WorkerId,
    boot_id: &str,
    client: &Client,
    acknowledged: &watch::Sender<Option<Timestamp>>,
) {
    let path = format!("/v1/workers/{worker}/heartbeat");
    let heartbeat = Heartbeat { boot_id: boot_id.to_owned() };
    let client = client.within(BEAT_WITHIN);
    let mut failing = false;
    loop {
        let sent_at = Timestamp::now();
        let pause = match client.post::<_, HeartbeatAnswer>(&path, &heartbeat).await {
            Ok(answer) => {
                acknowledged.send_replace(Some(sent_at));
                if std::mem::take(&mut failing) {
                    tracing::info!("heartbeats are acknowledged again");
                }
                Duration::from_millis(answer.value.ttl_millis / BEATS_PER_LEASE)
            }
            Err(error) if error.status() == Some(404) => return,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("heartbeat is not acknowledged: {}", describe(&error));
                }
                RETRY_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// An error with its causes and its hint, in one line.
pub(crate) fn describe(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    match error {
        ClientError::Refused(problem) => match &problem.hint {
            Some(hint) => format!("{text} ({hint})"),
            None => text,
        },
        _ => text,
    }
}
