//! Every small state of a volume on its host, with every wish, alone or used by a machine, and an agent that is
//! killed after any effect.

use std::sync::Arc;

use lightbyte_api::assigned::{Arriving, Assigned, AssignedVolume, Source, WantedVm, WantedVolume};
use lightbyte_api::kinds::volume::Filesystem;
use lightbyte_api::observed::VolumePhase;
use lightbyte_api::{ByteSize, Uid, WorkerId};
use lightbyte_plan::agent::{Fetched, Saved, VmmState};
use lightbyte_vmm::driver::Disks;
use lightbyte_vmm::peers::{InProcess, PeerDisk, Peers};
use lightbyte_vmm::{FakeHost, Files};

use crate::bench::{
    Bench, Ended, VM, VOLUME, ZEROS_SHA256, assigned_vm, assigned_volume, claim, saved, vm_id, volume_id,
};

/// The sequence of what is saved.
const SAVED_AT: u64 = 5;

/// What is wanted of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Is(WantedVolume),
    /// Another worker has it still, and may have stopped to write to it.
    Arriving {
        held: bool,
    },
}

const PRESENT: Want = Want::Is(WantedVolume::Present);
const HELD: Want = Want::Is(WantedVolume::Held);
const RELEASED: Want = Want::Is(WantedVolume::Released);
const QUARANTINED: Want = Want::Is(WantedVolume::Quarantined);
const REMOVED: Want = Want::Is(WantedVolume::Removed);
const COMES: Want = Want::Arriving { held: false };
const COMES_HELD: Want = Want::Arriving { held: true };

impl Want {
    fn assigned(self, sequence: u64) -> AssignedVolume {
        match self {
            Want::Is(wanted) => assigned_volume(sequence, wanted),
            Want::Arriving { held } => AssignedVolume {
                arriving: Some(Arriving {
                    from: WorkerId::new(Uid::from_bits(0xF)),
                    address: String::new(),
                    held,
                    base: None,
                }),
                ..assigned_volume(sequence, WantedVolume::Present)
            },
        }
    }

    /// What the controllers may want after it.
    const fn next(self) -> &'static [Want] {
        match self {
            Want::Is(WantedVolume::Present) => &[PRESENT, HELD, REMOVED],
            Want::Is(WantedVolume::Held) => &[PRESENT, HELD, RELEASED, REMOVED],
            Want::Is(WantedVolume::Released) => &[RELEASED, QUARANTINED, REMOVED],
            Want::Is(WantedVolume::Quarantined | WantedVolume::Removed) => &[REMOVED],
            Want::Arriving { held: false } => &[COMES, COMES_HELD, REMOVED],
            Want::Arriving { held: true } => &[COMES_HELD, PRESENT, REMOVED],
        }
    }

    fn is_removal(self) -> bool {
        matches!(self, Want::Is(wanted) if wanted.is_removal())
    }
}

/// The other worker, which has the disk.
fn beside(other: Arc<dyn Disks>) -> impl Peers + 'static {
    InProcess(move |_: &PeerDisk| Ok(Arc::clone(&other)))
}

/// Whether a machine uses the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum User {
    None,
    Stays,
    /// It is to be removed with its disk.
    Goes,
}

/// What is there of the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum File {
    None,
    /// Smaller than is wished.
    Small,
    Whole,
    /// Some of another worker's.
    Fetched(Fetched),
}

impl File {
    const fn is_disk(self) -> bool {
        matches!(self, File::Small | File::Whole)
    }
}

const ALL_FETCHED: File = File::Fetched(Fetched { complete: true, held: true });

#[derive(Clone, Copy, Debug)]
struct Situation {
    /// What is saved, and whether the file was made.
    saved: Option<(Want, bool)>,
    wish: Option<(Want, u64)>,
    file: File,
    user: User,
    claimed: bool,
}

impl Situation {
    fn is_possible(&self) -> bool {
        let Situation { saved, wish, file, user, claimed } = *self;
        let made = saved.is_some_and(|(_, created)| created);
        let kept = saved.map(|(want, _)| want);
        let wanted = wish.map(|(want, _)| want);
        // A machine runs only with a disk that is there, and what is saved was claimed before.
        let is_used = user == User::None || (file.is_disk() && made && matches!(kept, Some(PRESENT | HELD)));
        let is_arriving = |want: Option<Want>| matches!(want, Some(Want::Arriving { .. }));
        let fetched = match file {
            // Something was fetched of what was arriving, or of what is to be removed since.
            File::Fetched(_) => {
                is_arriving(kept) || (kept.is_none() && is_arriving(wanted)) || kept == Some(REMOVED)
            }
            File::None => true,
            File::Small | File::Whole => !is_arriving(kept.or(wanted)),
        };
        // Only what was reported as there is held.
        let is_held = wanted != Some(HELD) || made;
        is_used && fetched && is_held && (claimed || saved.is_none())
    }
}

fn situations() -> Vec<Situation> {
    let kept = [
        None,
        Some((PRESENT, false)),
        Some((PRESENT, true)),
        Some((HELD, true)),
        Some((RELEASED, true)),
        Some((QUARANTINED, true)),
        Some((COMES, false)),
        Some((COMES_HELD, false)),
        Some((REMOVED, true)),
    ];
    let fetched = |complete, held| File::Fetched(Fetched { complete, held });
    let files = [
        File::None,
        File::Small,
        File::Whole,
        fetched(false, false),
        fetched(true, false),
        fetched(false, true),
        ALL_FETCHED,
    ];
    let mut situations = Vec::new();
    for saved in kept {
        let next = saved.map_or(&[PRESENT, REMOVED, COMES][..], |(want, _)| want.next());
        let newer = next.iter().map(|want| Some((*want, SAVED_AT + 1)));
        let same = saved.map(|(want, _)| (want, SAVED_AT));
        for wish in newer.chain([None, same]) {
            for file in files {
                for user in [User::None, User::Stays, User::Goes] {
                    for claimed in [true, false] {
                        situations.push(Situation { saved, wish, file, user, claimed });
                    }
                }
            }
        }
    }
    situations.retain(Situation::is_possible);
    situations
}

/// Two hosts in memory.
fn in_memory(situation: &Situation) -> Bench {
    let bench = Bench::new();
    let other = FakeHost::new(ByteSize::from_mib(1_024), []);
    other.ensure(volume_id(), &assigned_volume(1, WantedVolume::Present), None).expect("a disk");
    bench.host.set_peers(Arc::new(beside(Arc::new(other))));
    prepare(situation, bench)
}

/// Two hosts whose records and disks are real files. There is no machine.
fn on_files(place: &Place, situation: &Situation) -> Bench {
    let mut bench = Bench::new();
    place.empty();
    let [here, other] = ["here", "other"]
        .map(|host| Files::new(&place.0.join(host), &place.0.join("images")).expect("a state directory"));
    other.ensure(volume_id(), &assigned_volume(1, WantedVolume::Present), None).expect("a disk");
    let here = Arc::new(here.with_peers(Arc::new(beside(Arc::new(other)))));
    bench.drivers.disks = here.clone();
    bench.drivers.records = here;
    prepare(situation, bench)
}

/// A directory of this test.
struct Place(std::path::PathBuf);

impl Place {
    fn new() -> Place {
        let place = std::env::temp_dir().join(format!("lightbyte-volumes-{}", std::process::id()));
        std::fs::create_dir_all(place.join("images")).expect("a directory");
        let image = std::fs::File::create(place.join("images").join(ZEROS_SHA256)).expect("an image");
        image.set_len(64 << 20).expect("an image of its size");
        Place(place)
    }

    fn empty(&self) {
        for host in ["here", "other"] {
            let _ = std::fs::remove_dir_all(self.0.join(host));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn prepare(situation: &Situation, mut bench: Bench) -> Bench {
    let drivers = bench.drivers.clone();
    let vm = assigned_vm(1, WantedVm::Running, 0);
    match situation.file {
        File::None => {}
        File::Small | File::Whole => {
            let mut volume = assigned_volume(1, WantedVolume::Present);
            if situation.file == File::Small {
                volume.size = ByteSize::from_mib(32);
                volume.source = Source::Blank(Filesystem::None);
            }
            drivers.disks.ensure(volume_id(), &volume, None).expect("a disk");
        }
        File::Fetched(Fetched { complete, held }) => {
            let arriving = Want::Arriving { held }.assigned(1).arriving.expect("it arrives");
            for _ in 0..if complete { 2 } else { 1 } {
                drivers.disks.fetch(volume_id(), &arriving).expect("a slice");
            }
        }
    }
    if situation.user != User::None {
        drivers.network.ensure(vm_id(), &vm.nics).expect("taps");
        drivers.vmm.ensure(vm_id(), &vm).expect("a machine");
        drivers.records.save(VM, &saved(Assigned::Vm(vm.clone()))).expect("a record");
        bench.slot(VM).observed = Some(claim(VM, 1));
        let goes = situation.user == User::Goes;
        let wanted = if goes { assigned_vm(2, WantedVm::Removed, 0) } else { vm };
        bench.assign(VM, Some(Assigned::Vm(wanted)));
    }
    if let Some((want, created)) = situation.saved {
        let kept = Saved { created, ..saved(Assigned::Volume(want.assigned(SAVED_AT))) };
        drivers.records.save(VOLUME, &kept).expect("a record");
    }
    if situation.claimed {
        bench.slot(VOLUME).observed = Some(claim(VOLUME, SAVED_AT));
    }
    if let Some((want, sequence)) = situation.wish {
        bench.assign(VOLUME, Some(Assigned::Volume(want.assigned(sequence))));
    }
    bench
}

fn check_goal(situation: &Situation, bench: &Bench) {
    let facts = bench.facts(VOLUME);
    let phase = bench.observed_volume().map(|observed| observed.phase);
    let context = || format!("{situation:?}\n{facts:?}\n{:?}\n{}", bench.store, bench.trace.join("\n"));
    let wanted = situation.wish.map(|(wanted, _)| wanted).or(situation.saved.map(|(wanted, _)| wanted));
    let (made, arrived) = match situation.saved {
        // What was on its way has arrived, or is lost; nothing is made.
        Some((Want::Arriving { .. }, _)) => (true, situation.file == ALL_FETCHED),
        Some((_, created)) => (created, false),
        None => (false, false),
    };
    let is_there = situation.file.is_disk() || arrived;
    let in_use = bench.facts(VM).vmm == VmmState::Running;
    assert_eq!(in_use, situation.user == User::Stays, "{}", context());
    match wanted {
        None => {
            assert_eq!(facts.disk.is_some(), situation.file.is_disk(), "absence acts: {}", context());
            let is_left = situation.file != File::None;
            assert_eq!(phase.is_some(), situation.claimed && is_left, "{}", context());
        }
        Some(Want::Arriving { held }) => {
            assert_eq!(facts.disk, None, "it is not ours yet: {}", context());
            let fetched = facts.arriving.expect("something was fetched");
            assert!(fetched.complete && (fetched.held || !held), "{}", context());
            let expected = if fetched.held { VolumePhase::Complete } else { VolumePhase::Copied };
            assert_eq!(phase, Some(expected), "{}", context());
        }
        Some(RELEASED) if !in_use => assert_eq!(phase, Some(VolumePhase::Released), "{}", context()),
        Some(want) if made && !is_there && !want.is_removal() => {
            assert!(facts.disk.is_none(), "a lost disk is made again: {}", context());
            assert_eq!(phase, Some(VolumePhase::Lost), "{}", context());
        }
        Some(PRESENT) => {
            assert_eq!(facts.disk, Some(ByteSize::from_mib(64)), "{}", context());
            assert_eq!(phase, Some(VolumePhase::Present), "{}", context());
        }
        Some(HELD | RELEASED) => {
            assert!(facts.disk.is_some(), "{}", context());
            let expected = if in_use { VolumePhase::Present } else { VolumePhase::Held };
            assert_eq!(phase, Some(expected), "{}", context());
        }
        Some(_) if in_use => {
            assert!(facts.disk.is_some(), "taken from a machine: {}", context());
        }
        Some(_) => {
            assert!(facts.is_bare(), "{}", context());
            assert_eq!(phase, None, "{}", context());
        }
    }
}

#[test]
fn a_volume_comes_to_what_is_asked_from_every_state() {
    for situation in situations() {
        check_every_death(&situation, || in_memory(&situation));
    }
}

#[test]
fn a_volume_of_real_files_comes_to_what_is_asked_from_every_state() {
    let place = Place::new();
    let mut count = 0;
    for situation in situations().iter().filter(|situation| situation.user == User::None) {
        // In real files a fetch that has begun is at its end at once.
        if !matches!(situation.file, File::Fetched(Fetched { complete: false, .. })) {
            check_every_death(situation, || on_files(&place, situation));
            count += 1;
        }
    }
    assert!(count > 100, "{count} situations");
}

fn check_every_death(situation: &Situation, bench_of: impl Fn() -> Bench) {
    let mut bench = bench_of();
    bench.begin();
    bench.rest();
    check_goal(situation, &bench);
    let effects = bench.trace.len();
    bench.begin();
    bench.rest();
    assert_eq!(bench.trace.len(), effects, "{situation:?}\n{}", bench.trace.join("\n"));
    for kill_after in 1..=effects {
        let mut bench = bench_of();
        bench.life = kill_after;
        bench.begin();
        assert_eq!(bench.run(), Ended::Killed);
        bench.begin();
        bench.rest();
        check_goal(situation, &bench);
    }
    // Agents that live for one effect only.
    let mut bench = bench_of();
    for _ in 0..=2 * effects {
        bench.life = 1;
        bench.begin();
        if bench.run() == Ended::AtRest {
            break;
        }
    }
    check_goal(situation, &bench);
}

#[test]
fn a_lost_disk_is_told_and_never_made_again() {
    let mut bench = Bench::running();
    bench.host.lose_disk(volume_id());
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.rest();
    let observed = bench.observed_volume().expect("a report");
    assert_eq!(observed.phase, VolumePhase::Lost);
    assert_eq!(observed.problem.as_deref(), Some("its file is gone from the worker"));
    assert_eq!(bench.facts(VM).vmm, VmmState::Running, "the machine goes on with the file that it has open");
    // It ends by itself: it is not started without its disk, whoever asks, and no disk is made.
    bench.machine_ends();
    bench.rest();
    bench.tell_vm(2, WantedVm::Running, 1);
    bench.tell_volume(2, WantedVolume::Present);
    bench.rest();
    bench.begin();
    bench.rest();
    assert_eq!(bench.facts(VM).vmm, VmmState::Absent);
    assert!(bench.facts(VOLUME).disk.is_none());
    // Both can be removed.
    bench.tell_vm(3, WantedVm::Removed, 1);
    bench.tell_volume(3, WantedVolume::Removed);
    bench.rest();
    assert!(bench.host.everything().is_empty());
    // Only when the file is back does it count.
    let mut bench = Bench::running();
    bench.host.lose_disk(volume_id());
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.rest();
    let volume = assigned_volume(1, WantedVolume::Present);
    bench.drivers.disks.ensure(volume_id(), &volume, None).expect("a disk that is put back by a person");
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.rest();
    assert_eq!(bench.observed_volume().map(|observed| observed.phase), Some(VolumePhase::Present));
}

#[test]
fn nothing_is_added_to_a_file_system_that_is_almost_full() {
    let place = std::env::temp_dir().join(format!("lightbyte-reserve-{}", std::process::id()));
    let files = Files::new(&place, &place.join("images")).expect("set up files");
    let blank = AssignedVolume {
        source: Source::Blank(Filesystem::None),
        size: ByteSize::from_mib(1),
        ..assigned_volume(1, WantedVolume::Present)
    };
    files.ensure(volume_id(), &blank, None).expect("there is room");
    let full = files.clone().with_reserve(ByteSize::from_mib(u64::MAX >> 20));
    full.ensure(volume_id(), &blank, None).expect("it is there already");
    let other = lightbyte_api::VolumeId::new(Uid::from_bits(99));
    for refused in [full.ensure(other, &blank, None), full.grow(volume_id(), ByteSize::from_mib(2))] {
        let problem = refused.expect_err("nothing stays free").chain();
        assert!(problem.contains("stay free; delete volumes or snapshots"), "{problem}");
    }
    assert_eq!(full.size(volume_id()).expect("its size"), Some(ByteSize::from_mib(1)));
    assert_eq!(full.size(other).expect("its size"), None);
    std::fs::remove_dir_all(&place).expect("remove it");
}
