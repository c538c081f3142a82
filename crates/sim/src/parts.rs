//! Parts of images: they come to a host, or do not, and some rot.

use lightbyte_api::kinds::image::Part;
use lightbyte_plan::agent::{Agent, parts};

use crate::cluster::{Checked, Cluster};
use crate::oracle::violated;

impl Cluster {
    /// One of the parts that a worker fetches comes, or does not now.
    pub(crate) fn part_comes(&mut self, index: usize) -> Checked {
        let wanted: Vec<Part> =
            self.workers[index].agent().map(Agent::parts_wanted).into_iter().flatten().collect();
        let Some(part) = self.rng.pick(&wanted).cloned() else { return Ok(()) };
        if self.faults && self.rng.once_in(3) {
            self.counts.add("fault: part hindered");
            if let Some(agent) = self.workers[index].agent_mut() {
                agent.part_hindered(&part, "nobody has it");
            }
            return Ok(());
        }
        self.bring_part(index, &part)
    }

    /// Everything that a worker fetches comes.
    pub(crate) fn all_parts_come(&mut self, index: usize) -> Checked {
        for part in self.workers[index].agent().map(Agent::parts_wanted).into_iter().flatten() {
            self.bring_part(index, &part)?;
        }
        Ok(())
    }

    fn bring_part(&mut self, index: usize, part: &Part) -> Checked {
        self.counts.add("part came");
        self.tell(|| format!("a part of an image comes to n{}", index + 1));
        let worker = &mut self.workers[index];
        let Some(agent) = worker.agent_mut() else { return Ok(()) };
        agent.part_came(part);
        // What is fetched is for something that is saved here: nothing else would ever let go of it.
        let is_for_somebody = agent.parts_needed().contains(&part.sha256);
        worker.host.bring_part(part);
        if is_for_somebody { Ok(()) } else { violated("parts", "one is fetched for nothing on its host") }
    }

    /// A part is found damaged, and is there no more.
    pub(crate) fn part_rots(&mut self, index: usize) {
        let saved = self.workers[index].agent().into_iter().flat_map(Agent::desks);
        let saved = saved.filter_map(|(_, desk)| desk.facts().saved.as_ref());
        let needed: Vec<Part> = saved.flat_map(|saved| parts::parts_of(&saved.assigned)).cloned().collect();
        let Some(part) = self.rng.pick(&needed).cloned() else { return };
        if self.workers[index].host.lose_part(&part) {
            self.counts.add("fault: part damaged");
            self.tell(|| format!("a part of an image rots on n{}", index + 1));
        }
    }
}
