//! `packing`: how many VMs the scheduler places in small worlds, one after the other as they come, of those that somebody
//! could place who knows all of them beforehand.

use std::collections::BTreeMap;

use anyhow::Result;
use lightbyte_api::records::WorkerLedger;
use lightbyte_api::{ByteSize, Key, WorkerId};
use lightbyte_plan::scheduler::{Need, schedule};
use lightbyte_plan::{View, Write};

use crate::Outcome;
use crate::figures::{Row, Samples};
use crate::placement::of_worker;

/// How many worlds are tried.
const WORLDS: u64 = 300;
/// The most VMs of a world: the best of all ways to place them is found by trying all.
const VMS_MAX: u64 = 8;

/// A VM, or what is left of a worker: CPUs, and memory in units of 256 MiB.
type Size = (u64, u64);

/// Tries every world once.
///
/// # Errors
/// When a world cannot be made.
pub(crate) fn measure() -> Result<Outcome> {
    let (mut parts, mut ours, mut best) = (Samples::default(), 0, 0);
    for world in 0..WORLDS {
        let (workers, vms) = make(world);
        let (placed, optimum) = (place(&workers, &vms)?, optimum(&workers, &vms));
        parts.push(100.0 * placed as f64 / optimum.max(1) as f64);
        (ours, best) = (ours + placed, best + optimum);
    }
    let what = format!("{WORLDS} worlds of 2 or 3 workers: VMs placed, of the optimum");
    let remark = format!("{ours} of {best}");
    Ok(Outcome::Measured(vec![Row { remark, ..Row::new("packing", what, "%", parts) }]))
}

/// A world with more VMs than fit easily. The same number gives the same world.
fn make(world: u64) -> (Vec<Size>, Vec<Size>) {
    // splitmix64 (Steele, Lea, Flood 2014).
    let mut state = world.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut below = |limit: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    };
    let workers = (0..2 + below(2)).map(|_| (4 + below(5), 8 + below(9))).collect();
    let vms = (0..VMS_MAX - below(3)).map(|_| (1 + below(4), 1 + below(8))).collect();
    (workers, vms)
}

fn place(workers: &[Size], vms: &[Size]) -> Result<usize> {
    let mut view = View::default();
    let memory = |units: u64| ByteSize::from_mib(units * 256);
    for (number, (cpus, units)) in workers.iter().enumerate() {
        view.write(of_worker(number, *cpus, memory(*units))?, 1);
    }
    let mut used: BTreeMap<WorkerId, WorkerLedger> = BTreeMap::new();
    let mut placed = 0;
    for (revision, (cpus, units)) in (2..).zip(vms) {
        let need = Need::of(*cpus, memory(*units), "x86_64");
        let Some((worker, _)) = schedule(&view, &need).worker else { continue };
        let ledger = used.entry(worker).or_default();
        ledger.cpus += need.cpus;
        ledger.memory = ByteSize::from_bytes(ledger.memory.bytes() + need.memory.bytes());
        ledger.vms += 1;
        view.write([Write::put(Key::WorkerLedger(worker), ledger.clone())], revision);
        placed += 1;
    }
    Ok(placed)
}

/// The most VMs that fit at all.
fn optimum(workers: &[Size], vms: &[Size]) -> usize {
    let Some(((cpus, units), others)) = vms.split_first() else { return 0 };
    let without = optimum(workers, others);
    let with = (0..workers.len()).filter_map(|index| {
        let mut left = workers.to_vec();
        left[index] = (left[index].0.checked_sub(*cpus)?, left[index].1.checked_sub(*units)?);
        Some(1 + optimum(&left, others))
    });
    with.max().unwrap_or(0).max(without)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_places_more_than_fit() {
        assert_eq!(optimum(&[(4, 8), (2, 2)], &[(4, 8), (2, 2), (1, 1)]), 2);
        assert_eq!(optimum(&[(4, 8)], &[(3, 1), (2, 1), (2, 1)]), 2);
        for world in 0..20 {
            let (workers, vms) = make(world);
            let (placed, best) = (place(&workers, &vms).expect("a world"), optimum(&workers, &vms));
            assert!((1..=best).contains(&placed), "world {world}: {placed} of {best}");
        }
    }
}
