//! Parts of an image go to the server that this command talks to: in chunks, from where the last one ended, whichever server
//! that is by then.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::ByteSize;
use lightbyte_api::parts::{PART_CHUNK_BYTES_MAX, PartState};
use lightbyte_link::ClientError;

use super::PartFile;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::terminal::say;

/// How often in a row a chunk may come to nothing: servers come back, and others take over.
const TRIES_MAX: u32 = 10;
/// The pause after such a try.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a server may take for one chunk: with the last one it reads the whole part again.
const CHUNK_WITHIN: Duration = Duration::from_secs(600);

/// Sends the part unless the server has it.
pub(super) async fn send(cluster: &Cluster, directory: &Path, part: &PartFile) -> Result<()> {
    let what = || format!("send `{}`", part.file);
    let file = File::open(directory.join(&part.file)).with_context(what)?;
    let client = cluster.client().within(CHUNK_WITHIN);
    let path = format!("/v1/parts/{}", part.sha256.to_ascii_lowercase());
    let size = part.bytes;
    let (mut position, mut tries, mut sent) = (None, 0, false);
    loop {
        let answer = match position {
            None => client.get::<PartState>(&format!("{path}/state?size={size}")).await,
            Some(offset) => {
                sent = true;
                let chunk = read(&file, offset, size).with_context(what)?;
                client.post_bytes::<PartState>(&format!("{path}?size={size}&offset={offset}"), chunk).await
            }
        };
        match answer {
            Ok(answer) if answer.value.held => {
                let verb = if sent { "sent" } else { "the cluster has" };
                say(&format!("{verb} {} ({})", part.file, ByteSize::from_bytes(size)));
                return Ok(());
            }
            Ok(answer) => {
                let received = answer.value.received;
                // A server that does not get further is no better than one that does not answer.
                tries = if position.is_none_or(|before| received > before) { 0 } else { tries + 1 };
                position = Some(received);
            }
            Err(error) if !may_go_on(&error) => return Err(error).with_context(what),
            Err(error) if tries >= TRIES_MAX => return Err(error).with_context(what),
            Err(_) => {
                tries += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                // It may be another server now, which has another part of it.
                position = None;
                continue;
            }
        }
        if tries >= TRIES_MAX {
            let message = format!("the server does not take `{}`", part.file);
            return Err(Failure::new(Code::Error, message).hint("its log says why").into());
        }
    }
}

/// Whether another try may succeed: the server is away or busy, or somebody else sends the same part.
fn may_go_on(error: &ClientError) -> bool {
    match error.status() {
        None => !matches!(error, ClientError::Answer { .. }),
        // One that keeps no parts at all says so in the same way as one where somebody else sends it; the tries end.
        Some(status) => matches!(status, 409 | 429 | 502..=504),
    }
}

fn read(file: &File, offset: u64, size: u64) -> std::io::Result<bytes::Bytes> {
    let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut chunk = vec![0; left.min(PART_CHUNK_BYTES_MAX)];
    file.read_exact_at(&mut chunk, offset)?;
    Ok(chunk.into())
}
