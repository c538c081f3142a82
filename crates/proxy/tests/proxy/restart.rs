//! What a proxy was last given it has after a restart, and what is bad it does not take.

use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{Backend, Rig, free_port, get, sealed, simple, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_last_topology_holds_after_a_restart_and_a_damaged_one_does_not() {
    let port = free_port();
    let one = Backend::start("one").await;
    let rig = Rig::start().await;
    rig.apply(&simple(4, port, &[&one])).await;
    let directory = rig.leave().await;

    let rig = Rig::start_in(directory).await;
    assert_eq!(rig.status().await["revision"], 4);
    assert_eq!(get(port, "a/").await.status, 200);
    let directory = rig.leave().await;

    let file = directory.join("state/topology.json");
    let bytes = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, bytes.replace("\"one\"", "\"two\"")).expect("writes");
    let rig = Rig::start_in(directory).await;
    assert_eq!(rig.status().await["revision"], 0);
    assert!(rig.directory.join("state/topology.json.damaged").is_file());
    rig.apply(&simple(1, port, &[&one])).await;
    assert_eq!(get(port, "a/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_or_bad_is_refused_and_changes_nothing() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let good = simple(5, port, &[&one]);
    rig.apply(&good).await;
    rig.apply(&good).await;
    let with = |pointer: &str, value: Value| {
        let mut topology = simple(6, port, &[&one]);
        *topology.pointer_mut(pointer).expect("is there") = value;
        sealed(&topology)
    };
    let table = [
        (sealed(&simple(4, port, &[&one])), 409, "revision 4 is older than 5"),
        (with("/revision", json!(5)).replace("\"web\"", "\"wob\""), 422, "its checksum is"),
        (sealed(&simple(5, port, &[])), 409, "revision 5 holds already"),
        (with("/format", json!(9)), 422, "format: is 9"),
        (
            with("/routes/0/targets/0/pool", json!("none")),
            422,
            "routes[0].targets[0].pool: there is no pool `none`",
        ),
        ("{}".to_owned(), 422, "not a sealed topology"),
        ("x".repeat(9 * 1024 * 1024), 413, "too large"),
    ];
    for (body, expected, reason) in table {
        let (status, said) = rig.control("PUT", "/topology", &body).await;
        // Of a body that is too large the rest is not read, so the answer may be lost with the connection.
        let is_lost = expected == 413 && status == 0;
        assert!(
            is_lost || (status == expected && said.contains(reason)),
            "{status} {said}, not {expected} {reason}"
        );
    }
    assert_eq!(rig.status().await["revision"], 5);
    assert_eq!(get(port, "a/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_of_another_version_stays_on_disk() {
    let rig = Rig::start().await;
    let directory = rig.leave().await;
    let file = directory.join("state/topology.json");
    for topology in [json!({"format": 9, "revision": 1}), json!({"revision": {"of": "another kind"}})] {
        std::fs::write(&file, sealed(&topology)).expect("writes");
        let rig = Rig::start_in(directory.clone()).await;
        assert_eq!(rig.status().await["revision"], 0);
        rig.leave().await;
        assert_eq!(std::fs::read_to_string(&file).expect("is there"), sealed(&topology));
    }
    std::fs::remove_dir_all(directory).expect("is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_was_not_to_be_had_blocks_no_later_topology() {
    let port = free_port();
    let one = Backend::start("one").await;
    let rig = Rig::start().await;
    rig.apply(&simple(1, port, &[&one])).await;
    let directory = rig.leave().await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("is free");
    let rig = Rig::start_in(directory).await;
    assert!(rig.status().await["not_listening"]["web"].is_string());
    let mut topology = simple(2, port, &[&one]);
    let other = free_port();
    let more = json!({"name": "other", "address": "127.0.0.1", "port": other, "protocol": "http"});
    topology["listeners"].as_array_mut().expect("is one").push(more);
    rig.apply(&topology).await;
    assert_eq!(get(other, "a/").await.status, 200);
    assert!(rig.status().await["not_listening"]["web"].is_string());
    drop(taken);
    topology["revision"] = json!(3);
    rig.apply(&topology).await;
    assert_eq!(rig.status().await["not_listening"], json!({}));
    assert_eq!(get(port, "a/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_boot_a_fresh_topology_is_waited_for_and_an_old_one_is_not_taken() {
    let port = free_port();
    let one = Backend::start("one").await;
    let rig = Rig::start().await;
    rig.apply(&simple(4, port, &[&one])).await;
    let directory = rig.leave().await;
    let rig = Rig::start_after_boot(directory, Duration::from_secs(3_600)).await;
    assert_eq!(rig.status().await["revision"], 0);
    let (status, said) = rig.control("PUT", "/topology", &sealed(&simple(3, port, &[&one]))).await;
    assert_eq!(status, 409, "{said}");
    let (status, said) = rig.control("PUT", "/topology", &sealed(&simple(4, port, &[]))).await;
    assert_eq!(status, 409, "{said}");
    // The same as on disk is as fresh as can be.
    rig.apply(&simple(4, port, &[&one])).await;
    assert_eq!(get(port, "a/").await.status, 200);
    let directory = rig.leave().await;
    let rig = Rig::start_after_boot(directory, Duration::from_millis(1)).await;
    until("it serves what it has", || async { rig.status().await["revision"] == 4 }).await;
    assert_eq!(get(port, "a/").await.status, 200);
}
