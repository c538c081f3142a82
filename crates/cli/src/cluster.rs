//! The cluster as verbs see it: typed calls of the HTTP API (`lightbyte_api::wire` is its table).

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use http::Method;
use lightbyte_api::explain::{Question, Tested};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::parts::Fetch;
use lightbyte_api::wire::{
    Applied, Apply, Changed, ClusterStatus, ClusterUsage, Foresee, List, PastChanges, RolloutStep,
    VersionChanges,
};
use lightbyte_api::{Event, Kind, Name, Who};
use lightbyte_link::client::WHO_HEADER;
use lightbyte_link::{ByteStream, Client, ClientError, Lines, Response, WebSocket};
use lightbyte_plan::forecast::Forecast;
use lightbyte_plan::why::{Explanation, Stuck};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::failure::{Code, Failure};
use crate::target::{self, Target};

/// How long a request is tried on other servers while they say that they cannot answer now.
const RETRY_WITHIN: Duration = Duration::from_secs(5);
/// The pause before another server is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How many objects one request lists: what a server gives at most.
const PAGE_OBJECTS: usize = 10_000;

/// One cluster, asked by one command.
pub(crate) struct Cluster {
    client: Client,
    /// The newest revision that an answer carried: no later answer may be older, whichever server gives it.
    seen: AtomicU64,
    /// The point in the past that is looked at, if not now.
    at: Option<String>,
    /// Who this is, for what is asked to be changed.
    who: Option<Who>,
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Cluster {
        Cluster { client, seen: AtomicU64::new(0), at: None, who: None }
    }

    /// The same cluster, asked by somebody who says this of himself.
    pub(crate) fn asked_by(self, who: Option<Who>) -> Cluster {
        Cluster { who, ..self }
    }

    /// The same cluster as it was at a point in the past.
    pub(crate) fn back_at(self, at: Option<String>) -> Cluster {
        Cluster { at, ..self }
    }

    /// Whether the past is looked at.
    pub(crate) const fn is_past(&self) -> bool {
        self.at.is_some()
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    /// The newest revision that was seen.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    fn note<T>(&self, response: Response<T>) -> T {
        self.seen.fetch_max(response.revision.unwrap_or(0), Ordering::Relaxed);
        response.value
    }

    /// Asks again, of another server, while the answer is that it cannot be given now.
    async fn ask<T>(
        &self,
        request: impl AsyncFn() -> Result<Response<T>, ClientError>,
        may_repeat: impl Fn(&ClientError) -> bool,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + RETRY_WITHIN;
        loop {
            match request().await {
                Ok(response) => return Ok(self.note(response)),
                Err(error) if !may_repeat(&error) || Instant::now() + RETRY_PAUSE >= deadline => {
                    return Err(error);
                }
                Err(_) => {
                    self.client.leave_server();
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = match (&self.at, self.seen()) {
            (Some(at), _) => format!("{path}{separator}at={at}"),
            (None, 0) => path.to_owned(),
            (None, seen) => format!("{path}{separator}min_revision={seen}"),
        };
        self.ask(async || self.client.get(&path).await, may_read_again).await
    }

    /// A request that changes something. It is sent again only when the server said that nothing was written.
    async fn change<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        if_match: Option<&str>,
    ) -> Result<T, ClientError> {
        let if_match = if_match.map(|version| ("if-match", version.to_owned()));
        let who = self.who.as_ref().map(|who| (WHO_HEADER, who.to_string()));
        let headers: Vec<(&str, String)> = if_match.into_iter().chain(who).collect();
        let request = async || self.client.request(method.clone(), path, body, &headers).await;
        self.ask(request, |error| error.status() == Some(503)).await
    }

    /// One object.
    pub(crate) async fn object(&self, object: &ObjectRef) -> Result<Object, ClientError> {
        self.get(&path_of(object)).await
    }

    /// One object, and what `If-Match` must say so that nobody else's change is overwritten.
    pub(crate) async fn object_with_version(
        &self,
        object: &ObjectRef,
    ) -> Result<(Object, String), ClientError> {
        let response = self.client.get(&self.back(&path_of(object))).await?;
        let version = response.etag.clone().unwrap_or_default();
        Ok((self.note(response), version))
    }

    /// All objects of a kind that have the labels.
    pub(crate) async fn objects(
        &self,
        kind: Kind,
        labels: &[(String, String)],
    ) -> Result<Vec<Object>, ClientError> {
        let labels: String = labels.iter().map(|(key, value)| format!("&label={key}={value}")).collect();
        let mut objects: Vec<Object> = Vec::new();
        loop {
            let after = objects.last().map(|last| format!("&after={}", last.name)).unwrap_or_default();
            let path = format!("/v1/objects/{kind}?limit={PAGE_OBJECTS}{after}{labels}");
            let page = self.get::<List<Object>>(&path).await?.items;
            let is_last = page.len() < PAGE_OBJECTS;
            objects.extend(page);
            if is_last {
                return Ok(objects);
            }
        }
    }

    /// Makes manifests true. `if_match` is the version of the one object that the caller read.
    pub(crate) async fn apply(&self, apply: &Apply, if_match: Option<&str>) -> Result<Applied, ClientError> {
        self.change(Method::POST, "/v1/apply", Some(apply), if_match).await
    }

    /// Asks for the end of an object.
    pub(crate) async fn delete(&self, object: &ObjectRef) -> Result<Changed, ClientError> {
        self.change::<(), _>(Method::DELETE, &path_of(object), None, None).await
    }

    /// The same, if it is still of the version that the caller read.
    pub(crate) async fn delete_as_read(
        &self,
        object: &ObjectRef,
        version: &str,
    ) -> Result<Changed, ClientError> {
        self.change::<(), _>(Method::DELETE, &path_of(object), None, Some(version)).await
    }

    /// `start`, `stop`, `restart`, `protect` or `unprotect`.
    pub(crate) async fn act(&self, object: &ObjectRef, verb: &str) -> Result<Changed, ClientError> {
        self.change::<(), _>(Method::POST, &format!("{}/{verb}", path_of(object)), None, None).await
    }

    /// Pauses, resumes, promotes or takes back an update of a group, if that is still of the version that the caller read.
    pub(crate) async fn rollout(
        &self,
        group: &ObjectRef,
        step: RolloutStep,
        version: Option<&str>,
    ) -> Result<Changed, ClientError> {
        let to = match step {
            RolloutStep::Undo { to: Some(to) } => format!("&to={to}"),
            _ => String::new(),
        };
        let path = format!("{}/rollout?step={}{to}", path_of(group), step.word());
        self.change::<(), _>(Method::POST, &path, None, version).await
    }

    /// A path without questions, asked about the point in the past that is looked at.
    fn back(&self, path: &str) -> String {
        let at = self.at.iter().map(|at| ("at", at.clone())).collect::<Vec<_>>();
        with_query(path, &at)
    }

    /// What differs between two versions of a group's template; those that matter now where none are said.
    pub(crate) async fn version_changes(
        &self,
        group: &ObjectRef,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<VersionChanges, ClientError> {
        let from = from.map(|number| ("from", number.to_string()));
        let to = to.map(|number| ("to", number.to_string()));
        let query: Vec<(&str, String)> = from.into_iter().chain(to).collect();
        self.get(&with_query(&format!("{}/rollout", path_of(group)), &query)).await
    }

    /// The parts of images that an object's worker fetches now.
    pub(crate) async fn fetches(&self, object: &ObjectRef) -> Result<Vec<Fetch>, ClientError> {
        Ok(self.get::<List<Fetch>>(&format!("{}/fetches", path_of(object))).await?.items)
    }

    /// Lets a squatted address of a network be given again.
    pub(crate) async fn release(&self, network: &ObjectRef, address: Ipv4Addr) -> Result<(), ClientError> {
        let path = format!("{}/release?address={address}", path_of(network));
        self.change::<(), _>(Method::POST, &path, None, None).await
    }

    /// Why an object is as it is.
    pub(crate) async fn why(
        &self,
        object: &ObjectRef,
        on: Option<&Name>,
    ) -> Result<Explanation, ClientError> {
        let on = on.map(|worker| format!("?on={worker}")).unwrap_or_default();
        self.get(&format!("{}/why{on}", path_of(object))).await
    }

    /// What changes would do.
    pub(crate) async fn foresee(&self, foresee: &Foresee) -> Result<Forecast, ClientError> {
        let path = self.back("/v1/plan");
        let request = async || self.client.request(Method::POST, &path, Some(foresee), &[]).await;
        self.ask(request, may_read_again).await
    }

    /// What was asked differently between two points of the past, the second of which may be now.
    pub(crate) async fn changes(
        &self,
        from: &str,
        to: Option<&str>,
        of: &[String],
    ) -> Result<PastChanges, ClientError> {
        let to = to.map(|to| ("to", to.to_owned()));
        let of = of.iter().map(|word| ("of", word.clone()));
        let query: Vec<(&str, String)> =
            [("from", from.to_owned())].into_iter().chain(to).chain(of).collect();
        self.get(&with_query("/v1/changes", &query)).await
    }

    /// What happened to an object, or to all, in the last days, oldest first.
    pub(crate) async fn events(&self, object: Option<&ObjectRef>) -> Result<Vec<Event>, ClientError> {
        let path =
            object.map_or_else(|| "/v1/events".to_owned(), |object| format!("{}/events", path_of(object)));
        Ok(self.get::<List<Event>>(&path).await?.items)
    }

    /// What workers and VMs have used by now.
    pub(crate) async fn usage(&self) -> Result<ClusterUsage, ClientError> {
        self.get("/v1/usage").await
    }

    /// Where a load balancer would send a request.
    pub(crate) async fn test(&self, object: &ObjectRef, question: &Question) -> Result<Tested, ClientError> {
        self.client.post(&format!("{}/test", path_of(object)), question).await.map(|answer| answer.value)
    }

    /// Everything that waits longer than is normal.
    pub(crate) async fn stuck(&self) -> Result<Vec<Stuck>, ClientError> {
        Ok(self.get::<List<Stuck>>("/v1/stuck").await?.items)
    }

    /// The cluster at a glance, as one server sees it.
    pub(crate) async fn status(client: &Client) -> Result<ClusterStatus, ClientError> {
        Ok(client.get("/v1/status").await?.value)
    }

    /// The lines of a watch: changes after `from`, or first everything that is there.
    pub(crate) async fn watch(
        &self,
        kind: Option<Kind>,
        name: Option<&Name>,
        from: Option<u64>,
    ) -> Result<Lines, ClientError> {
        let kind = kind.map(|kind| format!("kind={kind}"));
        let name = name.map(|name| format!("name={name}"));
        let from = from.map(|revision| format!("from={revision}"));
        let query: Vec<String> = kind.into_iter().chain(name).chain(from).collect();
        self.client.lines(&format!("/v1/watch?{}", query.join("&"))).await
    }

    /// A WebSocket into the guest of a VM.
    pub(crate) async fn web_socket(
        &self,
        object: &ObjectRef,
        what: &str,
        query: &[(&str, String)],
    ) -> Result<WebSocket, ClientError> {
        self.client.web_socket(&with_query(&format!("{}/{what}", path_of(object)), query)).await
    }

    /// A stream of bytes from the guest of a VM.
    pub(crate) async fn bytes(
        &self,
        object: &ObjectRef,
        what: &str,
        query: &[(&str, String)],
    ) -> Result<ByteStream, ClientError> {
        self.client.bytes(&with_query(&format!("{}/{what}", path_of(object)), query)).await
    }

    /// The object that a target means; a bare name is looked for in every kind.
    pub(crate) async fn resolve(&self, target: Target) -> Result<ObjectRef> {
        match target {
            Target::Object(object) => Ok(object),
            Target::Named(name) => self.resolve_name(&name).await,
            Target::Kind(kind) => Err(target::which(kind).into()),
        }
    }

    async fn resolve_name(&self, name: &Name) -> Result<ObjectRef> {
        let mut found = Vec::new();
        for kind in Kind::ALL {
            let object = ObjectRef::new(*kind, name.clone());
            match self.object(&object).await {
                Ok(_) => found.push(object),
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(error.into()),
            }
        }
        choose(name, found).map_err(Into::into)
    }
}

/// The one object of a name, or an error that lists the candidates.
fn choose(name: &Name, mut found: Vec<ObjectRef>) -> Result<ObjectRef, Failure> {
    match (found.pop(), found.as_slice()) {
        (None, _) => Err(Failure::new(Code::NotFound, format!("nothing is named `{name}`"))
            .hint("`lightbyte get` lists everything")),
        (Some(object), []) => Ok(object),
        (Some(last), others) => {
            let all: Vec<String> = others.iter().chain([&last]).map(|object| format!("`{object}`")).collect();
            Err(Failure::usage(format!("`{name}` may be {}", all.join(" or "))).hint("name the kind as well"))
        }
    }
}

/// Whether a read may be answered better by another try: the server has no view yet, an old one, or went away.
pub(crate) fn may_read_again(error: &ClientError) -> bool {
    match error {
        ClientError::Broken { .. } => true,
        ClientError::Refused(problem) => matches!(problem.status, 429 | 503 | 504),
        ClientError::Unreachable { .. } | ClientError::Answer { .. } => false,
    }
}

fn path_of(object: &ObjectRef) -> String {
    format!("/v1/objects/{object}")
}

fn with_query(path: &str, query: &[(&str, String)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    format!("{path}?{query}")
}

/// A manifest that a server printed, without what servers add: what `apply` takes.
pub(crate) fn manifest_of(object: &Object) -> Value {
    let mut manifest = serde_json::Map::new();
    manifest.insert("kind".to_owned(), Value::from(object.kind.word()));
    manifest.insert("name".to_owned(), Value::from(object.name.as_str()));
    if !object.labels.is_empty() {
        let labels = object.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        manifest.insert("labels".to_owned(), Value::Object(labels.collect()));
    }
    manifest.insert("spec".to_owned(), object.spec.clone());
    Value::Object(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_must_mean_one_object() {
        let check = |objects: &[&str], expect: &str| {
            let found = objects.iter().map(|object| object.parse().unwrap()).collect();
            let text = match choose(&Name::new("a").unwrap(), found) {
                Ok(object) => object.to_string(),
                Err(failure) => format!("{} {failure}", failure.code as i32),
            };
            assert_eq!(text, expect);
        };
        check(&["vm/a"], "vm/a");
        check(&[], "5 nothing is named `a`");
        check(&["network/a", "vm/a"], "64 `a` may be `network/a` or `vm/a`");
    }

    #[test]
    fn any_word_survives_in_a_query() {
        let query = [("command", "a b&c=d%".to_owned()), ("command", "\u{e9}\n~".to_owned())];
        assert_eq!(with_query("/x", &query), "/x?command=a+b%26c%3Dd%25&command=%C3%A9%0A%7E");
    }
}
