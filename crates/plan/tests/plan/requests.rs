//! What people and workers ask of the API: what is written, and every refusal with its text and hint.

use insta::assert_snapshot;
use lightbyte_api::assigned::HostObject;
use lightbyte_api::observed::{Observed, ObservedVolume, ObservedWorker, VolumePhase};
use lightbyte_api::{ByteSize, Kind, Manifest, ObjectRef};
use lightbyte_plan::View;
use lightbyte_plan::agent::Report;
use lightbyte_plan::request::{self, Context, Outcome, Refusal};

use crate::world::{Names, at, key, name, object, transaction, uid, worker_id, world};

/// A request as text: `create`, `apply`, `delete`, `start`, `stop`, `restart`, `protect`, `unprotect` or `release`, an
/// object, and for the first two its specification in JSON, for the last an address. `if-match=KEY` sends the revision that `KEY` has, `if-match=N` sends N.
fn ask(view: &View, text: &str) -> Result<Outcome, Refusal> {
    let mut words = text.splitn(3, ' ');
    let verb = words.next().expect("a verb");
    let named = object(words.next().expect("an object"));
    let rest = words.next().unwrap_or_default();
    let (if_match, rest) = match rest.strip_prefix("if-match=") {
        Some(rest) => {
            let (revision, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let read = || revision.parse().unwrap_or_else(|_| view.mod_revision(&key(revision)));
            (Some(read()), rest)
        }
        None => (None, rest),
    };
    let context = Context { now: at(60), uid: uid(&named), if_match };
    let manifest = || {
        let spec: serde_json::Value =
            if rest.is_empty() { serde_json::json!({}) } else { serde_json::from_str(rest).expect("JSON") };
        let labels = spec.get("labels").cloned().unwrap_or_default();
        let spec = spec.get("spec").cloned().unwrap_or_else(|| spec.clone());
        let document =
            serde_json::json!({"kind": named.kind, "name": named.name, "labels": labels, "spec": spec});
        Manifest::read(&document).unwrap_or_else(|problems| panic!("{problems:?}"))
    };
    match verb {
        "create" => request::create(view, &manifest(), &context),
        "apply" => request::apply(view, &manifest(), &context),
        "delete" => request::delete(view, &named, &context),
        "start" | "stop" => request::set_running(view, &named, verb == "start", &context),
        "protect" | "unprotect" => request::protect(view, &named, verb == "protect", &context),
        "restart" => request::restart(view, &named, &context),
        "release" => request::release_address(view, &named, rest.parse().expect("an address"), &context),
        other => panic!("`{other}` is no verb"),
    }
}

fn show(view: &View, outcome: Result<Outcome, Refusal>) -> String {
    match outcome {
        Ok(Outcome::Create(found)) => format!("create\n{}", transaction(view, &found)),
        Ok(Outcome::Change(found)) => format!("change\n{}", transaction(view, &found)),
        Ok(Outcome::Nothing) => "nothing to do".to_owned(),
        Err(refusal) => match refusal.hint() {
            Some(hint) => format!("error: {refusal}\nhint: {hint}"),
            None => format!("error: {refusal}"),
        },
    }
}

/// The answers to `requests`, each asked of the world of `text`.
fn check(text: &str, requests: &[&str]) -> String {
    let view = world(text).view();
    let answers = requests.iter().map(|request| format!("> {request}\n{}", show(&view, ask(&view, request))));
    answers.collect::<Vec<String>>().join("\n")
}

#[test]
fn people_create_and_apply() {
    assert_snapshot!(check("rack
        vm a on=n1 observed=running label=team:web
        vm gone deleting
        opaque asked/vm/odd", &[
        r#"create vm/new {"image": "demo"}"#,
        r#"create vm/a {"image": "demo"}"#,
        r#"create vm/gone {"image": "demo"}"#,
        r#"create vm/odd {"image": "demo"}"#,
        "create worker/n9",
        r#"create volume/data {"image": "demo", "image_version": "v1", "size": "1GiB"}"#,
        r#"apply vm/new {"image": "demo"}"#,
        r#"apply vm/a {"labels": {"team": "web"}, "spec": {"image": "demo"}}"#,
        r#"apply vm/a {"labels": {"team": "db"}, "spec": {"image": "demo"}}"#,
        r#"apply vm/a {"labels": {"team": "web"}, "spec": {"image": "demo", "running": false}}"#,
        r#"apply vm/a {"image": "demo", "cpus": 2}"#,
        r#"apply vm/a {"image": "other", "memory": "1GiB"}"#,
        r#"apply vm/gone {"image": "demo"}"#,
        r#"apply vm/odd {"image": "demo"}"#,
        r#"apply worker/n1 {"cordoned": true}"#,
        "apply worker/n9",
        r#"apply network/default {"subnet": "10.99.0.0/24"}"#,
        r#"apply volume/a-root {"image": "demo", "image_version": "v1", "size": "64MiB"}"#,
        r#"apply volume/a-root {"image": "demo", "image_version": "v1", "size": "1GiB"}"#,
    ]), @r#"
    > create vm/new {"image": "demo"}
    create
    put asked vm/new generation 1 running
    rests on epoch
    > create vm/a {"image": "demo"}
    error: vm/a exists already
    hint: `lightbyte apply` changes it, `lightbyte delete vm/a` removes it
    > create vm/gone {"image": "demo"}
    error: vm/gone exists already
    hint: `lightbyte apply` changes it, `lightbyte delete vm/gone` removes it
    > create vm/odd {"image": "demo"}
    error: the stored value `asked/vm/odd` cannot be read by this version, and is left alone
    hint: upgrade this server
    > create worker/n9
    error: worker/n9 cannot be created: workers register themselves when their agent starts
    > create volume/data {"image": "demo", "image_version": "v1", "size": "1GiB"}
    create
    put asked volume/data generation 1 1GiB of demo v1
    rests on epoch
    > apply vm/new {"image": "demo"}
    create
    put asked vm/new generation 1 running
    rests on epoch
    > apply vm/a {"labels": {"team": "web"}, "spec": {"image": "demo"}}
    nothing to do
    > apply vm/a {"labels": {"team": "db"}, "spec": {"image": "demo"}}
    change
    put asked vm/a generation 1 running team:db
    rests on epoch
    > apply vm/a {"labels": {"team": "web"}, "spec": {"image": "demo", "running": false}}
    change
    put asked vm/a generation 2 stopped team:web
    rests on epoch
    > apply vm/a {"image": "demo", "cpus": 2}
    change
    put asked vm/a generation 2 running
    rests on epoch
    > apply vm/a {"image": "other", "memory": "1GiB"}
    error: `image` of vm/a cannot be changed: it is fixed when a VM is made; delete the VM and make it again
    > apply vm/gone {"image": "demo"}
    error: vm/gone is being deleted
    hint: `lightbyte wait vm/gone --for deleted`, then try again
    > apply vm/odd {"image": "demo"}
    error: the stored value `asked/vm/odd` cannot be read by this version, and is left alone
    hint: upgrade this server
    > apply worker/n1 {"cordoned": true}
    change
    put asked worker/n1 generation 2 cordoned
    rests on epoch
    > apply worker/n9
    error: worker/n9 cannot be created: workers register themselves when their agent starts
    > apply network/default {"subnet": "10.99.0.0/24"}
    error: `subnet` of network/default cannot be changed: VMs hold addresses of it; make a new network instead
    > apply volume/a-root {"image": "demo", "image_version": "v1", "size": "64MiB"}
    nothing to do
    > apply volume/a-root {"image": "demo", "image_version": "v1", "size": "1GiB"}
    error: volume/a-root belongs to vm/a, which alone may change it
    hint: change or delete vm/a
    "#);
}

#[test]
fn people_delete() {
    assert_snapshot!(check("rack
        vm a on=n1 observed=running
        vm gone deleting
        opaque asked/vm/odd", &[
        "delete vm/a",
        "delete vm/gone",
        "delete vm/none",
        "delete vm/odd",
        "delete volume/a-root",
        "delete worker/n1",
        "delete image/demo",
    ]), @"
    > delete vm/a
    change
    put asked vm/a generation 1 running deleting
    rests on epoch
    > delete vm/gone
    nothing to do
    > delete vm/none
    error: vm/none does not exist
    hint: `lightbyte get vm` lists what there is
    > delete vm/odd
    error: the stored value `asked/vm/odd` cannot be read by this version, and is left alone
    hint: upgrade this server
    > delete volume/a-root
    error: volume/a-root belongs to vm/a, which alone may change it
    hint: change or delete vm/a
    > delete worker/n1
    change
    put asked worker/n1 generation 1 schedulable deleting
    rests on epoch
    > delete image/demo
    change
    put asked image/demo generation 1 current v1 deleting
    rests on epoch
    ");
}

#[test]
fn people_release_squatted_addresses() {
    assert_snapshot!(check("rack
        squatted default 10.77.0.4
        vm a nic=default:10.77.0.3 on=n1 observed=claimed squatted=10.77.0.3
        vm b on=n2 address=10.77.0.5 observed=running
        opaque claimed/address/default/10.77.0.6", &[
        "release network/default 10.77.0.4",
        "release network/default 10.77.0.3",
        "release network/default 10.77.0.5",
        "release network/default 10.77.0.6",
        "release network/default 10.77.0.7",
        "release network/lan 10.77.0.7",
        "release vm/a 10.77.0.3",
    ]), @"
    > release network/default 10.77.0.4
    change
    release default 10.77.0.4
    rests on epoch
    > release network/default 10.77.0.3
    change
    put asked vm/a generation 2 running restarts 1
    rests on epoch
    > release network/default 10.77.0.5
    error: 10.77.0.5 of network/default is not squatted
    hint: `lightbyte describe network/default` lists the addresses that are
    > release network/default 10.77.0.6
    error: the stored value `claimed/address/default/10.77.0.6` cannot be read by this version, and is left alone
    hint: upgrade this server
    > release network/default 10.77.0.7
    error: 10.77.0.7 of network/default is not squatted
    hint: `lightbyte describe network/default` lists the addresses that are
    > release network/lan 10.77.0.7
    error: network/lan does not exist
    hint: `lightbyte get network` lists what there is
    > release vm/a 10.77.0.3
    error: vm/a does not exist
    hint: `lightbyte get vm` lists what there is
    ");
}

#[test]
fn people_start_stop_and_restart() {
    assert_snapshot!(check("rack
        vm a on=n1 observed=running generation=4 restarts=2
        vm b on=n1 observed=stopped stopped
        vm gone deleting", &[
        "stop vm/a",
        "start vm/a",
        "restart vm/a",
        "restart vm/b",
        "restart vm/gone",
        "stop vm/gone",
        "start vm/none",
        "restart image/demo",
        "stop network/default",
        "start worker/n1",
        "restart volume/a-root",
        "stop volume/a-root",
    ]), @"
    > stop vm/a
    change
    put asked vm/a generation 5 stopped restarts 2
    rests on epoch
    > start vm/a
    nothing to do
    > restart vm/a
    change
    put asked vm/a generation 5 running restarts 3
    rests on epoch
    > restart vm/b
    error: vm/b is stopped, so there is nothing to restart
    hint: `lightbyte start vm/b` starts it
    > restart vm/gone
    error: vm/gone is being deleted
    hint: `lightbyte wait vm/gone --for deleted`, then try again
    > stop vm/gone
    error: vm/gone is being deleted
    hint: `lightbyte wait vm/gone --for deleted`, then try again
    > start vm/none
    error: vm/none does not exist
    hint: `lightbyte get vm` lists what there is
    > restart image/demo
    error: image/demo cannot be restarted: only VMs can
    > stop network/default
    error: network/default cannot be stopped: only VMs can
    > start worker/n1
    error: worker/n1 cannot be started: only VMs can
    > restart volume/a-root
    error: volume/a-root belongs to vm/a, which alone may change it
    hint: change or delete vm/a
    > stop volume/a-root
    error: volume/a-root cannot be stopped: only VMs can
    ");
}

#[test]
fn who_read_an_older_revision_is_told() {
    assert_snapshot!(check("rack
        vm a
        opaque asked/vm/odd", &[
        "delete vm/a if-match=asked/vm/a",
        "delete vm/a if-match=1",
        r#"apply vm/a if-match=1 {"image": "demo"}"#,
        r#"apply vm/new if-match=7 {"image": "demo"}"#,
        r#"create vm/a if-match=1 {"image": "demo"}"#,
        "restart vm/a if-match=1",
        "delete vm/odd if-match=1",
    ]), @r#"
    > delete vm/a if-match=asked/vm/a
    change
    put asked vm/a generation 1 running deleting
    rests on epoch
    > delete vm/a if-match=1
    error: vm/a was changed by somebody else: it is at revision 12, you read 1
    hint: `lightbyte get vm/a -o yaml` shows it as it is now
    > apply vm/a if-match=1 {"image": "demo"}
    error: vm/a was changed by somebody else: it is at revision 12, you read 1
    hint: `lightbyte get vm/a -o yaml` shows it as it is now
    > apply vm/new if-match=7 {"image": "demo"}
    error: vm/new was changed by somebody else: it is at revision 0, you read 7
    hint: `lightbyte get vm/new -o yaml` shows it as it is now
    > create vm/a if-match=1 {"image": "demo"}
    error: vm/a was changed by somebody else: it is at revision 12, you read 1
    hint: `lightbyte get vm/a -o yaml` shows it as it is now
    > restart vm/a if-match=1
    error: vm/a was changed by somebody else: it is at revision 12, you read 1
    hint: `lightbyte get vm/a -o yaml` shows it as it is now
    > delete vm/odd if-match=1
    error: vm/odd was changed by somebody else: it is at revision 13, you read 1
    hint: `lightbyte get vm/odd -o yaml` shows it as it is now
    "#);
}

/// What the worker `said_name` with the uid of worker `uid_of` says of itself, in `boot_id`.
fn register(text: &str, uid_of: &str, said_name: &str, boot_id: &str, cpus: u64) -> String {
    let view = world(text).view();
    let said = ObservedWorker {
        name: name(said_name),
        boot_id: boot_id.to_owned(),
        architecture: "x86_64".to_owned(),
        cpus,
        host_cpus: 0,
        vms_max: None,
        orphans: Vec::new(),
        memory: ByteSize::from_mib(1_024),
        vmm: "fake".to_owned(),
        address: String::new(),
        version: "0.1.0".to_owned(),
        parts: Vec::new(),
    };
    show(&view, request::register(&view, worker_id(uid_of), &said, at(60)))
}

#[test]
fn workers_register() {
    let text = "worker n1 cpus=4 memory=1GiB\nworker n2 cpus=4 memory=1GiB away\nworker n3 deleting away";
    assert_snapshot!(register(text, "n9", "n9", "boot-1", 4), @"
    create
    ledger n9 0 CPUs 0B 0 VMs
    put asked worker/n9 generation 1 schedulable
    put observed n9 worker/n9 n9 4 1GiB
    rests on epoch
    ");
    assert_snapshot!(register(text, "n1", "n1", "boot-1", 4), @"nothing to do");
    assert_snapshot!(register(text, "n1", "n1", "boot-1", 8), @"
    change
    put observed n1 worker/n1 n1 8 1GiB
    rests on asked worker/n1
    rests on epoch
    ");
    // Alive in another boot; away, and so in any boot.
    assert_snapshot!(register(text, "n1", "n1", "boot-2", 4), @"
    error: worker `n1` is alive in another boot of a machine; only one may be
    hint: stop the other agent; after a reboot this ends by itself
    ");
    assert_snapshot!(register(text, "n2", "n2", "boot-2", 4), @"
    change
    put observed n2 worker/n2 n2 4 1GiB
    rests on asked worker/n2
    rests on epoch
    ");
    // Somebody else's name; a worker that changed its name.
    assert_snapshot!(register(text, "n9", "n1", "boot-1", 4), @"
    error: the name `n1` belongs to the worker 00000000-0000-0000-3ad9-1fb3eb40bbb9
    hint: choose another name, or `lightbyte delete worker/n1`
    ");
    assert_snapshot!(register(text, "n1", "n9", "boot-1", 4), @"
    error: the name `n1` belongs to the worker 00000000-0000-0000-3ad9-1fb3eb40bbb9
    hint: choose another name, or `lightbyte delete worker/n1`
    ");
    assert_snapshot!(register(text, "n3", "n3", "boot-1", 4), @"
    error: worker/n3 is being deleted
    hint: `lightbyte wait worker/n3 --for deleted`, then try again
    ");
    assert_snapshot!(register("worker n1\nopaque asked/worker/n1", "n1", "n1", "boot-1", 4), @"
    error: the stored value `asked/worker/n1` cannot be read by this version, and is left alone
    hint: upgrade this server
    ");
}

#[test]
fn workers_begin_their_lives() {
    let check = |worker: &str, boot_id: &str| {
        let view = world("worker n1\nworker n2 away\nworker n3 deleting away").view();
        show(&view, request::begin_life(&view, worker_id(worker), boot_id, at(60)))
    };
    assert_snapshot!(check("n1", "boot-1"), @"nothing to do");
    assert_snapshot!(check("n1", "boot-2"), @"
    error: worker `n1` is alive in another boot of a machine; only one may be
    hint: stop the other agent; after a reboot this ends by itself
    ");
    assert_snapshot!(check("n2", "boot-2"), @"
    change
    put alive n2 boot boot-2
    rests on asked worker/n2
    rests on epoch
    ");
    assert_snapshot!(check("n3", "boot-1"), @"
    error: worker/n3 is being deleted
    hint: `lightbyte wait worker/n3 --for deleted`, then try again
    ");
    assert_snapshot!(check("n9", "boot-1"), @"error: worker 00000000-0000-0000-3ad9-27b3eb40c951 is not registered");
}

fn of_volume() -> Observed {
    Observed::Volume(ObservedVolume {
        sequence: 1,
        generation: 1,
        size: ByteSize::from_mib(64),
        phase: VolumePhase::Claimed,
        since: at(20),
        problem: None,
    })
}

/// The guards and writes of a report about the volume of a placed VM, or why it is refused.
fn report(
    kind: Kind,
    observed: Option<Observed>,
    own_revision: u64,
    assigned_revision: Option<u64>,
) -> String {
    let view = world("rack\nvm a on=n1 volume=assigned").view();
    let named = ObjectRef::new(kind, name(if kind == Kind::Vm { "a" } else { "a-root" }));
    let object = HostObject { kind, uid: uid(&named) };
    let report = Report { object, observed, own_revision, assigned_revision };
    match request::report(&view, worker_id("n1"), &report) {
        Ok(Outcome::Change(found)) => {
            let names = Names::of(&view);
            let own =
                |found_key: &&lightbyte_api::Key| found_key.to_string().contains(&object.uid.to_string());
            let guards = found.guards.keys().filter(own).map(|found_key| {
                let root = found_key.to_string();
                let root = root.split('/').next().unwrap_or_default().to_owned();
                format!("{root} at {}", found.guards[found_key])
            });
            [crate::world::writes(&names, &found)].into_iter().chain(guards).collect::<Vec<_>>().join("\n")
        }
        other => show(&view, other),
    }
}

#[test]
fn reports_compare_what_the_worker_knows() {
    // A claim compares the assignment that was seen, every other report only the worker's own last one.
    assert_snapshot!(report(Kind::Volume, Some(of_volume()), 0, Some(17)), @"
    put observed n1 volume/a-root claimed sequence 1
    assigned at 17
    observed at 0
    ");
    assert_snapshot!(report(Kind::Volume, Some(of_volume()), 21, None), @"
    put observed n1 volume/a-root claimed sequence 1
    observed at 21
    ");
    assert_snapshot!(report(Kind::Volume, Some(of_volume()), 21, Some(17)), @"
    put observed n1 volume/a-root claimed sequence 1
    observed at 21
    ");
    assert_snapshot!(report(Kind::Volume, None, 21, None), @"
    delete observed n1 volume/a-root
    observed at 21
    ");
    assert_snapshot!(report(Kind::Volume, Some(of_volume()), 0, None), @"error: the report is not one that this worker may make: a first report must name the assignment that it was made for");
    assert_snapshot!(report(Kind::Volume, Some(of_volume()), 0, Some(0)), @"error: the report is not one that this worker may make: a first report must name the assignment that it was made for");
    assert_snapshot!(report(Kind::Volume, None, 0, Some(17)), @"error: the report is not one that this worker may make: a first report must name the assignment that it was made for");
    assert_snapshot!(report(Kind::Vm, Some(of_volume()), 21, None), @"error: the report is not one that this worker may make: it speaks of another kind than its key");
    assert_snapshot!(report(Kind::Worker, None, 21, None), @"error: the report is not one that this worker may make: only VMs and volumes are reported this way");
}

#[test]
fn a_member_is_replaced_by_its_group() {
    let group = r#"rack
        asked scalegroup/web {"template": {"image": "demo"}}
        vm web-1 owner=scalegroup/web version=1 on=n1 observed=running
        vm web-2 owner=scalegroup/web version=1 on=n1 observed=running replace
        vm web-3 owner=scalegroup/web version=1 on=n1 observed=running protected
        vm lone
        volume data size=1GiB"#;
    assert_snapshot!(check(group, &[
        "delete vm/web-1", "delete vm/web-2", "delete vm/web-3",
        "protect vm/web-1", "protect vm/web-3", "unprotect vm/web-3", "protect vm/lone",
        "protect volume/data", "unprotect volume/data", "protect scalegroup/web",
    ]), @"
    > delete vm/web-1
    change
    put asked vm/web-1 generation 1 running of scalegroup/web version 1 replace
    rests on epoch
    > delete vm/web-2
    nothing to do
    > delete vm/web-3
    error: vm/web-3 is protected
    hint: `lightbyte unprotect vm/web-3` first
    > protect vm/web-1
    change
    put asked vm/web-1 generation 1 running of scalegroup/web version 1 protected
    rests on epoch
    > protect vm/web-3
    nothing to do
    > unprotect vm/web-3
    change
    put asked vm/web-3 generation 1 running of scalegroup/web version 1
    rests on epoch
    > protect vm/lone
    error: vm/lone cannot be protected: only volumes, snapshots and members of groups can
    > protect volume/data
    change
    put asked volume/data generation 2 1GiB
    rests on epoch
    > unprotect volume/data
    nothing to do
    > protect scalegroup/web
    error: scalegroup/web cannot be protected: only volumes, snapshots and members of groups can
    ");
}

#[test]
fn which_disks_a_group_keeps_is_fixed() {
    let group = r#"rack
        asked scalegroup/db {"template": {"image": "demo", "disks": [{"name": "root"}, {"name": "data", "size": "1GiB", "keep": true}]}}"#;
    assert_snapshot!(check(group, &[
        r#"apply scalegroup/db {"template": {"image": "demo", "disks": [{"name": "root"}, {"name": "data", "size": "2GiB", "keep": true}]}}"#,
        r#"apply scalegroup/db {"template": {"image": "demo", "disks": [{"name": "root"}, {"name": "data", "size": "1GiB"}]}}"#,
    ]), @r#"
    > apply scalegroup/db {"template": {"image": "demo", "disks": [{"name": "root"}, {"name": "data", "size": "2GiB", "keep": true}]}}
    change
    put asked scalegroup/db generation 2 1 of demo
    rests on epoch
    > apply scalegroup/db {"template": {"image": "demo", "disks": [{"name": "root"}, {"name": "data", "size": "1GiB"}]}}
    error: `template.disks` of scalegroup/db cannot be changed: which disks are kept is fixed when a group is made, since its members would share no slots; make another group
    "#);
}
