//! `boot`: `lightbyte run` on a lab, from request to ready, beside the same VM started by hand.
//!
//! Plain QEMU is the raw command line of a VM that the lab has started, word for word but for the paths and the tap (see
//! [`plain`]): no server, no agent, no etcd. Its clock runs from the moment at which QEMU is executed, with its disk
//! copied, its tap made and its vsock backend listening before; and stops when the guest's agent calls the host, which is
//! what tells lightbyte's worker that the guest is there. So everything that lightbyte does around a boot, the copy of
//! the disk included, counts as lightbyte's.

mod adoption;
mod plain;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::plain::{CommandLine, Ground};
use crate::Outcome;
use crate::bed::{self, Bed, run};
use crate::figures::{Row, Samples};
use crate::processes::{children_cpu_ms, cpu_ms, find};

/// How often each side boots.
pub(crate) const RUNS: usize = 5;

/// The parts of a boot as `status.boot` has them, in order.
const MILESTONES: [&str; 4] = ["request_to_dispatch", "dispatch_to_vmm", "vmm_to_agent", "agent_to_ready"];

/// What each host of a lab offers: enough for all VMs that are there at once.
const HOST_CPUS: &str = "16";
const HOST_MEMORY: &str = "2GiB";

/// Programs without which no VM runs.
const PROGRAMS: &[&str] = &["qemu-system-x86_64", "ip", "nft"];

/// Boots both in turns, on a lab of so many hosts.
///
/// # Errors
/// When the lab, a VM or plain QEMU does not start.
pub(crate) async fn measure(bed: &Bed, hosts: usize, runs: usize) -> Result<Outcome> {
    let image = match find_image() {
        Ok(image) => image,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let lab = Lab::start(bed, hosts)?;
    let ground = Ground::make(bed, root_disk(&image)?)?;
    // One of each that does not count: caches are warm for all that do, and the first gives its command line away.
    let warm = lab.boot("warm", |qemu| qemu.words.clone())?;
    let line = CommandLine::copy(&warm.from_machine)?;
    ground.boot(&line).await?;

    let mut plain = Boots::default();
    let mut ours = Boots::default();
    let mut parts = vec![Samples::default(); MILESTONES.len()];
    let (mut to_call, mut lab_cpu_ms) = (Samples::default(), Samples::default());
    for number in 0..runs {
        let boot = ground.boot(&line).await?;
        plain.push(boot.wall, boot.cpu_ms);
        let boot = lab.boot(&format!("bench-{number}"), |_| ())?;
        ours.push(boot.wall, boot.vm_cpu_ms + boot.lab_cpu_ms);
        lab_cpu_ms.push(boot.lab_cpu_ms);
        parts.iter_mut().zip(boot.parts).for_each(|(samples, part)| samples.push(part));
        to_call.push(boot.parts[..3].iter().sum());
    }
    drop(ground);
    let adopted = if hosts == 1 { adoption::measure(&lab, runs).await? } else { Vec::new() };
    lab.end()?;
    let mut rows = rows(hosts, &plain, &ours, parts, &to_call);
    let lab = Row::new("boot", "  processor time of command, worker, server, etcd", "ms", lab_cpu_ms);
    rows.push(lab);
    rows.extend(adopted);
    Ok(Outcome::Measured(rows))
}

/// Removes what a run that was killed has left outside of its directory.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn clear_away() -> Result<()> {
    plain::clear_away().context("remove the plain VM of an earlier run")
}

/// The remarks are the medians of the differences, boot by boot.
fn rows(hosts: usize, plain: &Boots, ours: &Boots, parts: Vec<Samples>, to_call: &Samples) -> Vec<Row> {
    let more = |samples: &Samples| format!("{:+.0} ms", samples.above(&plain.wall_ms).median());
    let title = if hosts == 1 { "1 host".to_owned() } else { format!("{hosts} hosts") };
    let baseline = Row::new("boot", "plain QEMU, exec to the agent's call", "ms", plain.wall_ms.clone());
    let whole =
        Row::new("boot", format!("lightbyte run, request to ready, {title}"), "ms", ours.wall_ms.clone());
    let call = Row::new("boot", "  request to the agent's call", "ms", to_call.clone());
    let mut rows = vec![
        Row { cpu_ms: Some(plain.cpu_ms.median()), ..baseline },
        Row {
            cpu_ms: Some(ours.cpu_ms.median()),
            remark: more(&ours.wall_ms),
            ..whole.against(&plain.wall_ms)
        },
        Row { remark: more(to_call), ..call.against(&plain.wall_ms) },
    ];
    let of_part = |(name, samples): (&str, Samples)| Row::new("boot", format!("  {name}"), "ms", samples);
    rows.extend(MILESTONES.into_iter().zip(parts).map(of_part));
    rows
}

/// What one side's boots took.
#[derive(Default)]
struct Boots {
    wall_ms: Samples,
    cpu_ms: Samples,
}

impl Boots {
    fn push(&mut self, wall: Duration, cpu_ms: f64) {
        self.wall_ms.push(wall.as_secs_f64() * 1e3);
        self.cpu_ms.push(cpu_ms);
    }
}

/// The demo image's directory, or what is missing for real VMs.
fn find_image() -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it needs root for namespaces and taps".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if let Some(program) = PROGRAMS.iter().find(|program| !is_there(program)) {
        return Err(format!("{program} is not installed; `cargo xtask setup` installs it"));
    }
    let image = bed::cache().unwrap_or_default().join("images/demo");
    match image.join("manifest.json").is_file() {
        true => Ok(image),
        false => Err("there is no demo image; `cargo xtask images` makes it".to_owned()),
    }
}

/// The image's root file system, which disks are copied from.
fn root_disk(image: &Path) -> Result<PathBuf> {
    let manifest = std::fs::read(image.join("manifest.json")).context("read the image's manifest")?;
    let manifest: Value = serde_json::from_slice(&manifest).context("read the image's manifest")?;
    Ok(image.join(manifest["root"]["file"].as_str().context("the manifest names no root")?))
}

// ------------------------------------------------------------------------------------------------------------ the lab

/// A lab of real VMs. It ends with this.
struct Lab<'a> {
    bed: &'a Bed,
    /// The supervisor, etcd, servers and workers.
    processes: Vec<u32>,
}

/// A machine process.
struct Qemu {
    pid: u32,
    words: Vec<String>,
}

/// One boot of a VM.
struct Boot<T> {
    wall: Duration,
    /// Of the VM's processes until it was looked at.
    vm_cpu_ms: f64,
    /// Of the command and the lab's processes.
    lab_cpu_ms: f64,
    /// As [`MILESTONES`], in milliseconds.
    parts: [f64; 4],
    from_machine: T,
}

impl<'a> Lab<'a> {
    fn start(bed: &'a Bed, hosts: usize) -> Result<Self> {
        let mut command = bed.lightbyte()?;
        command.args(["dev", "--detach", "--nodes", &hosts.to_string(), "--host-cpus", HOST_CPUS]);
        command.args(["--host-memory", HOST_MEMORY, "--state"]).arg(bed.lab());
        let mut lab = Self { bed, processes: Vec::new() };
        run(&mut command).context("start the lab")?;
        let state = bed.lab().display().to_string();
        lab.processes = find(|words| words.iter().any(|word| *word == format!("--state={state}")))
            .into_iter()
            .filter(|(_, words)| words.iter().any(|word| word == "dev"))
            .map(|(pid, _)| pid)
            .collect();
        for entry in
            std::fs::read_dir(bed.lab().join("processes")).context("list the lab's processes")?.flatten()
        {
            let noted = std::fs::read(entry.path()).context("read a process of the lab")?;
            let noted: Value = serde_json::from_slice(&noted).context("read a process of the lab")?;
            lab.processes.extend(noted["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()));
        }
        Ok(lab)
    }

    fn spent(&self) -> f64 {
        self.processes.iter().copied().map(cpu_ms).sum::<f64>() + children_cpu_ms()
    }

    /// Boots a VM, looks at its machine, and deletes it.
    fn boot<T>(&self, name: &str, look: impl FnOnce(&Qemu) -> T) -> Result<Boot<T>> {
        let spent = self.spent();
        let begun = Instant::now();
        run(self.bed.lightbyte()?.args(["run", "demo", "--name", name]))?;
        let wall = begun.elapsed();
        let lab_cpu_ms = self.spent() - spent;
        let qemu = self.machine()?;
        let backend = backend_of(&qemu)?;
        let vm_cpu_ms = cpu_ms(qemu.pid) + cpu_ms(backend);
        let from_machine = look(&qemu);
        let object = format!("vm/{name}");
        let text = run(self.bed.lightbyte()?.args(["get", &object, "-o", "json"]))?;
        let found: Value = serde_json::from_str(&text).with_context(|| format!("read {object}"))?;
        let part = |name: &str| {
            found["status"]["boot"][name].as_f64().with_context(|| format!("{object} has no {name}"))
        };
        let [first, second, third, fourth] = MILESTONES;
        let parts = [part(first)?, part(second)?, part(third)?, part(fourth)?];
        run(self.bed.lightbyte()?.args(["delete", &object, "--yes"]))?;
        Ok(Boot { wall, vm_cpu_ms, lab_cpu_ms, parts, from_machine })
    }

    /// The only machine that runs.
    fn machine(&self) -> Result<Qemu> {
        let state = self.bed.lab().display().to_string();
        let is_ours = |words: &[String]| {
            words.first().is_some_and(|program| program.contains("qemu-system"))
                && words.iter().any(|word| word.contains(&state))
        };
        let mut found = find(is_ours);
        ensure!(found.len() == 1, "{} machines run, not one", found.len());
        let (pid, words) = found.remove(0);
        Ok(Qemu { pid, words })
    }

    fn end(self) -> Result<()> {
        self.bed.delete_lab()
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.bed.delete_lab() {
            eprintln!("warning: the lab is left behind: {error:#}");
        }
    }
}

/// The vsock backend that a machine is connected to.
fn backend_of(qemu: &Qemu) -> Result<u32> {
    let socket = plain::vsock_socket(&qemu.words).context("the machine has no vsock")?;
    let found = find(|words| {
        words.get(1).is_some_and(|word| word == "vsock") && words.iter().any(|word| word == socket)
    });
    found.first().map(|(pid, _)| *pid).context("the machine has no vsock backend")
}
