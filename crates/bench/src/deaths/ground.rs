//! Namespaces for proxies and backends, and the backends.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use super::Death;
use crate::bed::{self, Bed};
use crate::processes::start;

/// The namespace of the proxies.
const HUB: &str = "lb-deaths-hub";

/// What the names of the backends' namespaces begin with.
const BACKEND: &str = "lb-deaths-b";

/// The machine's end of the link to the hub.
const LINK: &str = "lbdeaths";

/// A network that is kept for benchmarks (RFC 2544) and so nobody's.
const PREFIX: [u8; 3] = [198, 18, 231];

/// How many backends there are.
pub(super) const BACKENDS: u8 = 3;

/// Where they listen.
pub(super) const BACKEND_PORT: u16 = 80;

/// The one that dies.
const VICTIM: u8 = 2;

/// What is missing for namespaces.
pub(super) fn lacking() -> Option<String> {
    let is_there = Command::new("ip").arg("-V").output().is_ok();
    match (rustix::process::geteuid().is_root(), is_there) {
        (false, _) => Some("network namespaces need root".to_owned()),
        (true, false) => Some("there is no `ip`; `apt-get install iproute2` installs it".to_owned()),
        (true, true) => None,
    }
}

/// Where the proxies listen.
pub(super) const fn hub_address() -> Ipv4Addr {
    address(1)
}

/// Where a backend listens.
pub(super) const fn backend_address(number: u8) -> Ipv4Addr {
    address(10 + number)
}

const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(PREFIX[0], PREFIX[1], PREFIX[2], last)
}

/// Removed with everything in it when it is dropped.
pub(super) struct Ground {
    backends: Vec<Child>,
}

impl Ground {
    /// Makes namespaces and starts backends.
    ///
    /// # Errors
    /// What `ip` says.
    pub(super) fn up(bed: &Bed) -> Result<Ground> {
        // What a run that was killed has left.
        down();
        let mut ground = Ground { backends: Vec::new() };
        lines(
            None,
            &[format!("netns add {HUB}"), format!("link add {LINK} type veth peer name machine netns {HUB}")],
        )?;
        lines(None, &[format!("addr add {}/24 dev {LINK}", address(254)), format!("link set {LINK} up")])?;
        let hub = [
            "link set lo up",
            "link add br0 type bridge",
            "link set br0 up",
            "link set machine master br0 up",
        ];
        lines(Some(HUB), &hub.map(str::to_owned))?;
        lines(Some(HUB), &[format!("addr add {}/24 dev br0", hub_address())])?;
        for number in 1..=BACKENDS {
            let namespace = format!("{BACKEND}{number}");
            lines(None, &[format!("netns add {namespace}")])?;
            lines(
                Some(HUB),
                &[
                    format!("link add b{number} type veth peer name eth0 netns {namespace}"),
                    format!("link set b{number} master br0 up"),
                ],
            )?;
            let address = backend_address(number);
            let inside = [
                format!("addr add {address}/24 dev eth0"),
                "link set eth0 up".to_owned(),
                "link set lo up".to_owned(),
            ];
            lines(Some(&namespace), &inside)?;
            let own = std::env::current_exe().context("find this program")?;
            let listen = SocketAddr::from((address, BACKEND_PORT)).to_string();
            let log = bed.path(&format!("backend-{number}.log"));
            let arguments = [super::super::BACKEND_WORD.into(), listen.into()];
            ground.backends.push(inside_of(&namespace, &own, &arguments, &log)?);
        }
        Ok(ground)
    }

    /// Starts a program beside the proxies.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn in_hub(&self, program: &Path, arguments: &[OsString], log: &Path) -> Result<Child> {
        inside_of(HUB, program, arguments, log)
    }

    /// Ends one backend.
    ///
    /// # Errors
    /// When that cannot be done.
    pub(super) fn kill(&mut self, death: Death) -> Result<()> {
        let signal = match death {
            Death::Vanished => return lines(Some(HUB), &[format!("link set b{VICTIM} down")]),
            Death::Killed => Signal::KILL,
            Death::Hung => Signal::STOP,
        };
        let victim = self.backends.get(usize::from(VICTIM) - 1).and_then(Child::id);
        let pid = victim.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("find the backend")?;
        kill_process(pid, signal).context("signal the backend")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.backends.clear();
        down();
    }
}

/// `ip netns exec` becomes the program, so it keeps its id and ends with its `Child`.
fn inside_of(namespace: &str, program: &Path, arguments: &[OsString], log: &Path) -> Result<Child> {
    let mut words: Vec<OsString> = ["netns", "exec", namespace].map(OsString::from).to_vec();
    words.push(program.as_os_str().to_owned());
    words.extend_from_slice(arguments);
    start(&PathBuf::from("ip"), &words, log)
}

/// Removes the namespaces; the links go with them. What is not there need not be removed.
fn down() {
    let backends = (1..=BACKENDS).map(|number| format!("{BACKEND}{number}"));
    for namespace in backends.chain([HUB.to_owned()]) {
        let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
    }
    let _ = Command::new("ip").args(["link", "del", LINK]).output();
}

fn lines(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    for line in lines {
        let mut command = Command::new("ip");
        if let Some(namespace) = namespace {
            command.args(["-n", namespace]);
        }
        bed::run(command.args(line.split(' ')))?;
    }
    Ok(())
}
