//! What workers ask, one request at a time.

use lightbyte_api::Key;
use lightbyte_api::assigned::HostObject;
use lightbyte_api::observed::{Observed, ObservedVm, VmPhase};
use lightbyte_api::{Kind, Uid, WorkerId};
use lightbyte_plan::agent::{Delivery, News, Reply, Report};
use lightbyte_store::{MemoryStore, Store as _, Versioned};

use crate::cluster::{
    TestServer, apply, begin, get, image, network, refused, soon, until_some, vm, watch_until,
};
use crate::worker::{TestWorker, now};

async fn life(store: &MemoryStore, worker: &TestWorker) -> Option<Versioned> {
    store.get(&Key::Alive(worker.id).to_string()).await.expect("the store answers").value
}

#[tokio::test]
async fn a_worker_registers_and_lives_through_any_server() {
    let (store, _server, client) = begin().await;
    let worker = TestWorker::new("n1", &client);
    let problem = refused(worker.heartbeat().await);
    assert_eq!(problem.status, 404, "{problem:?}");
    worker.register().await.unwrap();
    worker.register().await.unwrap();
    assert_eq!(get(&client, "worker/n1").await.unwrap().status.state, "away");
    assert!(worker.heartbeat().await.unwrap().ttl_millis >= 4_000);
    let begun = life(&store, &worker).await.unwrap();
    watch_until(&client, "worker/n1", |worker| worker.is_some_and(|worker| worker.status.state == "ready"))
        .await;

    // Another server keeps the same life alive: it knows nothing but the store.
    let other = TestServer::start("s2", &store);
    let through_other = TestWorker::new("n1", &other.client());
    until_some("the other server answers", || async { through_other.heartbeat().await.ok() }).await;
    assert_eq!(life(&store, &worker).await.unwrap().mod_revision, begun.mod_revision);

    // A lease that is lost is noticed by the next heartbeat, and a new life begins.
    store.lose_lease(begun.lease.unwrap());
    worker.heartbeat().await.unwrap();
    assert!(life(&store, &worker).await.unwrap().mod_revision > begun.mod_revision);
}

#[tokio::test]
async fn a_second_instance_and_a_taken_name_are_refused() {
    let (_store, _server, client) = begin().await;
    let worker = TestWorker::new("n1", &client);
    worker.register().await.unwrap();
    worker.heartbeat().await.unwrap();
    let mut twin = TestWorker::new("n1", &client);
    twin.said.boot_id = "another boot".to_owned();
    let problem = refused(twin.heartbeat().await);
    assert_eq!(problem.status, 409);
    assert!(problem.title.contains("alive in another boot"), "{problem:?}");
    assert_eq!(refused(twin.register().await).status, 409);
    let mut thief = TestWorker::new("n1", &client);
    thief.id = WorkerId::new(Uid::from_bits(5));
    let problem = refused(thief.register().await);
    assert_eq!(problem.status, 409);
    assert!(problem.title.contains("the name `n1` belongs to the worker"), "{problem:?}");
}

/// A claim of the VM `uid`.
fn claim(uid: Uid, own_revision: u64, assigned_revision: Option<u64>) -> Report {
    let observed = ObservedVm {
        shape: 1,
        sequence: 1,
        generation: 0,
        phase: VmPhase::Claimed,
        since: now(),
        restarts: 0,
        restarts_done: 0,
        boot: None,
        health: None,
        squatters: Vec::new(),
        leases: Vec::new(),
        proxy: None,
        virtual_address: None,
        address_yielded: 0,
        problem: None,
    };
    let object = HostObject { kind: Kind::Vm, uid };
    Report { object, observed: Some(Observed::Vm(observed)), own_revision, assigned_revision }
}

#[tokio::test]
async fn a_stream_tells_everything_first_then_each_change_and_reports_are_guarded() {
    let (_store, _server, client) = begin().await;
    let worker = TestWorker::new("n1", &client);
    worker.register().await.unwrap();
    worker.heartbeat().await.unwrap();
    let mut lines = worker.stream(None).await.unwrap();
    let first: Delivery = soon("the inventory", lines.next()).await.unwrap().unwrap();
    assert_eq!(first.news, News::Inventory(Vec::new()));

    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    let uid = get(&client, "vm/a").await.unwrap().uid;
    let mut assigned_revision = 0;
    while assigned_revision == 0 {
        let delivery: Delivery = soon("the assignment", lines.next()).await.unwrap().unwrap();
        if let News::Change { object, assigned: Some(assigned) } = delivery.news
            && object.uid == uid
        {
            assigned_revision = assigned.mod_revision;
        }
    }
    // A claim for another assignment than the stored one is refused, with what is stored.
    let reply = worker.report(&claim(uid, 0, Some(assigned_revision - 1))).await.unwrap();
    assert_eq!(reply, Reply::Refused { observed: None, assigned_revision });
    let Reply::Accepted { revision } = worker.report(&claim(uid, 0, Some(assigned_revision))).await.unwrap()
    else {
        panic!("the claim is good")
    };
    // Sent again, as after a lost answer: the worker learns what is stored.
    let Reply::Refused { observed: Some(stored), .. } =
        worker.report(&claim(uid, 0, Some(assigned_revision))).await.unwrap()
    else {
        panic!("it is there already")
    };
    assert_eq!(stored.mod_revision, revision);
    assert_eq!(refused(worker.report(&claim(uid, 0, None)).await).status, 400);

    // A new stream with the worker's cursor knows of the report; one from the future is refused.
    let mut lines = worker.stream(Some(revision)).await.unwrap();
    let inventory: Delivery = soon("the inventory", lines.next()).await.unwrap().unwrap();
    let News::Inventory(items) = &inventory.news else { panic!("a stream begins with an inventory") };
    let item = items.iter().find(|item| item.object.uid == uid).expect("the VM is there");
    assert_eq!(item.observed.as_ref().map(|observed| observed.mod_revision), Some(revision));
    assert!(inventory.revision >= revision);
    assert_eq!(refused(worker.stream(Some(1_000_000)).await.map(|_| ())).status, 503);
}

#[tokio::test]
async fn a_silent_stream_moves_the_cursor_on() {
    let (_store, _server, client) = begin().await;
    let worker = TestWorker::new("n1", &client);
    worker.register().await.unwrap();
    let mut lines = worker.stream(None).await.unwrap();
    let first: Delivery = soon("the inventory", lines.next()).await.unwrap().unwrap();
    apply(&client, vec![image(), network()]).await.unwrap();
    let progress: Delivery = soon("progress", lines.next()).await.unwrap().unwrap();
    assert_eq!(progress.news, News::Progress);
    assert!(progress.revision > first.revision);
}
