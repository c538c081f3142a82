//! The document describes what is there: every answer of a running server is held to its schema.

use std::collections::BTreeSet;

use lightbyte_api::explain::{Answer, By, Candidate, Candidates, Explained, Tested, TestedProxy};
use lightbyte_api::topology::Protocol;
use lightbyte_api::wire::{Defragmented, EtcdMember};
use lightbyte_link::Client;
use serde_json::{Value, json};

use crate::cluster::{apply, begin, image, network, soon, until_some, vm, watch_until};
use crate::worker::TestWorker;

/// What of JSON Schema (2020-12) the document uses. Anything else in a schema is an error, so that nothing is passed over.
const KEYWORDS: &[&str] = &[
    "$ref",
    "type",
    "description",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "anyOf",
    "oneOf",
    "const",
    "enum",
    "minimum",
    "maxLength",
    "pattern",
    "format",
];

/// Says where `value` does not fit `schema`.
fn misfits(document: &Value, schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let fields = schema.as_object().expect("a schema is an object");
    if let Some(keyword) = fields.keys().find(|keyword| !KEYWORDS.contains(&keyword.as_str())) {
        return vec![format!("{path}: the schema uses `{keyword}`, which this test does not know")];
    }
    if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
        let target = document.pointer(reference.trim_start_matches('#'));
        return match target {
            Some(target) => misfits(document, target, value, path),
            None => vec![format!("{path}: {reference} leads nowhere")],
        };
    }
    let fits = |schema: &Value| misfits(document, schema, value, path).is_empty();
    if let Some(variants) = fields.get("anyOf").or_else(|| fields.get("oneOf")).and_then(Value::as_array) {
        let told = || variants.iter().flat_map(|variant| misfits(document, variant, value, path));
        return if variants.iter().any(fits) { Vec::new() } else { told().collect() };
    }
    if fields.get("const").is_some_and(|wanted| wanted != value) {
        return vec![format!("{path}: is {value}")];
    }
    if fields.get("enum").and_then(Value::as_array).is_some_and(|words| !words.contains(value)) {
        return vec![format!("{path}: {value} is not one of the words")];
    }
    let is_of_type = match fields.get("type").and_then(Value::as_str) {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some(other) => panic!("{path}: the schema has an unknown type `{other}`"),
    };
    if !is_of_type {
        return vec![format!("{path}: {value} is not of type {}", fields["type"])];
    }
    let mut found = Vec::new();
    if let (Some(items), Some(values)) = (fields.get("items"), value.as_array()) {
        found.extend(
            values
                .iter()
                .enumerate()
                .flat_map(|(index, value)| misfits(document, items, value, &format!("{path}[{index}]"))),
        );
    }
    let Some(values) = value.as_object() else { return found };
    let nothing = json!({});
    let properties = fields.get("properties").unwrap_or(&nothing);
    for (name, value) in values {
        let path = format!("{path}.{name}");
        match (properties.get(name), fields.get("additionalProperties")) {
            (Some(schema), _) => found.extend(misfits(document, schema, value, &path)),
            (None, Some(Value::Bool(false))) => found.push(format!("{path}: is not described")),
            (None, Some(schema @ Value::Object(_))) => found.extend(misfits(document, schema, value, &path)),
            (None, _) => {}
        }
    }
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    let missing = required.filter_map(Value::as_str).filter(|name| !values.contains_key(*name));
    found.extend(missing.map(|name| format!("{path}.{name}: is missing")));
    found
}

fn check(document: &Value, schema: &str, value: &Value) {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    assert_eq!(misfits(document, &schema, value, "$"), [""; 0], "{value:#}");
}

/// The schema of the answer of an operation.
fn answer_of<'a>(document: &'a Value, method: &str, path: &str) -> &'a str {
    let content = &document["paths"][path][method]["responses"]["200"]["content"];
    let content = content.as_object().unwrap_or_else(|| panic!("{method} {path} is not described"));
    let schema =
        content.values().next().expect("one content type")["schema"]["$ref"].as_str().expect("a reference");
    schema.rsplit('/').next().expect("a name")
}

async fn get(client: &Client, path: &str) -> Value {
    let look = || async { client.get::<Value>(path).await.ok() };
    until_some(path, look).await.value
}

/// A load balancer without proxies: there is no image of them.
fn balancer() -> Value {
    let pool = json!({"name": "web", "vms": ["a"], "port": 80});
    json!({"kind": "loadbalancer", "name": "web", "spec": {"listeners": [{"port": 80}], "pools": [pool]}})
}

const PART: &str = "/v1/parts/0000000000000000000000000000000000000000000000000000000000000000?size=6";
const SOURCES: &str = "/v1/parts/0000000000000000000000000000000000000000000000000000000000000000/sources";
const STATE: &str = "/v1/parts/0000000000000000000000000000000000000000000000000000000000000000/state?size=6";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_fits_its_description() {
    let (_store, _server, client) = begin().await;
    let document = get(&client, "/v1/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let worker = TestWorker::new("n1", &client);
    let worker_path = worker.path("");
    let running = tokio::spawn(worker.run());
    let broken = json!({"kind": "vm", "name": "lost", "labels": {"a": "b"}, "spec": {"image": "none"}});
    let foreseen: Value = client
        .post("/v1/apply", &json!({"documents": [image(), vm("a")], "dry_run": true}))
        .await
        .unwrap()
        .value;
    check(&document, "Applied", &foreseen);
    apply(&client, vec![image(), network(), vm("a"), broken, balancer()]).await.unwrap();
    watch_until(&client, "vm/a", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    watch_until(&client, "vm/lost", |vm| vm.is_some_and(|vm| !vm.status.waiting_on.is_empty())).await;

    let mut asked = BTreeSet::new();
    let gets = [
        ("/v1/objects/{kind}", "/v1/objects/vm"),
        ("/v1/objects/{kind}", "/v1/objects/worker"),
        ("/v1/objects/{kind}", "/v1/objects/volume"),
        ("/v1/objects/{kind}/{name}", "/v1/objects/vm/a"),
        ("/v1/objects/{kind}/{name}/why", "/v1/objects/vm/a/why"),
        ("/v1/objects/{kind}/{name}/why", "/v1/objects/vm/lost/why"),
        ("/v1/objects/{kind}/{name}/events", "/v1/objects/vm/a/events"),
        ("/v1/objects/{kind}/{name}/fetches", "/v1/objects/vm/a/fetches"),
        ("/v1/parts", "/v1/parts"),
        ("/v1/parts/{sha256}/sources", SOURCES),
        ("/v1/parts/{sha256}/state", STATE),
        ("/v1/events", "/v1/events?limit=100"),
        ("/v1/changes", "/v1/changes?from=2"),
        ("/v1/usage", "/v1/usage"),
        ("/v1/stuck", "/v1/stuck"),
        ("/v1/status", "/v1/status"),
        ("/v1/openapi.json", "/v1/openapi.json"),
    ];
    for (path, url) in gets {
        let answer = get(&client, url).await;
        check(&document, answer_of(&document, "get", path), &answer);
        asked.insert(format!("get {path}"));
    }
    let problem = client.get::<Value>("/v1/objects/vm/none").await.unwrap_err();
    let lightbyte_link::ClientError::Refused(problem) = problem else { panic!("a refusal") };
    check(&document, "Problem", &serde_json::to_value(problem).unwrap());
    let streams = [
        ("/v1/watch", "/v1/watch".to_owned()),
        ("/v1/zone", "/v1/zone".to_owned()),
        ("/v1/workers/{uid}/stream", format!("{worker_path}stream")),
    ];
    for (path, url) in streams {
        let mut lines = client.lines(&url).await.unwrap();
        let line: Value = soon("a line", lines.next()).await.unwrap().unwrap();
        check(&document, answer_of(&document, "get", path), &line);
        asked.insert(format!("get {path}"));
    }
    for verb in ["stop", "start", "restart"] {
        let path = format!("/v1/objects/{{kind}}/{{name}}/{verb}");
        let answer: Value = client.post(&format!("/v1/objects/vm/a/{verb}"), &()).await.unwrap().value;
        check(&document, answer_of(&document, "post", &path), &answer);
        asked.insert(format!("post {path}"));
    }
    // A VM has no versions, and one that belongs to no group is not protected, which are answers too.
    for verb in ["protect", "unprotect"] {
        let refused = client.post::<_, Value>(&format!("/v1/objects/vm/a/{verb}"), &()).await;
        assert_eq!(refused.unwrap_err().status(), Some(400));
        asked.insert(format!("post /v1/objects/{{kind}}/{{name}}/{verb}"));
    }
    let rolled = client.post::<_, Value>("/v1/objects/vm/a/rollout?step=pause", &()).await;
    assert_eq!(rolled.unwrap_err().status(), Some(400));
    asked.insert("post /v1/objects/{kind}/{name}/rollout".to_owned());
    let compared = client.get::<Value>("/v1/objects/vm/a/rollout").await;
    assert_eq!(compared.unwrap_err().status(), Some(400));
    asked.insert("get /v1/objects/{kind}/{name}/rollout".to_owned());
    // Nobody squats it, which is an answer too.
    let path = "/v1/objects/{kind}/{name}/release";
    let released = client.post::<_, Value>("/v1/objects/network/default/release?address=10.0.0.9", &()).await;
    assert_eq!(released.unwrap_err().status(), Some(409));
    asked.insert(format!("post {path}"));
    // This store has no members; how they are described is looked at all the same.
    let defragment = json!({"endpoint": "http://127.0.0.1:2379"});
    let refused = client.post::<_, Value>("/v1/etcd/defragment", &defragment).await;
    assert_eq!(refused.unwrap_err().status(), Some(404));
    asked.insert("post /v1/etcd/defragment".to_owned());
    check(&document, "Defragment", &defragment);
    check(&document, "Defragmented", &json!(Defragmented { before_bytes: 7, after_bytes: 5 }));
    let member = EtcdMember {
        endpoint: "http://127.0.0.1:2379".to_owned(),
        healthy: true,
        leader: true,
        version: "3.6.1".to_owned(),
        size_bytes: 7,
        used_bytes: 5,
        quota_bytes: Some(9),
    };
    check(&document, "EtcdMember", &json!(member));
    let said = json!({"name": "n9", "boot_id": "b", "architecture": "x86_64", "cpus": 1, "memory": "1GiB", "vmm": "fake",
        "version": "1"});
    let question = json!({"protocol": "http", "port": 80, "method": "GET", "host": "web", "path": "/", "headers": {"a": "b"}});
    let report = json!({"object": {"kind": "vm", "uid": "00000000-0000-0000-0000-000000000009"}, "own_revision": 7,
        "assigned_revision": null, "observed": null});
    let posts = [
        ("/v1/apply", "/v1/apply", json!({"documents": [vm("a")]})),
        (
            "/v1/plan",
            "/v1/plan",
            json!({"changes": [{"apply": vm("more")}, {"delete": "vm/a"}, {"lose": "worker/n1"}]}),
        ),
        ("/v1/objects/{kind}/{name}/test", "/v1/objects/loadbalancer/web/test", question),
        ("/v1/workers/{uid}/register", "/v1/workers/00000000-0000-0000-0000-000000000009/register", said),
        (
            "/v1/workers/{uid}/heartbeat",
            "/v1/workers/00000000-0000-0000-0000-000000000009/heartbeat",
            json!({"boot_id": "b"}),
        ),
        ("/v1/workers/{uid}/report", "/v1/workers/00000000-0000-0000-0000-000000000009/report", report),
    ];
    for (path, url, body) in posts {
        let described =
            &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let schema = described.as_str().and_then(|reference| reference.rsplit('/').next()).expect("a body");
        check(&document, schema, &body);
        let answer: Value = client.post(url, &body).await.unwrap().value;
        check(&document, answer_of(&document, "post", path), &answer);
        asked.insert(format!("post {path}"));
    }
    let taken: Value = client.post_bytes(PART, bytes::Bytes::from_static(b"abc")).await.unwrap().value;
    check(&document, answer_of(&document, "post", "/v1/parts/{sha256}"), &taken);
    asked.insert("post /v1/parts/{sha256}".to_owned());
    let deleted: Value =
        client.request::<(), Value>(http::Method::DELETE, "/v1/objects/vm/a", None, &[]).await.unwrap().value;
    check(&document, answer_of(&document, "delete", "/v1/objects/{kind}/{name}"), &deleted);
    asked.insert("delete /v1/objects/{kind}/{name}".to_owned());

    let operations = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (method.as_str(), path.as_str()))
    });
    // What guests say is of no schema; the transcripts of the command line look at it.
    let operations = operations
        .filter(|(method, path)| !matches!(answer_of(&document, method, path), "WebSocket" | "Bytes"));
    let operations = operations.map(|(method, path)| format!("{method} {path}"));
    assert_eq!(operations.collect::<BTreeSet<_>>(), asked, "this test asks for everything that is described");
    running.abort();
}

/// All that a proxy may say, which none says here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_of_a_proxy_fits_its_description() {
    let (_store, _server, client) = begin().await;
    let document = get(&client, "/v1/openapi.json").await;
    let backend = |vm: Option<&str>| Candidate {
        uid: "u".to_owned(),
        vm: vm.map(|name| name.parse().expect("a name")),
        address: "10.0.0.1:80".to_owned(),
        health: "healthy".to_owned(),
        because: String::new(),
        might_be_asked: true,
    };
    let pool = |by| {
        let backends = vec![backend(None), backend(Some("a"))];
        Candidates { pool: "web".to_owned(), percent: 100, by, backends, untold: 0 }
    };
    let forwards =
        |by| Answer::Forwards { route: "r".to_owned(), path: "/".to_owned(), pools: vec![pool(by)] };
    let redirects = |route| Answer::Redirects { route, status: 308, location: "https://a/".to_owned() };
    let answers = [
        Answer::NotListening,
        Answer::NoRoute,
        Answer::Proves,
        Answer::Speaks { protocol: Protocol::Https },
        redirects(None),
        redirects(Some("r".to_owned())),
        forwards(By::Turn),
        forwards(By::Load),
        forwards(By::Hash),
        forwards(By::Cookie),
    ];
    for answer in answers {
        let explained = Some(Explained { revision: 7, answer });
        let proxy = TestedProxy { vm: "lb-proxy-1".parse().expect("a name"), explained, problem: None };
        let silent = TestedProxy { explained: None, problem: Some("it is away".to_owned()), ..proxy.clone() };
        let tested = Tested { proxies: vec![proxy, silent] };
        check(&document, "Tested", &serde_json::to_value(tested).expect("JSON"));
    }
}

#[tokio::test]
async fn every_reference_leads_somewhere_and_every_operation_has_a_name() {
    let (_store, _server, client) = begin().await;
    let document = get(&client, "/v1/openapi.json").await;
    let mut stack = vec![&document];
    let mut references = 0;
    while let Some(value) = stack.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    references += 1;
                    assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
                }
                stack.extend(fields.values());
            }
            Value::Array(items) => stack.extend(items),
            _ => {}
        }
    }
    assert!(references > 50, "{references} references");
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let names: Vec<&str> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
}
