//! `dispatch`: from asking for a VM until its worker's stream has the assignment, beside a put until its watch has it.
//!
//! ```text
//!   ours:  POST ──> server ──commit──> etcd ──watch──> server: leader ──commit──> etcd ──watch──> server ──> stream
//!   raw:   put ─────────────────────> etcd ──watch──>
//! ```
//!
//! Ours needs two of the raw kind one after the other, so 2 is the best that the ratio can be. Real etcd and the shipped
//! server are processes of their own; the worker is this program, which only listens, so nothing is done with what is
//! assigned.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client as Etcd, EventType, WatchOptions, WatchStream};
use lightbyte_api::object::Object;
use lightbyte_api::observed::ObservedWorker;
use lightbyte_api::wire::{Applied, Apply, ClusterStatus, Heartbeat, HeartbeatAnswer};
use lightbyte_api::{Assigned, ByteSize, Name, Uid, WorkerId};
use lightbyte_lab::VmmChoice;
use lightbyte_lab::rack::{PORTS_PER_HOST, Places, Rack, Wish};
use lightbyte_lab::state::make_sealing_key;
use lightbyte_link::{Client, Endpoint, Lines, Listener};
use lightbyte_plan::agent::{Delivery, News};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::Outcome;
use crate::bed::{self, Bed};
use crate::figures::{Row, Samples};
use crate::processes::{cpu_ms, resident_bytes, start};

/// How often the two sides take turns.
const ROUNDS: usize = 10;

/// Operations of one side in one turn.
const OPERATIONS: usize = 50;

/// How long anything here may take that is waited for: a loaded machine is slow, a hang is an error.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// The pause between two looks at what nothing tells of.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How often the worker shows that it lives: as the shipped one does.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);

/// Where ports are looked for: above those of labs, and below those that the kernel gives away by itself.
const PORTS_FIRST: u16 = 31_000;

/// The same for the etcd that is alone.
const PORTS_FIRST_BARE: u16 = 31_700;

/// How many places for ports there are.
const PORT_PLACES: u16 = 50;

/// Where raw puts go.
const RAW_PREFIX: &str = "/raw/";

/// Measures both sides in turns, on `members` members of etcd.
///
/// # Errors
/// When something does not start or an assignment does not arrive.
pub(crate) async fn measure(bed: &Bed, members: usize) -> Result<Outcome> {
    let Some(etcd) = bed::etcd() else {
        return Ok(Outcome::Skipped("there is no etcd; `cargo xtask setup` fetches one".to_owned()));
    };
    measure_rounds(bed, &etcd, members, ROUNDS, OPERATIONS).await.map(Outcome::Measured)
}

async fn measure_rounds(
    bed: &Bed,
    etcd: &Path,
    members: usize,
    rounds: usize,
    operations: usize,
) -> Result<Vec<Row>> {
    let plane = Plane::start(bed, etcd, members, &["etcd", "server"], PORTS_FIRST).await?;
    let client = begin_cluster(&plane).await?;
    let mut worker = Worker::begin(&client).await?;
    let bytes = worker.dispatch("warm-up").await?.bytes;
    // An etcd of its own: writes beside lightbyte's keys would make its server wait for etcd to say that they are
    // none of its business, which etcd does once a second.
    let bare = Plane::start(bed, etcd, members, &["etcd"], PORTS_FIRST_BARE).await?;
    let mut raw = Raw::begin(&bare, bytes).await?;

    let (mut put_ms, mut asked_ms, mut answered_ms) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut spent_raw, mut spent_etcd, mut spent_server) = (0.0, 0.0, 0.0);
    for round in 0..rounds {
        let before = bare.spent("etcd");
        for number in 0..operations {
            put_ms.push(millis(raw.put(round * operations + number).await?));
        }
        spent_raw += bare.spent("etcd") - before;
        let before = (plane.spent("etcd"), plane.spent("server"));
        for number in 0..operations {
            let dispatched = worker.dispatch(&format!("vm-{round}-{number}")).await?;
            asked_ms.push(millis(dispatched.delivered));
            answered_ms.push(millis(dispatched.answered));
        }
        spent_etcd += plane.spent("etcd") - before.0;
        spent_server += plane.spent("server") - before.1;
    }
    let each = |spent: f64| spent / (rounds * operations) as f64;
    let title = if members == 1 { "1 etcd".to_owned() } else { format!("{members} etcds") };
    let baseline =
        Row::new("dispatch", format!("raw put to watch, {title}, {bytes} bytes"), "ms", put_ms.clone());
    let ours = Row::new("dispatch", format!("asked to dispatched, {title}"), "ms", asked_ms).against(&put_ms);
    let answered =
        Row::new("dispatch", "  request until the POST is answered", "ms", answered_ms).against(&put_ms);
    Ok(vec![
        Row { cpu_ms: Some(each(spent_raw)), remark: "etcd".to_owned(), ..baseline },
        Row {
            cpu_ms: Some(each(spent_etcd + spent_server)),
            remark: format!("etcd {:.2} ms + server {:.2} ms", each(spent_etcd), each(spent_server)),
            ..ours
        },
        answered,
    ])
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

// ---------------------------------------------------------------------------------------------------- control plane

/// etcd, and servers if they are wanted, as the lab runs them, without workers. They end with this.
pub(crate) struct Plane {
    processes: Vec<(&'static str, Child)>,
    rack: Rack,
    places: Places,
}

impl Plane {
    pub(crate) async fn start(
        bed: &Bed,
        etcd: &Path,
        members: usize,
        roles: &[&str],
        first_port: u16,
    ) -> Result<Self> {
        let directory = bed.make(&format!("plane-{first_port}"))?;
        let rack = free_rack(&directory, members, first_port).await?;
        let places = Places {
            state: directory.clone(),
            lightbyte: bed::lightbyte()?,
            etcd: etcd.to_owned(),
            images: directory.clone(),
            resolvers: Vec::new(),
        };
        let mut plane = Self { processes: Vec::new(), rack, places };
        plane.begin(roles)?;
        Ok(plane)
    }

    /// Ends the processes of a role at once, and starts them again.
    pub(crate) async fn start_again(&mut self, role: &str) -> Result<()> {
        for (found, child) in self.processes.iter_mut().filter(|(found, _)| *found == role) {
            child.kill().await.with_context(|| format!("end {found}"))?;
        }
        self.processes.retain(|(found, _)| *found != role);
        self.begin(&[role])
    }

    fn begin(&mut self, roles: &[&str]) -> Result<()> {
        make_sealing_key(&self.places.sealing_key())?;
        for process in
            self.rack.processes(&self.places).iter().filter(|process| roles.contains(&process.role))
        {
            let log = self.places.state.join(format!("{}-{}.log", process.host, process.role));
            let arguments: Vec<OsString> = process.arguments.iter().map(OsString::from).collect();
            self.processes.push((process.role, start(&process.program, &arguments, &log)?));
        }
        Ok(())
    }

    /// The memory that all processes of a role have in use, in bytes.
    pub(crate) fn resident(&self, role: &str) -> u64 {
        let of_role = self.processes.iter().filter(|(found, _)| *found == role);
        of_role.filter_map(|(_, child)| child.id()).map(resident_bytes).sum()
    }

    /// Where etcd's clients connect.
    pub(crate) fn etcd(&self) -> Vec<String> {
        self.rack.control_plane().map(lightbyte_lab::rack::Host::etcd_url).collect()
    }

    /// Where the servers listen.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        Ok(self.rack.servers().iter().map(|url| url.parse()).collect::<Result<_, _>>()?)
    }

    /// Processor time of all processes of a role so far, in milliseconds.
    pub(crate) fn spent(&self, role: &str) -> f64 {
        let of_role = self.processes.iter().filter(|(found, _)| *found == role);
        of_role.filter_map(|(_, child)| child.id()).map(cpu_ms).sum()
    }
}

/// Waits until a server leads, and gives the cluster what VMs stand on.
pub(crate) async fn begin_cluster(plane: &Plane) -> Result<Client> {
    let client = Client::new(plane.endpoints()?);
    let leads = async || client.get::<ClusterStatus>("/v1/status").await.ok()?.value.leader;
    until_some("a server leads", leads).await?;
    let apply = Apply { documents: ground(), create_only: false, dry_run: false };
    client.post::<_, Applied>("/v1/apply", &apply).await.context("make network and image")?;
    Ok(client)
}

/// A rack at ports that are free now, from `first_port` on.
async fn free_rack(state: &Path, members: usize, first_port: u16) -> Result<Rack> {
    let wish = Wish {
        hosts: members,
        host_cpus: 1,
        host_memory: ByteSize::from_mib(1),
        vmm: VmmChoice::Fake,
        nat: false,
    };
    let ports = PORTS_PER_HOST * u16::try_from(members).context("so many members")?;
    'places: for place in 0..PORT_PLACES {
        let first = first_port + place * ports;
        for port in first..first + ports {
            if Listener::bind(&Endpoint::Tcp("127.0.0.1".to_owned(), port)).await.is_err() {
                continue 'places;
            }
        }
        return Rack::on_loopback(wish, state, first);
    }
    bail!("no free ports from {first_port} on")
}

fn ground() -> Vec<Value> {
    let part = |digit: &str| json!({ "sha256": digit.repeat(64), "size": "64MiB" });
    let version =
        json!({ "version": "v1", "architecture": "x86_64", "kernel": part("a"), "root": part("b") });
    vec![
        json!({ "kind": "network", "name": "default", "spec": { "subnet": "10.77.0.0/16" } }),
        json!({ "kind": "image", "name": "demo", "spec": { "current": "v1", "versions": [version] } }),
    ]
}

/// Waits until etcd takes writes.
async fn until_leading(client: &mut Etcd) -> Result<()> {
    let trying = async {
        while client.put(RAW_PREFIX, "", None).await.is_err() {
            sleep(LOOK_PAUSE).await;
        }
    };
    timeout(WITHIN, trying).await.context("etcd takes no writes")
}

/// Looks until there is something.
pub(crate) async fn until_some<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(LOOK_PAUSE).await;
        }
    };
    timeout(WITHIN, looking).await.with_context(|| format!("not within {} s: {what}", WITHIN.as_secs()))
}

// ------------------------------------------------------------------------------------------------------------- ours

/// A worker that listens to its stream and does nothing.
struct Worker {
    client: Client,
    stream: Lines,
    beating: tokio::task::JoinHandle<()>,
}

/// When what was asked came about.
struct Dispatched {
    /// From the request until the assignment was in the stream.
    delivered: Duration,
    /// From the request until it was answered.
    answered: Duration,
    /// How large the assignment is.
    bytes: usize,
}

impl Worker {
    async fn begin(client: &Client) -> Result<Self> {
        let client = client.clone();
        let id = WorkerId::new(Uid::from_bits(77));
        let boot_id = "boot".to_owned();
        let said = ObservedWorker {
            name: Name::new("listener").context("make a name")?,
            boot_id: boot_id.clone(),
            architecture: "x86_64".to_owned(),
            cpus: 1 << 20,
            host_cpus: 0,
            vms_max: None,
            orphans: Vec::new(),
            memory: ByteSize::from_mib(1 << 30),
            vmm: "fake".to_owned(),
            address: String::new(),
            version: "bench".to_owned(),
            parts: Vec::new(),
        };
        client.post::<_, ()>(&format!("/v1/workers/{id}/register"), &said).await.context("register")?;
        let heart = client.clone();
        let beating = tokio::spawn(async move {
            let path = format!("/v1/workers/{id}/heartbeat");
            loop {
                // One that is lost is made good by the next.
                let _lost = heart
                    .post::<_, HeartbeatAnswer>(&path, &Heartbeat { boot_id: boot_id.clone() })
                    .await
                    .is_err();
                sleep(HEARTBEAT_PERIOD).await;
            }
        });
        let ready = async || {
            let worker = client.get::<Object>("/v1/objects/worker/listener").await.ok()?.value;
            worker.status.ready.then_some(())
        };
        until_some("the worker is ready", ready).await?;
        let stream = client.lines(&format!("/v1/workers/{id}/stream")).await.context("open the stream")?;
        Ok(Self { client, stream, beating })
    }

    /// Asks for a VM and waits for its assignment.
    async fn dispatch(&mut self, name: &str) -> Result<Dispatched> {
        let vm = json!({ "kind": "vm", "name": name, "spec": { "image": "demo" } });
        let apply = Apply { documents: vec![vm], create_only: true, dry_run: false };
        let begun = Instant::now();
        let client = self.client.clone();
        let asking = async {
            client
                .post::<_, Applied>("/v1/apply", &apply)
                .await
                .with_context(|| format!("ask for {name}"))?;
            anyhow::Ok(begun.elapsed())
        };
        let both = async { tokio::try_join!(asking, assigned(&mut self.stream, name, begun)) };
        let (answered, (delivered, bytes)) = timeout(WITHIN, both)
            .await
            .with_context(|| format!("{name} is not assigned after {WITHIN:?}"))??;
        Ok(Dispatched { delivered, answered, bytes })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// Reads the stream until `name` is assigned: how long that took since `begun`, and how large the assignment is.
async fn assigned(stream: &mut Lines, name: &str, begun: Instant) -> Result<(Duration, usize)> {
    loop {
        let delivery: Delivery = stream.next().await?.context("the stream ended")?;
        if let News::Change { assigned: Some(assigned), .. } = &delivery.news
            && let Assigned::Vm(vm) = &assigned.value
            && vm.name.as_str() == name
        {
            let took = begun.elapsed();
            return Ok((took, serde_json::to_vec(&assigned.value)?.len()));
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- raw

/// etcd alone.
struct Raw {
    client: Etcd,
    watch: WatchStream,
    value: Vec<u8>,
}

impl Raw {
    async fn begin(plane: &Plane, bytes: usize) -> Result<Self> {
        let url = plane.rack.control_plane().next().context("a rack without etcd")?.etcd_url();
        let mut client = Etcd::connect([&url], None).await.context("connect to etcd")?;
        until_leading(&mut client).await?;
        let options = WatchOptions::new().with_prefix();
        let watch = client.watch(RAW_PREFIX, Some(options)).await.context("watch etcd")?;
        Ok(Self { client, watch, value: vec![b'x'; bytes] })
    }

    /// Puts one key and waits until the watch tells of it.
    async fn put(&mut self, number: usize) -> Result<Duration> {
        let key = format!("{RAW_PREFIX}{number}");
        let begun = Instant::now();
        let putting = async {
            self.client.put(key.as_str(), self.value.clone(), None).await.context("put")?;
            anyhow::Ok(())
        };
        let watching = async {
            loop {
                let answer = self.watch.message().await.context("watch etcd")?.context("the watch ended")?;
                let is_it = |event: &etcd_client::Event| {
                    event.event_type() == EventType::Put
                        && event.kv().is_some_and(|kv| kv.key() == key.as_bytes())
                };
                if answer.events().iter().any(is_it) {
                    return anyhow::Ok(begun.elapsed());
                }
            }
        };
        let both = async { tokio::try_join!(putting, watching) };
        let ((), took) = timeout(WITHIN, both).await.context("the watch says nothing")??;
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole bench with a handful of operations: it must not rot between two measurements.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_few_vms_are_dispatched() {
        let Some(etcd) = bed::etcd() else {
            return bed::skip("dispatch", "there is no etcd; `cargo xtask setup` fetches one");
        };
        if let Err(error) = bed::lightbyte() {
            return bed::skip("dispatch", &error.to_string());
        }
        let directory = std::env::temp_dir().join(format!("lb-dispatch-{}", std::process::id()));
        let bed = Bed::at(directory.clone()).expect("a directory for the test");
        let rows = measure_rounds(&bed, &etcd, 1, 2, 2).await.expect("everything arrives");
        assert!(rows.iter().all(|row| row.samples.count() == 4 && row.samples.min() > 0.0), "{rows:?}");
        drop(bed);
        std::fs::remove_dir_all(directory).expect("remove the directory");
    }
}
