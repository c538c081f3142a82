//! Words of the processes that run for long: a server, the agent of a VM host, and its resolver.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};
use lightbyte_api::zone::NAME_DEFAULT as ZONE;
use lightbyte_api::{ByteSize, Name};
use lightbyte_link::Endpoint;
use lightbyte_worker::offer::{CPU_OVERCOMMIT, DISK_RESERVE, VMS_MAX};

/// How VMs of a worker run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WorkerVmm {
    /// In memory: everything is real but the machines
    Fake,
    /// Firecracker microVMs; they need KVM
    Firecracker,
    /// QEMU microVMs
    Qemu,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Server {
    /// Its name
    #[arg(long)]
    pub(crate) name: Name,
    /// Where it listens: http://ADDRESS:PORT or unix:/PATH
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    pub(crate) listen: Vec<Endpoint>,
    /// Where others reach it
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Endpoint,
    /// Where etcd's members are
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    pub(crate) etcd: Vec<String>,
    /// What stands before every key in etcd
    #[arg(long, value_name = "PREFIX", default_value = lightbyte_api::key::ROOT)]
    pub(crate) root: String,
    /// Where it keeps the parts of images that are imported, by checksum; without it nobody can import through it.
    /// A worker on the same host may use the same directory
    #[arg(long, value_name = "DIR")]
    pub(crate) parts: Option<PathBuf>,
    /// What private keys are sealed with before they are stored: a file with 64 hexadecimal digits that its owner alone may read,
    /// the same for all servers; without it no secrets are taken. A key in a further line opens what it sealed earlier
    #[arg(long, value_name = "FILE")]
    pub(crate) sealing_key: Option<PathBuf>,
    /// The DNS zone in which VMs, groups and load balancers have their names; the same for all servers and resolvers
    #[arg(long, value_name = "NAME", default_value = ZONE)]
    pub(crate) zone: String,
    /// Refuse VMs and groups that would leave members of groups without a place if any one worker were lost (N-1)
    #[arg(long)]
    pub(crate) keep_room_for_a_loss: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Worker {
    /// Its name
    #[arg(long)]
    pub(crate) name: Name,
    /// Where it keeps its identity and its VMs
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// Where the servers are
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    pub(crate) server: Vec<Endpoint>,
    /// How VMs run; Firecracker where KVM is usable and it is installed, and QEMU elsewhere, when left out
    #[arg(long, value_enum)]
    pub(crate) vmm: Option<WorkerVmm>,
    /// Firecracker; the one in PATH when left out
    #[arg(long, value_name = "FILE")]
    pub(crate) firecracker: Option<PathBuf>,
    /// Firecracker's jailer; the one beside it or in PATH when left out
    #[arg(long, value_name = "FILE", conflicts_with = "no_jailer")]
    pub(crate) jailer: Option<PathBuf>,
    /// Where jails are, on the file system of the state; a directory in the state when left out
    #[arg(long, value_name = "DIR", conflicts_with = "no_jailer")]
    pub(crate) jails: Option<PathBuf>,
    /// Runs Firecracker with the worker's own rights
    #[arg(long)]
    pub(crate) no_jailer: bool,
    /// The virtual CPUs that it offers to VMs; what the overcommit gives when left out
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u64>,
    /// How many virtual CPUs it offers for each CPU of the host
    #[arg(long, value_name = "N", default_value_t = CPU_OVERCOMMIT, value_parser = value_parser!(u64).range(1..=64))]
    pub(crate) cpu_overcommit: u64,
    /// The memory that it offers to VMs; seven eighths, and never the last 1GiB, when left out
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// The most VMs that it takes
    #[arg(long, value_name = "N", default_value_t = VMS_MAX)]
    pub(crate) vms_max: u64,
    /// What stays free of the disk: no disk is made, grown or fetched when there is less
    #[arg(long, value_name = "SIZE", default_value_t = DISK_RESERVE)]
    pub(crate) disk_reserve: ByteSize,
    /// Where it serves consoles and the like
    #[arg(long, value_name = "URL")]
    pub(crate) listen: Option<Endpoint>,
    /// Where the parts of images are kept, by checksum; what is missing is fetched
    #[arg(long, value_name = "DIR", required_if_eq_any([("vmm", "qemu"), ("vmm", "firecracker")]))]
    pub(crate) images: Option<PathBuf>,
    /// Where the sockets of VMs are; on a tmpfs, and short
    #[arg(long, value_name = "DIR", default_value = "/run/lightbyte/vm")]
    pub(crate) run: PathBuf,
}

/// Where names are asked for when no port is said (RFC 1035, 4.2).
const DNS_PORT: u16 = 53;

#[derive(Clone, Debug, Args)]
pub(crate) struct Dns {
    /// Where it answers, over UDP and TCP: ADDRESS or ADDRESS:PORT, the port being 53 when left out
    #[arg(long, value_name = "ADDRESS", required = true, value_delimiter = ',', value_parser = dns_address)]
    pub(crate) listen: Vec<SocketAddr>,
    /// Where the servers are; it follows any one of them
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    pub(crate) server: Vec<Endpoint>,
    /// Where it keeps the names that it was told last
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// Who is asked for names that are not the zone's, ADDRESS or ADDRESS:PORT, 3 at most; they are refused when left out
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', value_parser = dns_address)]
    pub(crate) forward_to: Vec<SocketAddr>,
    /// The zone, as the servers have it
    #[arg(long, value_name = "NAME", default_value = ZONE)]
    pub(crate) zone: String,
    /// How many threads answer over UDP, for each address
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..=16))]
    pub(crate) threads: u64,
}

fn dns_address(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>();
    let without = || text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT));
    with_port
        .or_else(|_| without())
        .map_err(|_| "an address, such as 10.0.0.5, 10.0.0.5:5353 or [::1]:5353".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_names_are_asked_for_needs_no_port() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(
                dns_address(text).ok().map(|address| address.to_string()).as_deref(),
                expect,
                "{text}"
            );
        };
        check("10.0.0.5", Some("10.0.0.5:53"));
        check("10.0.0.5:5353", Some("10.0.0.5:5353"));
        check("::1", Some("[::1]:53"));
        check("[::1]:5353", Some("[::1]:5353"));
        check("localhost", None);
        check("", None);
    }
}
