//! `lightbyte top`: what workers, groups and VMs use, again and again.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lightbyte_api::wire::{ClusterUsage, Usage, VmUsage};
use lightbyte_api::{Kind, Name, ObjectRef};
use lightbyte_plan::load::CpuTime;

use crate::arguments::Top;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::session;
use crate::table;
use crate::terminal::print;

/// How many looks a sparkline has.
const SPARKS: usize = 20;
/// The steps of a sparkline, from idle to busy.
const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The time between the two looks that a share of CPU time needs.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How many lines there are where nobody says how high the terminal is.
const LINES: u16 = 40;

pub(crate) async fn run(cluster: &Cluster, words: &Top) -> Result<Code> {
    let is_live = session::is_interactive() && !words.once;
    let mut looks = Looks::default();
    let mut looked = Instant::now();
    looks.take(&look(cluster).await?, Duration::ZERO);
    tokio::time::sleep(FIRST_PAUSE).await;
    loop {
        let before = std::mem::replace(&mut looked, Instant::now());
        let now = look(cluster).await?;
        looks.take(&now, looked - before);
        let lines = match session::size() {
            Some((lines, _)) if is_live && lines > 0 => lines,
            _ if is_live => LINES,
            _ => u16::MAX,
        };
        let text = looks.render(&now, lines);
        if !is_live {
            print(&text)?;
            return Ok(Code::Done);
        }
        // Home, each line to its end, and what is left below: nothing flickers.
        print(&format!("\u{1b}[H{}\u{1b}[J", text.replace('\n', "\u{1b}[K\n")))?;
        tokio::time::sleep(words.every.duration()).await;
    }
}

async fn look(cluster: &Cluster) -> Result<ClusterUsage> {
    cluster.usage().await.context("ask what the cluster uses")
}

/// What was seen so far: how busy each thing was at each look, in thousandths of its CPUs.
#[derive(Default)]
struct Looks {
    before: BTreeMap<ObjectRef, CpuTime>,
    busy: BTreeMap<ObjectRef, VecDeque<u64>>,
    /// Requests by proxy and backend.
    carried: BTreeMap<(Name, Name), u64>,
    /// Requests a second, at the last look, of load balancers and groups.
    rates: BTreeMap<ObjectRef, f64>,
}

impl Looks {
    /// `passed` is the time since the look before.
    fn take(&mut self, now: &ClusterUsage, passed: Duration) {
        self.count(now, passed);
        let workers = now.workers.iter().filter_map(|found| Some((worker(&found.name), found.usage?)));
        let vms = now.vms.iter().map(|found| (vm(&found.name), found.usage));
        let found = workers.chain(vms).map(|(object, usage)| (object, CpuTime::from(usage)));
        let found: BTreeMap<ObjectRef, CpuTime> = found.collect();
        let mut shares: BTreeMap<ObjectRef, u64> = BTreeMap::new();
        for (object, time) in &found {
            let share = self.before.get(object).and_then(|before| time.share_since(*before));
            shares.extend(share.map(|share| (object.clone(), share)));
        }
        let mut groups: BTreeMap<ObjectRef, Vec<u64>> = BTreeMap::new();
        for found in &now.vms {
            let share = found.group.as_ref().zip(shares.get(&vm(&found.name)));
            if let Some((name, share)) = share {
                groups.entry(group(name)).or_default().push(*share);
            }
        }
        shares.extend(
            groups.into_iter().map(|(group, all)| (group, all.iter().sum::<u64>() / all.len() as u64)),
        );
        self.busy.retain(|object, _| shares.contains_key(object));
        for (object, share) in shares {
            let busy = self.busy.entry(object).or_default();
            busy.push_back(share);
            while busy.len() > SPARKS {
                busy.pop_front();
            }
        }
        self.before = found;
    }

    /// A proxy that has started anew begins at nought, and is counted from its second look on.
    fn count(&mut self, now: &ClusterUsage, passed: Duration) {
        let mut carried = BTreeMap::new();
        self.rates.clear();
        for found in &now.vms {
            for to in &found.carried {
                let way = (found.name.clone(), to.vm.clone());
                let since =
                    self.carried.get(&way).and_then(|before| to.carried.requests.checked_sub(*before));
                carried.insert(way, to.carried.requests);
                let Some(since) = since.filter(|_| !passed.is_zero()) else { continue };
                for object in
                    found.balancer.as_ref().map(balancer).into_iter().chain(to.group.as_ref().map(group))
                {
                    *self.rates.entry(object).or_default() += since as f64 / passed.as_secs_f64();
                }
            }
        }
        self.carried = carried;
    }

    fn rate(&self, object: &ObjectRef) -> String {
        self.rates.get(object).map_or_else(|| table::NOTHING.to_owned(), |rate| format!("{rate:.1}"))
    }

    fn cpu(&self, object: &ObjectRef) -> (u64, [String; 2]) {
        let busy = self.busy.get(object);
        let last = busy.and_then(|busy| busy.back()).copied();
        let sparks = busy.into_iter().flatten().map(|share| {
            let step = usize::try_from(share * STEPS.len() as u64 / 1_001).unwrap_or(0);
            STEPS[step.min(STEPS.len() - 1)]
        });
        let text = last.map_or_else(|| table::NOTHING.to_owned(), |share| format!("{}%", share / 10));
        (last.unwrap_or(0), [text, sparks.collect()])
    }

    /// At most so many lines: VMs that do not fit are counted.
    fn render(&self, now: &ClusterUsage, lines_max: u16) -> String {
        let mut text = table::lay_out(&self.workers(now));
        let balancers = self.balancers(now);
        if balancers.len() > 1 {
            let _ = write!(text, "\n{}", table::lay_out(&balancers));
        }
        let groups = self.groups(now);
        if groups.len() > 1 {
            let _ = write!(text, "\n{}", table::lay_out(&groups));
        }
        let vms = self.vms(now);
        let room = usize::from(lines_max).saturating_sub(text.lines().count() + 4);
        let left = (vms.len() - 1).saturating_sub(room);
        let shown: Vec<Vec<String>> = vms.into_iter().take(room + 1).collect();
        let _ = write!(text, "\n{}", table::lay_out(&shown));
        if left > 0 {
            let _ = writeln!(text, "and {left} more that are less busy");
        }
        text
    }

    fn workers(&self, now: &ClusterUsage) -> Vec<Vec<String>> {
        let head = ["WORKER", "CPU", "", "MEMORY", "VMS"].map(str::to_owned).to_vec();
        let rows = now.workers.iter().map(|found| {
            let (_, [cpu, sparks]) = self.cpu(&worker(&found.name));
            let vms = now.vms.iter().filter(|vm| vm.worker == found.name).count();
            let memory = found.usage.map_or_else(|| "does not answer".to_owned(), memory);
            vec![found.name.to_string(), cpu, sparks, memory, vms.to_string()]
        });
        std::iter::once(head).chain(rows).collect()
    }

    fn balancers(&self, now: &ClusterUsage) -> Vec<Vec<String>> {
        let mut found: BTreeMap<&Name, (u64, usize)> = BTreeMap::new();
        for (name, proxy) in now.vms.iter().filter_map(|proxy| Some((proxy.balancer.as_ref()?, proxy))) {
            let (in_flight, proxies) = found.entry(name).or_default();
            // Guests' own words, so they may be as large as can be.
            let its = proxy.carried.iter().map(|to| to.carried.in_flight);
            *in_flight = its.fold(*in_flight, u64::saturating_add);
            *proxies += 1;
        }
        let head = ["LOAD BALANCER", "REQUESTS/S", "IN FLIGHT", "PROXIES"].map(str::to_owned).to_vec();
        let rows = found.into_iter().map(|(name, (in_flight, proxies))| {
            vec![name.to_string(), self.rate(&balancer(name)), in_flight.to_string(), proxies.to_string()]
        });
        std::iter::once(head).chain(rows).collect()
    }

    fn groups(&self, now: &ClusterUsage) -> Vec<Vec<String>> {
        let mut members: BTreeMap<&Name, usize> = BTreeMap::new();
        for name in now.vms.iter().filter_map(|found| found.group.as_ref()) {
            *members.entry(name).or_default() += 1;
        }
        let head = ["GROUP", "CPU", "", "REQUESTS/S", "MEMBERS"].map(str::to_owned).to_vec();
        let rows = members.into_iter().map(|(name, members)| {
            let (_, [cpu, sparks]) = self.cpu(&group(name));
            vec![name.to_string(), cpu, sparks, self.rate(&group(name)), members.to_string()]
        });
        std::iter::once(head).chain(rows).collect()
    }

    /// The busiest first.
    fn vms(&self, now: &ClusterUsage) -> Vec<Vec<String>> {
        let head = ["VM", "CPU", "", "MEMORY", "WORKER"].map(str::to_owned).to_vec();
        let row = |found: &VmUsage| {
            let (busy, [cpu, sparks]) = self.cpu(&vm(&found.name));
            let row =
                vec![found.name.to_string(), cpu, sparks, memory(found.usage), found.worker.to_string()];
            (std::cmp::Reverse(busy), row)
        };
        let mut rows: Vec<(std::cmp::Reverse<u64>, Vec<String>)> = now.vms.iter().map(row).collect();
        rows.sort();
        std::iter::once(head).chain(rows.into_iter().map(|(_, row)| row)).collect()
    }
}

fn memory(usage: Usage) -> String {
    let used = usage.memory_total_bytes.saturating_sub(usage.memory_available_bytes);
    format!("{} of {}", mib(used), mib(usage.memory_total_bytes))
}

/// A size that changes all the time needs no more than whole MiB.
fn mib(bytes: u64) -> String {
    table::size(bytes >> 20 << 20)
}

fn worker(name: &Name) -> ObjectRef {
    ObjectRef::new(Kind::Worker, name.clone())
}

fn group(name: &Name) -> ObjectRef {
    ObjectRef::new(Kind::ScaleGroup, name.clone())
}

fn balancer(name: &Name) -> ObjectRef {
    ObjectRef::new(Kind::LoadBalancer, name.clone())
}

fn vm(name: &Name) -> ObjectRef {
    ObjectRef::new(Kind::Vm, name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn usage(of: serde_json::Value) -> ClusterUsage {
        serde_json::from_value(of).expect("usage")
    }

    fn at(busy: u64, idle: u64) -> ClusterUsage {
        let vm = |name: &str, busy: u64, idle: u64| {
            json!({ "name": name, "worker": "n1", "group": "web", "cpu_busy_millis": busy, "cpu_idle_millis": idle,
                "memory_total_bytes": 128 << 20, "memory_available_bytes": 100 << 20 })
        };
        usage(json!({
            "workers": [
                { "name": "n1", "usage": { "cpu_busy_millis": busy, "cpu_idle_millis": idle,
                    "memory_total_bytes": 4_u64 << 30, "memory_available_bytes": 3_u64 << 30 } },
                { "name": "n2" },
            ],
            "vms": [vm("web-1", 0, idle), vm("web-2", busy, idle)],
        }))
    }

    #[test]
    fn each_look_tells_of_the_time_since_the_one_before() {
        let mut looks = Looks::default();
        looks.take(&at(0, 0), Duration::ZERO);
        looks.take(&at(1_000, 1_000), Duration::from_secs(1));
        looks.take(&at(2_000, 1_250), Duration::from_secs(1));
        let expect = "\
WORKER  CPU      MEMORY           VMS
n1      80%  ▄▇  1GiB of 4GiB     2
n2      -        does not answer  0

GROUP  CPU      REQUESTS/S  MEMBERS
web    40%  ▂▄  -           2

VM     CPU      MEMORY           WORKER
web-2  80%  ▄▇  28MiB of 128MiB  n1
web-1  0%   ▁▁  28MiB of 128MiB  n1
";
        assert_eq!(looks.render(&at(2_000, 1_250), u16::MAX), expect);
        // Two lines of VMs do not fit; the busiest one is shown.
        assert!(looks.render(&at(2_000, 1_250), 11).ends_with("and 1 more that are less busy\n"));
    }

    /// Two proxies, and what each has carried to the first of two VMs.
    fn carried(first: u64, second: u64) -> ClusterUsage {
        let mut all = at(0, 0);
        for (proxy, requests) in [("lb-1", first), ("lb-2", second)] {
            let to = json!({ "vm": "web-1", "group": "web", "requests": requests, "in_flight": 2 });
            let gone = json!({ "vm": "old", "requests": requests, "in_flight": 0 });
            let vm = json!({ "name": proxy, "worker": "n1", "balancer": "front", "carried": [to, gone] });
            all.vms.push(serde_json::from_value(vm).expect("a VM"));
        }
        all
    }

    #[test]
    fn requests_are_counted_by_proxy_and_added_up() {
        let mut looks = Looks::default();
        looks.take(&carried(100, 1_000), Duration::ZERO);
        assert_eq!(looks.rate(&group(&"web".parse().expect("a name"))), table::NOTHING);
        // The second proxy has started anew.
        looks.take(&carried(130, 10), Duration::from_secs(2));
        let text = looks.render(&carried(130, 10), u16::MAX);
        let balancers = "\
LOAD BALANCER  REQUESTS/S  IN FLIGHT  PROXIES
front          30.0        4          2
";
        assert!(text.contains(balancers), "{text}");
        assert!(text.contains("web    -      15.0        2\n"), "{text}");
        // A proxy may say what it likes.
        let mut boast = carried(130, 30);
        boast.vms.iter_mut().flat_map(|vm| &mut vm.carried).for_each(|to| to.carried.in_flight = u64::MAX);
        assert!(looks.render(&boast, u16::MAX).contains(&u64::MAX.to_string()));
        looks.take(&carried(130, 30), Duration::from_secs(2));
        assert_eq!(looks.rate(&group(&"web".parse().expect("a name"))), "10.0");
    }
}
