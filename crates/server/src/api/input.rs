//! What requests bring: bodies, parameters, and the objects that paths name.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::header::IF_MATCH;
use axum::http::request::Parts;
use lightbyte_api::manifest::kind_hint;
use lightbyte_api::{Kind, ObjectRef, WorkerId};
use lightbyte_plan::View;
use serde::de::DeserializeOwned;

use crate::Server;
use crate::problem::Failure;
use crate::writer::REACH_WITHIN;

/// The largest body of a request: two hundred manifests of several kilobytes, and less than the store takes at once.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// A body in JSON.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned, State: Send + Sync> FromRequest<State> for Input<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, _: &State) -> Result<Input<T>, Failure> {
        let too_large = || {
            let title = format!("the request has more than {BODY_BYTES_MAX} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, title).hint("send fewer documents at once")
        };
        let bytes = to_bytes(request.into_body(), BODY_BYTES_MAX).await.map_err(|_| too_large())?;
        serde_json::from_slice(&bytes).map(Input).map_err(|error| {
            Failure::bad(format!("the body is not what this path takes: {error}"))
                .hint("GET /v1/openapi.json describes every path")
        })
    }
}

/// The parameters of a request, each of which may come more than once; and its `If-Match`.
pub(crate) struct Parameters {
    pairs: Vec<(String, String)>,
    if_match: Option<String>,
}

impl<State: Send + Sync> FromRequestParts<State> for Parameters {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Parameters, Failure> {
        let Query(pairs) = Query::from_request_parts(parts, state)
            .await
            .map_err(|error| Failure::bad(format!("the parameters cannot be read: {error}")))?;
        let if_match =
            parts.headers.get(IF_MATCH).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        Ok(Parameters { pairs, if_match })
    }
}

impl Parameters {
    /// Refuses parameters that the path does not take: a misspelt one must not be passed over in silence.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Failure> {
        match self.pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let hint = match known {
                    [] => "this path takes none".to_owned(),
                    known => format!("this path takes: {}", known.join(", ")),
                };
                Err(Failure::bad(format!("`{name}` is not a parameter of this path")).hint(hint))
            }
        }
    }

    /// The last value of `name`.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rfind(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Every value of `name`.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The value of `name` as a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let bad = |text: &str| Failure::bad(format!("`{name}` must be a whole number, is `{text}`"));
        self.one(name).map(|text| text.parse().map_err(|_| bad(text))).transpose()
    }

    /// Whether `name` is said to be so; not, when it is not mentioned.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.one(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(Failure::bad(format!("`{name}` must be true or false, is `{text}`"))),
        }
    }

    /// The revision of `asked` that the caller read: `If-Match`, or the parameter `if_match`.
    pub(crate) fn if_match(&self) -> Result<Option<u64>, Failure> {
        let Some(text) = self.if_match.as_deref().or_else(|| self.one("if_match")) else { return Ok(None) };
        let digits = text.trim().trim_start_matches("W/").trim_matches('"');
        let hint = "it is the `etag` of a GET of the object";
        let bad = || Failure::bad(format!("If-Match must be a revision, is `{text}`")).hint(hint);
        digits.parse().map(Some).map_err(|_| bad())
    }

    /// The labels that every listed object must have.
    pub(crate) fn labels(&self) -> Result<Vec<(String, String)>, Failure> {
        let split = |text: &str| {
            let bad = || Failure::bad(format!("`label` must be KEY=VALUE, is `{text}`"));
            text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(bad)
        };
        self.all("label").map(split).collect()
    }
}

impl Server {
    /// The view that a read is answered from: at least as new as `min_revision` asks, or that of `at`.
    pub(crate) async fn view_for(&self, parameters: &Parameters) -> Result<View, Failure> {
        if let Some(past) = parameters.one("at") {
            return Ok(self.look_back("at", past).await?.0);
        }
        match parameters.number("min_revision")? {
            Some(revision) => Ok(self.follower.reach(revision, REACH_WITHIN).await?),
            None => self.follower.view().ok_or_else(Failure::no_view),
        }
    }
}

/// The kind that a path names by its word, plural or short name.
pub(crate) fn kind(word: &str) -> Result<Kind, Failure> {
    word.parse().map_err(|error: lightbyte_api::kinds::KindError| {
        Failure::bad(error.to_string()).hint(kind_hint(&error.word))
    })
}

/// The object that a path names.
pub(crate) fn object(Path((word, name)): Path<(String, String)>) -> Result<ObjectRef, Failure> {
    let name = name.parse().map_err(|error| Failure::bad(format!("`{name}` is not a name: {error}")))?;
    Ok(ObjectRef::new(kind(&word)?, name))
}

/// The worker that a path names.
pub(crate) fn worker(Path(uid): Path<String>) -> Result<WorkerId, Failure> {
    uid.parse().map_err(|_| Failure::bad(format!("`{uid}` is not the uid of a worker")))
}
