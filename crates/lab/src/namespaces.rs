//! Hosts as network namespaces: each has its own `br0`, all are joined to one LAN bridge in a namespace of its own, and
//! one pair of interfaces leads from there to the machine.
//!
//! ```text
//!   machine            lb-HASH-lan                    lb-HASH-n1
//!   lbHASH ────────── machine ─ lan0 ─┬─ n1 ───────────── uplink ─ br0 (10.x.0.11) ─ taps of VMs
//!   10.x.0.1                      └─ n2 ───────────── …
//! ```
//!
//! The LAN bridge is not in the machine's own namespace, so that its firewall (such as Docker's) does not cut the hosts
//! off from each other. What comes from a VM's tap to the hosts' own addresses is dropped: until peers prove who they
//! are, their ports are for hosts alone. One more address, `10.x.0.2`, is every host's: there it answers its own VMs by DNS.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use lightbyte_api::Subnet;

use crate::outside;
use crate::process::{ProcessId, kill_until_none};
use crate::rack::{DNS_PORT, Host, LAN_PREFIX_LENGTH, Lan, Rack};

/// Held while a lab chooses its network and joins it to the machine, so that no two choose the same.
const LANS_LOCK: &str = "/run/lightbyte/lans.lock";
/// What the names of all taps begin with: `lightbyte_api::address::tap_name`.
const TAP_PREFIX: &str = "lb";

/// Makes the namespaces of `rack`, joins them, and says what leaves the lab.
///
/// # Errors
/// What `ip` and `nft` say.
pub fn up(rack: &Rack, lan: &Lan) -> Result<()> {
    let lan_namespace = rack.lan_namespace();
    let root_link = root_link(&rack.hash);
    let mut machine = vec![format!("netns add {lan_namespace}")];
    machine.extend(rack.hosts.iter().map(|host| format!("netns add {}", rack.namespace(host))));
    machine.push(format!("link add {root_link} type veth peer name machine netns {lan_namespace}"));
    machine.push(format!("addr add {}/{LAN_PREFIX_LENGTH} dev {root_link}", lan.gateway()));
    machine.push(format!("link set {root_link} up"));
    for host in &rack.hosts {
        let namespace = rack.namespace(host);
        machine.push(format!(
            "link add uplink netns {namespace} type veth peer name {} netns {lan_namespace}",
            host.name
        ));
    }
    // Before the link is there: nothing ever leaves by it that may not.
    outside::up(rack, lan)?;
    ip(None, &machine).context("make the namespaces")?;
    let mut middle = vec![
        "link set lo up".to_owned(),
        "link add lan0 type bridge".to_owned(),
        "link set lan0 up".to_owned(),
    ];
    for port in rack.hosts.iter().map(|host| host.name.as_str()).chain(["machine"]) {
        middle.push(format!("link set dev {port} master lan0 up"));
    }
    ip(Some(&lan_namespace), &middle).context("make the LAN")?;
    rack.hosts.iter().try_for_each(|host| host_up(rack, lan, host))?;
    outside::open(rack)
}

fn host_up(rack: &Rack, lan: &Lan, host: &Host) -> Result<()> {
    let namespace = rack.namespace(host);
    let commands = [
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        "link set uplink master br0 up".to_owned(),
        "link set br0 up".to_owned(),
        format!("addr add {}/{LAN_PREFIX_LENGTH} dev br0", host.address),
        // After the host's own, which remains what it sends from.
        format!("addr add {}/32 dev br0", lan.resolver()),
        format!("route add default via {}", lan.gateway()),
    ];
    ip(Some(&namespace), &commands).with_context(|| format!("set up host {}", host.name))?;
    // What ports of VMs need of their worker.
    let forward = "echo 1 > /proc/sys/net/ipv4/conf/br0/forwarding";
    run(&["ip", "netns", "exec", &namespace, "sh", "-c", forward], "").context("let the hosts forward")?;
    run(&["ip", "netns", "exec", &namespace, "nft", "-f", "-"], &rules(lan))
        .context("keep VMs away from the hosts' ports")
}

/// What a host's bridge lets pass. VMs reach no port of hosts but the one where their own host answers by DNS. The address
/// for that is on every host, so nobody asks for it, or tells of it, beyond his own.
fn rules(lan: &Lan) -> String {
    let resolver = lan.resolver();
    let rule = format!("iifname \"{TAP_PREFIX}*\" ip daddr {}-{} drop", lan.first_host(), lan.last_host());
    let names = format!(
        "iifname \"{TAP_PREFIX}*\" ip daddr {resolver} udp dport {DNS_PORT} accept; \
         iifname \"{TAP_PREFIX}*\" ip daddr {resolver} tcp dport {DNS_PORT} accept"
    );
    format!(
        "table bridge lightbyte {{\n\
         chain input {{ type filter hook input priority 0; policy accept; \
         iifname \"uplink\" arp daddr ip {resolver} drop; {names}; {rule}; }}\n\
         chain forward {{ type filter hook forward priority 0; policy accept; \
         oifname \"uplink\" arp daddr ip {resolver} drop; {rule}; }}\n\
         chain output {{ type filter hook output priority 0; policy accept; \
         oifname \"uplink\" arp saddr ip {resolver} drop; }}\n}}\n"
    )
}

/// Ends everything in the namespaces of the lab with this hash, and removes them.
///
/// # Errors
/// When something does not end.
pub async fn down(hash: &str) -> Result<()> {
    let namespaces = namespaces(hash)?;
    for namespace in &namespaces {
        kill_all(namespace).await?;
    }
    // The kernel takes a namespace apart some time after it was removed, and until then the link would keep its
    // name and its route from the next start.
    remove_link(&root_link(hash))?;
    for namespace in namespaces {
        ip(None, &[format!("netns del {namespace}")])
            .with_context(|| format!("remove namespace {namespace}"))?;
    }
    outside::down(hash)
}

fn remove_link(link: &str) -> Result<()> {
    let is_there = || {
        let shown = Command::new("ip").args(["link", "show", "dev", link]).output().context("run ip")?;
        anyhow::Ok(shown.status.success())
    };
    if !is_there()? {
        return Ok(());
    }
    match ip(None, &[format!("link del {link}")]) {
        // It went by itself meanwhile.
        Err(_) if !is_there()? => Ok(()),
        removed => removed.with_context(|| format!("remove the link {link}")),
    }
}

/// Ends every process in a namespace, VMs included: its power is cut.
///
/// # Errors
/// When one does not end.
pub async fn kill_all(namespace: &str) -> Result<()> {
    let inside = || {
        let output = Command::new("ip").args(["netns", "pids", namespace]).output().context("run ip")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.split_whitespace().filter_map(|pid| ProcessId::of(pid.parse().ok()?)).collect())
    };
    kill_until_none(inside).await.with_context(|| format!("end what runs in {namespace}"))?;
    Ok(())
}

/// Gives the namespace of this process its loopback, which a new one has switched off.
///
/// # Errors
/// What `ip` says.
pub fn loopback_up() -> Result<()> {
    ip(None, &["link set lo up".to_owned()]).context("set up the loopback")
}

/// Waits until no other lab chooses its network, and keeps others from it until it is dropped.
///
/// # Errors
/// What the system says.
pub fn lans() -> Result<File> {
    let path = Path::new(LANS_LOCK);
    path.parent().map_or(Ok(()), fs::create_dir_all).context("create /run/lightbyte")?;
    let lock = File::create(path).with_context(|| format!("open {LANS_LOCK}"))?;
    lock.lock().with_context(|| format!("lock {LANS_LOCK}"))?;
    Ok(lock)
}

/// The namespaces of the lab with this hash that exist.
fn namespaces(hash: &str) -> Result<Vec<String>> {
    let output = Command::new("ip").args(["netns", "list"]).output().context("run ip")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    let prefix = format!("lb-{hash}-");
    Ok(names.filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect())
}

/// The first LAN from `start` on that overlaps no route of this machine.
///
/// # Errors
/// When none is left, or routes cannot be listed.
pub fn free_lan(start: u8) -> Result<Lan> {
    let routes = routes()?;
    Lan::all_from(start)
        .find(|lan| !overlaps(*lan, &routes))
        .context("every 10.x.0.0/16 overlaps a route of this machine")
}

/// Whether the network of a lab that was here before is still free.
///
/// # Errors
/// When routes cannot be listed.
pub fn is_free(lan: Lan) -> Result<bool> {
    Ok(!overlaps(lan, &routes()?))
}

fn overlaps(lan: Lan, routes: &[Subnet]) -> bool {
    let subnet = lan.subnet();
    routes.iter().any(|route| route.contains(subnet.base()) || subnet.contains(route.base()))
}

fn routes() -> Result<Vec<Subnet>> {
    let output =
        Command::new("ip").args(["-4", "route", "show", "table", "all"]).output().context("run ip")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(route).collect())
}

/// The destination of one line of `ip route`; `None` for the default route.
fn route(line: &str) -> Option<Subnet> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    let is_type = ["local", "broadcast", "unreachable", "blackhole", "prohibit"].contains(&first);
    let destination = if is_type { words.next()? } else { first };
    match destination.parse::<Subnet>() {
        Ok(subnet) => Some(subnet),
        Err(_) => format!("{}/32", destination.parse::<Ipv4Addr>().ok()?).parse().ok(),
    }
}

/// The machine's own link to the lab with this hash.
pub(crate) fn root_link(hash: &str) -> String {
    format!("lb{hash}")
}

/// Runs a batch of `ip` commands, in a namespace or in the machine's own.
fn ip(namespace: Option<&str>, commands: &[String]) -> Result<()> {
    let mut words = vec!["ip"];
    if let Some(namespace) = namespace {
        words.extend(["-n", namespace]);
    }
    words.extend(["-batch", "-"]);
    run(&words, &(commands.join("\n") + "\n"))
}

/// Runs a program with an input.
pub(crate) fn run(words: &[&str], input: &str) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("tell {program} what to do"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_ip_prints_them() {
        let check = |line: &str, expect: Option<&str>| {
            assert_eq!(route(line).map(|subnet| subnet.to_string()).as_deref(), expect, "{line}");
        };
        check("default via 172.16.0.1 dev eth0", None);
        check("10.77.0.0/16 dev lb0 proto kernel scope link src 10.77.0.1", Some("10.77.0.0/16"));
        check("local 127.0.0.1 dev lo table local proto kernel", Some("127.0.0.1/32"));
        check("broadcast 10.77.255.255 dev lb0", Some("10.77.255.255/32"));
        check("", None);
    }
}
