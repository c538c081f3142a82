//! Groups of real VMs: the walk of the guide, and a load that a group follows.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bed::{Bed, path, signal, skip, until};
use crate::real::{machines, missing, page};

fn members(bed: &Bed) -> Vec<Value> {
    bed.json(&["get", "vms", "-l", "app=web"])["items"].as_array().cloned().unwrap_or_default()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// That so many members are ready, none of them on `without`, and each answers.
fn all_answer(bed: &Bed, count: usize, without: &str) {
    let members = members(bed);
    assert_eq!(members.len(), count, "{members:?}");
    for member in members {
        assert_ne!(text(&member, "/status/worker"), without);
        let address = text(&member, "/status/addresses/0").split('/').next().unwrap_or_default().to_owned();
        let name = text(&member, "/name");
        assert!(page(&address).is_some_and(|page| page.contains(name)), "{name} at {address}");
    }
}

fn applied(bed: &Bed, spec: &Value) {
    let manifest = json!({ "kind": "scalegroup", "name": "web", "spec": spec });
    bed.ok(&["apply", "-f", path(&bed.manifests(&manifest.to_string()))]);
}

/// The demo image as another version, with its manifest changed.
fn version(bed: &Bed, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let demo = std::env::var_os("LIGHTBYTE_IMAGES").map(PathBuf::from).expect("images").join("demo");
    let directory = bed.state().with_file_name(name);
    fs::create_dir_all(&directory).expect("a directory");
    for file in fs::read_dir(&demo).expect("the demo image").map(|file| file.expect("a file").path()) {
        let to = directory.join(file.file_name().unwrap_or_default());
        fs::hard_link(&file, &to).or_else(|_| fs::copy(&file, &to).map(|_| ())).expect("a copy");
    }
    let file = directory.join("manifest.json");
    let mut manifest: Value =
        serde_json::from_slice(&fs::read(&file).expect("a manifest")).expect("a manifest in JSON");
    manifest["version"] = json!(name);
    change(&mut manifest);
    // Its name may lead to the demo image's own.
    fs::remove_file(&file).and_then(|()| fs::write(&file, manifest.to_string())).expect("a manifest");
    directory
}

fn import(bed: &Bed, directory: &Path) {
    bed.ok(&["import", "image", path(directory)]);
}

#[test]
fn a_group_of_real_vms_grows_heals_moves_and_rolls() {
    let test = "a_group_of_real_vms_grows_heals_moves_and_rolls";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("groups", &["--vmm", "qemu"]) else { return };
    bed.start();
    let spec = |more: Value| {
        let mut spec = json!({
            "replicas": 1,
            "template": { "image": "demo", "memory": "128MiB", "labels": { "app": "web" } },
            "update": { "canary": 1, "follow_image": true },
        });
        spec.as_object_mut().expect("fields").extend(more.as_object().cloned().unwrap_or_default());
        spec
    };
    applied(&bed, &spec(json!({})));
    bed.ok(&["wait", "group/web"]);
    bed.ok(&["scale", "group/web", "4"]);
    all_answer(&bed, 4, "");
    let on =
        |worker: &str| members(&bed).iter().filter(|member| text(member, "/status/worker") == worker).count();
    assert!(["n1", "n2", "n3"].iter().all(|worker| on(worker) >= 1), "they are spread");

    // Two machines are killed.
    for machine in machines(&bed).iter().take(2) {
        signal("KILL", machine.trim_start_matches("/proc/").parse().expect("a process"));
    }
    until("it is noticed", || text(&bed.json(&["get", "group/web"]), "/status/state") != "ready");
    bed.ok(&["wait", "group/web"]);
    all_answer(&bed, 4, "");

    // A host is emptied.
    bed.ok(&["drain", "worker/n2"]);
    all_answer(&bed, 4, "n2");
    bed.ok(&["undrain", "worker/n2"]);

    // Another image, with one canary.
    import(&bed, &version(&bed, "release2", |_| {}));
    let (code, errors) = bed.fails(&["wait", "group/web"]);
    assert!(code == 2 && errors.contains("has come to its canaries"), "{code}: {errors}");
    let of = |version: &str| {
        members(&bed).iter().filter(|member| text(member, "/status/image_version") == version).count()
    };
    assert_eq!((of("release2"), members(&bed).len()), (1, 4));
    bed.ok(&["rollout", "promote", "web"]);
    assert_eq!(of("release2"), 4);
    all_answer(&bed, 4, "");

    // One that does not boot: its first member fails, nobody else is touched.
    let before: Vec<Value> = members(&bed).iter().map(|member| member["uid"].clone()).collect();
    import(&bed, &version(&bed, "release3", |manifest| drop(manifest["initrd"].take())));
    let (code, errors) = bed.fails(&["wait", "group/web"]);
    assert!(code == 1 && errors.contains("is back at version 2"), "{code}: {errors}");
    assert!(errors.contains("panic"), "the last lines of its console: {errors}");
    until("its last words are in the events", || {
        bed.ok(&["events", "group/web"])
            .lines()
            .any(|line| line.contains(" said: ") && line.contains("panic"))
    });
    all_answer(&bed, 4, "");
    let kept = members(&bed).iter().filter(|member| before.contains(&member["uid"])).count();
    assert!(kept >= 3, "only the place of the one that failed was another's: {kept}");

    // The good one is current again, and nothing is rejected any more.
    import(&bed, &bed.state().with_file_name("release2"));
    bed.ok(&["wait", "group/web"]);

    // A host loses its power: after half a minute its members are made elsewhere.
    bed.dev("kill", "n3");
    until("it is lost", || text(&bed.json(&["get", "worker/n3"]), "/status/state") == "lost");
    bed.ok(&["wait", "group/web"]);
    let alive = members(&bed).iter().filter(|member| text(member, "/status/worker") != "n3").count();
    assert_eq!(alive, 4);
    bed.dev("start", "n3");
    until("what is too much is gone", || members(&bed).len() == 4);
}

#[test]
fn a_group_of_real_vms_follows_its_load() {
    let test = "a_group_of_real_vms_follows_its_load";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("load", &["--vmm", "qemu", "--nodes", "2"]) else { return };
    bed.start();
    applied(
        &bed,
        &json!({
            "autoscale": {
                "max": 2,
                "cpu": "20%",
                "scale_out": { "window": "0s", "every": "15s" },
                "scale_in": { "window": "0s", "every": "15s" },
            },
            "template": { "image": "demo", "memory": "128MiB", "labels": { "app": "web" } },
        }),
    );
    bed.ok(&["wait", "group/web"]);
    all_answer(&bed, 1, "");
    let mut busy = bed.child(&["exec", "web-1", "--", "sh", "-c", "while :; do :; done"]);
    let size = || bed.json(&["get", "group/web"])["status"]["replicas"].as_u64();
    until("it grows", || size() == Some(2));
    bed.ok(&["wait", "group/web"]);
    all_answer(&bed, 2, "");
    busy.kill().and_then(|()| busy.wait()).expect("its load ends");
    until("it shrinks", || size() == Some(1));
    bed.ok(&["wait", "group/web"]);
    all_answer(&bed, 1, "");
    let told = bed.ok(&["events", "group/web"]);
    assert!(told.contains("its size is to be 2 and was 1: its members' CPUs are"), "{told}");
}
