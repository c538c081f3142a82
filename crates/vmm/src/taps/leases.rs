//! What DHCP servers have given to taps (RFC 2131), as the kernel saw it: no agent need be there, and a guest's word counts for
//! nothing.
//!
//! A card without an address of its own may send nothing but a client's words to everybody, under its own hardware address and
//! about it (the chain `asked` of the table in `sources`). What a server acknowledges to that is noted by a rule (`answered`), in the
//! set `leases`, and from then on the card may send from it. VMs can say nothing that only a server says, nothing to a server about
//! another card, and nothing that an answer would repeat (`yiaddr`), so no accomplice can give an address.
//!
//! Of a server that does not say first what its message is, an offer counts as well.
//!
//! What is not acknowledged again within two days is forgotten, so guests renew more often than that. When all rules of the host
//! are flushed, so is this: the guest is heard again when it asks everybody, at the latest when seven eighths of its lease are over.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use lightbyte_api::MacAddress;
use serde_json::Value;

/// Where the table keeps them.
pub(super) const SET: [&str; 4] = ["set", "bridge", "lightbyte-taps", "leases"];

/// An address that a server has acknowledged to a tap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Learned {
    tap: String,
    mac: u64,
    address: Ipv4Addr,
    /// In how many seconds it is forgotten: the longer, the later it was said. Of two in one second either may be the last.
    expires: u64,
}

impl Learned {
    fn is_of(&self, tap: &str, mac: MacAddress) -> bool {
        // A server may tell a client that is on another tap, and everybody on the bridge hears it.
        self.tap == tap && self.mac == bits(mac)
    }
}

/// All of a list of the set, as `nft -j` prints it.
pub(super) fn read(list: &Value) -> Vec<Learned> {
    let sets = list["nftables"].as_array().into_iter().flatten().map(|item| &item["set"]["elem"]);
    let learned = |element: &Value| {
        let key = &element["elem"]["val"]["concat"];
        Some(Learned {
            tap: key[0].as_str()?.to_owned(),
            mac: key[1].as_u64()?,
            address: Ipv4Addr::from(u32::try_from(key[2].as_u64()?).ok()?),
            expires: element["elem"]["expires"].as_u64().unwrap_or(0),
        })
    };
    sets.flat_map(|elements| elements.as_array().into_iter().flatten()).filter_map(learned).collect()
}

/// The address that a tap was given last.
pub(super) fn last(all: &[Learned], tap: &str, mac: MacAddress) -> Option<Ipv4Addr> {
    let own = all.iter().filter(|learned| learned.is_of(tap, mac));
    own.max_by_key(|learned| learned.expires).map(|learned| learned.address)
}

/// What takes away what taps were given.
pub(super) fn forget(all: &[Learned], is_gone: impl Fn(&str) -> bool) -> String {
    let mut script = String::new();
    for Learned { tap, mac, address, .. } in all.iter().filter(|learned| is_gone(&learned.tap)) {
        let key = format!("{{ \"{tap}\" . {mac:#x} . {:#x} }}", u32::from(*address));
        // One that was forgotten since cannot be deleted.
        let _ = writeln!(script, "add element bridge lightbyte-taps leases {key}");
        let _ = writeln!(script, "delete element bridge lightbyte-taps leases {key}");
    }
    script
}

/// A hardware address as a number, which is what a part of a packet is to `nft`.
pub(super) fn number(mac: MacAddress) -> String {
    format!("{:#x}", bits(mac))
}

fn bits(mac: MacAddress) -> u64 {
    mac.bytes().iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_several_the_last_counts() {
        let element = |tap: &str, mac: u64, address: u32, expires: u64| json!({"elem": {"val": {"concat": [tap, mac, address]}, "timeout": 172_800, "expires": expires}});
        let list = json!({"nftables": [{"metainfo": {}}, {"set": {"name": "leases", "elem": [
            element("lba", 0x0200_0000_0001, 0x0a00_0005, 100),
            element("lba", 0x0200_0000_0001, 0x0a00_0006, 900),
            element("lba", 0x0200_0000_0002, 0x0a00_0007, 950),
            element("lbb", 0x0200_0000_0002, 0x0a00_0007, 950),
        ]}}]});
        let all = read(&list);
        let mac = |last: u8| MacAddress::new([2, 0, 0, 0, 0, last]);
        assert_eq!(last(&all, "lba", mac(1)), Some(Ipv4Addr::new(10, 0, 0, 6)));
        assert_eq!(last(&all, "lbb", mac(2)), Some(Ipv4Addr::new(10, 0, 0, 7)));
        assert_eq!(last(&all, "lbb", mac(1)), None);
        let key = "element bridge lightbyte-taps leases { \"lbb\" . 0x20000000002 . 0xa000007 }\n";
        assert_eq!(forget(&all, |tap| tap == "lbb"), format!("add {key}delete {key}"));
        assert_eq!(read(&Value::Null), []);
        assert_eq!(number(mac(1)), "0x20000000001");
    }
}
