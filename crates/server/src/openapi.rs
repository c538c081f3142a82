//! The description of the API (OpenAPI 3.1), made from the table of routes. Why it is made by hand is told in
//! `docs/decisions/0005-openapi.md`.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use lightbyte_api::Kind;
use serde_json::{Map, Value, json};

use crate::Server;
use crate::api::answer::{Answer, Answered};
use crate::api::input::Parameters;
use crate::api::routes;

/// The schemas of what goes over the wire.
const SCHEMAS: &str = include_str!("schemas.json");

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// `GET /v1/openapi.json`
pub(crate) async fn serve(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<&'static Value> {
    parameters.only(&[])?;
    // The document is of no revision; the header is on every answer.
    Ok(Answer::at(server.follower.view().map_or(0, |view| view.revision()), &*DOCUMENT))
}

fn document() -> Value {
    // A schema file that is no JSON would fail the tests of this module.
    let mut schemas: Value = serde_json::from_str(SCHEMAS).unwrap_or_default();
    schemas["schemas"]["Kind"]["enum"] = Kind::ALL.iter().map(|kind| Value::from(kind.word())).collect();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes() {
        let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let required = in_path.map(
            |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
        );
        let optional =
            route.parameters.iter().map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }));
        let content_type = match route.answer {
            "WatchLine" | "ZoneLine" | "Delivery" => "application/x-ndjson",
            "Bytes" => "application/octet-stream",
            _ => "application/json",
        };
        let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
        let mut operation = json!({
            "summary": route.summary,
            "operationId": operation_id(route.method, route.path),
            "parameters": required.chain(optional).collect::<Vec<Value>>(),
            "responses": {
                "200": {
                    "description": "Done",
                    "headers": {
                        "lightbyte-revision": {
                            "description": "The revision of the view, or of the write",
                            "schema": { "type": "integer" },
                        },
                        "lightbyte-age-millis": {
                            "description": "How old the view may be, while the store does not confirm that there is nothing newer",
                            "schema": { "type": "integer" },
                        },
                    },
                    "content": { content_type: { "schema": schema(route.answer) } },
                },
                "default": {
                    "description": "A problem document (RFC 9457)",
                    "content": { "application/problem+json": { "schema": schema("Problem") } },
                },
            },
        });
        if let Some(body) = route.body {
            let content_type = if body == "Bytes" { "application/octet-stream" } else { "application/json" };
            operation["requestBody"] =
                json!({ "required": true, "content": { content_type: { "schema": schema(body) } } });
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "lightbyte", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" } },
        "paths": paths,
        "components": schemas,
    })
}

fn operation_id(method: &str, path: &str) -> String {
    let words = path.trim_start_matches("/v1/").split(['/', '.']).filter(|word| !word.starts_with('{'));
    let takes = path.matches('{').count();
    format!("{method}_{}_{takes}", words.collect::<Vec<_>>().join("_"))
}
