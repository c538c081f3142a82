//! Load balancers: real proxies in VMs, real backends, and somebody who counts every request that fails.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bed::{Bed, pass, path, signal, skip, until};
use crate::certificates;
use crate::real::{machines, missing};

/// From one request to the next of each client.
const PERIOD: Duration = Duration::from_millis(50);

/// A client that asks some addresses in turn until it is stopped.
pub(crate) struct Client {
    stop: Arc<AtomicBool>,
    /// How many requests have ended, well or not.
    ended: Arc<AtomicUsize>,
    /// How many requests were answered as they should be, and what became of the others.
    counts: JoinHandle<(usize, Vec<String>)>,
}

impl Client {
    fn begin(proxies: &[String]) -> Client {
        Client::begin_with(proxies, ask)
    }

    /// One that asks in its own way.
    pub(crate) fn begin_with(
        proxies: &[String],
        ask: impl Fn(&str) -> Result<(), String> + Send + 'static,
    ) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicUsize::new(0));
        let (stopped, counter, proxies) = (Arc::clone(&stop), Arc::clone(&ended), proxies.to_vec());
        let counts = std::thread::spawn(move || {
            let (mut good, mut bad) = (0, Vec::new());
            for proxy in proxies.iter().cycle() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                match ask(proxy) {
                    Ok(()) => good += 1,
                    Err(why) => bad.push(format!("{proxy}: {why}")),
                }
                counter.fetch_add(1, Ordering::SeqCst);
                pass(PERIOD);
            }
            (good, bad)
        });
        Client { stop, ended, counts }
    }

    /// Ends it once it has asked more than so often, which a quick machine may not have yet: nothing failed.
    pub(crate) fn end_without_failure(self, more_than: usize) {
        until("the client has asked often enough", || self.ended.load(Ordering::SeqCst) > more_than);
        self.stop.store(true, Ordering::SeqCst);
        let (good, bad) = self.counts.join().expect("the client does not panic");
        assert_eq!(bad, Vec::<String>::new(), "beside {good} that were answered");
    }
}

/// Its virtual address goes from one proxy to the next.
fn its_address_moves(bed: &Bed) {
    let held = || bed.json(&["get", "lb/web"])["status"]["virtual_address"].clone();
    until("a proxy has the address", || held()["announced"] == true);
    let address = held()["address"].as_str().expect("an address").to_owned();
    let client = Client::begin(std::slice::from_ref(&address));
    let file = bed.manifests(&manifests("2", 144));
    bed.ok(&["apply", "-f", path(&file)]);
    until("all proxies are new ones", || {
        let vms = bed.ok(&["get", "vm"]);
        let is_old = |name: &str| vms.lines().any(|line| line.starts_with(name));
        !is_old("web-proxy-1 ") && !is_old("web-proxy-2 ")
    });
    bed.ok(&["wait", "lb/web"]);
    client.end_without_failure(50);

    let holder = held()["held_by"].as_str().expect("a proxy").to_owned();
    let uid = bed.json(&["get", &format!("vm/{holder}")])["uid"].clone();
    kill_machine(bed, uid.as_str().expect("a uid"));
    until("another proxy has the address", || {
        let held = held();
        held["announced"] == true && held["held_by"] != holder.as_str()
    });
    assert_eq!(ask(&address), Ok(()));
}

/// Ends the machine of a VM at once.
fn kill_machine(bed: &Bed, uid: &str) {
    let is_its = |machine: &String| {
        let words = std::fs::read(format!("{machine}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(uid)
    };
    let machine = machines(bed).into_iter().find(is_its).expect("its machine");
    signal("KILL", machine.trim_start_matches("/proc/").parse().expect("a process number"));
}

/// Both proxies say whom they would ask, and that nobody listens elsewhere.
fn says_where_requests_go(bed: &Bed) {
    let told = bed.ok(&["test", "web", "http://web/a"]);
    assert_eq!(told.matches("(revision ").count(), 1, "both would do the same: {told}");
    assert!(told.contains("route `default` asks for /a of\n  pool `web`, in turn:"), "{told}");
    assert_eq!(told.matches("\n  > web-").count(), 3, "{told}");
    let elsewhere = bed.run(&["test", "lb/web", "https://web/"]);
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&elsewhere.stdout).contains("nobody listens at this port"));
}

/// Whether `top` shows that the load balancer carries requests, and that its group gets them.
fn shows_rates(bed: &Bed) -> bool {
    let shown = bed.ok(&["top", "--once"]);
    let row_below = |head: &str| {
        let rows = shown.lines().skip_while(|line| !line.starts_with(head)).skip(1);
        rows.take_while(|line| !line.is_empty()).find(|line| line.starts_with("web "))
    };
    let is_rate = |word: &str| word.parse::<f64>().is_ok_and(|rate| rate > 0.0);
    let has_rate = |line: Option<&str>| line.is_some_and(|line| line.split_whitespace().skip(1).any(is_rate));
    // Of the group the number of members is a number too, so it is cut off.
    let group = row_below("GROUP").and_then(|line| line.trim_end().rsplit_once(' ')).map(|(row, _)| row);
    has_rate(row_below("LOAD BALANCER")) && has_rate(group)
}

/// The addresses of both proxies, which have acknowledged what they were told last.
fn proxies_of(bed: &Bed) -> Vec<String> {
    let shown = bed.json(&["get", "lb/web"])["status"].clone();
    let address = |proxy: &serde_json::Value| {
        assert_eq!(proxy["acknowledged"], shown["revision"], "{proxy}");
        proxy["address"].as_str().expect("an address").to_owned()
    };
    let proxies: Vec<String> = shown["proxies"].as_array().expect("proxies").iter().map(address).collect();
    assert_eq!(proxies.len(), 2);
    proxies
}

/// One request on a connection of its own.
fn ask(proxy: &str) -> Result<(), String> {
    let address: SocketAddr = format!("{proxy}:80").parse().expect("an address");
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(failed)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let status = answer.lines().next().unwrap_or("no answer");
    if status == "HTTP/1.1 200 OK" { Ok(()) } else { Err(status.to_owned()) }
}

pub(crate) fn manifests(version: &str, memory: u64) -> String {
    format!(
        "{{kind: scalegroup, name: web, spec: {{replicas: 3, template: {{image: demo, labels: {{version: \"{version}\"}}, \
         health: {{http: {{port: 80}}, every: 1s}}}}}}}}\n---\n\
         {{kind: loadbalancer, name: web, spec: {{virtual_address: auto, proxies: {{memory: {memory}MiB}}, listeners: [{{port: 80}}], pools: [{{name: web, group: web, port: 80}}]}}}}\n"
    )
}

#[test]
fn no_request_fails_while_backends_come_and_go() {
    let test = "no_request_fails_while_backends_come_and_go";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let images = std::env::var_os("LIGHTBYTE_IMAGES").expect("there are images");
    if !std::path::Path::new(&images).join("proxy/manifest.json").is_file() {
        return skip(test, "there is no image of proxies; `cargo xtask test` makes it");
    }
    let Some(bed) = Bed::new("balancers", &["--vmm", "qemu", "--nodes", "2"]) else { return };
    bed.start();
    let file = bed.manifests(&manifests("1", 128));
    bed.ok(&["apply", "-f", path(&file)]);
    bed.ok(&["wait", "group/web"]);
    bed.ok(&["wait", "lb/web"]);
    let proxies = proxies_of(&bed);
    says_where_requests_go(&bed);
    let client = Client::begin(&proxies);
    until("`top` shows requests a second", || shows_rates(&bed));

    let file = bed.manifests(&manifests("2", 128));
    bed.ok(&["apply", "-f", path(&file)]);
    until("all are of the new version", || {
        let group = bed.json(&["get", "group/web"])["status"].clone();
        group["state"] == "ready" && group["stable"] == 2
    });
    bed.ok(&["scale", "web", "1"]);
    bed.ok(&["wait", "group/web"]);
    bed.ok(&["scale", "web", "3"]);
    bed.ok(&["wait", "group/web"]);
    let member = bed.json(&["get", "group/web"])["status"]["members"][0]["name"].clone();
    let member = member.as_str().expect("a member");
    bed.ok(&["delete", &format!("vm/{member}"), "--yes"]);
    bed.ok(&["wait", "group/web"]);

    let member = bed.json(&["get", "group/web"])["status"]["members"][0]["name"].clone();
    let uid = bed.json(&["get", &format!("vm/{}", member.as_str().expect("a member"))])["uid"].clone();
    kill_machine(&bed, uid.as_str().expect("a uid"));
    until("it is up again", || bed.json(&["get", "group/web"])["status"]["state"] == "ready");

    client.end_without_failure(50);
    certificates::change_under_load(&bed, &proxies);
    its_address_moves(&bed);
    until("nobody shows the certificate", || !bed.ok(&["get", "secrets"]).contains("shop"));

    // Its end is the end of its proxies.
    bed.ok(&["delete", "lb/web", "--yes"]);
    until("nothing is left of it", || !bed.ok(&["get", "vm"]).contains("web-proxy"));
}
