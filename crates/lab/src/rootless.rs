//! A lab with real VMs for an ordinary user: `lightbyte dev` runs itself again as root of its own user, network and
//! mount namespaces, and there makes the lab as root makes it on the machine.
//!
//! ```text
//!   lightbyte dev        takes and clears the state; binds ports of 127.0.0.1
//!     └ exec unshare     the same process: its number, terminal and signals stay
//!         └ exec lightbyte dev    inside: is handed the state's lock and the ports; has a /run of its own
//! ```
//!
//! The lock and the ports wait as a message in a socket that becomes the standard input of the process inside: what
//! it receives are descriptors of its own, whatever programs came in between. What an earlier run has left is ended
//! before, outside: a user namespace does not look into its siblings.

use std::convert::Infallible;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use lightbyte_link::{Endpoint, Listener};
use rustix::mount::MountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::forward::{Forwards, VM_PORTS};
use crate::rack::{HOSTS_MAX, Lan, Rack, port_places};
use crate::state::State;

/// Tells the process inside where it is.
const INSIDE_VARIABLE: &str = "LIGHTBYTE_DEV_INSIDE";
/// Where a place's ports for servers begin, behind those for VMs.
const SERVER_PORTS_OFFSET: u16 = 41;
/// The most descriptors that are handed over; the kernel allows 253 in one message (unix(7)).
const DESCRIPTORS_MAX: usize = 1 + VM_PORTS as usize + HOSTS_MAX;
/// What makes the namespaces: the caller becomes root in them, and its mounts are its own.
const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--net", "--mount"];
/// Room for sockets, locks and small records of the lab's VMs.
const RUN_OPTIONS: &std::ffi::CStr = c"mode=0755,size=64m";
/// What is never carried over from the machine's /run: the lab makes its own.
const OWN_IN_RUN: [&str; 3] = ["netns", "lightbyte", "machine"];

/// What the process inside is handed.
pub(crate) struct Handed {
    /// The lock of the state.
    pub(crate) lock: fs::File,
    /// Listeners for VMs, in the order of their addresses, and then for servers.
    listeners: Vec<OwnedFd>,
    /// The first port for VMs.
    first_port: u16,
}

impl Handed {
    /// Which ports lead where, once the lab is worked out, with the listener for each target: for VMs, and for servers.
    pub(crate) fn forwards(self, rack: &Rack, lan: Lan) -> (Forwards, [Vec<(OwnedFd, Endpoint)>; 2]) {
        let vms = (0..VM_PORTS).map(|index| {
            let address = std::net::Ipv4Addr::from(u32::from(lan.first_vm()) + u32::from(index));
            Endpoint::Tcp(address.to_string(), crate::forward::VM_PORT)
        });
        let servers = rack.servers().into_iter().filter_map(|url| url.parse().ok());
        let first_server = self.first_port - 1 + SERVER_PORTS_OFFSET;
        let urls = (first_server..).zip(rack.servers()).map(|(port, _)| format!("http://127.0.0.1:{port}"));
        let forwards =
            Forwards { servers: urls.collect(), first_port: self.first_port, first_vm: lan.first_vm() };
        let mut listeners = self.listeners.into_iter();
        // By reference, so that the rest is left for the servers. The listener comes second: zip asks its first part
        // once too often.
        let for_vms = vms.zip(listeners.by_ref()).map(|(target, listener)| (listener, target)).collect();
        (forwards, [for_vms, listeners.zip(servers).collect()])
    }
}

/// Becomes the process inside.
///
/// # Errors
/// When this machine does not allow it, with what would help.
pub(crate) async fn enter(state: &State, servers: usize) -> Result<Infallible> {
    check()?;
    let listeners = bind(state, servers).await?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("make a pair of sockets")?;
    send(&ours, state.lock().as_fd(), &listeners).context("hand over the ports")?;
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new("unshare");
    command.args(UNSHARE).arg("--").arg(program).args(std::env::args_os().skip(1));
    let first_port = listeners.first().and_then(Listener::port).context("no port was bound")?;
    command.env(INSIDE_VARIABLE, first_port.to_string()).stdin(Stdio::from(theirs));
    // Where nft and mke2fs are, and ordinary users on Debian do not look.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    command.env("PATH", path);
    Err(command.exec()).context("run unshare")
}

/// Receives what was handed over, and makes the namespaces fit for a lab; `None` outside.
///
/// # Errors
/// When what was handed over is not whole, or something cannot be set up.
pub(crate) fn arrive() -> Result<Option<Handed>> {
    let Ok(first_port) = std::env::var(INSIDE_VARIABLE) else { return Ok(None) };
    let first_port = first_port.parse().with_context(|| format!("read {INSIDE_VARIABLE}"))?;
    let mut descriptors = receive().context("receive the ports")?.into_iter();
    let lock = descriptors.next().context("nothing was handed over")?;
    private_run().context("make a /run for the lab")?;
    crate::namespaces::loopback_up()?;
    Ok(Some(Handed { lock: lock.into(), listeners: descriptors.collect(), first_port }))
}

/// Whether this machine lets an ordinary user do it.
fn check() -> Result<()> {
    let tun = Path::new("/dev/net/tun");
    let why = |reason: &str, command: &str| {
        format!("real VMs without root: {reason}; `{command}` helps, as does sudo (or --vmm fake)")
    };
    if let Err(error) = fs::File::options().read(true).write(true).open(tun) {
        match error.kind() {
            io::ErrorKind::NotFound => bail!(why("this machine has no /dev/net/tun", "sudo modprobe tun")),
            _ => bail!(why("/dev/net/tun is closed to you", "sudo chmod 666 /dev/net/tun")),
        }
    }
    let tried = Command::new("unshare").args(UNSHARE).args(["--", "true"]).stdin(Stdio::null()).output();
    let said = match tried {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(why("the program unshare is missing", "sudo apt install util-linux"))
        }
        Err(error) => error.to_string(),
    };
    match closed(|path| fs::read_to_string(path).ok()) {
        Some((reason, command)) => bail!(why(reason, command)),
        None => bail!("real VMs without root: this machine allows no namespaces ({said}); run it with sudo"),
    }
}

/// The setting that keeps ordinary users from namespaces, as what it says and what opens it.
fn closed(read: impl Fn(&str) -> Option<String>) -> Option<(&'static str, &'static str)> {
    let is =
        |name: &str, value: &str| read(&format!("/proc/sys/{name}")).is_some_and(|text| text.trim() == value);
    if is("kernel/unprivileged_userns_clone", "0") {
        let command = "sudo sysctl kernel.unprivileged_userns_clone=1";
        return Some(("this machine keeps user namespaces for root", command));
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        let command = "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0";
        return Some(("AppArmor gives user namespaces no rights here", command));
    }
    for (name, reason, command) in [
        ("user", "this machine allows no user namespaces", "sudo sysctl user.max_user_namespaces=1024"),
        ("net", "this machine allows no network namespaces", "sudo sysctl user.max_net_namespaces=1024"),
        ("mnt", "this machine allows no mount namespaces", "sudo sysctl user.max_mnt_namespaces=1024"),
    ] {
        if is(&format!("user/max_{name}_namespaces"), "0") {
            return Some((reason, command));
        }
    }
    None
}

/// Listeners for VMs and then for servers, all at one place, which is the same at each start if it is free.
async fn bind(state: &State, servers: usize) -> Result<Vec<Listener>> {
    for first in port_places(&state.directory) {
        let vms = (1..=VM_PORTS).map(|index| first + index);
        let ports = vms.chain((first + SERVER_PORTS_OFFSET..).take(servers));
        let mut listeners = Vec::new();
        for port in ports {
            let Ok(listener) = Listener::bind(&Endpoint::Tcp("127.0.0.1".to_owned(), port)).await else {
                break;
            };
            listeners.push(listener);
        }
        if listeners.len() == usize::from(VM_PORTS) + servers {
            return Ok(listeners);
        }
    }
    bail!("no free ports for a lab on this machine")
}

fn send(socket: &OwnedFd, lock: BorrowedFd<'_>, listeners: &[Listener]) -> Result<()> {
    let ports = listeners.iter().filter_map(|listener| match listener {
        Listener::Tcp(listener) => Some(listener.as_fd()),
        Listener::Unix(..) => None,
    });
    let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(lock).chain(ports).collect();
    ensure!(descriptors.len() <= DESCRIPTORS_MAX, "too many ports");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    ensure!(message.push(SendAncillaryMessage::ScmRights(&descriptors)), "the message is too long");
    rustix::net::sendmsg(socket, &[IoSlice::new(b"\n")], &mut message, SendFlags::empty())?;
    Ok(())
}

fn receive() -> Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // They must not reach the lab's processes: a lock that etcd held too would outlive its supervisor.
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(rustix::stdio::stdin(), &mut [IoSliceMut::new(&mut byte)], &mut message, flags)?;
    let mut descriptors = Vec::new();
    for part in message.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    Ok(descriptors)
}

/// A /run that can be written, for namespaces and sockets. What the machine has there stays in reach under its name:
/// /etc/resolv.conf may lead there, and on some systems all programs do.
fn private_run() -> Result<()> {
    // Put together beside its place: a copy of /run with all that is mounted below would hold what is mounted upon it.
    let beside = Path::new("/tmp");
    rustix::mount::mount("lightbyte", beside, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, RUN_OPTIONS)
        .context("mount a file system in memory")?;
    let machine = beside.join("machine");
    fs::create_dir(&machine).context("create /run/machine")?;
    rustix::mount::mount_bind_recursive("/run", &machine).context("mount the machine's /run")?;
    for entry in fs::read_dir(&machine).context("list the machine's /run")? {
        let name = entry?.file_name();
        if !OWN_IN_RUN.iter().any(|own| name == *own) {
            symlink(Path::new("/run/machine").join(&name), beside.join(&name))
                .context("link into the machine's /run")?;
        }
    }
    rustix::mount::mount_move(beside, "/run").context("mount over /run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_is_in_the_way_is_named_with_what_opens_it() {
        let check = |settings: &[(&str, &str)], expect: Option<&str>| {
            let read = |path: &str| {
                let name = path.strip_prefix("/proc/sys/")?;
                let (_, value) = settings.iter().find(|(setting, _)| *setting == name)?;
                Some(format!("{value}\n"))
            };
            assert_eq!(closed(read).map(|(_, command)| command), expect, "{settings:?}");
        };
        check(&[], None);
        check(
            &[("kernel/unprivileged_userns_clone", "0"), ("user/max_user_namespaces", "0")],
            Some("sudo sysctl kernel.unprivileged_userns_clone=1"),
        );
        check(&[("kernel/unprivileged_userns_clone", "1"), ("user/max_user_namespaces", "96551")], None);
        check(
            &[("kernel/apparmor_restrict_unprivileged_userns", "1")],
            Some("sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        );
        check(&[("user/max_net_namespaces", "0")], Some("sudo sysctl user.max_net_namespaces=1024"));
    }
}
