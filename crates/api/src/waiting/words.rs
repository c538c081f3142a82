//! Reasons to wait in words: what is waited for, and what a person can do about it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::{WaitingOn, WorkerTask};
use crate::placing::Clause;

impl WaitingOn {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            WaitingOn::Capacity { .. } => {
                "`lightbyte get workers` shows what is free; add a worker, or delete something".to_owned()
            }
            WaitingOn::WorkersFull => {
                "delete a VM, add a worker, or start an agent with a larger `--vms-max`".to_owned()
            }
            WaitingOn::Workers { .. } => {
                "`lightbyte get workers` shows which are alive and cordoned".to_owned()
            }
            WaitingOn::WorkerLabels { .. } => {
                "`lightbyte get workers -o yaml` shows their labels; `lightbyte edit worker/NAME` changes them, or ask for others".to_owned()
            }
            WaitingOn::Preempting { worker } => {
                format!("`lightbyte describe worker/{worker}` shows what is on it")
            }
            WaitingOn::WorkersReserved => {
                "give it the labels of `only_for` of a worker, or change that: `lightbyte edit worker/NAME`".to_owned()
            }
            WaitingOn::KeptNear { .. } => {
                "`lightbyte get vms -l` with these labels shows where they are; make one, or leave out `placement.near`"
                    .to_owned()
            }
            WaitingOn::KeptApart => {
                "add a worker, delete such a VM, or let them be together: `placement.apart`".to_owned()
            }
            WaitingOn::Missing { object } if object.kind == crate::Kind::Image => {
                "`lightbyte get images` lists what there is; `lightbyte import image DIR` adds one".to_owned()
            }
            WaitingOn::Missing { object } => format!("create {object}, or change what names it"),
            WaitingOn::ImageVersion { image, .. } => {
                format!("`lightbyte describe image/{image}` lists its versions")
            }
            WaitingOn::Address { network } => {
                format!(
                    "`lightbyte describe network/{network}` shows its pool; delete something, or widen the pool"
                )
            }
            WaitingOn::NeedsPool { field, .. } => {
                format!("leave `{field}` out, or put it on a network that has a subnet and a pool")
            }
            WaitingOn::Squatted { network, address, .. } => format!(
                "take the address from that machine, then `lightbyte release address/{address} --network {network}`"
            ),
            WaitingOn::DiskTooSmall { size_min } => format!("ask for at least {size_min}"),
            WaitingOn::Worker { worker, .. }
            | WaitingOn::CrashLoop { worker }
            | WaitingOn::WorkerProblem { worker, .. } => {
                format!(
                    "`lightbyte describe worker/{worker}` shows the worker; the log of its agent says more"
                )
            }
            WaitingOn::WorkerRoom { worker, .. } => {
                format!(
                    "`lightbyte describe worker/{worker}` shows what is free; ask for less, or free something there"
                )
            }
            WaitingOn::WorkerPorts { .. } => {
                "`lightbyte get vms -o yaml` shows which VMs have `ports`; choose others, or delete one"
                    .to_owned()
            }
            WaitingOn::FirewallSources { .. } => {
                "name more labels, so that fewer VMs have all of them; or a subnet by `cidr`".to_owned()
            }
            WaitingOn::WorkerClosed { worker } => {
                format!("`lightbyte describe worker/{worker}` says how it is")
            }
            WaitingOn::VolumeHeld { volume, by } => {
                format!("`lightbyte detach volume/{volume} {by}` first, or attach it read-only to all")
            }
            WaitingOn::VolumeElsewhere { volume, .. } => format!(
                "detach volume/{volume}, or use one on the VM's worker; a snapshot of it makes another beside it"
            ),
            WaitingOn::VolumeGiven { volume } => format!("`lightbyte why volume/{volume}` says more"),
            WaitingOn::Source { object } => format!("`lightbyte why {object}` says more"),
            WaitingOn::Health { .. } => {
                "its console and its journal say more: `lightbyte logs`, with `--unit NAME` for a service"
                    .to_owned()
            }
            WaitingOn::Off => "`lightbyte start` starts it again".to_owned(),
            WaitingOn::WorkerAway { worker } => format!("start worker `{worker}` again"),
            WaitingOn::WorkerAlive { worker } => format!("stop the agent on `{worker}` first"),
            WaitingOn::InUse { by } => format!("delete {by} first"),
            WaitingOn::Child { child } => format!("`lightbyte why {child}` says what that waits for"),
            WaitingOn::Member { member } => format!("`lightbyte why {member}` says what that waits for"),
            WaitingOn::HealingPause => {
                "`lightbyte events` tells what became of them; their consoles say more: `lightbyte logs`"
                    .to_owned()
            }
            WaitingOn::Rejected { .. } => {
                "apply another template; or, where the group follows its image, make another version of that current"
                    .to_owned()
            }
            WaitingOn::Promotion { .. } => {
                "`lightbyte rollout promote GROUP` goes on, `lightbyte rollout undo GROUP` goes back"
                    .to_owned()
            }
            WaitingOn::Paused { .. } => {
                "`lightbyte rollout resume GROUP` goes on, `lightbyte rollout undo GROUP` goes back"
                    .to_owned()
            }
            WaitingOn::Protected { .. } => "`lightbyte unprotect vm/NAME` lets one go".to_owned(),
            WaitingOn::InRotation { loadbalancer } => {
                format!("`lightbyte describe lb/{loadbalancer}` says what is in flight")
            }
            WaitingOn::VirtualAddress { loadbalancer } => {
                format!("`lightbyte describe lb/{loadbalancer}` says who has it")
            }
            WaitingOn::AddressLeft { proxy } => format!("`lightbyte describe {proxy}` says how its worker is"),
            WaitingOn::Names => "it takes some seconds".to_owned(),
            WaitingOn::Proxies { group } => format!("`lightbyte why {group}` says what these wait for"),
            WaitingOn::Acknowledgement { proxy } | WaitingOn::Trial { proxy } => {
                format!("`lightbyte logs {proxy}` shows what its proxy says")
            }
            WaitingOn::TrialFailed { .. } => "ask for something else: the others go on with what they have".to_owned(),
            WaitingOn::CertificateExpires { .. }
            | WaitingOn::CertificateExpired { .. }
            | WaitingOn::CertificateUnusable { .. } => {
                "`lightbyte import certificate NAME --chain FILE --key FILE` puts another in its place".to_owned()
            }
            WaitingOn::Ordered { .. } => {
                "it takes some seconds; without `challenge: dns` a load balancer must name it among its `certificates`, and its names must lead there on port 80"
                    .to_owned()
            }
            WaitingOn::OrderFailed { .. } => {
                "without `challenge: dns`, port 80 of its names must lead to a load balancer that names it; `lightbyte describe secret/NAME` shows when it is asked again".to_owned()
            }
            WaitingOn::NoBackends { .. } => {
                "its VMs must run, and pass their `health` checks if they have any".to_owned()
            }
            WaitingOn::LossBrake => {
                "`lightbyte get workers` shows which; it may be their network, and not they".to_owned()
            }
            WaitingOn::Leaving { vm } => format!("`lightbyte why {vm}` says more about it"),
            WaitingOn::Staying { object } => {
                format!("its disk is kept where it is: move or delete {object}, or undrain the worker")
            }
            WaitingOn::Unreadable { .. } => {
                "upgrade this server to the newest version in the cluster".to_owned()
            }
            WaitingOn::Quarantined { .. } => {
                "report this as a bug; editing the object tries again".to_owned()
            }
        }
    }
}

/// To the second, as certificates have it.
fn day(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn in_words(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<String>>().join(", ")
}

impl fmt::Display for WaitingOn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitingOn::Capacity { cpus, memory } => {
                write!(formatter, "no worker has {cpus} CPU and {memory} free")
            }
            WaitingOn::WorkersFull => {
                formatter.write_str("every worker that has room for it has as many VMs as it takes")
            }
            WaitingOn::Workers { architecture } => {
                write!(formatter, "no {architecture} worker is ready to take it")
            }
            WaitingOn::WorkerLabels { on } => {
                let clauses: Vec<String> =
                    on.iter().map(|(key, wanted)| Clause(key, wanted).to_string()).collect();
                write!(formatter, "no worker that is ready has the labels {}", clauses.join(", "))
            }
            WaitingOn::Preempting { worker } => {
                write!(formatter, "members with a lower priority to leave their room on worker `{worker}`")
            }
            WaitingOn::WorkersReserved => {
                formatter.write_str("every worker that could take it is only for VMs with other labels")
            }
            WaitingOn::KeptNear { near } => {
                write!(formatter, "no worker that could take it has a VM with the labels {}", in_words(near))
            }
            WaitingOn::KeptApart => {
                formatter.write_str("every worker that could take it has a VM that it is to be apart from")
            }
            WaitingOn::Missing { object } => {
                write!(formatter, "{object} does not exist, or is being deleted")
            }
            WaitingOn::ImageVersion { image, version } => {
                write!(formatter, "image `{image}` has no version `{version}`")
            }
            WaitingOn::Address { network } => {
                write!(formatter, "network `{network}` has no free address for it")
            }
            WaitingOn::NeedsPool { network, field } => write!(
                formatter,
                "its `{field}` needs an address that is known, and those of network `{network}` come by DHCP"
            ),
            WaitingOn::Squatted { network, address, mac, worker } => write!(
                formatter,
                "{address} of network `{network}` is in use by a machine that is no VM of ours: worker `{worker}` heard {mac} answer for it"
            ),
            WaitingOn::DiskTooSmall { size_min } => {
                write!(formatter, "the disk is smaller than the {size_min} that it needs")
            }
            WaitingOn::Worker { worker, to } => {
                let task = match to {
                    WorkerTask::Create => "make the disk",
                    WorkerTask::Grow => "make the disk larger",
                    WorkerTask::Fetch => "fetch the disk",
                    WorkerTask::Release => "let go of the disk",
                    WorkerTask::Start => "start it",
                    WorkerTask::Stop => "stop it",
                    WorkerTask::Remove => "remove it",
                };
                write!(formatter, "worker `{worker}` to {task}")
            }
            WaitingOn::WorkerRoom { worker, cpus, memory } => {
                write!(formatter, "its worker `{worker}` has no room for it to have {cpus} CPU and {memory}")
            }
            WaitingOn::WorkerPorts { ports } => {
                let ports = ports.iter().map(|port| format!("{} {}", port.protocol.word(), port.port));
                let ports = ports.collect::<Vec<_>>().join(", ");
                write!(formatter, "no worker that could take it has all of its ports free: {ports}")
            }
            WaitingOn::FirewallSources { addresses_max } => write!(
                formatter,
                "the labels that its firewall names come to more than {addresses_max} addresses"
            ),
            WaitingOn::WorkerClosed { worker } => {
                write!(formatter, "its volumes are on worker `{worker}`, which takes no VM now")
            }
            WaitingOn::VolumeHeld { volume, by } => write!(formatter, "volume/{volume} is attached to {by}"),
            WaitingOn::VolumeGiven { volume } => write!(formatter, "volume/{volume} to be given to it"),
            WaitingOn::VolumeElsewhere { volume, worker: Some(worker) } => {
                write!(formatter, "volume/{volume} is on worker `{worker}`, and it cannot be there")
            }
            WaitingOn::VolumeElsewhere { volume, worker: None } => {
                write!(formatter, "volume/{volume} is on another worker, and it cannot be there")
            }
            WaitingOn::Source { object } => write!(formatter, "{object} is not made yet"),
            WaitingOn::WorkerAway { worker } => write!(formatter, "worker `{worker}`, which is away"),
            WaitingOn::Off => formatter.write_str("it was shut down from inside, or ended, and stays off"),
            WaitingOn::Health { problem: None } => formatter.write_str("a check of its health to pass"),
            WaitingOn::Health { problem: Some(problem) } => {
                write!(formatter, "a check of its health to pass: {problem}")
            }
            WaitingOn::CrashLoop { worker } => write!(formatter, "it ended by itself on worker `{worker}`"),
            WaitingOn::WorkerProblem { worker, problem } => write!(formatter, "worker `{worker}`: {problem}"),
            WaitingOn::WorkerAlive { worker } => write!(formatter, "the agent on `{worker}` still runs"),
            WaitingOn::InUse { by } => write!(formatter, "{by} still uses it"),
            WaitingOn::Child { child } => write!(formatter, "its child {child} to go"),
            WaitingOn::Member { member } => write!(formatter, "its member {member} to be available"),
            WaitingOn::HealingPause => {
                formatter.write_str("more members have failed than are replaced without a pause")
            }
            WaitingOn::Rejected { version, because } => {
                write!(formatter, "version {version} of its template failed: {because}")
            }
            WaitingOn::Promotion { version } => {
                write!(formatter, "version {version} to be promoted; its canaries are available")
            }
            WaitingOn::Paused { version } => write!(formatter, "the update to version {version} is paused"),
            WaitingOn::Protected { members } => {
                write!(
                    formatter,
                    "a person to let go of {members} more than it is to have, which are protected"
                )
            }
            WaitingOn::InRotation { loadbalancer } => {
                write!(formatter, "loadbalancer/{loadbalancer} to send it nothing more")
            }
            WaitingOn::VirtualAddress { loadbalancer } => {
                write!(
                    formatter,
                    "the virtual address of loadbalancer/{loadbalancer} to move to another proxy"
                )
            }
            WaitingOn::AddressLeft { proxy } => write!(formatter, "{proxy} to give the virtual address up"),
            WaitingOn::Names => {
                formatter.write_str("clients to forget that its load balancer's name led to it")
            }
            WaitingOn::Proxies { group } => write!(formatter, "its proxies, {group}, to be available"),
            WaitingOn::Acknowledgement { proxy } => {
                write!(formatter, "{proxy} to take what it was told last")
            }
            WaitingOn::Trial { proxy } => write!(formatter, "{proxy} to try what is asked before the others"),
            WaitingOn::TrialFailed { because } => {
                write!(formatter, "one proxy has tried what is asked: {because}")
            }
            WaitingOn::CertificateExpires { at } => {
                write!(formatter, "another certificate: this one is good till {}", day(*at))
            }
            WaitingOn::CertificateExpired { at } => {
                write!(formatter, "another certificate: this one was good till {}", day(*at))
            }
            WaitingOn::CertificateUnusable { because } => write!(formatter, "another certificate: {because}"),
            WaitingOn::Ordered { directory } => write!(formatter, "a certificate from {directory}"),
            WaitingOn::OrderFailed { because, .. } => {
                write!(formatter, "a certificate, which was not given: {because}")
            }
            WaitingOn::NoBackends { pool } => write!(formatter, "somebody in pool `{pool}` to serve"),
            WaitingOn::LossBrake => {
                formatter.write_str("too many workers are away at once for any to be taken for lost")
            }
            WaitingOn::Leaving { vm } => write!(formatter, "{vm} to be made again elsewhere"),
            WaitingOn::Staying { object } => write!(formatter, "{object}, which does not leave by itself"),
            WaitingOn::Unreadable { key } => {
                write!(formatter, "stored value `{key}` cannot be read by this version")
            }
            WaitingOn::Quarantined { problem } => write!(formatter, "its planner failed: {problem}"),
        }
    }
}
