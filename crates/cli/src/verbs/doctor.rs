//! `lightbyte doctor`: whether this machine is fit to be a VM host. The checks are `lightbyte_worker::doctor`.

use anyhow::Result;
use lightbyte_worker::doctor::{self, Finding, Report, Runner, Verdict, Wishes};

use crate::arguments::{Doctor, DoctorForm, DoctorVmm};
use crate::failure::Code;
use crate::table;
use crate::terminal::print;

pub(crate) fn run(words: &Doctor) -> Result<Code> {
    let report = doctor::examine(&wishes(words));
    match words.output {
        DoctorForm::Json => print(&serde_json::to_string_pretty(&report)?)?,
        DoctorForm::Table => print(&render(&report, false))?,
        DoctorForm::Wide => print(&render(&report, true))?,
    }
    Ok(match report.verdict {
        Verdict::Ok | Verdict::Warn => Code::Done,
        Verdict::Bad => Code::Error,
    })
}

fn wishes(words: &Doctor) -> Wishes {
    Wishes {
        state: words.state.clone(),
        jails: words.jails.clone(),
        bridge: words.bridge.clone(),
        runner: words.vmm.map(|vmm| match vmm {
            DoctorVmm::Firecracker => Runner::Firecracker,
            DoctorVmm::Qemu => Runner::Qemu,
        }),
        firecracker: words.firecracker.clone(),
        jailer: words.jailer.clone(),
        reserve: words.reserve,
    }
}

/// A line for each check; below those that are not well, and below all if `is_wide`, why it matters and what to do.
fn render(report: &Report, is_wide: bool) -> String {
    let head = ["CHECK", "IS", "FOUND"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(report.checks.iter().map(row)).collect();
    let widths = table::widths(&rows);
    let indent = " ".repeat(widths.iter().take(2).map(|width| width + 2).sum());
    let mut text = String::new();
    for (row, finding) in rows.iter().zip(std::iter::once(None).chain(report.checks.iter().map(Some))) {
        text.push_str(&format!("{}\n", table::line(row, &widths)));
        let Some(finding) = finding else { continue };
        if is_wide || finding.verdict != Verdict::Ok {
            text.push_str(&format!("{indent}why: {}\n", finding.why));
        }
        if let Some(next) = &finding.next {
            text.push_str(&format!("{indent}next: {next}\n"));
        }
    }
    format!("{text}\n{}\n", last_words(report))
}

fn row(finding: &Finding) -> Vec<String> {
    vec![finding.check.to_owned(), finding.verdict.word().to_owned(), finding.found.clone()]
}

fn last_words(report: &Report) -> String {
    let to_know = match report.count(Verdict::Warn) {
        0 => String::new(),
        1 => ", and 1 thing to know".to_owned(),
        warnings => format!(", and {warnings} things to know"),
    };
    match report.count(Verdict::Bad) {
        0 => format!("nothing is bad{to_know}"),
        1 => format!("1 thing is bad{to_know}"),
        bad => format!("{bad} things are bad{to_know}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &'static str, verdict: Verdict, next: Option<&str>) -> Finding {
        let found = format!("{check} was found");
        Finding { check, verdict, found, why: "it matters", next: next.map(str::to_owned) }
    }

    #[test]
    fn only_what_is_not_well_is_explained() {
        let checks = vec![
            finding("kvm", Verdict::Ok, None),
            finding("bridge", Verdict::Bad, Some("ip link")),
            finding("smt", Verdict::Warn, Some("echo off")),
        ];
        let report = Report { verdict: Verdict::Bad, checks };
        let expect = "\
CHECK   IS    FOUND
kvm     ok    kvm was found
bridge  bad   bridge was found
              why: it matters
              next: ip link
smt     warn  smt was found
              why: it matters
              next: echo off

1 thing is bad, and 1 thing to know
";
        assert_eq!(render(&report, false), expect);
        assert_eq!(render(&report, true).matches("why: it matters").count(), 3);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["verdict"], "bad");
        assert!(json["checks"][0].get("next").is_none());
        let well = Report { verdict: Verdict::Ok, checks: Vec::new() };
        assert_eq!(last_words(&well), "nothing is bad");
    }
}
