//! From what was found to verdicts with words. Pure: the same facts have the same verdicts, and each case can be shown
//! without a machine that has it.

mod machine;
mod network;
mod programs;
mod state;
mod system;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::{Finding, Runner, Verdict, Wishes};

/// A finding for each check, in an order that never changes: what VMs cannot do without first.
#[must_use]
pub fn judge(wishes: &Wishes, facts: &Facts) -> Vec<Finding> {
    vec![
        system::rights(facts),
        machine::kvm(wishes, facts),
        programs::qemu(wishes, facts),
        programs::firecracker(wishes, facts),
        programs::jailer(wishes, facts),
        programs::mkfs(facts),
        programs::nft(facts),
        network::tun(facts),
        network::bridge(wishes, facts),
        network::rules(facts),
        network::filter(facts),
        network::dns_port(facts),
        state::directory(wishes, facts),
        state::space(wishes, facts),
        state::sharing(facts),
        state::flush(facts),
        state::jails(wishes, facts),
        system::clock(facts),
        system::boot_id(facts),
        machine::weaknesses(facts),
        machine::smt(facts),
        machine::merging(facts),
        machine::swap(facts),
        machine::overcommit(facts),
        system::open_files(facts),
        system::processes(facts),
        system::groups(facts),
    ]
}

/// One check, with why it matters.
#[derive(Clone, Copy)]
struct Check {
    name: &'static str,
    why: &'static str,
}

impl Check {
    fn ok(self, found: impl Into<String>) -> Finding {
        Finding { check: self.name, verdict: Verdict::Ok, found: found.into(), why: self.why, next: None }
    }

    fn warn(self, found: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warn, next: Some(next.into()), ..self.ok(found) }
    }

    fn bad(self, found: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Bad, next: Some(next.into()), ..self.ok(found) }
    }

    /// Bad if `is_bad`, else only worth to know.
    fn bad_if(self, is_bad: bool, found: impl Into<String>, next: impl Into<String>) -> Finding {
        if is_bad { self.bad(found, next) } else { self.warn(found, next) }
    }
}

/// Whether VMs will run under Firecracker, as the worker itself would choose.
fn runs_firecracker(wishes: &Wishes, facts: &Facts) -> bool {
    match wishes.runner {
        Some(runner) => runner == Runner::Firecracker,
        None => facts.kvm.is_usable() && facts.programs.firecracker.is_some(),
    }
}
