//! Who has a port already.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::super::facts::Holder;

/// Tables of sockets (proc(5)), and the state in which one of TCP takes connections (`include/net/tcp_states.h`).
const TABLES: [(&str, &str); 4] = [("udp", "UDP"), ("udp6", "UDP"), ("tcp", "TCP"), ("tcp6", "TCP")];
const LISTENS: &str = "0A";

/// Whoever has this port at all addresses of this host.
pub(super) fn everywhere(port: u16) -> Vec<Holder> {
    let mut programs = None;
    let mut holders = Vec::new();
    for (table, protocol) in TABLES {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for inode in text.lines().skip(1).filter_map(|line| inode_of(line, port, protocol)) {
            // Looked for only where there is somebody to be named: it is a walk through all descriptors.
            let programs = programs.get_or_insert_with(programs_by_inode);
            let holder = Holder { protocol, program: programs.get(&inode).cloned() };
            if !holders.contains(&holder) {
                holders.push(holder);
            }
        }
    }
    holders
}

/// The inode of a socket that takes what comes to any address at this port.
fn inode_of(line: &str, port: u16, protocol: &str) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, its_port) = fields.get(1)?.split_once(':')?;
    let is_everywhere = address.bytes().all(|digit| digit == b'0');
    let is_open = protocol == "UDP" || *fields.get(3)? == LISTENS;
    let is_it = is_everywhere && is_open && u16::from_str_radix(its_port, 16) == Ok(port);
    is_it.then(|| fields.get(9)?.parse().ok())?
}

/// Names of programs by the inodes of their sockets. Of others' processes only root is shown the sockets.
fn programs_by_inode() -> HashMap<u64, String> {
    let mut found = HashMap::new();
    let entries = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    for process in entries("/proc").filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit()) {
        let place = process.path();
        let Ok(name) = fs::read_to_string(place.join("comm")) else { continue };
        for descriptor in entries(&place.join("fd").to_string_lossy()) {
            let is_socket = fs::read_link(descriptor.path())
                .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            if is_socket && let Ok(about) = fs::metadata(descriptor.path()) {
                found.insert(about.ino(), name.trim().to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_at_all_addresses_are_told_from_others() {
        let rest = "00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4711 2 x 0";
        let listens = rest.replacen("07", "0A", 1);
        let (four, six) = ("00000000:0035", "00000000000000000000000000000000:0035");
        let table = [
            (format!("1: {four} {rest}"), "UDP", Some(4711)),
            (format!("1: {six} {rest}"), "UDP", Some(4711)),
            (format!("1: 3500007F:0035 {rest}"), "UDP", None),
            (format!("1: 00000000:0036 {rest}"), "UDP", None),
            (format!("1: {four} {listens}"), "TCP", Some(4711)),
            (format!("1: {four} {rest}"), "TCP", None),
            (String::new(), "UDP", None),
        ];
        for (line, protocol, expected) in table {
            assert_eq!(inode_of(&line, 53, protocol), expected, "{protocol} {line}");
        }
    }

    #[test]
    fn our_own_socket_is_found_with_our_name() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("there are ports");
        let port = socket.local_addr().expect("it is bound").port();
        let own = fs::read_to_string("/proc/self/comm").expect("we have a name").trim().to_owned();
        assert_eq!(everywhere(port), [Holder { protocol: "UDP", program: Some(own) }]);
    }
}
