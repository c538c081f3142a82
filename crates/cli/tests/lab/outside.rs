//! What leaves a lab. A network namespace stands for the machine that the lab runs on, and another one for everything
//! that this machine reaches, so that nothing here touches a real network.

use std::process::Command;

use crate::bed::{Bed, path, skip};
use crate::real::missing;

/// The machine's address outside, and somebody there (TEST-NET-1, RFC 5737). The machine's is counted.
const MACHINE: &str = "192.0.2.1";
const SOMEBODY: &str = "192.0.2.2";
/// The machine's link to the outside, whose forwarding is switched.
const LINK: &str = "lbt-out";

/// The machine and the outside.
struct World {
    machine: String,
    outside: String,
}

fn run(words: &[&str]) -> String {
    let (program, arguments) = words.split_first().expect("a program");
    let output = Command::new(program).args(arguments).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl World {
    fn new(test: &str) -> World {
        let name = |part: &str| format!("lbt-{test}-{}-{part}", std::process::id());
        let world = World { machine: name("machine"), outside: name("outside") };
        let (machine, outside) = (world.machine.as_str(), world.outside.as_str());
        run(&["ip", "netns", "add", machine]);
        run(&["ip", "netns", "add", outside]);
        run(&[
            "ip", "-n", machine, "link", "add", LINK, "type", "veth", "peer", "name", "in", "netns", outside,
        ]);
        for (namespace, link, address) in [(machine, LINK, MACHINE), (outside, "in", SOMEBODY)] {
            run(&["ip", "-n", namespace, "link", "set", "lo", "up"]);
            run(&["ip", "-n", namespace, "addr", "add", &format!("{address}/24"), "dev", link]);
            run(&["ip", "-n", namespace, "link", "set", link, "up"]);
        }
        run(&["ip", "-n", machine, "route", "add", "default", "via", SOMEBODY]);
        // Somebody answers whatever is asked, and counts who asks.
        let rules = format!(
            "add table ip seen; add counter ip seen machine; add counter ip seen others; \
             add chain ip seen input {{ type filter hook input priority 0; }}; \
             add rule ip seen input ip saddr {MACHINE} counter name machine accept; \
             add rule ip seen input counter name others"
        );
        world.outside(&["nft", &rules]);
        world
    }

    fn outside(&self, words: &[&str]) -> String {
        let mut line = vec!["ip", "netns", "exec", &self.outside];
        line.extend(words);
        run(&line)
    }

    /// How many packets somebody has got from the machine, and from anybody else.
    fn seen(&self) -> (u64, u64) {
        let count = |name: &str| {
            let text = self.outside(&["nft", "list", "counter", "ip", "seen", name]);
            let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
            words.nth(1).and_then(|word| word.parse().ok()).expect("a count")
        };
        (count("machine"), count("others"))
    }

    /// The words that run others on the machine.
    fn on_machine(&self) -> [String; 3] {
        ["nsenter".to_owned(), format!("--net=/run/netns/{}", self.machine), "--".to_owned()]
    }

    fn machine(&self, words: &[&str]) -> String {
        let through = self.on_machine();
        let line: Vec<&str> = through.iter().map(String::as_str).chain(words.iter().copied()).collect();
        run(&line)
    }

    fn set_forwarding(&self, on: &str) {
        self.machine(&["sh", "-c", &format!("echo {on} > /proc/sys/net/ipv4/ip_forward")]);
    }

    fn forwards(&self) -> bool {
        self.machine(&["cat", &format!("/proc/sys/net/ipv4/conf/{LINK}/forwarding")]).trim() == "1"
    }

    fn tables(&self) -> String {
        self.machine(&["nft", "list", "tables"])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in [&self.machine, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// What a host of the lab meets when it connects to somebody: an answer (nothing listens there, so it is a refusal),
/// or silence.
fn is_answered(bed: &Bed) -> bool {
    let namespace = bed.namespace("n1");
    let connect = format!("exec 3<>/dev/tcp/{SOMEBODY}/7000");
    let words = ["netns", "exec", &namespace, "timeout", "2", "bash", "-c", &connect];
    let output = Command::new("ip").args(words).output().expect("ip runs");
    String::from_utf8_lossy(&output.stderr).contains("Connection refused")
}

#[test]
fn guests_stay_inside_unless_they_are_let_out() {
    let test = "guests_stay_inside_unless_they_are_let_out";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let world = World::new("nat");
    let through = world.on_machine();
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let words = ["--vmm", "qemu", "--nodes", "1"];
    let Some(bed) = Bed::new("nat", &words).map(|bed| bed.through(&through)) else { return };
    let state = bed.state();
    let start = |more: &[&str]| {
        let mut line = vec!["dev", "--detach", "--state", path(&state)];
        line.extend(words.iter().chain(more).copied());
        bed.ok(&line);
    };
    let stop = || bed.ok(&["dev", "stop", "--state", path(&state)]);

    // A machine that forwards for somebody else, as for Docker.
    world.set_forwarding("1");
    start(&[]);
    assert!(!is_answered(&bed) && world.seen() == (0, 0), "{:?}", world.seen());
    stop();
    assert!(world.forwards(), "what others have switched on stays on");

    world.set_forwarding("0");
    start(&["--nat"]);
    assert!(is_answered(&bed), "the way out and back: {:?}", world.seen());
    let (machine, others) = world.seen();
    assert!(machine > 0 && others == 0, "everything comes from the machine's own address");
    assert!(world.forwards() && world.tables().contains(&bed.hash()));
    stop();
    assert!(!world.forwards() && !world.tables().contains(&bed.hash()), "nothing is left of it");

    let mut line = vec!["dev", "--nat", "--state", path(&state)];
    line.extend(words);
    let mut supervisor = bed.start_as_child_of(&line);
    supervisor.kill().expect("the supervisor is killed");
    supervisor.wait().expect("and reaped");
    assert!(world.forwards(), "nobody could clear away");
    start(&[]);
    assert!(!world.forwards() && !is_answered(&bed), "a killed run does not open the next one");
}
