//! The hands of a worker: which VMM its words and its host lead to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lightbyte_api::{ByteSize, Timestamp, VmId};
use lightbyte_vmm::taps::Taps;
use lightbyte_vmm::{Drivers, FakeHost, Files, KvmVerdict, Machines, Parts, firecracker, qemu};
use lightbyte_worker::disks::HttpPeers;

use crate::arguments::{Worker, WorkerVmm};

/// What a fake host has on its disks, in the state directory.
const FAKE_DISKS: &str = "fake-host.json";
/// The memory of a fake host that is not said.
const FAKE_MEMORY: ByteSize = ByteSize::from_mib(2_048);
/// How long a fake guest takes until it says that it is ready: long enough to be seen starting.
const FAKE_BOOT: Duration = Duration::from_millis(50);
/// Where jails are in the worker's state.
const JAILS: &str = "jails";

/// The hands of a worker.
pub(crate) struct Hands {
    pub(crate) drivers: Drivers,
    /// Where the parts of images are, if its VMs are made of any.
    pub(crate) parts: Option<Arc<Parts>>,
    /// What people call the way its VMs run.
    pub(crate) vmm: &'static str,
}

/// The hands of a worker with these words.
pub(crate) fn of(words: &Worker, runtime: &tokio::runtime::Handle) -> Result<Hands> {
    if words.vmm == Some(WorkerVmm::Fake) {
        return Ok(Hands { drivers: fake(words, runtime)?, parts: None, vmm: "fake" });
    }
    let images = words.images.clone().context("--images is missing")?;
    let files = Files::new(&words.state, &images).context("set up the worker's files")?;
    let files = files.with_peers(Arc::new(HttpPeers::new(runtime.clone())));
    let files = files.with_reserve(words.disk_reserve);
    let kvm = lightbyte_vmm::kvm::probe();
    tracing::info!("{kvm}");
    let name = words.firecracker.clone().unwrap_or_else(|| "firecracker".into());
    let found = firecracker::find(&name);
    if words.firecracker.is_some() && found.is_none() {
        bail!("`{}` is not there", name.display());
    }
    let (machines, vmm) = match (choice(words.vmm, &kvm, found.is_some()), found) {
        (WorkerVmm::Firecracker, Some(firecracker)) => firecracker_machines(words, &files, firecracker)?,
        (WorkerVmm::Firecracker, None) => {
            bail!("`firecracker` is not in PATH; name it with --firecracker, or use --vmm qemu")
        }
        _ => qemu_machines(words, &files, kvm)?,
    };
    let machines = Arc::new(machines);
    let files = Arc::new(files);
    let network = Arc::new(Taps::new().context("set up the rules of taps")?);
    let parts = Arc::new(files.parts().clone());
    let drivers = Drivers {
        vmm: machines.clone(),
        disks: files.clone(),
        network,
        parts: parts.clone(),
        records: files,
        guest: machines,
    };
    Ok(Hands { drivers, parts: Some(parts), vmm })
}

/// What was asked for; else Firecracker where it can run, and QEMU elsewhere.
fn choice(asked: Option<WorkerVmm>, kvm: &KvmVerdict, has_firecracker: bool) -> WorkerVmm {
    match asked {
        Some(vmm) => vmm,
        None if kvm.is_usable() && has_firecracker => WorkerVmm::Firecracker,
        None => WorkerVmm::Qemu,
    }
}

/// A host in memory, with disks and records in a file. Its guests become ready after a while, and obey when they are asked to end.
fn fake(words: &Worker, runtime: &tokio::runtime::Handle) -> Result<Drivers> {
    let host = FakeHost::new(words.memory.unwrap_or(FAKE_MEMORY), ["br0".to_owned()]);
    std::fs::create_dir_all(&words.state).with_context(|| format!("create {}", words.state.display()))?;
    let kept = words.state.join(FAKE_DISKS);
    host.keep_in(&kept).with_context(|| format!("read {}", kept.display()))?;
    host.set_peers(Arc::new(HttpPeers::new(runtime.clone())));
    let on_runtime = runtime.clone();
    host.on_start(move |host: &FakeHost, vm: VmId| {
        let host = host.clone();
        on_runtime.spawn(async move {
            tokio::time::sleep(FAKE_BOOT).await;
            host.guest_ready(vm, Timestamp::now());
        });
    });
    let guests = host.clone();
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(FAKE_BOOT).await;
            guests.shutting_down().into_iter().for_each(|vm| guests.exit(vm));
        }
    });
    Ok(host.drivers())
}

fn qemu_machines(words: &Worker, files: &Files, kvm: KvmVerdict) -> Result<(Machines, &'static str)> {
    let vmm = if kvm.is_usable() { "qemu (kvm)" } else { "qemu (emulated)" };
    let settings = qemu::Settings {
        kvm,
        run: words.run.clone(),
        qemu: "qemu-system-x86_64".into(),
        vsock: vec![std::env::current_exe().context("find this program")?, "vsock".into()],
        worker: words.name.to_string(),
        files: files.clone(),
    };
    Ok((Machines::qemu(settings).context("set up QEMU")?, vmm))
}

fn firecracker_machines(
    words: &Worker,
    files: &Files,
    firecracker: PathBuf,
) -> Result<(Machines, &'static str)> {
    let jail = match words.no_jailer {
        true => None,
        false => Some(firecracker::JailSettings {
            jailer: jailer(words.jailer.as_deref(), &firecracker)?,
            jails: words.jails.clone().unwrap_or_else(|| words.state.join(JAILS)),
            uids: firecracker::UIDS,
        }),
    };
    let vmm = if jail.is_some() { "firecracker" } else { "firecracker (no jailer)" };
    let settings = firecracker::Settings {
        run: words.run.clone(),
        firecracker,
        jail,
        worker: words.name.to_string(),
        files: files.clone(),
    };
    Ok((Machines::firecracker(settings).context("set up Firecracker")?, vmm))
}

/// The jailer that was named, or the one beside Firecracker, or the one in `PATH`.
fn jailer(asked: Option<&Path>, firecracker: &Path) -> Result<PathBuf> {
    let name = Path::new("jailer");
    let found = match asked {
        Some(asked) => firecracker::find(asked),
        None => firecracker::find(&firecracker.with_file_name(name)).or_else(|| firecracker::find(name)),
    };
    found.with_context(|| {
        let asked = asked.unwrap_or(name).display();
        format!("find `{asked}`: it is not there; name it with --jailer, or go without by --no-jailer")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn firecracker_runs_vms_where_it_can_unless_something_else_is_asked() {
        let table = [
            (None, KvmVerdict::Usable, true, WorkerVmm::Firecracker),
            (None, KvmVerdict::Usable, false, WorkerVmm::Qemu),
            (None, KvmVerdict::NotThere, true, WorkerVmm::Qemu),
            (None, KvmVerdict::Unfit("slow".to_owned()), true, WorkerVmm::Qemu),
            (Some(WorkerVmm::Qemu), KvmVerdict::Usable, true, WorkerVmm::Qemu),
            (Some(WorkerVmm::Firecracker), KvmVerdict::NotThere, false, WorkerVmm::Firecracker),
        ];
        for (asked, kvm, has_firecracker, expected) in table {
            assert_eq!(choice(asked, &kvm, has_firecracker), expected, "{asked:?}, {kvm}");
        }
    }

    #[test]
    fn the_jailer_beside_firecracker_comes_first() {
        let place = std::env::temp_dir().join(format!("lightbyte-jailer-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let (firecracker, beside, other) =
            (place.join("firecracker"), place.join("jailer"), place.join("other"));
        let missing = jailer(Some(&other), &firecracker).unwrap_err().to_string();
        assert!(
            missing.ends_with("it is not there; name it with --jailer, or go without by --no-jailer"),
            "{missing}"
        );
        for file in [&beside, &other] {
            fs::write(file, "").unwrap();
        }
        assert_eq!(jailer(None, &firecracker).unwrap(), beside);
        assert_eq!(jailer(Some(&other), &firecracker).unwrap(), other);
        fs::remove_dir_all(&place).unwrap();
    }
}
