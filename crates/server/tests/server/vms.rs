//! From `create vm` to a VM that runs, through HTTP, the leader's loop, a worker's stream and its reports.

use crate::cluster::{apply, begin, get, image, network, refused, vm, watch_until};
use crate::worker::TestWorker;
use lightbyte_api::wire::Changed;

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
