//! Looks at this machine. No verdict is given here, and nothing is changed: see the module above.

mod mounts;
mod ports;
mod programs;
mod system;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};

use super::Wishes;
use super::facts::{Bridge, Facts, Mount, Network, Place, Tried};
use crate::identity;

/// What taps of ours are called, which are no way to other hosts.
const TAP_PREFIX: &str = "lb";

/// `IFF_UP` in the flags of an interface (netdevice(7)).
const UP: u64 = 1;

/// Where names are asked for (RFC 1035, 4.2).
const DNS_PORT: u16 = 53;

/// Everything that is looked at.
pub(super) fn facts(wishes: &Wishes) -> Facts {
    let is_root = rustix::process::geteuid().is_root();
    let programs = programs::find(wishes);
    let rules = match &programs.nft {
        None => Tried::NotTried("there is no `nft`".to_owned()),
        Some(_) if !is_root => Tried::NotTried("not root".to_owned()),
        Some(nft) => rules(&nft.path),
    };
    Facts {
        is_root,
        kvm: lightbyte_vmm::kvm::probe(),
        cpu: system::cpu(),
        memory: system::memory(),
        network: network(&wishes.bridge, rules),
        dns_port: ports::everywhere(DNS_PORT),
        state: place(&wishes.state),
        jails: wishes.jails.as_deref().map(|jails| mount_of(&nearest(jails)?)),
        clock: system::clock(),
        boot_id: identity::boot_id().map_err(|error| format!("{error:#}")),
        limits: system::limits(),
        groups: system::groups(),
        programs,
    }
}

/// A file of `/proc` or `/sys` in one line; nothing if it is not there.
fn line(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn network(bridge: &str, rules: Tried) -> Network {
    let filters = |tables: &str| {
        let value = line(format!("/proc/sys/net/bridge/bridge-nf-call-{tables}"));
        value.map(|value| value != "0")
    };
    Network {
        has_tun: Path::new("/dev/net/tun").exists(),
        bridge: find_bridge(bridge),
        filters_bridges: filters("iptables"),
        filters_bridges6: filters("ip6tables"),
        rules,
    }
}

fn find_bridge(name: &str) -> Bridge {
    // A name with a slash would lead out of the directory, and no interface has one.
    let place = match name.contains('/') || name.starts_with('.') {
        true => return Bridge::Missing,
        false => Path::new("/sys/class/net").join(name),
    };
    if !place.exists() {
        return Bridge::Missing;
    }
    let Ok(entries) = fs::read_dir(place.join("brif")) else { return Bridge::Other };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut ports: Vec<String> = names.filter(|name| !name.starts_with(TAP_PREFIX)).collect();
    ports.sort_unstable();
    let flags = line(place.join("flags")).unwrap_or_default();
    let flags = u64::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or_default();
    Bridge::There { is_up: flags & UP != 0, ports }
}

/// Makes the rules that taps need in a network namespace that ends with the program that makes them.
fn rules(nft: &Path) -> Tried {
    let Some(unshare) = programs::place("unshare") else {
        return Tried::NotTried("there is no `unshare` (package util-linux)".to_owned());
    };
    let mut command = programs::command(&unshare.path);
    command.arg("-n").arg(nft).args(["-f", "-"]);
    match programs::ask(command, lightbyte_vmm::taps::RULES) {
        Ok(_) => Tried::Works,
        Err(why) => Tried::Fails(why),
    }
}

/// The directory itself, or the nearest one above it that is there.
fn nearest(directory: &Path) -> Result<PathBuf, String> {
    let absolute = std::path::absolute(directory).map_err(|error| error.to_string())?;
    for place in absolute.ancestors() {
        match fs::canonicalize(place) {
            Ok(found) => return Ok(found),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("not even the root is there".to_owned())
}

fn mount_of(directory: &Path) -> Result<Mount, String> {
    let text = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("/proc/self/mountinfo cannot be read: {error}"))?;
    mounts::of(&text, directory).ok_or_else(|| "it is on no mount".to_owned())
}

fn place(state: &Path) -> Result<Place, String> {
    let directory = nearest(state)?;
    let mount = mount_of(&directory)?;
    let system = rustix::fs::statvfs(&directory).map_err(|error| error.to_string())?;
    let trial = match directory.is_dir() {
        true => trial::try_out(&directory).map_err(|error| format!("nothing can be written there: {error}")),
        false => Err("it is no directory".to_owned()),
    };
    Ok(Place {
        is_state: state.exists(),
        free_bytes: system.f_bavail.saturating_mul(system.f_frsize),
        directory,
        mount,
        trial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_not_there_is_looked_at_above_and_not_made() {
        let above = std::env::temp_dir().join(format!("lightbyte-doctor-{}", std::process::id()));
        fs::create_dir_all(&above).unwrap();
        let state = above.join("not").join("there");
        let found = place(&state).unwrap();
        assert_eq!((found.directory, found.is_state), (fs::canonicalize(&above).unwrap(), false));
        let trial = found.trial.unwrap();
        assert!(trial.flush_fixed <= trial.flush_growing.saturating_mul(100), "{trial:?}");
        assert_eq!(fs::read_dir(&above).unwrap().count(), 0, "something is left behind");
        fs::remove_dir(&above).unwrap();
    }

    #[test]
    fn names_that_no_interface_has_are_missing() {
        for name in ["no-such-bridge", "../net", "a/b", ".."] {
            assert_eq!(find_bridge(name), Bridge::Missing, "{name}");
        }
        assert_eq!(find_bridge("lo"), Bridge::Other);
    }
}
