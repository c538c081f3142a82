//! `host`: what a worker does with its files: cloning an image, fetching a disk from another worker, and finding what is
//! there when its agent begins.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lightbyte_api::assigned::{
    Arriving, Assigned, AssignedDisk, AssignedVm, AssignedVolume, HostObject, Source, WantedVm, WantedVolume,
};
use lightbyte_api::first_boot::FirstBoot;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::{ByteSize, Kind, Name, Timestamp, Uid, VmId, VolumeId, WorkerId};
use lightbyte_plan::agent::{Agent, Saved};
use lightbyte_vmm::driver::{Disks, Records as _, Vmm};
use lightbyte_vmm::peers::{InProcess, PeerDisk};
use lightbyte_vmm::{FakeHost, Files, hands};

use crate::Outcome;
use crate::figures::{Row, Samples};

/// How often each side runs.
pub(crate) const RUNS: usize = 5;

/// What is cloned, all of it data.
const IMAGE_BYTES: u64 = 1 << 30;
/// The VMs that an agent finds, each with a disk.
const VMS: u64 = 50;

/// Measures all, ours and the baseline in turns.
///
/// # Errors
/// When something does not work, such as for want of room: it takes four times the image.
pub(crate) async fn measure(runs: usize) -> Result<Outcome> {
    let place = Place::new()?;
    let mut rows = Vec::new();
    let (mut clones, mut copies, mut fetches) = (Samples::default(), Samples::default(), Samples::default());
    let (files, other) = (place.files("n1")?, place.files("n2")?);
    let source = Arc::new(files.clone());
    let other =
        other.with_peers(Arc::new(InProcess(move |_: &PeerDisk| Ok(source.clone() as Arc<dyn Disks>))));
    for _ in 0..runs {
        clones.push(millis(|| files.ensure(DISK, &place.volume(), None).context("clone the image"))?);
        fetches.push(millis(|| fetch(&other))?);
        files.remove(DISK).context("remove the clone")?;
        other.drop_fetched(DISK).context("remove what was fetched")?;
        copies.push(millis(|| place.copy())?);
        // Ctrl-C is seen here.
        tokio::task::yield_now().await;
    }
    rows.push(Row::new("host", "1 GiB by cp and sync", "ms", copies.clone()));
    rows.push(Row::new("host", "1 GiB cloned durably", "ms", clones).against(&copies));
    rows.push(Row::new("host", "1 GiB fetched and verified, both sides", "ms", fetches).against(&copies));
    let (mut begins, mut reads) = (Samples::default(), Samples::default());
    let host = Found::new(&place)?;
    for _ in 0..runs * 4 {
        reads.push(millis(|| host.read())?);
        begins.push(millis(|| host.begin())?);
        tokio::task::yield_now().await;
    }
    rows.push(Row::new("host", format!("{VMS} VMs and disks: their records read"), "ms", reads.clone()));
    rows.push(
        Row::new("host", format!("{VMS} VMs and disks found by an agent"), "ms", begins).against(&reads),
    );
    Ok(Outcome::Measured(rows))
}

const DISK: VolumeId = VolumeId::new(Uid::from_bits(1));

fn millis(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    act()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn volume(sha256: &str) -> AssignedVolume {
    AssignedVolume {
        sequence: 1,
        generation: 1,
        name: Name::new("data").unwrap_or_else(|_| unreachable!("a name")),
        wanted: WantedVolume::Present,
        size: ByteSize::from_bytes(IMAGE_BYTES),
        source: Source::Image(Part { sha256: sha256.to_owned(), size: ByteSize::from_bytes(IMAGE_BYTES) }),
        arriving: None,
    }
}

fn fetch(files: &Files) -> Result<()> {
    let from = WorkerId::new(Uid::from_bits(3));
    let arriving = Arriving { from, address: String::new(), held: true, base: None };
    while !files.fetched(DISK)?.is_some_and(|fetched| fetched.complete) {
        files.fetch(DISK, &arriving).context("fetch the disk")?;
    }
    Ok(())
}

/// A directory with an image.
struct Place {
    directory: PathBuf,
    sha256: String,
}

impl Place {
    fn new() -> Result<Place> {
        let directory = std::env::temp_dir().join(format!("lightbyte-bench-host-{}", std::process::id()));
        let mut place = Place { directory, sha256: "new".to_owned() };
        fs::create_dir_all(place.directory.join("images")).context("make a directory")?;
        let mut image = File::create(place.image()).context("make an image")?;
        let block: Vec<u8> = (0..1 << 20).map(|index: u32| (index / 7 % 251) as u8 + 1).collect();
        for _ in 0..IMAGE_BYTES >> 20 {
            image.write_all(&block).context("write an image")?;
        }
        image.sync_all().context("write an image")?;
        let summed = Command::new("sha256sum").arg(place.image()).output().context("run sha256sum")?;
        let summed = String::from_utf8_lossy(&summed.stdout).into_owned();
        let sha256 = summed.split_whitespace().next().context("read its sum")?.to_owned();
        fs::rename(place.image(), place.directory.join("images").join(&sha256)).context("name an image")?;
        place.sha256 = sha256;
        Ok(place)
    }

    fn volume(&self) -> AssignedVolume {
        volume(&self.sha256)
    }

    fn image(&self) -> PathBuf {
        self.directory.join("images").join(&self.sha256)
    }

    fn files(&self, host: &str) -> Result<Files> {
        Ok(Files::new(&self.directory.join(host), &self.directory.join("images"))?)
    }

    /// What a person would type.
    fn copy(&self) -> Result<()> {
        let target = self.directory.join("copied");
        let copied = Command::new("cp").arg("--sparse=always").args([&self.image(), &target]).status();
        ensure!(copied.context("run cp")?.success(), "cp failed");
        File::open(&target).and_then(|file| file.sync_all()).context("bring it to the disk")?;
        fs::remove_file(target).context("remove the copy")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A host with machines in memory, and records and disks in files.
struct Found {
    drivers: lightbyte_vmm::Drivers,
    records: Vec<PathBuf>,
}

impl Found {
    fn new(place: &Place) -> Result<Found> {
        let host = FakeHost::new(ByteSize::from_mib(1 << 20), []);
        let files = Arc::new(place.files("n3")?);
        let mut drivers = host.drivers();
        drivers.disks = files.clone();
        drivers.records = files.clone();
        let mut records = Vec::new();
        for index in 0..VMS {
            let disk = VolumeId::new(Uid::from_bits(0x100 + u128::from(index)));
            let vm = VmId::new(Uid::from_bits(0x10_000 + u128::from(index)));
            let small = AssignedVolume {
                size: ByteSize::from_mib(1),
                source: Source::Blank(lightbyte_api::kinds::volume::Filesystem::None),
                ..place.volume()
            };
            files.ensure(disk, &small, None).context("make a disk")?;
            let machine = machine(&place.sha256);
            Vmm::ensure(&host, vm, &machine).context("start a machine")?;
            let with_disk = AssignedVm {
                disks: vec![AssignedDisk { volume: disk, read_only: false, mount: None }],
                ..machine
            };
            let objects = [
                (HostObject { kind: Kind::Volume, uid: disk.uid() }, Assigned::Volume(small)),
                (HostObject { kind: Kind::Vm, uid: vm.uid() }, Assigned::Vm(with_disk)),
            ];
            for (object, assigned) in objects {
                let saved = Saved { started_shape: 1, created: true, ..Saved::of(assigned) };
                files.save(object, &saved).context("save a record")?;
                records.push(files.directory(object).join("record"));
            }
        }
        Ok(Found { drivers, records })
    }

    /// The least that an agent has to do.
    fn read(&self) -> Result<()> {
        self.records.iter().try_for_each(|record: &PathBuf| read(record))
    }

    /// What an agent does before it can say anything.
    fn begin(&self) -> Result<()> {
        let found = hands::find_all(&self.drivers).context("list the host")?;
        ensure!(found.len() as u64 == 2 * VMS, "{} objects were found", found.len());
        drop(Agent::begin(found));
        Ok(())
    }
}

fn read(path: &Path) -> Result<()> {
    fs::read(path).map(drop).with_context(|| format!("read {}", path.display()))
}

fn machine(sha256: &str) -> AssignedVm {
    AssignedVm {
        sequence: 1,
        generation: 1,
        name: Name::new("web").unwrap_or_else(|_| unreachable!("a name")),
        wanted: WantedVm::Running,
        restarts_asked: 0,
        shape: 1,
        restart: RestartPolicy::default(),
        health: None,
        cpus: 1,
        memory: ByteSize::from_mib(128),
        image: Name::new("demo").unwrap_or_else(|_| unreachable!("a name")),
        image_version: "v1".to_owned(),
        kernel: Part { sha256: sha256.to_owned(), size: ByteSize::from_bytes(IMAGE_BYTES) },
        initrd: None,
        command_line: String::new(),
        disks: Vec::new(),
        nics: Vec::new(),
        first_boot: FirstBoot::default(),
        asked_at: Timestamp::UNIX_EPOCH,
    }
}
