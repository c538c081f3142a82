//! What happens to workers that nobody asked for, and its end.

use lightbyte_api::assigned::HostObject;
use lightbyte_api::{Kind, VmId, VolumeId};
use lightbyte_plan::agent::Leaving;
use lightbyte_vmm::hands;

use super::look;
use crate::cluster::{Checked, Cluster};

impl Cluster {
    /// Something happens to one worker.
    pub(crate) fn worker_fault(&mut self) -> Checked {
        let index = self.rng.below(self.workers.len());
        if self.has_groups && self.rng.once_in(3) {
            self.broken_members_end(index);
            return Ok(());
        }
        match self.rng.below(12) {
            10 => self.part_rots(index),
            0 | 1 => {
                self.counts.add("fault: agent killed");
                self.tell(|| format!("the agent of n{} is killed", index + 1));
                self.workers[index].kill_agent();
            }
            2 => {
                self.counts.add("fault: host rebooted");
                self.tell(|| format!("host n{} reboots", index + 1));
                self.workers[index].reboot(index);
            }
            3 => {
                self.counts.add("fault: stream dropped");
                self.workers[index].stream = None;
            }
            4 => {
                self.counts.add("fault: worker cut off");
                let cut_off = !self.workers[index].cut_off;
                self.tell(|| format!("n{} is {}", index + 1, if cut_off { "cut off" } else { "back" }));
                self.workers[index].cut_off = cut_off;
                self.roads.close(self.workers[index].id, cut_off);
            }
            5 => {
                self.workers[index].cut_off = false;
                self.roads.close(self.workers[index].id, false);
            }
            6 => {
                self.counts.add("fault: host write failed");
                self.workers[index].host.fail_next(1 + self.rng.below(3) as u32);
            }
            7 if self.rng.once_in(4) => self.disk_vanishes(index),
            7 => self.guest_ends(index),
            8 => self.health_turns(index),
            9 => self.somebody_squats(),
            // A report of an agent that is no more, or the second of two, arrives before the first.
            _ if self.workers[index].reports.len() > 1 => {
                self.counts.add("fault: late report");
                self.workers[index].reports.rotate_left(1);
            }
            _ => {}
        }
        Ok(())
    }

    fn guest_ends(&mut self, index: usize) {
        let running: Vec<VmId> = self.workers[index].host.running();
        let Some(vm) = self.rng.pick(&running).copied() else { return };
        self.counts.add("fault: guest ended");
        let leaving = match self.rng.below(4) {
            0 => Some(Leaving::Poweroff),
            1 => Some(Leaving::Reboot),
            _ => None,
        };
        self.tell(|| format!("VM {vm} on n{} ends by itself, saying {leaving:?}", index + 1));
        let worker = &mut self.workers[index];
        if let (Some(leaving), Some(agent)) = (leaving, &mut worker.agent) {
            agent.guest_leaves(HostObject { kind: Kind::Vm, uid: vm.uid() }, leaving);
            if leaving == Leaving::Poweroff {
                worker.powered_off.insert(vm);
                self.counts.add("fault: guest shut down");
            }
        }
        self.end_guest(index, vm);
    }

    /// A guest's machine ends, and its agent may see it.
    pub(crate) fn end_guest(&mut self, index: usize, vm: VmId) {
        self.workers[index].host.exit(vm);
        look(&mut self.workers[index], vm);
    }

    /// The file of a volume vanishes, after it was made and noted.
    fn disk_vanishes(&mut self, index: usize) {
        let now = self.now();
        let worker = &mut self.workers[index];
        let noted = |volume: &VolumeId| {
            let object = HostObject { kind: Kind::Volume, uid: volume.uid() };
            let facts = hands::facts(&worker.drivers, object);
            facts.is_ok_and(|facts| facts.saved.is_some_and(|saved| saved.created))
        };
        let disks: Vec<VolumeId> = worker.host.disks().into_iter().filter(noted).collect();
        let Some(volume) = self.rng.pick(&disks).copied() else { return };
        self.counts.add("fault: disk vanished");
        self.tell(|| format!("the disk of volume {volume} vanishes from n{}", index + 1));
        let worker = &mut self.workers[index];
        worker.host.lose_disk(volume);
        worker.lost.insert(volume);
        let object = HostObject { kind: Kind::Volume, uid: volume.uid() };
        if let (Some(agent), Ok(facts)) = (&mut worker.agent, hands::facts(&worker.drivers, object)) {
            agent.observed(object, facts, None, now);
        }
    }

    /// Ends all faults that last.
    pub(crate) fn heal(&mut self) {
        for server in &mut self.servers {
            server.paused = false;
        }
        self.roads.open_all();
        for worker in &mut self.workers {
            worker.cut_off = false;
            worker.host.fail_next(0);
        }
    }
}
