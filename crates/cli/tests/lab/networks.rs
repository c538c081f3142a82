//! Networks of real VMs, with strangers on the LAN.

use std::process::Command;

use crate::bed::{Bed, skip, until};
use crate::real::{missing, page};

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {words}");
}

/// A machine on the LAN of a lab that is no host and no VM of it. Its namespace is named as the lab's are, and so goes
/// with the lab.
struct Stranger {
    namespace: String,
}

impl Stranger {
    fn new(bed: &Bed, name: &str) -> Stranger {
        let (namespace, lan) = (bed.namespace(name), bed.namespace("lan"));
        ip(&format!("netns add {namespace}"));
        ip(&format!("-n {lan} link add {name} type veth peer name eth0 netns {namespace}"));
        ip(&format!("-n {lan} link set {name} master lan0 up"));
        ip(&format!("-n {namespace} link set eth0 up"));
        Stranger { namespace }
    }

    fn ip(&self, words: &str) {
        ip(&format!("-n {} {words}", self.namespace));
    }

    fn mac(&self) -> String {
        let words = ["netns", "exec", &self.namespace, "cat", "/sys/class/net/eth0/address"];
        let output = Command::new("ip").args(words).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn a_machine_that_squats_a_pool_address_is_detected_skipped_and_reported() {
    let test = "a_machine_that_squats_a_pool_address_is_detected_skipped_and_reported";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("squat", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let network = bed.json(&["get", "network/default"]);
    let first = network["spec"]["pool_first"].as_str().expect("an address").to_owned();
    let prefix = first.strip_suffix(".1").expect("10.x.1.1").to_owned();
    let stranger = Stranger::new(&bed, "stranger");
    stranger.ip(&format!("addr add {first}/16 dev eth0"));

    let address = bed.ok(&["run", "demo", "--name", "hello"]).trim().to_owned();
    assert_eq!(address, format!("{prefix}.2"), "the next one");
    assert!(page(&address).is_some_and(|text| text.contains("hello")));
    let squatted = bed.json(&["get", "network/default"])["status"]["squatted"][0].clone();
    assert_eq!(squatted["address"], first.as_str());
    assert_eq!(squatted["mac"], stranger.mac().as_str());
    assert_eq!(squatted["worker"], "n1");
    let events = bed.ok(&["events", "network/default"]);
    let found = format!("{first} of network `default` is in use by a machine that is no VM of ours");
    assert!(events.contains(&found), "{events}");
    let events = bed.ok(&["events", "vm/hello"]);
    assert!(events.contains(&format!("it had {first}/16 and has {prefix}.2/16")), "{events}");
    // Nobody is given it while a person has not said that it is free, though its squatter goes.
    stranger.ip(&format!("addr del {first}/16 dev eth0"));
    assert_eq!(bed.ok(&["run", "demo", "--name", "second"]).trim(), format!("{prefix}.3"));
    bed.ok(&["release", &format!("address/{first}")]);
    assert_eq!(bed.ok(&["run", "demo", "--name", "third"]).trim(), first);
    bed.ok(&["delete", "vm/third", "--yes"]);

    // One that must have the address waits for it, and says whom it waits for.
    stranger.ip(&format!("addr add {first}/16 dev eth0"));
    bed.ok(&["run", "demo", "--name", "fixed", "--address", &first, "--no-wait"]);
    let why = || bed.ok(&["why", "vm/fixed"]);
    until("it waits", || why().contains(&format!("worker `n1` heard {} answer for it", stranger.mac())));
    assert!(why().contains(&format!("lightbyte release address/{first} --network default")), "{}", why());
    stranger.ip(&format!("addr del {first}/16 dev eth0"));
    bed.ok(&["release", &format!("address/{first}")]);
    bed.ok(&["wait", "vm/fixed", "--for", "ready"]);
    assert!(page(&first).is_some_and(|text| text.contains("fixed")));
    let boot = bed.json(&["get", "vm/hello"])["status"]["boot"].clone();
    eprintln!("the first boot, probed twice: {boot}");
}
