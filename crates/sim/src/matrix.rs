//! The crash matrix of a move: after each effect, on either worker, its agent dies, or its host, or both hosts; on real
//! files. Whatever dies, the volume is on the new worker in the end with every byte, and is never usable on both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lightbyte_api::assigned::{Assigned, HostObject, WantedVolume};
use lightbyte_api::kinds::{snapshot, volume};
use lightbyte_api::{ByteSize, Choice, Kind, Manifest, ObjectRef, Spec, Uid, VolumeId, WorkerId};
use lightbyte_plan::request::{self, Context, Outcome};
use lightbyte_vmm::driver::Disks;
use lightbyte_vmm::peers::{InProcess, PeerDisk};
use lightbyte_vmm::{DriverError, Files};

use crate::cluster::Cluster;
use crate::oracle::Writer;
use crate::user::name;
use crate::worker::{Death, Life};

/// How many calm rounds a move may take: each is a second, with an effect or two on each worker.
const ROUNDS_MAX: usize = 40;
/// More effects than a move has, on one worker.
const EFFECTS_MAX: usize = 60;
/// More than one batch of chunks, and no whole number of them.
const LARGE_BYTES: u64 = (66 << 20) + 4_096;
/// A few chunks, and a part of one.
const SMALL_BYTES: u64 = (3 << 20) + 4_096;

/// Three hosts with real files, of which the first has a volume.
struct Bed {
    cluster: Cluster,
    place: PathBuf,
    files: Vec<Files>,
    object: ObjectRef,
    disk: VolumeId,
    disk_bytes: ByteSize,
    content: Vec<u8>,
}

impl Bed {
    fn new(label: &str, disk_bytes: u64) -> Bed {
        let place = std::env::temp_dir().join(format!("lightbyte-matrix-{}-{label}", std::process::id()));
        let mut cluster = Cluster::new(1, false);
        cluster.faults = false;
        let open = |index: usize| {
            let host = place.join(format!("n{}", index + 1));
            Files::new(&host.join("state"), &host.join("images")).expect("a state directory")
        };
        let plain: Vec<Files> = (0..cluster.workers.len()).map(open).collect();
        let disks = plain.iter().map(|files| Arc::new(files.clone()) as Arc<dyn Disks>);
        let hosts: BTreeMap<WorkerId, _> =
            cluster.workers.iter().map(|worker| worker.id).zip(disks).collect();
        let nobody = || DriverError::Refused("no such worker".to_owned());
        let peers = InProcess(move |disk: &PeerDisk| hosts.get(&disk.worker).cloned().ok_or_else(nobody));
        let peers = Arc::new(peers);
        let files: Vec<Files> = plain.into_iter().map(|files| files.with_peers(peers.clone())).collect();
        for (worker, files) in cluster.workers.iter_mut().zip(&files) {
            worker.drivers.disks = Arc::new(files.clone());
            worker.drivers.records = Arc::new(files.clone());
        }
        let object = ObjectRef::new(Kind::Volume, name("data"));
        let mut bed = Bed {
            cluster,
            place,
            files,
            object,
            disk: VolumeId::new(Uid::from_bits(0)),
            disk_bytes: ByteSize::from_bytes(disk_bytes),
            content: Vec::new(),
        };
        bed.rounds(3);
        bed.ask("n1");
        bed.rounds(6);
        let uid = bed.cluster.oracle.truth().asked(&bed.object).expect("it is asked for").meta.uid;
        bed.disk = VolumeId::new(uid);
        bed.content = (0..disk_bytes).map(|index| (index / 4_096 * 31 % 251) as u8).collect();
        bed.content[1 << 20..2 << 20].fill(0);
        fs::write(bed.files[0].disk(bed.disk), &bed.content).expect("a guest writes to it");
        bed
    }

    fn ask(&mut self, worker: &str) {
        let spec = volume::Spec {
            size: Some(self.disk_bytes),
            filesystem: volume::Filesystem::None,
            worker: Some(name(worker)),
            ..volume::Spec::default()
        };
        self.apply(&Manifest {
            name: self.object.name.clone(),
            labels: BTreeMap::new(),
            spec: Spec::Volume(spec),
        });
    }

    fn apply(&mut self, manifest: &Manifest) {
        let view = self.cluster.oracle.truth().clone();
        let uid = Uid::from_bits(self.cluster.rng.bits());
        let context = Context { now: self.cluster.now(), uid, if_match: None };
        let outcome = request::apply(&view, manifest, &context).map(Outcome::transaction);
        let decision = outcome.expect("it may be asked").expect("it is new");
        self.cluster.commit(&decision, &view, Writer::Person, |_| None).expect("rules that hold");
    }

    /// Lets time pass; after every round the volume is usable on one worker at the most.
    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.cluster.calm_round().expect("rules that hold");
            let usable = (0..self.files.len()).filter(|index| self.is_usable(*index)).count();
            assert!(usable <= 1, "the volume can be used on {usable} workers");
        }
    }

    fn is_usable(&self, index: usize) -> bool {
        let object = HostObject { kind: Kind::Volume, uid: self.disk.uid() };
        let worker = &self.cluster.workers[index];
        let saved = worker.drivers.records.load(object).expect("a record, or none");
        let is_there = self.files[index].size(self.disk).expect("a disk, or none").is_some();
        is_there
            && saved.is_some_and(|saved| {
                matches!(&saved.assigned, Assigned::Volume(assigned)
                if saved.created && assigned.wanted == WantedVolume::Present && assigned.arriving.is_none())
            })
    }

    fn is_at(&self, index: usize) -> bool {
        let decided = self.cluster.oracle.truth().decided(&self.object);
        matches!(decided.map(|decided| &decided.choice), Some(Choice::Volume(choice))
            if choice.worker == Some(self.cluster.workers[index].id) && choice.elsewhere.is_none())
    }

    /// The volume comes to the worker with every byte, and nothing of it is left on the others but what is in quarantine.
    fn check_arrival(&mut self, at: usize, how: &str) {
        let mut rounds = 0;
        while !(self.is_at(at) && self.is_usable(at)) {
            assert!(rounds < ROUNDS_MAX, "{how}: it does not arrive");
            self.rounds(1);
            rounds += 1;
        }
        let found = fs::read(self.files[at].disk(self.disk)).expect("the disk");
        assert!(found == self.content, "{how}: the disk is not what it was");
        for other in (0..self.files.len()).filter(|other| *other != at) {
            let object = HostObject { kind: Kind::Volume, uid: self.disk.uid() };
            let left = self.files[other].directory(object);
            assert!(!left.exists(), "{how}: something is left in {}", left.display());
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Lets the life of a worker end after so many effects; gives whether it did.
fn move_with_a_death(worker: usize, after: usize, death: Death) -> bool {
    let how = format!("{death:?} of n{} after effect {after}", worker + 1);
    let mut bed = Bed::new(&format!("{worker}-{after}-{death:?}"), SMALL_BYTES);
    bed.ask("n2");
    bed.cluster.workers[worker].life = Some(Life { effects_left: after, death });
    bed.check_arrival(1, &how);
    bed.cluster.workers[worker].life.is_none()
}

#[test]
fn a_move_survives_every_death_on_either_side() {
    let mut deaths = 0;
    for worker in [0, 1] {
        for death in [Death::Agent, Death::Host] {
            let died = (0..EFFECTS_MAX).take_while(|after| move_with_a_death(worker, *after, death)).count();
            assert!((5..EFFECTS_MAX).contains(&died), "{death:?} of n{} happened {died} times", worker + 1);
            deaths += died;
        }
    }
    println!("{deaths} deaths");
}

#[test]
fn a_volume_that_comes_back_is_the_newer_one() {
    let mut bed = Bed::new("back", LARGE_BYTES);
    bed.ask("n2");
    bed.check_arrival(1, "there");
    bed.content[7] ^= 0xff;
    fs::write(bed.files[1].disk(bed.disk), &bed.content).expect("a guest writes to it");
    bed.ask("n1");
    bed.check_arrival(0, "and back");
    assert!(bed.place.join("n2/state/quarantine").join(bed.disk.to_string()).exists());
}

#[test]
fn a_copy_elsewhere_makes_the_volume_again() {
    let mut bed = Bed::new("copy", SMALL_BYTES);
    let spec = snapshot::Spec { volume: name("data"), worker: Some(name("n3")), protected: false };
    bed.apply(&Manifest { name: name("copy"), labels: BTreeMap::new(), spec: Spec::Snapshot(spec) });
    bed.rounds(20);
    let spec = volume::Spec { snapshot: Some(name("copy")), ..volume::Spec::default() };
    let restored = ObjectRef::new(Kind::Volume, name("restored"));
    bed.apply(&Manifest { name: name("restored"), labels: BTreeMap::new(), spec: Spec::Volume(spec) });
    bed.rounds(10);
    let uid = bed.cluster.oracle.truth().asked(&restored).expect("it is asked for").meta.uid;
    let found = fs::read(bed.files[2].disk(VolumeId::new(uid))).expect("it is on the worker of the copy");
    assert!(found == bed.content, "the volume is not what it was");
    let left: Vec<PathBuf> = disks_in(&bed.place.join("n1/state"));
    assert_eq!(left, [bed.files[0].disk(bed.disk)], "the snapshot is left on the volume's worker");
}

fn disks_in(state: &Path) -> Vec<PathBuf> {
    let objects = fs::read_dir(state.join("volume")).expect("the volumes").flatten();
    objects.map(|object| object.path().join("disk")).filter(|disk| disk.exists()).collect()
}
