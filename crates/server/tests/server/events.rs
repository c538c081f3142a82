//! Events outlive servers, are told once whoever leads, and take no more room than they are given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lightbyte_api::event::{self, EVENTS_PREFIX, EventKey, Numbered};
use lightbyte_api::wire::List;
use lightbyte_api::{Event, Key, ObjectRef, Uid};
use lightbyte_link::Client;
use lightbyte_store::{LeaseId, MemoryStore, Store};
use serde_json::{Value, json};

use crate::cluster::{
    TestServer, apply, begin, delete, get, image, led_by, network, refused, until_some, vm, watch_until,
};
use crate::etcd::Etcd;
use crate::worker::TestWorker;

/// How many events an object keeps, as the server has it.
const RING: usize = 48;

/// The stored events by object and number; and that each is in the slot of its number, once.
async fn stored(store: &dyn Store) -> BTreeMap<ObjectRef, BTreeMap<u64, Event>> {
    let mut found: BTreeMap<ObjectRef, BTreeMap<u64, Event>> = BTreeMap::new();
    let mut tells = BTreeSet::new();
    for (key, value) in store.list(EVENTS_PREFIX, None).await.expect("a list").entries {
        let Ok(EventKey::Of(object, slot)) = key.parse() else { continue };
        let Numbered { number, event } = event::decode(&value.value).expect("an event");
        assert_eq!((number % RING as u64, &event.object), (slot, &object), "{key}");
        let told = (object.clone(), event.revision, event.what.clone(), event.message.clone());
        assert!(tells.insert(told), "told twice: {event:?}");
        assert!(value.lease.is_some(), "{key} has no end");
        found.entry(object).or_default().insert(number, event);
    }
    found
}

async fn told(client: &Client, object: &str) -> Vec<Event> {
    let path = format!("/v1/objects/{object}/events");
    client.get::<List<Event>>(&path).await.map(|answer| answer.value.items).unwrap_or_default()
}

fn whats(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| &*event.what).collect()
}

/// Waits until an object's stored events are those that a server tells, which `wanted` must like.
async fn stored_as_told(
    store: &dyn Store,
    client: &Client,
    object: &str,
    wanted: impl Fn(&[Event]) -> bool,
) -> Vec<Event> {
    let reference: ObjectRef = object.parse().expect("an object");
    until_some("the events are stored", || async {
        let events = told(client, object).await;
        let stored = stored(store).await.remove(&reference).unwrap_or_default();
        (wanted(&events) && stored.into_values().collect::<Vec<_>>() == events).then_some(events)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_survive_every_server() {
    let Some(etcd) = Etcd::start("events_survive_every_server").await else { return };
    let store = etcd.store().await;
    lightbyte_server::init(&store, Uid::from_bits(1)).await.expect("set up the cluster");
    let mut first = TestServer::over_etcd("s1", &etcd);
    let client = first.client();
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    led_by(&client, |leader| leader == "s1").await;
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    let has_run = |events: &[Event]| events.iter().any(|event| event.message.ends_with("is running"));
    let before = stored_as_told(&store, &client, "vm/a", has_run).await;
    worker.abort();
    first.kill();

    let second = TestServer::over_etcd("s2", &etcd);
    let client = second.client();
    until_some("the second server has a view", || async { get(&client, "vm/a").await.ok() }).await;
    let after = told(&client, "vm/a").await;
    assert_eq!(&after[..before.len()], before, "the same story, from whoever is asked");
    led_by(&client, |leader| leader == "s2").await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    delete(&client, "vm/a").await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_none()).await;
    let is_gone = |events: &[Event]| events.last().is_some_and(|event| event.what == "gone");
    let all = stored_as_told(&store, &client, "vm/a", is_gone).await;
    assert_eq!(&all[..before.len()], before, "what was told is not told again");
    assert!(whats(&all).contains(&"asked"), "{all:#?}");
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_leaves_untold_the_next_one_tells_once() {
    let (store, mut first, client) = begin().await;
    led_by(&client, |leader| leader == "s1").await;
    let second = TestServer::start("s2", &store);
    led_by(&second.client(), |leader| leader == "s1").await;
    // More than can be stored before the leader dies.
    let documents: Vec<Value> = (0..60).map(|number| vm(&format!("vm-{number}"))).collect();
    apply(&client, documents).await.unwrap();
    let last = || async { get(&second.client(), "vm/vm-59").await.ok() };
    until_some("the second server has heard of all", last).await;
    first.kill();
    let client = second.client();
    led_by(&client, |leader| leader == "s2").await;
    apply(&client, vec![vm("last")]).await.unwrap();
    let waits = |events: &[Event]| whats(events) == ["created", "waiting"];
    for name in ["vm/vm-0", "vm/vm-59", "vm/last"] {
        stored_as_told(&store, &client, name, waits).await;
    }
    let all = stored(&store).await;
    let events: usize = all.values().map(BTreeMap::len).sum();
    assert_eq!((all.len(), events), (61, 122), "each was created and waits, told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_and_its_leases_are_bounded_and_who_asked_is_told() {
    let (store, server, client) = begin().await;
    let labelled = |number: usize| {
        json!({ "kind": "network", "name": "lan", "labels": { "number": number.to_string() },
        "spec": { "subnet": "10.9.0.0/24", "gateway": "10.9.0.1" } })
    };
    let head = "POST /v1/apply HTTP/1.1\r\ncontent-type: application/json\r\nlightbyte-who: ana@laptop";
    for number in 0..RING + 12 {
        let body = json!({ "documents": [labelled(number)] }).to_string();
        let (status, _, answer) = server.raw(head, &body).await;
        assert_eq!(status, 200, "{answer}");
    }
    let is_last = |events: &[Event]| {
        events.len() == RING
            && events.last().is_some_and(|event| event.message.ends_with(&format!("to {}", RING + 11)))
    };
    let events = stored_as_told(&store, &client, "network/lan", is_last).await;
    let actor = events[0].actor.clone().expect("somebody asked");
    assert_eq!((actor.name.as_str(), actor.proven), ("ana@laptop", false));
    assert!(actor.from.is_some_and(|from| from.starts_with("user ")));
    let listing = store.list(EVENTS_PREFIX, None).await.unwrap();
    assert_eq!(listing.entries.len(), RING + 1, "a ring, and the mark");
    let leases: BTreeSet<LeaseId> = listing.entries.iter().filter_map(|(_, value)| value.lease).collect();
    assert!(leases.len() <= 2, "a lease for each hour: {leases:?}");
    let leader = store.get(&Key::Leader.to_string()).await.unwrap().value.unwrap().lease;
    let others = store.snapshot().leases().filter(|lease| Some(*lease) != leader).count();
    assert_eq!(others, leases.len(), "none is left behind");

    let (status, _, answer) = server.raw("POST /v1/apply HTTP/1.1\r\nlightbyte-who: a b", "").await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("lightbyte-who"), "{answer}");
}

/// Waits until nothing has been written for longer than several batches would take.
async fn quiet(store: &MemoryStore) {
    let (mut last, mut since) = (0, Instant::now());
    let is_quiet = || {
        let revision = store.snapshot().revision();
        if revision != last {
            (last, since) = (revision, Instant::now());
        }
        let lasts = since.elapsed();
        async move { (lasts > Duration::from_secs(2)).then_some(()) }
    };
    until_some("nothing is written any more", is_quiet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_happens_nothing_is_written_and_a_store_that_is_away_costs_no_event() {
    let (store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    apply(&client, vec![image(), network(), vm("a")]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    let has_run = |events: &[Event]| events.iter().any(|event| event.message.ends_with("is running"));
    stored_as_told(&store, &client, "vm/a", has_run).await;
    quiet(&store).await;

    delete(&client, "vm/a").await.unwrap();
    store.set_unavailable(true);
    assert_eq!(refused(apply(&client, vec![vm("b")]).await).status, 503);
    assert!(!told(&client, "vm/a").await.is_empty(), "reads go on");
    store.set_unavailable(false);
    let is_gone = |events: &[Event]| events.last().is_some_and(|event| event.what == "gone");
    stored_as_told(&store, &client, "vm/a", is_gone).await;
    worker.abort();
}
