//! What leaves a lab by way of the machine: nothing, or with `--nat` whatever the machine itself reaches.
//!
//! Both are said in one nftables table of the lab's own, named by its hash. A machine may forward already, for example
//! for Docker, and then only a rule keeps VMs in; one that does not forward is made to for the lab's own link and the
//! links of its default route. Those that a lab has switched on lie as files in /run, one for each lab that needs them:
//! whoever takes the last one away switches the link off again, be it a later start that clears away a killed one.
//!
//! ```text
//! /run/lightbyte/forwarding/eth0/HASH
//! ```

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use lightbyte_api::kinds::network::DNS_SERVERS_MAX;

use crate::namespaces::{root_link, run};
use crate::rack::{Lan, Rack};

/// Which links labs have made forward.
const SWITCHED: &str = "/run/lightbyte/forwarding";
/// Where the machine's name servers stand: the second is the list behind a resolver of the machine's own (systemd's).
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Sets the rules for what comes from the lab's link or goes to it. The machine itself and the lab reach each other
/// always: that is not forwarded.
///
/// # Errors
/// What `nft` says.
pub(crate) fn up(rack: &Rack, lan: &Lan) -> Result<()> {
    run(&["nft", "-f", "-"], &rules(rack, lan)).context("set the rules for what leaves the lab")
}

fn rules(rack: &Rack, lan: &Lan) -> String {
    let (table, link, subnet) = (table(&rack.hash), root_link(&rack.hash), lan.subnet());
    let begin = format!("add table {table}\ndelete table {table}\n");
    let (forward, nat) = if rack.wish.nat {
        let forward =
            format!("oifname \"{link}\" ct state established,related accept; oifname \"{link}\" drop;");
        let nat = format!(
            "chain nat {{ type nat hook postrouting priority 100; \
             ip saddr {subnet} oifname != \"{link}\" masquerade; }}\n"
        );
        (forward, nat)
    } else {
        (format!("iifname \"{link}\" drop; oifname \"{link}\" drop;"), String::new())
    };
    format!(
        "{begin}table {table} {{\n\
         chain forward {{ type filter hook forward priority 0; policy accept; {forward} }}\n{nat}}}\n"
    )
}

/// With `--nat`, makes the machine forward between the lab's link, which is there, and its default route.
///
/// # Errors
/// When a link cannot be switched.
pub(crate) fn open(rack: &Rack) -> Result<()> {
    if !rack.wish.nat {
        return Ok(());
    }
    let link = root_link(&rack.hash);
    fs::write(switch(&link), "1").with_context(|| format!("make {link} forward"))?;
    let output = Command::new("ip").args(["-4", "route", "show", "default"]).output().context("run ip")?;
    for outer in String::from_utf8_lossy(&output.stdout).lines().filter_map(device) {
        let switched = Path::new(SWITCHED).join(outer);
        let forwards = fs::read_to_string(switch(outer)).with_context(|| format!("look at {outer}"))?;
        if forwards.trim() == "1" && !switched.exists() {
            // It forwards for somebody else, who also decides when it ends.
            continue;
        }
        // The note comes first: a lab that is killed in between has its link switched off all the same.
        fs::create_dir_all(&switched)
            .and_then(|()| fs::write(switched.join(&rack.hash), ""))
            .with_context(|| format!("note in {SWITCHED} that {outer} forwards"))?;
        fs::write(switch(outer), "1").with_context(|| format!("make {outer} forward"))?;
    }
    Ok(())
}

/// Takes everything away that a lab with this hash has set on the machine.
///
/// # Errors
/// When it cannot be taken away.
pub(crate) fn down(hash: &str) -> Result<()> {
    let table = table(hash);
    // Added first, since what is not there cannot be deleted.
    run(&["nft", "-f", "-"], &format!("add table {table}\ndelete table {table}\n"))
        .context("remove the rules for what leaves the lab")?;
    let entries = match fs::read_dir(SWITCHED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list {SWITCHED}"))?,
    };
    for entry in entries {
        let switched = entry?.path();
        match fs::remove_file(switched.join(hash)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            removed => removed.with_context(|| format!("remove the note in {}", switched.display()))?,
        }
        let Some(outer) = switched.file_name().and_then(|name| name.to_str()) else { continue };
        // Removed only when no other lab has a note in it.
        // Where every link forwards, somebody has come meanwhile who wants that, such as Docker.
        let all = fs::read_to_string(switch("all")).unwrap_or_default();
        if fs::remove_dir(&switched).is_ok() && all.trim() != "1" {
            match fs::write(switch(outer), "0") {
                // The link has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                switched => switched.with_context(|| format!("stop {outer} forwarding"))?,
            }
        }
    }
    Ok(())
}

/// The machine's name servers that VMs can reach too, at most as many as a guest uses.
pub(crate) fn resolvers() -> Vec<Ipv4Addr> {
    let texts = RESOLVERS.iter().filter_map(|path| fs::read_to_string(path).ok());
    let lists = texts.map(|text| name_servers(&text));
    lists.into_iter().find(|list| !list.is_empty()).unwrap_or_default()
}

fn name_servers(text: &str) -> Vec<Ipv4Addr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse::<Ipv4Addr>().ok()
    });
    addresses.filter(|address| !address.is_loopback()).take(DNS_SERVERS_MAX).collect()
}

fn table(hash: &str) -> String {
    format!("inet lightbyte-{hash}")
}

fn switch(link: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(link).join("forwarding")
}

/// The link of one line of `ip route`.
fn device(line: &str) -> Option<&str> {
    line.split_whitespace().skip_while(|word| *word != "dev").nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_that_a_vm_cannot_reach_are_left_out() {
        let check = |text: &str, expect: &[[u8; 4]]| {
            let expect: Vec<Ipv4Addr> = expect.iter().copied().map(Ipv4Addr::from).collect();
            assert_eq!(name_servers(text), expect, "{text}");
        };
        check("", &[]);
        check("# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\n", &[[192, 0, 2, 1]]);
        check("nameserver 127.0.0.53\nnameserver fd00::1\noptions edns0\n", &[]);
        check(
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
            &[[192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 3]],
        );
    }

    #[test]
    fn the_link_of_a_route_is_found() {
        assert_eq!(device("default via 172.16.0.1 dev eth0 proto dhcp metric 100"), Some("eth0"));
        assert_eq!(device("default dev ppp0 scope link"), Some("ppp0"));
        assert_eq!(device("default"), None);
    }
}
