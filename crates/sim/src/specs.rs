//! What people write, right and wrong, from the fields that each kind names: whatever was accepted, the cluster comes back
//! to good when the good is applied again.
//!
//! The idea is that of Acto (Gu et al., SOSP 2023): generate changes of declared state from its schema, let the system
//! settle, and roll back; what does not recover is a bug.

use serde_json::{Value, json};

use lightbyte_api::kinds::volume;
use lightbyte_api::{Kind, Manifest, ObjectRef, Spec, Uid, WaitingOn};
use lightbyte_plan::request::{self, Context, Refusal};
use lightbyte_plan::status;

use crate::cluster::{CALM_ROUNDS_MAX, Checked, Cluster, Violation};
use crate::oracle::{told, violated};

/// How many wrong turns are taken in one run.
const TURNS: usize = 6;
/// How many changes each is made of, at the most.
const CHANGES_MAX: usize = 3;
/// How many values are tried for a field, until one is accepted.
const VALUES_TRIED_MAX: usize = 40;
/// How long each is left to do its worst.
const BAD_ROUNDS: usize = 40;
/// In how many rounds copies that nobody wants are gone.
const COPIES_GO_ROUNDS: usize = 10;

/// The image and the network that VMs need.
pub(crate) fn ground() -> impl Iterator<Item = Value> {
    good().into_iter().filter(|document| document["kind"] == "image" || document["kind"] == "network")
}

/// What is right: an object of every kind that people write, each with most of its fields.
fn good() -> Vec<Value> {
    let part = |digit: &str, size: &str| json!({ "sha256": digit.repeat(64), "size": size });
    let version = |name: &str| {
        json!({
            "version": name, "architecture": "x86_64", "kernel": part("0", "40MiB"), "initrd": part("1", "3MiB"),
            "command_line": "", "root": part("2", "64MiB"),
        })
    };
    let object = |kind: &str, name: &str, spec: Value| json!({ "kind": kind, "name": name, "labels": { "app": name }, "spec": spec });
    vec![
        object("image", "demo", json!({ "current": "v1", "versions": [version("v1"), version("v2")] })),
        object(
            "network",
            "default",
            json!({ "subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "dns": ["10.77.0.1"], "mtu": 1400 }),
        ),
        object("worker", "n1", json!({})),
        object("volume", "data", json!({ "size": "1GiB" })),
        object(
            "volume",
            "kept",
            json!({ "size": "1GiB", "protected": true, "copies": { "to": "n2", "every": "24h", "keep": 1 } }),
        ),
        object(
            "vm",
            "alone",
            json!({
                "image": "demo", "cpus": 1, "memory": "128MiB", "restart": "always",
                "disks": [{ "name": "root" }, { "volume": "data", "mount": "/data" }],
                "nics": [{ "network": "default" }],
                "firewall": { "allow": [{ "from": { "labels": { "app": "web" } }, "protocol": "tcp", "ports": [80] }] },
                "ports": [{ "worker_port": 8080, "port": 80 }],
                "health": { "tcp": { "port": 80 }, "every": "1s", "failures": 2 },
                "first_boot": { "files": [{ "path": "/etc/motd", "content": "hello" }] },
            }),
        ),
        object(
            "scalegroup",
            "web",
            json!({
                "replicas": 2,
                "template": { "image": "demo", "memory": "128MiB", "labels": { "app": "web" } },
                "update": { "max_surge": 1, "ready_for": "1s", "within": "20s", "follow_image": true },
                "healing": { "after": "10s" },
            }),
        ),
        object(
            "scalegroup",
            "shop",
            json!({
                "autoscale": {
                    "min": 1, "max": 2, "cpu": "60%",
                    "schedules": [{ "cron": "0 0 1 1 *", "lasts": "744h", "min": 2 }],
                },
                "template": { "image": "demo", "memory": "128MiB" },
            }),
        ),
        object("dnsrecord", "home", json!({ "type": "A", "values": ["10.77.0.9"] })),
    ]
}

/// Values that fit somewhere, or nowhere.
fn values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(1.5),
        json!(65_536),
        json!(u64::MAX),
        json!(true),
        json!(false),
        json!(""),
        json!("n2"),
        json!("n9"),
        json!("demo"),
        json!("data"),
        json!("kept"),
        json!("v2"),
        json!("v9"),
        json!("default"),
        json!("nowhere"),
        json!("br9"),
        json!("always"),
        json!("never"),
        json!("0s"),
        json!("1s"),
        json!("15s"),
        json!("24h"),
        json!("99999999h"),
        json!("64MiB"),
        json!("192MiB"),
        json!("256MiB"),
        json!("2GiB"),
        json!("900GiB"),
        json!("50%"),
        json!("10.77.0.3"),
        json!("10.77.0.200"),
        json!("10.99.0.1"),
        json!("fd00:77::/64"),
        json!("* * * * *"),
        json!("../../etc/passwd"),
        json!("ä\u{0}\n"),
        json!([]),
        json!({}),
        json!(["10.77.0.9"]),
        json!({ "worker": "n2" }),
        json!({ "app": "web" }),
        json!({ "zone": { "not": ["a"] } }),
        json!({ "port": 80 }),
        json!([{ "name": "root" }]),
        json!([{ "name": "root" }, { "volume": "data", "mount": "/data" }]),
    ]
}

/// Every field of a kind; those of the VMs in a template too.
fn paths(kind: Kind) -> Vec<String> {
    let own = kind.fields().iter().map(|(path, _)| (*path).to_owned());
    let of_members = (kind == Kind::ScaleGroup).then(|| Kind::Vm.fields().iter());
    own.chain(of_members.into_iter().flatten().map(|(path, _)| format!("template.{path}"))).collect()
}

fn has_machines(document: &Value) -> bool {
    ["vm", "scalegroup"].iter().any(|kind| document["kind"] == *kind)
}

/// Puts `value` at `path`, making whatever leads there. Where something else stands in the way, it stays.
fn put(spec: &mut Value, path: &str, value: Value) {
    let mut at = spec;
    for word in path.split('.') {
        let (name, is_list) = word.strip_suffix("[]").map_or((word, false), |name| (name, true));
        if at.is_null() {
            *at = json!({});
        }
        let Some(fields) = at.as_object_mut() else { return };
        at = fields.entry(name).or_insert(Value::Null);
        if is_list {
            if at.is_null() {
                *at = json!([{}]);
            }
            let Some(item) = at.as_array_mut().and_then(|items| items.last_mut()) else { return };
            at = item;
        }
    }
    *at = value;
}

impl Cluster {
    /// Takes wrong turns from a good state, and comes back each time.
    pub(crate) fn take_wrong_turns(&mut self) -> Checked {
        self.faults = false;
        for _ in 0..2 {
            // Workers come first.
            self.calm_round()?;
        }
        self.become_good("at first")?;
        for _ in 0..TURNS {
            let wrong = self.wrong_turn()?;
            for _ in 0..BAD_ROUNDS {
                self.calm_round()?;
                for index in 0..self.workers.len() {
                    self.broken_members_end(index);
                }
            }
            self.become_good(&wrong)?;
        }
        Ok(())
    }

    /// Changes some fields of something; what was done, in words.
    fn wrong_turn(&mut self) -> Result<String, Violation> {
        let (good, values) = (good(), values());
        // Half of the time it is something with machines: there most can go wrong.
        let with_machines: Vec<&Value> = good.iter().filter(|document| has_machines(document)).collect();
        let mut document = match self.rng.once_in(2) {
            true => with_machines[self.rng.below(with_machines.len())].clone(),
            false => good[self.rng.below(good.len())].clone(),
        };
        let kind = Manifest::read(&document).map_or(Kind::Vm, |manifest| manifest.object().kind);
        let paths = paths(kind);
        // Most have to be accepted, or only the reader would be tried.
        let must_be_read = !self.rng.once_in(4);
        for _ in 0..=self.rng.below(CHANGES_MAX) {
            let path = &paths[self.rng.below(paths.len())];
            for _ in 0..if must_be_read { VALUES_TRIED_MAX } else { 1 } {
                let mut changed = document.clone();
                put(&mut changed["spec"], path, values[self.rng.below(values.len())].clone());
                if !must_be_read || (changed != document && Manifest::read(&changed).is_ok()) {
                    document = changed;
                    break;
                }
            }
        }
        let wrong = document.to_string();
        self.tell(|| format!("------ wrong: {wrong} ------"));
        let Ok(manifest) = Manifest::read(&document) else {
            self.counts.add("spec: not accepted");
            return Ok(wrong);
        };
        match self.ask_for(&manifest)? {
            Ok(()) => self.counts.add("spec: accepted"),
            Err(_) => self.counts.add("spec: refused"),
        }
        Ok(wrong)
    }

    /// Applies what is right, and waits until it is so. What cannot be changed back is deleted with all the rest, and made
    /// anew, as a person would.
    fn become_good(&mut self, after: &str) -> Checked {
        self.tell(|| "------ right ------".to_owned());
        let good: Vec<Manifest> = good()
            .iter()
            .map(|document| {
                Manifest::read(document).unwrap_or_else(|problems| unreachable!("{document}: {problems:?}"))
            })
            .collect();
        let mut is_refused = false;
        for manifest in &good {
            is_refused |= self.ask_for(manifest)?.is_err();
        }
        if is_refused {
            self.counts.add("spec: made anew");
            self.delete_all(&good, after)?;
            for manifest in &good {
                if let Err(refusal) = self.ask_for(manifest)? {
                    return violated(
                        "back to good",
                        format!("{manifest:?} is refused: {refusal}; after {after}"),
                    );
                }
            }
        }
        self.come_to_rest(after)?;
        let view = self.oracle.truth();
        for object in good.iter().map(Manifest::object) {
            let ready = status::object(view, &object).is_some_and(|object| object.status.ready);
            if !ready {
                return violated("back to good", format!("{}; after {after}", told(view, &object)));
            }
        }
        Ok(())
    }

    fn delete_all(&mut self, good: &[Manifest], after: &str) -> Checked {
        let objects: Vec<ObjectRef> = good.iter().map(Manifest::object).collect();
        // Whoever deletes what is protected, or has copies, says so first, as it is told.
        let view = self.oracle.truth().clone();
        for object in &objects {
            let Some(asked) = view.living(object) else { continue };
            let Spec::Volume(spec) = &asked.spec else { continue };
            let copies = spec.copies.clone().map(|copies| volume::Copies { keep: 0, ..copies });
            let spec = Spec::Volume(volume::Spec { protected: false, copies, ..spec.clone() });
            let labels = asked.meta.labels.clone();
            if let Err(refusal) = self.ask_for(&Manifest { name: object.name.clone(), labels, spec })? {
                return violated(
                    "back to good",
                    format!("{object} stays protected: {refusal}; after {after}"),
                );
            }
        }
        for _ in 0..COPIES_GO_ROUNDS {
            self.calm_round()?;
        }
        for object in objects.iter().filter(|object| object.kind != Kind::Worker) {
            let view = self.oracle.truth().clone();
            let context = Context { now: self.now(), uid: Uid::from_bits(self.rng.bits()), if_match: None };
            self.oracle.deletion_asked(&view, object);
            match request::delete(&view, object, &context) {
                Ok(outcome) => self.make_true(outcome)?,
                Err(Refusal::NotFound { .. }) => {}
                Err(refusal) => {
                    return violated("back to good", format!("{object} stays: {refusal}; after {after}"));
                }
            }
        }
        for _ in 0..CALM_ROUNDS_MAX {
            self.calm_round()?;
            let view = self.oracle.truth();
            if objects.iter().all(|object| object.kind == Kind::Worker || view.asked(object).is_none()) {
                return Ok(());
            }
        }
        let view = self.oracle.truth();
        let left = objects.iter().filter(|object| view.asked(object).is_some());
        let left: Vec<String> = left.map(|object| told(view, object)).collect();
        violated("back to good", format!("{left:?} are not gone; after {after}"))
    }

    fn come_to_rest(&mut self, after: &str) -> Checked {
        self.rest().map_err(|Violation(what)| Violation(format!("back to good: {what}; after {after}")))?;
        let view = self.oracle.truth();
        let quarantined = view.objects().find(|object| {
            let waits = view.decided(object).into_iter().flat_map(|decided| &decided.waiting_on);
            waits.into_iter().any(|waiting| matches!(waiting.on, WaitingOn::Quarantined { .. }))
        });
        match quarantined {
            Some(object) => violated("back to good", format!("{}; after {after}", told(view, object))),
            None => Ok(()),
        }
    }
}
