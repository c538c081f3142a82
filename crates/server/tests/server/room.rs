//! Room for the loss of a worker: as numbers, and as a condition of what is asked.

use lightbyte_api::object::Object;
use serde_json::{Value, json};

use crate::cluster::{TestServer, apply, begin, begin_as, image, network, refused, vm, watch_until};
use crate::worker::TestWorker;

fn web(replicas: u64) -> Value {
    json!({ "kind": "scalegroup", "name": "web", "spec": { "replicas": replicas, "template": { "image": "demo" } } })
}

fn is_ready(object: Option<&Object>) -> bool {
    object.is_some_and(|object| object.status.ready)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_no_room_for_a_loss_is_refused_where_room_is_kept() {
    let (_store, _server, client) = begin_as(TestServer::keeping_room).await;
    let workers = ["n1", "n2"].map(|name| tokio::spawn(TestWorker::new(name, &client).run()));
    for name in ["n1", "n2"] {
        watch_until(&client, &format!("worker/{name}"), is_ready).await;
    }
    // Four CPUs each: one of the two has room for four, and not for five.
    apply(&client, vec![image(), network(), web(4)]).await.unwrap();
    watch_until(&client, "scalegroup/web", is_ready).await;
    let problem = refused(apply(&client, vec![web(5)]).await);
    assert_eq!(problem.status, 409);
    assert!(problem.title.contains("no room for the loss of worker/n"), "{problem:?}");
    assert!(problem.details[0].contains("1 CPU"), "{problem:?}");
    // One that would stand where the others are to go takes their room as well.
    assert_eq!(refused(apply(&client, vec![vm("alone")]).await).status, 409);
    // Nothing was written; what takes no more room, or less, goes.
    apply(&client, vec![web(3)]).await.unwrap();
    workers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_knows_is_told_in_numbers() {
    let (_store, server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![image(), network(), web(2), vm("alone")]).await.unwrap();
    for object in ["scalegroup/web", "vm/alone"] {
        watch_until(&client, object, is_ready).await;
    }
    let (status, head, body) = server.raw("GET /metrics HTTP/1.1", "").await;
    assert_eq!(status, 200);
    assert!(head.contains("application/openmetrics-text"), "{head}");
    for line in [
        "lightbyte_leads 1.0",
        r#"lightbyte_objects{kind="vm",state="running"} 3.0"#,
        r#"lightbyte_group_members_ready{group="web"} 2.0"#,
        r#"lightbyte_loss_homeless{worker="n1"} 2.0"#,
        r#"lightbyte_loss_waiting{worker="n1"} 1.0"#,
        "lightbyte_survives_any_loss 0.0",
    ] {
        assert!(body.lines().any(|found| found == line), "{line} is not in {body}");
    }
    assert!(body.ends_with("# EOF\n"), "{body}");
    worker.abort();
}
