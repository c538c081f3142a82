//! Parts of images: what is not here is waited for, what was damaged comes again, and nothing else waits.

use lightbyte_api::assigned::{Assigned, WantedVm, WantedVolume};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{VmPhase, VolumePhase};

use crate::bench::{Bench, VM, VOLUME, assigned_vm, assigned_volume};

/// A VM and its volume are assigned, on a host without any part.
fn bare() -> Bench {
    let mut bench = Bench::new();
    bench.host.without_parts();
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
    bench.begin();
    bench.rest();
    bench
}

fn bring_all(bench: &mut Bench) {
    for part in bench.agent.parts_wanted() {
        bench.host.bring_part(&part);
        bench.agent.part_came(&part);
    }
    bench.rest();
}

fn kernel() -> Part {
    assigned_vm(1, WantedVm::Running, 0).kernel
}

#[test]
fn a_vm_waits_for_its_parts_and_then_starts() {
    let mut bench = bare();
    assert_eq!(bench.phase(), Some(VmPhase::Claimed));
    assert_eq!(bench.observed_volume().expect("a report").phase, VolumePhase::Claimed);
    assert!(bench.agent.parts_wanted().contains(&kernel()));
    assert!(!bench.trace.iter().any(|line| line.contains("Start") || line.contains("CreateDisk")));
    bring_all(&mut bench);
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    assert!(bench.agent.parts_wanted().is_empty());
    assert!(bench.agent.parts_needed().contains(&kernel().sha256), "what runs is needed at its next start");
}

#[test]
fn what_hinders_a_part_is_told_once_and_forgotten_when_it_comes() {
    let mut bench = bare();
    let writes = bench.revision;
    bench.agent.part_hindered(&kernel(), "nobody has it");
    bench.rest();
    let problem = |bench: &Bench| bench.observed_vm().expect("a report").problem.clone();
    assert_eq!(problem(&bench).as_deref(), Some("nobody has it"));
    let told = bench.revision;
    assert!(told > writes);
    bench.agent.part_hindered(&kernel(), "nobody has it");
    bench.rest();
    assert_eq!(bench.revision, told, "the same again is not written");
    bring_all(&mut bench);
    assert_eq!((bench.phase(), problem(&bench)), (Some(VmPhase::Running), None));
}

#[test]
fn nobody_wants_a_part_when_its_vm_goes_away() {
    for wanted in [WantedVm::Stopped, WantedVm::Removed] {
        let mut bench = bare();
        bench.agent.part_hindered(&kernel(), "nobody has it");
        bench.tell_vm(2, wanted, 0);
        bench.tell_volume(2, WantedVolume::Removed);
        bench.rest();
        assert!(bench.agent.parts_wanted().is_empty(), "{wanted:?}");
        let problem = bench.observed_vm().and_then(|observed| observed.problem.clone());
        assert_eq!(problem, None, "{wanted:?}");
    }
}

#[test]
fn a_part_that_was_found_damaged_comes_again() {
    let mut bench = Bench::new();
    bench.host.without_parts();
    bench.host.bring_part(&kernel());
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
    bench.begin();
    bring_all(&mut bench);
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    // It is asked to restart, and meanwhile its kernel rots: the start finds that.
    assert!(bench.host.lose_part(&kernel()));
    bench.tell_vm(2, WantedVm::Running, 1);
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Claimed));
    assert_eq!(bench.agent.parts_wanted().into_iter().collect::<Vec<_>>(), [kernel()]);
    bring_all(&mut bench);
    assert_eq!(bench.phase(), Some(VmPhase::Running));
}
