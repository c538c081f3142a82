//! HTTP. One table names every route; the router and the OpenAPI document are both made from it.

mod age;
pub(crate) mod answer;
pub(crate) mod apply;
pub(crate) mod caller;
pub(crate) mod cluster;
pub(crate) mod difference;
pub(crate) mod guests;
pub(crate) mod input;
pub(crate) mod metrics;
pub(crate) mod objects;
pub(crate) mod parts;
pub(crate) mod past;
pub(crate) mod plan;
pub(crate) mod tested;
pub(crate) mod versions;
pub(crate) mod watch;
pub(crate) mod workers;
pub(crate) mod zone;

use std::sync::Arc;

use axum::http::{StatusCode, Uri};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Router, middleware};
use lightbyte_link::Listener;

use crate::Server;
use crate::api::caller::Origin;
use crate::openapi;
use crate::problem::Failure;
use crate::usage;

/// How many streams one server keeps open: those of a thousand workers, those of their resolvers, and as many watches.
pub(crate) const STREAMS_MAX: usize = 3_072;

/// A route: what the router does with it, and what the OpenAPI document says of it.
pub(crate) struct Route {
    /// `get`, `post` or `delete`.
    pub(crate) method: &'static str,
    /// Its path, with parameters in braces.
    pub(crate) path: &'static str,
    /// What it does, in one sentence.
    pub(crate) summary: &'static str,
    /// The parameters that it takes.
    pub(crate) parameters: &'static [&'static str],
    /// The name of the body's schema.
    pub(crate) body: Option<&'static str>,
    /// The name of the answer's schema; of one line, for a stream.
    pub(crate) answer: &'static str,
    handler: MethodRouter<Arc<Server>>,
}

/// Every route.
pub(crate) fn routes() -> Vec<Route> {
    let reading: &[&str] = &["min_revision"];
    let changing: &[&str] = &["if_match", "who"];
    let route = |method, path, summary, parameters, body, answer, handler| Route {
        method,
        path,
        summary,
        parameters,
        body,
        answer,
        handler,
    };
    #[rustfmt::skip]
    let routes = vec![
        route("get", "/v1/objects/{kind}", "Lists the objects of a kind",
            &["label", "limit", "after", "min_revision", "at"], None, "ObjectList", get(objects::list)),
        route("get", "/v1/objects/{kind}/{name}", "Shows one object; `etag` is what `If-Match` takes",
            &["min_revision", "at"], None, "Object", get(objects::get)),
        route("delete", "/v1/objects/{kind}/{name}", "Asks for the end of an object",
            changing, None, "Changed", delete(objects::delete)),
        route("post", "/v1/objects/{kind}/{name}/start", "Asks for a VM to run",
            changing, None, "Changed", post(objects::set_running::<true>)),
        route("post", "/v1/objects/{kind}/{name}/stop", "Asks for a VM to stop",
            changing, None, "Changed", post(objects::set_running::<false>)),
        route("post", "/v1/objects/{kind}/{name}/restart", "Asks for a VM to be stopped and started",
            changing, None, "Changed", post(objects::restart)),
        route("post", "/v1/objects/{kind}/{name}/protect", "Keeps a volume or snapshot from being deleted, a member from going when there are too many",
            changing, None, "Changed", post(objects::protect::<true>)),
        route("post", "/v1/objects/{kind}/{name}/unprotect", "Takes back what `protect` did",
            changing, None, "Changed", post(objects::protect::<false>)),
        route("post", "/v1/objects/{kind}/{name}/rollout", "Pauses, resumes, promotes or takes back an update of a scale group",
            &["step", "to", "if_match", "who"], None, "Changed", post(objects::rollout)),
        route("get", "/v1/objects/{kind}/{name}/rollout", "Compares two versions of a scale group's template",
            &["version_from", "version_to", "min_revision", "at"], None, "VersionChanges", get(versions::changes)),
        route("post", "/v1/objects/{kind}/{name}/release", "Lets a squatted address of a network be given again",
            &["address", "who"], None, "Nothing", post(objects::release)),
        route("get", "/v1/objects/{kind}/{name}/exec", "Runs a command in a VM (a WebSocket; its bytes are frames)",
            &["command", "env", "directory", "terminal", "rows", "columns", "min_revision"],
            None, "WebSocket", get(guests::exec)),
        route("get", "/v1/objects/{kind}/{name}/console", "Opens a VM's serial console (a WebSocket)",
            reading, None, "WebSocket", get(guests::console)),
        route("get", "/v1/objects/{kind}/{name}/logs", "Streams what a VM wrote to its console",
            &["lines", "follow", "previous", "min_revision"], None, "Bytes", get(guests::logs)),
        route("post", "/v1/objects/{kind}/{name}/test", "Tells where a load balancer would send a request, and why",
            reading, Some("Question"), "Tested", post(tested::test)),
        route("get", "/v1/objects/{kind}/{name}/fetches", "Lists the parts of images that an object's worker fetches now",
            reading, None, "FetchList", get(parts::fetches)),
        route("get", "/v1/objects/{kind}/{name}/why", "Explains why an object is as it is",
            &["on", "min_revision", "at"], None, "Explanation", get(objects::why)),
        route("get", "/v1/objects/{kind}/{name}/events", "Lists what happened to an object in the last seven days",
            reading, None, "EventList", get(objects::events_of)),
        route("get", "/v1/events", "Lists what happened in the last seven days",
            &["limit", "min_revision"], None, "EventList", get(objects::events)),
        route("get", "/v1/stuck", "Lists what waits longer than is normal",
            reading, None, "StuckList", get(objects::stuck)),
        route("get", "/v1/usage", "Measures what workers and VMs use",
            reading, None, "ClusterUsage", get(usage::usage)),
        route("get", "/v1/status", "Shows the cluster at a glance",
            reading, None, "ClusterStatus", get(cluster::cluster)),
        route("post", "/v1/etcd/defragment", "Has a member of etcd write its file anew, without the pages that are free; it answers nobody meanwhile",
            &[], Some("Defragment"), "Defragmented", post(cluster::defragment)),
        route("get", "/metrics", "Tells what this server knows as numbers for a monitoring system (OpenMetrics)",
            &[], None, "Bytes", get(metrics::metrics)),
        route("post", "/v1/apply", "Makes manifests true, or tells what that would change",
            changing, Some("Apply"), "Applied", post(apply::apply)),
        route("post", "/v1/plan", "Tells what changes would do, and writes nothing",
            &["at"], Some("Foresee"), "Forecast", post(plan::plan)),
        route("get", "/v1/changes", "Tells what differs in what people ask between two points of the history",
            &["past_from", "past_to", "of", "min_revision"], None, "PastChanges", get(past::changes)),
        route("get", "/v1/watch", "Streams objects as they change, as lines of JSON",
            &["kind", "name", "from"], None, "WatchLine", get(watch::watch)),
        route("get", "/v1/zone", "Streams all names of the cluster, and that there is nothing newer, as lines of JSON",
            &["zone_after"], None, "ZoneLine", get(zone::stream)),
        route("get", "/v1/openapi.json", "Describes this API",
            &[], None, "OpenApi", get(openapi::serve)),
        route("get", "/v1/parts", "Lists the parts of all registered versions of images, by checksum",
            reading, None, "RegisteredParts", get(parts::registered)),
        route("get", "/v1/parts/{sha256}", "Streams a part of an image that this server has, from `Range` on",
            &[], None, "Bytes", get(parts::get)),
        route("post", "/v1/parts/{sha256}", "Takes the next bytes of a part of an image, at most 8 MiB",
            &["size", "offset"], Some("Bytes"), "PartState", post(parts::upload)),
        route("get", "/v1/parts/{sha256}/state", "Says how much of a part of an image this server has",
            &["size"], None, "PartState", get(parts::state)),
        route("get", "/v1/parts/{sha256}/sources", "Lists workers that say that they have a part of an image",
            reading, None, "PartSourceList", get(parts::sources)),
        route("post", "/v1/workers/{uid}/register", "Registers a worker, or takes what it says of itself",
            &[], Some("ObservedWorker"), "Nothing", post(workers::register)),
        route("post", "/v1/workers/{uid}/heartbeat", "Keeps a worker alive",
            &[], Some("Heartbeat"), "HeartbeatAnswer", post(workers::heartbeat)),
        route("post", "/v1/workers/{uid}/report", "Stores a worker's report",
            &[], Some("Report"), "Reply", post(workers::report)),
        route("get", "/v1/workers/{uid}/stream", "Streams what a worker is to do, as lines of JSON",
            &["cursor"], None, "Delivery", get(workers::stream)),
    ];
    routes
}

fn router(server: Arc<Server>) -> Router {
    let router =
        routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler));
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn(lightbyte_link::guard::keep_pages_out))
        .layer(middleware::from_fn(caller::note))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), age::tell))
        .with_state(server)
}

async fn unknown_path(uri: Uri) -> Failure {
    let title = format!("there is nothing at `{}`", uri.path());
    Failure::new(StatusCode::NOT_FOUND, title).hint("GET /v1/openapi.json lists every path")
}

async fn unknown_method(uri: Uri) -> Failure {
    let title = format!("`{}` does not take this method", uri.path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, title).hint("GET /v1/openapi.json lists every path")
}

/// Serves until the server stops, and then until running requests have ended.
pub(crate) async fn listen(server: Arc<Server>, listener: Listener) {
    let mut stop = server.stop.clone();
    let stopped = async move {
        // A sender that is gone means the same.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let service = router(server).into_make_service_with_connect_info::<Origin>();
    let served = axum::serve(listener, service).with_graceful_shutdown(stopped).await;
    if let Err(error) = served {
        tracing::error!(%error, "a listener failed");
    }
}
