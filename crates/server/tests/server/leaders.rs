//! One leader at a time, through deaths, pauses and a store that is away.

use lightbyte_api::Key;
use lightbyte_api::wire::ClusterStatus;
use lightbyte_store::{Guard, MemoryStore, Operation, Outcome, Store as _, Transaction, Versioned};

use crate::cluster::{
    TestServer, apply, begin, get, image, led_by, network, refused, status, until_some, vm, watch_until,
};
use crate::worker::TestWorker;

async fn read(store: &MemoryStore, key: &Key) -> Option<Versioned> {
    store.get(&key.to_string()).await.expect("the store answers").value
}

/// What a leader of the past would send.
async fn commit_as(store: &MemoryStore, leader: &Versioned) -> Outcome {
    let transaction = Transaction {
        guards: vec![Guard::at("leader", leader.mod_revision), Guard::absent("decided/vm/ghost")],
        operations: vec![Operation::put("decided/vm/ghost", "{}")],
    };
    store.commit(transaction).await.expect("an outcome")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_leads_when_the_leader_is_killed_and_the_old_one_cannot_write() {
    let (store, mut first, client) = begin().await;
    led_by(&client, |leader| leader == "s1").await;
    let old = read(&store, &Key::Leader).await.unwrap();
    let second = TestServer::start("s2", &store);
    let client = second.client();
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    first.kill();
    led_by(&client, |leader| leader == "s2").await;
    assert!(matches!(commit_as(&store, &old).await, Outcome::Conflict { .. }));
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_at_once() {
    let (store, mut first, client) = begin().await;
    led_by(&client, |leader| leader == "s1").await;
    let second = TestServer::start("s2", &store);
    let client = second.client();
    led_by(&client, |leader| leader == "s1").await;
    let began = std::time::Instant::now();
    first.stop();
    led_by(&client, |leader| leader == "s2").await;
    assert!(began.elapsed() < std::time::Duration::from_secs(4), "it did not wait for the lease to end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_is_deposed_and_does_no_harm() {
    let (store, first, client) = begin().await;
    led_by(&client, |leader| leader == "s1").await;
    let second = TestServer::start("s2", &store);
    let client = second.client();
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    watch_until(&client, "worker/n1", |worker| worker.is_some_and(|worker| worker.status.ready)).await;
    let paused = first.pause().await;
    led_by(&client, |leader| leader == "s2").await;
    drop(paused);
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    let decided = read(&store, &Key::Decided("vm/a".parse().unwrap())).await.unwrap();
    let text = String::from_utf8_lossy(&decided.value).into_owned();
    assert!(text.contains("server s2 as leader"), "{text}");
    // The first one has noticed, and follows again.
    led_by(&first.client(), |leader| leader == "s2").await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_lease_is_lost_does_not_write_again() {
    let (store, _first, client) = begin().await;
    led_by(&client, |leader| leader == "s1").await;
    apply(&client, vec![image(), network()]).await.unwrap();
    let lease = read(&store, &Key::Leader).await.unwrap().lease.unwrap();
    let second = TestServer::start("s2", &store);
    led_by(&second.client(), |leader| leader == "s1").await;
    store.lose_lease(lease);
    let leader = || async { read(&store, &Key::Leader).await };
    let leader = until_some("somebody leads again", leader).await;
    // Both loops wake for this; only the batch of the one whose leader key stands is written.
    apply(&client, vec![vm("a")]).await.unwrap();
    let decided = || async { read(&store, &Key::Decided("vm/a".parse().unwrap())).await };
    let decided = until_some("vm/a is decided", decided).await;
    let by = |value: &Versioned, text: &str| String::from_utf8_lossy(&value.value).contains(text);
    let name = if by(&leader, "\"server\":\"s2\"") { "s2" } else { "s1" };
    assert!(by(&decided, &format!("server {name} as leader")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_for_a_while_costs_nothing_but_the_while() {
    let (store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    store.set_unavailable(true);
    let problem = refused(apply(&client, vec![vm("b")]).await);
    assert_eq!(problem.status, 503, "{problem:?}");
    assert!(problem.title.contains("nothing was written"), "{problem:?}");
    // Reads go on, and say how old they are. The store stays away until every lease has ended.
    let old = || async {
        let status: ClusterStatus = status(&client).await;
        (status.view_age_millis > 5_500).then_some(status)
    };
    until_some("the view is old", old).await;
    assert_eq!(get(&client, "vm/a").await.unwrap().name.as_str(), "a");
    store.set_unavailable(false);
    apply(&client, vec![vm("b")]).await.unwrap();
    watch_until(&client, "vm/b", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    until_some("the view is fresh", || async {
        Some(status(&client).await).filter(|status| status.view_age_millis < 2_000)
    })
    .await;
    worker.abort();
}
