//! From `create vm` to a VM that runs, through HTTP, the leader's loop, a worker's stream and its reports.

use crate::cluster::{apply, begin, delete, get, image, network, refused, until_some, vm, watch_until};
use crate::worker::TestWorker;
use lightbyte_api::object::Object;
use lightbyte_api::wire::{Changed, List};
use lightbyte_plan::forecast::Forecast;
use lightbyte_plan::why::Explanation;
use lightbyte_store::Store as _;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_created_runs_stops_and_is_deleted() {
    let (_store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![image(), network(), vm("hello")]).await.unwrap();
    let running = watch_until(&client, "vm/hello", |vm| vm.is_some_and(|vm| vm.status.ready)).await.unwrap();
    assert_eq!(running.status.state, "running");
    assert_eq!(running.status.more["worker"], "n1");
    assert_eq!(running.status.more["addresses"][0], "10.77.0.2/24");

    let path = "/v1/objects/vm/hello/stop";
    let changed: Changed = client.post(path, &()).await.unwrap().value;
    assert_eq!(changed.generation, 2);
    watch_until(&client, "vm/hello", |vm| {
        vm.is_some_and(|vm| vm.status.state == "stopped" && vm.status.ready)
    })
    .await;

    client.request::<(), Changed>(http::Method::DELETE, "/v1/objects/vms/hello", None, &[]).await.unwrap();
    watch_until(&client, "vm/hello", |vm| vm.is_none()).await;
    assert_eq!(refused(get(&client, "vm/hello").await).status, 404);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_vms_are_dispatched_soon_after_they_are_asked_for() {
    let (_store, _server, client) = begin().await;
    let workers: Vec<_> =
        ["n1", "n2", "n3"].iter().map(|name| tokio::spawn(TestWorker::new(name, &client).run())).collect();
    for name in ["n1", "n2", "n3"] {
        let worker = format!("worker/{name}");
        watch_until(&client, &worker, |worker| worker.is_some_and(|worker| worker.status.ready)).await;
    }
    apply(&client, vec![image(), network()]).await.unwrap();
    let mut millis = Vec::new();
    for number in 0..10 {
        let name = format!("vm-{number}");
        apply(&client, vec![vm(&name)]).await.unwrap();
        let ready = |vm: Option<&Object>| vm.is_some_and(|vm| vm.status.ready);
        let vm = watch_until(&client, &format!("vm/{name}"), ready).await.unwrap();
        millis.push(vm.status.more["boot"]["request_to_dispatch"].as_u64().unwrap());
    }
    millis.sort_unstable();
    println!("asked to dispatch, ten VMs one after the other, in milliseconds: {millis:?}");
    // Generous: the machine that runs this may do other things. A wait on a timer anywhere would take longer.
    assert!(millis[5] < 250, "{millis:?}");

    // All at once, over three workers: each is reached, and each is told why it is where it is.
    let documents = (10..16).map(|number| vm(&format!("vm-{number}"))).collect();
    apply(&client, documents).await.unwrap();
    for number in 10..12 {
        let vm = format!("vm/vm-{number}");
        watch_until(&client, &vm, |vm| vm.is_some_and(|vm| vm.status.ready)).await;
        let why: Explanation = client.get(&format!("/v1/objects/{vm}/why")).await.unwrap().value;
        assert!(why.because[0].starts_with("it was placed on worker"), "{why:?}");
    }
    // Each worker has four CPUs: the thirteenth VM waits, is stuck after a while, and says why from the beginning.
    let waits = |vm: Option<&Object>| vm.is_some_and(|vm| !vm.status.waiting_on.is_empty());
    watch_until(&client, "vm/vm-15", waits).await;
    let why: Explanation = client.get("/v1/objects/vm/vm-15/why").await.unwrap().value;
    assert_eq!(why.because, ["it waits: no worker has 1 CPU and 128MiB free"]);
    delete(&client, "vm/vm-0").await.unwrap();
    delete(&client, "vm/vm-1").await.unwrap();
    delete(&client, "vm/vm-2").await.unwrap();
    delete(&client, "vm/vm-3").await.unwrap();
    watch_until(&client, "vm/vm-15", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    workers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_the_story_of_a_vm() {
    let (_store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| !vm.status.waiting_on.is_empty())).await;
    apply(&client, vec![image(), network()]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    delete(&client, "vm/a").await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_none()).await;
    let told = || async {
        let events: List<Value> = client.get("/v1/objects/vm/a/events").await.unwrap().value;
        let whats: Vec<String> = events.items.iter().map(|event| event["what"].to_string()).collect();
        (whats.last()? == "\"gone\"").then_some(events.items)
    };
    let events = until_some("its end is told", told).await;
    let has = |what: &str, part: &str| {
        events.iter().any(|event| {
            event["what"] == what && event["message"].as_str().is_some_and(|text| text.contains(part))
        })
    };
    let story = [
        ("created", "is pending"),
        ("waiting", "image/demo does not exist"),
        ("resolved", "image/demo does not exist"),
        ("state", "is running"),
        ("state", "is deleting"),
    ];
    for (what, part) in story {
        assert!(has(what, part), "{what} {part}: {events:#?}");
    }
    assert_eq!(refused(client.get::<Value>("/v1/objects/vm/none/events").await).status, 404);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_what_then_happens_and_writes_nothing() {
    let (store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;

    let before = store.list("asked/", None).await.unwrap();
    let body = json!({"changes": [{"apply": vm("b")}, {"delete": "vm/a"}]});
    let told: Forecast = client.post("/v1/plan", &body).await.unwrap().value;
    let deeds: Vec<String> =
        told.steps.iter().map(|step| format!("{} {:?}", step.object, step.what)).collect();
    assert_eq!(
        deeds,
        [
            "vm/a LetGo { because: None }",
            "vm/b Created",
            "vm/b Placed { worker: n1 }",
            "vm/a Gone",
            "vm/b Becomes { state: \"running\" }",
        ],
    );
    assert_eq!((told.unmet.len(), told.steps_anyway, told.boot.measured), (0, 0, 1));
    // The leader may still note that the VM is as asked.
    let after = store.list("asked/", None).await.unwrap();
    assert_eq!(before.entries, after.entries, "a plan writes nothing");

    let refused_plan =
        client.post::<_, Forecast>("/v1/plan", &json!({"changes": [{"delete": "vm/none"}]})).await;
    assert_eq!(refused(refused_plan).status, 404);
    let refused_plan = client.post::<_, Forecast>("/v1/plan", &json!({"changes": [{"lose": "vm/a"}]})).await;
    assert_eq!(refused(refused_plan).status, 400);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_shown_as_it_was() {
    let (_store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    let then = client.get::<Object>("/v1/objects/vm/a").await.unwrap().revision.unwrap();
    delete(&client, "vm/a").await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_none()).await;

    let past: Object = client.get(&format!("/v1/objects/vm/a?at={then}")).await.unwrap().value;
    assert_eq!((past.status.state.as_str(), past.status.ready), ("running", true));
    let list: List<Object> = client.get(&format!("/v1/objects/vm?at={then}")).await.unwrap().value;
    assert_eq!(list.items.len(), 1);
    let why: Explanation = client.get(&format!("/v1/objects/vm/a/why?at={then}")).await.unwrap().value;
    assert!(why.because[0].starts_with("it was placed on worker"), "{why:?}");
    // So far back this server has not watched, and there is no such revision yet.
    for (at, status) in [("1h", 404), ("999999", 404), ("yesterday", 400)] {
        let past = client.get::<Object>(&format!("/v1/objects/vm/a?at={at}")).await;
        assert_eq!(refused(past).status, status, "{at}");
    }
    worker.abort();
}
