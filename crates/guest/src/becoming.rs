//! Makes the guest what the host says that it is: network, disks, and at its first boot what is done once.

use std::rc::Rc;

use anyhow::{Context as _, Result};
use lightbyte_guest::protocol::{FirstBoot, Identity};
use tokio::task::{spawn_blocking, spawn_local};

use crate::agent::Agent;
use crate::{dhcp, first_boot, grow, mounts, network, notify};

/// Applies an identity; the same again changes nothing. Disks that cannot be mounted and a first boot that fails are
/// told by `GET /v1/info`: a guest that runs can be mended.
///
/// # Errors
/// If the network cannot be set up so. When only an address by DHCP is missing, all else is done.
pub(crate) async fn apply(agent: &Rc<Agent>, mut identity: Identity) -> Result<()> {
    let _alone = agent.becoming.lock().await;
    let before = agent.identity.borrow().clone();
    network::apply(&identity, before.as_ref())?;
    let leased = dhcp::apply(agent, &identity).await;
    network::write_files(&identity, &agent.dhcp.borrow().leases())?;
    let wanted = std::mem::take(&mut identity.first_boot);
    let mounts = identity.mounts.clone();
    agent.identity.replace(Some(identity));
    agent.reached(|milestones| &mut milestones.network);
    if !mounts.is_empty() {
        // Replaying a journal takes its time, and the agent answers meanwhile.
        let mounted = spawn_blocking(move || {
            let mounted = mounts::apply(&mounts);
            grow::grow();
            mounted
        });
        let error = mounted.await.context("mount disks")?.err();
        agent.mount_error.replace(error.map(|error| format!("{error:#}")).unwrap_or_default());
    }
    agent.set_up.send_replace(true);
    begin(agent, wanted).await?;
    notify::ready();
    leased
}

/// Begins the work of the first boot, unless it was done, or is being done.
async fn begin(agent: &Rc<Agent>, wanted: FirstBoot) -> Result<()> {
    if wanted == FirstBoot::default() || agent.first_boot_begun.replace(true) {
        return Ok(());
    }
    let script = wanted.script.clone();
    let written = spawn_blocking(move || match first_boot::before() {
        Some(before) => Err(before),
        None => Ok(first_boot::write(&wanted)),
    });
    match written.await.context("do what a first boot does")? {
        Err(before) => {
            agent.first_boot.replace(before);
        }
        Ok(written) => {
            let error = written.err().map(|error| format!("{error:#}")).unwrap_or_default();
            let agent = agent.clone();
            spawn_local(async move {
                // A script may need its network.
                dhcp::all_leased(&agent).await;
                first_boot::finish(agent, script, error).await;
            });
        }
    }
    Ok(())
}
