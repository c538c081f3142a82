//! The same cluster with VMs in memory.

use serde_json::Value;

use crate::bed::{Bed, path, signal, until};

fn state_of(bed: &Bed, vm: &str) -> (String, Vec<String>) {
    let object = bed.json(&["get", &format!("vm/{vm}")]);
    let reasons = object["status"]["waiting_on"].as_array().into_iter().flatten();
    let reasons = reasons.map(|waiting| waiting["reason"].as_str().unwrap_or_default().to_owned()).collect();
    (object["status"]["state"].as_str().unwrap_or_default().to_owned(), reasons)
}

#[test]
fn a_vm_from_its_request_to_its_end() {
    let Some(bed) = Bed::new("life", &["--vmm", "fake"]) else { return };
    bed.start();
    assert_eq!(bed.ok(&["run", "demo", "--name", "hello"]).trim(), "10.77.1.1");
    let object = bed.json(&["get", "vm/hello"]);
    assert_eq!(object["status"]["state"], "running");
    assert_eq!(object["status"]["addresses"], serde_json::json!(["10.77.1.1/16"]));
    assert!(object["status"]["boot"]["vmm_to_agent"].is_u64(), "{object}");
    assert!(bed.ok(&["why", "vm/hello"]).contains("it was placed on worker"));
    assert_eq!(bed.fails(&["run", "demo", "--name", "hello"]).0, 4, "a name is taken");
    bed.ok(&["stop", "vm/hello"]);
    bed.ok(&["wait", "vm/hello", "--for", "stopped"]);
    bed.ok(&["start", "vm/hello"]);
    bed.ok(&["wait", "vm/hello", "--for", "ready"]);
    bed.ok(&["delete", "vm/hello", "--yes"]);
    assert_eq!(bed.fails(&["get", "vm/hello"]).0, 5, "it is gone");
    assert!(bed.json(&["get", "volume"])["items"].as_array().is_some_and(Vec::is_empty), "its disk is gone");
    assert_eq!(bed.ok(&["run", "demo", "--name", "hello"]).trim(), "10.77.1.1", "its address is free again");
}

#[test]
fn ten_vms_spread_and_the_one_that_cannot_fit_waits_for_room() {
    let Some(bed) = Bed::new("ten", &["--vmm", "fake", "--host-cpus", "3"]) else { return };
    bed.start();
    let manifests: Vec<String> =
        (0..9).map(|index| format!("{{kind: vm, name: web-{index}, spec: {{image: demo}}}}\n")).collect();
    let file = bed.manifests(&manifests.join("---\n"));
    bed.ok(&["apply", "-f", path(&file)]);
    for index in 0..9 {
        bed.ok(&["wait", &format!("vm/web-{index}"), "--for", "ready"]);
    }
    let vms = bed.json(&["get", "vm"]);
    for worker in ["n1", "n2", "n3"] {
        let there =
            vms["items"].as_array().into_iter().flatten().filter(|vm| vm["status"]["worker"] == worker);
        assert_eq!(there.count(), 3, "on {worker}: {vms}");
    }
    bed.ok(&["run", "demo", "--name", "late", "--no-wait"]);
    until("the tenth waits", || {
        state_of(&bed, "late") == ("pending".to_owned(), vec!["capacity".to_owned()])
    });
    assert!(bed.ok(&["why", "vm/late"]).contains("too little room: 0 of 3 CPUs"));
    bed.ok(&["delete", "vm/web-4", "--yes"]);
    bed.ok(&["wait", "vm/late", "--for", "ready"]);
    assert_eq!(bed.run(&["diff", "-f", path(&file)]).status.code(), Some(2), "web-4 would be made again");
}

#[test]
fn a_host_without_power_stops_nothing_but_itself() {
    let Some(bed) = Bed::new("power", &["--vmm", "fake"]) else { return };
    bed.start();
    bed.ok(&["run", "demo", "--name", "here"]);
    let victim = bed.json(&["get", "vm/here"])["status"]["worker"].as_str().unwrap_or_default().to_owned();
    bed.dev("kill", &victim);
    bed.ok(&["run", "demo", "--name", "there"]);
    assert_ne!(bed.json(&["get", "vm/there"])["status"]["worker"], Value::String(victim.clone()));
    bed.ok(&["delete", "vm/here", "--yes", "--no-wait"]);
    until("it says whom it waits for", || state_of(&bed, "here").1.contains(&"worker_away".to_owned()));
    bed.dev("start", &victim);
    bed.ok(&["wait", "vm/here", "--for", "deleted"]);
}

#[test]
fn a_killed_lab_does_not_poison_the_next_one() {
    let Some(bed) = Bed::new("poison", &["--vmm", "fake", "--nodes", "1"]) else { return };
    let mut child = bed.start_as_child();
    bed.ok(&["run", "demo", "--name", "kept"]);
    child.kill().expect("the supervisor is killed");
    child.wait().expect("and reaped");
    bed.start();
    bed.ok(&["wait", "vm/kept", "--for", "ready"]);
}

#[test]
fn a_lab_says_what_is_wrong_with_what_is_asked_of_it() {
    let Some(bed) = Bed::new("words", &["--vmm", "fake", "--nodes", "1"]) else { return };
    let state = bed.state();
    let state = path(&state);
    let refused = |words: &[&str], expect: &str| {
        let (code, errors) = bed.fails(words);
        assert!(code == 1 && errors.contains(expect), "{words:?}: {errors}");
    };
    let mut child = bed.start_as_child();
    // Somebody who says nothing keeps nobody from being heard.
    let silent = std::os::unix::net::UnixStream::connect(bed.state().join("control")).expect("it listens");
    refused(&["dev", "kill", "n9", "--state", state], "there is no host `n9` in this lab; there are n1");
    drop(silent);
    let worker = bed.process("n1-worker");
    bed.dev("start", "n1");
    bed.ok(&["run", "demo", "--name", "hello"]);
    assert_eq!(bed.process("n1-worker"), worker, "a host that has power is left alone");
    bed.dev("kill", "n1");
    bed.dev("kill", "n1");
    bed.dev("start", "n1");
    until("its agent is back", || bed.process("n1-worker") != worker);
    let again = ["dev", "--vmm", "fake", "--nodes", "1", "--state", state];
    refused(&again, "a lab runs already");
    refused(&[&again[..], &["--detach"]].concat(), "a lab runs already");
    child.kill().expect("the supervisor is killed");
    child.wait().expect("and reaped");
    refused(&["dev", "status", "--state", state], "no lab runs with the state");
    refused(&["dev", "kill", "n1", "--state", state], "no lab runs with the state");
    refused(&["dev", "--vmm", "fake", "--nodes", "5", "--state", state], "with 1 hosts");
    refused(&["dev", "--vmm", "fake", "--nodes", "10", "--state", state], "a lab has 1 to 9 hosts, not 10");
}

#[test]
fn bad_input_is_told_and_changes_nothing() {
    let Some(bed) = Bed::new("input", &["--vmm", "fake", "--nodes", "1"]) else { return };
    bed.start();
    let file = bed.manifests(
        "{kind: vm, name: good, spec: {image: demo}}\n---\n{kind: vm, name: bad, spec: {image: demo, cpus: 0, memroy: 1GiB}}\n",
    );
    let (code, errors) = bed.fails(&["apply", "-f", path(&file)]);
    assert_eq!(code, 1, "{errors}");
    for part in ["spec.cpus: must be between 1 and 32, is 0", "did you mean `memory`?"] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
    assert_eq!(bed.fails(&["get", "vm/good"]).0, 5, "nothing is half done");
    assert_eq!(bed.fails(&["get", "nothing/x"]).0, 64);
}

/// The host whose server leads is stopped, or loses its power: another leads soon, nothing acknowledged is lost, and a
/// leader that wakes up late leads no more. (A server that is merely killed is started again at once, and may well lead
/// again under the same name.)
#[test]
fn a_leader_that_stops_or_loses_power_is_replaced() {
    let Some(bed) = Bed::new("leader", &["--vmm", "fake"]) else { return };
    bed.start();
    bed.ok(&["run", "demo", "--name", "before"]);
    for deed in ["stop", "power-cut"] {
        until("somebody leads", || bed.leader().is_some());
        let leader = bed.leader().unwrap_or_default();
        let process = bed.process(&format!("{leader}-server"));
        match deed {
            "stop" => signal("STOP", process),
            _ => bed.dev("kill", &leader),
        }
        until("another leads", || bed.leader().is_some_and(|found| found != leader));
        if deed == "power-cut" {
            // Until its life is over a host without power is taken for one that has some, and a VM may be put there.
            until("its host is away", || {
                bed.json(&["get", &format!("worker/{leader}")])["status"]["state"] == "away"
            });
        }
        bed.ok(&["run", "demo", "--name", &format!("after-{deed}")]);
        match deed {
            "stop" => signal("CONT", process),
            _ => bed.dev("start", &leader),
        }
    }
    for vm in ["before", "after-stop", "after-power-cut"] {
        bed.ok(&["wait", &format!("vm/{vm}"), "--for", "ready"]);
    }
    assert_eq!(bed.json(&["get", "vm"])["items"].as_array().map(Vec::len), Some(3));
}

/// The same with members of etcd: one stopped, then each of the others killed.
#[test]
fn a_member_of_etcd_that_stops_or_dies_costs_seconds_and_nothing_else() {
    let Some(bed) = Bed::new("etcd", &["--vmm", "fake"]) else { return };
    bed.start();
    for (host, deed) in [("n1", "STOP"), ("n2", "KILL"), ("n3", "KILL")] {
        let process = bed.process(&format!("{host}-etcd"));
        signal(deed, process);
        bed.ok(&["run", "demo", "--name", &format!("with-{host}-away"), "--timeout", "60s"]);
        if deed == "STOP" {
            signal("CONT", process);
        }
        until("the member is back", || deed == "STOP" || bed.process(&format!("{host}-etcd")) != process);
    }
    assert_eq!(bed.json(&["get", "vm"])["items"].as_array().map(Vec::len), Some(3));
}
