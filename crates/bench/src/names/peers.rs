//! What is compared, each with what it is told.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lightbyte_api::zone::{Records, Zone};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tokio::process::{Child, ChildStdin};
use tokio::time::{Instant, sleep, timeout};

use super::NAMES;
use crate::bed::Bed;
use crate::figures::Samples;
use crate::processes::{MEASURED_CORE, TASKSET, on_core, start, start_told};
use crate::proxies::program;

/// Names of rows.
pub(super) const KNOT: &str = "knot";
const OURS: &str = "lightbyte";

/// The zone.
pub(super) const ZONE: &str = "bench.internal";

/// How long one may take until it answers.
const START_MAX: Duration = Duration::from_secs(20);

/// How long one query waits for its answer.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// The pause between two looks whether a new zone is answered from.
const LOOK_PAUSE: Duration = Duration::from_micros(100);

/// The revision of the zone that is asked for; those of updates come after it.
const FIRST: u64 = 1;

/// A corner of the loopback network that nobody else uses.
const fn at(last: u8) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 98, 232, last)), 5_300)
}

/// A name of the zone, in full.
pub(super) fn name(number: u32) -> String {
    format!("vm-{number}.{ZONE}")
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number)
}

/// The address of the first name tells the revision.
const fn marked(revision: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, (revision >> 8) as u8, revision as u8)
}

fn zone(revision: u64) -> Zone {
    let mut zone = Zone::new(ZONE, revision);
    let records = |address| Records { a: vec![address].into(), ..Records::default() };
    zone.names = (0..NAMES).map(|number| (format!("vm-{number}"), records(address(number)))).collect();
    zone.names.insert("vm-0".to_owned(), records(marked(revision)));
    zone
}

/// One that is asked.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    child: Child,
}

impl Peer {
    /// # Errors
    /// When it has ended.
    pub(super) fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }
}

/// All that run, ours first.
pub(super) struct Peers {
    pub(super) all: Vec<Peer>,
    ours: ChildStdin,
}

impl Peers {
    /// Starts ours, and those of the others that are installed; says what would install the rest.
    ///
    /// # Errors
    /// When one that is there does not answer.
    pub(super) async fn start(bed: &Bed) -> Result<Peers> {
        let own = std::env::current_exe().context("find this program")?;
        let state = bed.make("names")?;
        let words = [crate::RESOLVER_WORD.into(), at(1).to_string().into(), state.into_os_string()];
        let arguments = on_core(MEASURED_CORE, &own, &words);
        let mut child = start_told(Path::new(TASKSET), &arguments, &bed.path("names.log"))?;
        let mut ours = child.stdin.take().context("find the resolver's input")?;
        hand_over(&mut ours, FIRST).await?;
        let mut peers = Peers { all: vec![Peer { name: OURS, address: at(1), child }], ours };
        let others: [(&'static str, &'static str, Told); 3] =
            [(KNOT, "knotd", knot), ("dnsmasq", "dnsmasq", dnsmasq), ("unbound", "unbound", unbound)];
        for ((name, binary, told), last) in others.into_iter().zip(2..) {
            let Some(path) = program(binary) else {
                eprintln!("names: no {name}: `apt-get install knot dnsmasq-base unbound` installs it");
                continue;
            };
            let arguments = on_core(MEASURED_CORE, &path, &told(bed, at(last))?);
            let child = start(Path::new(TASKSET), &arguments, &bed.path(&format!("{name}.log")))?;
            peers.all.push(Peer { name, address: at(last), child });
        }
        for peer in &peers.all {
            let end = Instant::now() + START_MAX;
            while ask(peer.address).await != Some(marked(FIRST)) {
                if Instant::now() > end {
                    bail!("{} does not answer on {}", peer.name, peer.address);
                }
                sleep(LOOK_PAUSE).await;
            }
        }
        Ok(peers)
    }

    /// Hands ours so many zones, and gives the milliseconds until each was answered from.
    ///
    /// # Errors
    /// When one is not.
    pub(super) async fn update(&mut self, zones: u64) -> Result<Samples> {
        let mut samples = Samples::default();
        for revision in FIRST + 1..=FIRST + zones {
            let begun = hand_over(&mut self.ours, revision).await?;
            while ask(at(1)).await != Some(marked(revision)) {
                if begun.elapsed() > START_MAX {
                    bail!("revision {revision} is not answered from");
                }
                sleep(LOOK_PAUSE).await;
            }
            samples.push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
        Ok(samples)
    }
}

/// What one is started with.
type Told = fn(&Bed, SocketAddr) -> Result<Vec<OsString>>;

/// Hands a zone over as text, and says when that began.
async fn hand_over(ours: &mut ChildStdin, revision: u64) -> Result<Instant> {
    let mut text = serde_json::to_vec(&zone(revision)).context("write a zone")?;
    text.push(b'\n');
    let begun = Instant::now();
    ours.write_all(&text).await.context("hand over a zone")?;
    Ok(begun)
}

/// The address of the first name, as one resolver says.
async fn ask(resolver: SocketAddr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.ok()?;
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name(0).split('.') {
        query.push(u8::try_from(label.len()).ok()?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&query, resolver).await.ok()?;
    let mut answer = [0; 512];
    let read = timeout(ANSWER_MAX, socket.recv(&mut answer)).await.ok()?.ok()?;
    // The record comes first after the question, and its address is at its end; records of OPT are asked for by nobody here.
    let record = answer.get(query.len()..read)?;
    let data: [u8; 4] = record.get(12..16)?.try_into().ok()?;
    Some(data.into())
}

/// Its own settings but for one thread each.
fn knot(bed: &Bed, listen: SocketAddr) -> Result<Vec<OsString>> {
    let directory = bed.make("knot")?;
    let place = directory.display();
    let mut zone_text =
        format!("$ORIGIN {ZONE}.\n$TTL 5\n@ SOA ns hostmaster 1 60 60 60 5\n@ NS ns\nns A 10.0.0.1\n");
    for (name, address) in records() {
        let _ = writeln!(zone_text, "{name}. A {address}");
    }
    fs::write(directory.join("zone"), zone_text).context("write a zone")?;
    let text = format!(
        "server:\n  rundir: {place}\n  listen: {}@{}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {place}\nzone:\n  - domain: {ZONE}\n    storage: {place}\n    file: zone\n",
        listen.ip(),
        listen.port()
    );
    let file = directory.join("knot.conf");
    fs::write(&file, text).context("write a configuration")?;
    Ok(vec!["-c".into(), file.into_os_string()])
}

fn dnsmasq(bed: &Bed, listen: SocketAddr) -> Result<Vec<OsString>> {
    let file = bed.path("dnsmasq.hosts");
    let hosts: String = records().map(|(name, address)| format!("{address} {name}\n")).collect();
    fs::write(&file, hosts).context("write names")?;
    let words = [
        "--keep-in-foreground".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--bind-interfaces".to_owned(),
        "--user=root".to_owned(),
        "--pid-file=".to_owned(),
        "--local-ttl=5".to_owned(),
        format!("--listen-address={}", listen.ip()),
        format!("--port={}", listen.port()),
        format!("--local=/{ZONE}/"),
        format!("--addn-hosts={}", file.display()),
    ];
    Ok(words.map(OsString::from).into())
}

fn unbound(bed: &Bed, listen: SocketAddr) -> Result<Vec<OsString>> {
    let directory = bed.make("unbound")?;
    let place = directory.display();
    let mut text = format!(
        "server:\n  interface: {}\n  port: {}\n  num-threads: 1\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  \
         directory: \"{place}\"\n  pidfile: \"{place}/pid\"\n  use-syslog: no\n  module-config: \"iterator\"\n  \
         local-zone: \"{ZONE}.\" static\n",
        listen.ip(),
        listen.port()
    );
    for (name, address) in records() {
        let _ = writeln!(text, "  local-data: \"{name}. 5 A {address}\"");
    }
    let file = directory.join("unbound.conf");
    fs::write(&file, text).context("write a configuration")?;
    Ok(vec!["-d".into(), "-c".into(), file.into_os_string()])
}

/// Full names and addresses of the first zone.
fn records() -> impl Iterator<Item = (String, Ipv4Addr)> {
    (0..NAMES).map(|number| (name(number), if number == 0 { marked(FIRST) } else { address(number) }))
}
