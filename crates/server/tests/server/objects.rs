//! What people ask, and what they are told.

use lightbyte_api::object::Object;
use lightbyte_api::wire::{Apply, ChangeAction, Changed, List};
use lightbyte_link::Client;
use lightbyte_store::Store as _;
use serde_json::{Value, json};

use crate::cluster::{
    TestServer, apply, begin, delete, foresee, get, image, network, refused, status, until_some, vm,
};

async fn list(client: &Client, path: &str) -> Vec<String> {
    let list: List<Object> = client.get(path).await.expect("a list").value;
    list.items.iter().map(|object| format!("{}/{}", object.kind, object.name)).collect()
}

#[tokio::test]
async fn objects_are_made_listed_changed_and_deleted() {
    let (store, _server, client) = begin().await;
    let made = apply(&client, vec![image(), network(), vm("a"), vm("b")]).await.unwrap();
    assert!(
        made.changes.iter().all(|change| change.action == ChangeAction::Created && change.generation == 1)
    );

    // Every stored value says who wrote it, and for whom.
    let stored = store.get("asked/vm/a").await.unwrap().value.expect("it is stored").value;
    assert!(String::from_utf8_lossy(&stored).contains("\"writer\":\"server s1 for user "), "{stored:?}");

    // Words, plurals and short names are the same.
    for word in ["vm", "vms", "machine"] {
        assert_eq!(list(&client, &format!("/v1/objects/{word}")).await, ["vm/a", "vm/b"]);
    }
    assert_eq!(list(&client, "/v1/objects/vm?limit=1").await, ["vm/a"]);
    assert_eq!(list(&client, "/v1/objects/vm?limit=1&after=a").await, ["vm/b"]);

    let labelled =
        json!({"kind": "vm", "name": "a", "labels": {"app": "web", "tier": "1"}, "spec": {"image": "demo"}});
    let changed = apply(&client, vec![labelled.clone(), vm("b")]).await.unwrap().changes;
    assert_eq!(
        (changed[0].action, changed[0].generation),
        (ChangeAction::Changed, 1),
        "labels are not the spec"
    );
    assert_eq!(changed[1].action, ChangeAction::Unchanged);
    assert_eq!(list(&client, "/v1/objects/vm?label=app=web&label=tier=1").await, ["vm/a"]);
    assert_eq!(list(&client, "/v1/objects/vm?label=app=web&label=tier=2").await, [""; 0]);

    let stopped: Changed = client.post("/v1/objects/vm/b/stop", &()).await.unwrap().value;
    assert_eq!((stopped.action, stopped.generation), (ChangeAction::Changed, 2));
    assert_eq!(get(&client, "vm/b").await.unwrap().spec["running"], false);

    assert_eq!(delete(&client, "vm/a").await.unwrap().action, ChangeAction::Deleting);
    // Nobody has placed it, so it is gone soon, and asking again either says so or that it is going.
    until_some("vm/a is gone", || async {
        get(&client, "vm/a").await.err()?.status().filter(|status| *status == 404)
    })
    .await;
}

#[tokio::test]
async fn refusals_say_what_why_and_what_to_do() {
    let (_store, server, client) = begin().await;
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    let post = |path: &'static str| {
        let client = client.clone();
        async move { refused(client.post::<(), Changed>(path, &()).await) }
    };
    let again = Apply { documents: vec![vm("a")], create_only: true, dry_run: false };
    let problem = refused(client.post::<_, Value>("/v1/apply", &again).await);
    assert_eq!((problem.status, problem.title.as_str()), (409, "vm/a exists already"));
    assert!(problem.hint.is_some_and(|hint| hint.contains("lightbyte apply")));

    let other = json!({"kind": "vm", "name": "a", "spec": {"image": "other"}});
    let problem = refused(apply(&client, vec![other]).await);
    assert_eq!(problem.status, 409);
    assert!(problem.title.contains("`image` of vm/a cannot be changed"), "{problem:?}");

    let check = async |path: &str, status: u16, title: &str, hint: &str| {
        let problem = refused(client.get::<Value>(path).await);
        assert_eq!((problem.status, problem.title.as_str()), (status, title), "{path}");
        assert_eq!(problem.hint.unwrap_or_default(), hint, "{path}");
    };
    check("/v1/objects/vm/none", 404, "vm/none does not exist", "`lightbyte get vm` lists what there is")
        .await;
    check("/v1/objects/vmm/a", 400, "`vmm` is not a kind of object", "did you mean `vm`?").await;
    check(
        "/v1/objects/vm?labell=a",
        400,
        "`labell` is not a parameter of this path",
        "this path takes: label, limit, after, min_revision, at",
    )
    .await;
    check("/v1/objects/vm?label=a", 400, "`label` must be KEY=VALUE, is `a`", "").await;
    check("/v1/nothing", 404, "there is nothing at `/v1/nothing`", "GET /v1/openapi.json lists every path")
        .await;
    assert_eq!(post("/v1/objects/image/demo/start").await.status, 400);
    assert_eq!(post("/v1/objects/vm/none/start").await.status, 404);
    assert_eq!(post("/v1/objects/vm").await.status, 405);
    let worker = json!({"kind": "worker", "name": "n1"});
    assert_eq!(
        refused(apply(&client, vec![worker]).await).title,
        "worker/n1 cannot be created: workers register themselves when their agent starts"
    );

    let (status, head, body) = server.raw("POST /v1/apply HTTP/1.1", "{").await;
    assert_eq!(status, 400, "{body}");
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    let (status, _, body) = server.raw("POST /v1/apply HTTP/1.1", &"x".repeat(2 << 20)).await;
    assert_eq!(status, 413, "{body}");
    assert!(body.contains("more than 1048576 bytes"), "{body}");
}

#[tokio::test]
async fn every_problem_of_every_document_is_in_one_answer() {
    let (_store, _server, client) = begin().await;
    let documents = vec![
        json!({"kind": "vm", "name": "Web", "lables": {}, "spec": {
            "cpus": 0, "memory": "1MiB", "memroy": 1, "running": "yes", "disks": [{"name": "data", "sise": 1}]}}),
        image(),
        json!({"kind": "vmm", "name": "b"}),
        image(),
        json!(7),
    ];
    let problem = refused(apply(&client, documents.clone()).await);
    assert_eq!((problem.status, problem.title.as_str()), (400, "4 of 5 documents have problems, 13 in all"));
    let expect = [
        ("document 1 (vm/Web): lables: is not a field here (did you mean `labels`?)", true),
        ("document 1 (vm/Web): spec.image: is missing", true),
        ("document 3 (vmm/b): kind: `vmm` is not a kind of object (did you mean `vm`?)", true),
        ("document 4 (image/demo): document 2 speaks of the same object", true),
        ("document 5: expected fields, found a number", true),
        ("document 2", false),
    ];
    for (text, there) in expect {
        assert_eq!(
            problem.details.iter().any(|detail| detail.starts_with(text)),
            there,
            "{text}: {problem:#?}"
        );
    }
    assert_eq!(refused(get(&client, "image/demo").await).status, 404, "nothing is half done");

    // Refusals that need the store to be seen are told together too, before anything is written.
    apply(&client, vec![network()]).await.unwrap();
    let other = json!({"kind": "network", "name": "default", "spec": {"subnet": "10.78.0.0/24"}});
    let problem =
        refused(apply(&client, vec![image(), other, json!({"kind": "worker", "name": "n1"})]).await);
    assert_eq!(problem.title, "2 of 3 documents are refused, nothing was written");
    assert_eq!(problem.details.len(), 2, "{problem:#?}");
    assert_eq!(refused(get(&client, "image/demo").await).status, 404);
}

#[tokio::test]
async fn a_dry_run_tells_the_differences_after_defaults_and_writes_nothing() {
    let (_store, _server, client) = begin().await;
    let before = status(&client).await.revision;
    let foreseen = foresee(&client, vec![image(), network(), vm("a")]).await.unwrap();
    let memory = foreseen.changes[2].differences.iter().find(|difference| difference.path == "spec.memory");
    assert_eq!(memory.map(|found| (&found.before, &found.after)), Some((&Value::Null, &json!("128MiB"))));
    assert_eq!(refused(get(&client, "vm/a").await).status, 404);
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    assert!(status(&client).await.revision > before);

    let foreseen = foresee(&client, vec![image(), network(), vm("a")]).await.unwrap();
    assert!(foreseen.changes.iter().all(|change| change.action == ChangeAction::Unchanged));
    assert!(foreseen.changes.iter().all(|change| change.differences.is_empty()), "{foreseen:#?}");
    let stopped =
        json!({"kind": "vm", "name": "a", "labels": {"x": "y"}, "spec": {"image": "demo", "running": false}});
    let foreseen = foresee(&client, vec![stopped]).await.unwrap().changes.remove(0);
    assert_eq!((foreseen.action, foreseen.generation), (ChangeAction::Changed, 2));
    let told: Vec<String> = foreseen
        .differences
        .iter()
        .map(|found| format!("{}: {} -> {}", found.path, found.before, found.after))
        .collect();
    assert_eq!(told, ["labels.x: null -> \"y\"", "spec.running: true -> false"]);
}

/// The `etag` of an object.
async fn etag(server: &TestServer, object: &str) -> u64 {
    let (_, head, _) = server.raw(&format!("GET /v1/objects/{object} HTTP/1.1"), "").await;
    let line = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("an etag");
    line.trim_matches('"').parse().expect("a revision")
}

#[tokio::test]
async fn if_match_lets_one_of_two_win() {
    let (_store, server, client) = begin().await;
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    let read = etag(&server, "vm/a").await;
    let stop = |if_match: String| {
        let client = client.clone();
        async move {
            let headers = [("if-match", if_match)];
            let path = "/v1/objects/vm/a/stop";
            client.request::<(), Changed>(http::Method::POST, path, None, &headers).await
        }
    };
    stop(format!("\"{read}\"")).await.unwrap();
    let problem = refused(stop(read.to_string()).await);
    assert_eq!(problem.status, 412);
    assert!(problem.title.contains("vm/a was changed by somebody else"), "{problem:?}");
    assert_eq!(refused(stop("yesterday".to_owned()).await).status, 400);
    let now = etag(&server, "vm/a").await;
    assert!(now > read);
    client.post::<(), Changed>(&format!("/v1/objects/vm/a/start?if_match={now}"), &()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_without_if_match_do_not_meet_conflicts() {
    let (_store, _server, client) = begin().await;
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    let before = get(&client, "vm/a").await.unwrap().generation;
    let restarts = (0..6).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.post::<(), Changed>("/v1/objects/vm/a/restart", &()).await })
    });
    for restart in restarts.collect::<Vec<_>>() {
        restart.await.unwrap().unwrap();
    }
    assert_eq!(get(&client, "vm/a").await.unwrap().generation, before + 6, "none was lost");
}

#[tokio::test]
async fn reads_wait_for_the_revision_that_they_ask_for() {
    let (_store, _server, client) = begin().await;
    apply(&client, vec![image()]).await.unwrap();
    let made = client.get::<Value>("/v1/objects/image/demo").await.unwrap().revision.unwrap();
    let read = client.get::<Value>(&format!("/v1/objects/image/demo?min_revision={made}")).await.unwrap();
    assert!(read.revision.unwrap() >= made);
    let problem = refused(client.get::<Value>("/v1/objects/image/demo?min_revision=1000000").await);
    assert_eq!(problem.status, 504, "{problem:?}");
}

#[tokio::test]
async fn a_store_that_was_not_set_up_or_read_is_told() {
    let store = lightbyte_store::MemoryStore::new();
    store.set_unavailable(true);
    let server = TestServer::start("s1", &store);
    let client = server.client();
    let problem = until_some("the server listens", || async {
        client.get::<Value>("/v1/status").await.err().filter(|error| error.status().is_some())
    });
    let problem = refused::<()>(Err(problem.await));
    assert_eq!((problem.status, problem.title.as_str()), (503, "this server has not read the store yet"));
    assert!(problem.hint.is_some());
    store.set_unavailable(false);
    until_some("the server has read the store", || async { client.get::<Value>("/v1/status").await.ok() })
        .await;
    let problem = refused(apply(&client, vec![image()]).await);
    assert_eq!((problem.status, problem.title.as_str()), (503, "the cluster has not been set up"));
}
