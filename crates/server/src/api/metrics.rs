//! What a server knows, as numbers for a monitoring system: the text format of OpenMetrics 1.0. It is worked out when it is
//! asked for, from the view that the server has; nothing is counted beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use lightbyte_api::records::Record;
use lightbyte_api::wire::Loss;
use lightbyte_api::{Key, Kind};
use lightbyte_plan::planner::scalegroup;
use lightbyte_plan::{View, status, why};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::problem::Failure;
use crate::{Server, clock};

/// Labels of a number.
type Labels = Vec<(&'static str, String)>;

/// What the text says of its format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /metrics`
pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, Failure> {
    let view = server.initialised_view()?;
    let age = server.follower.confirmed_at().map(|at| at.elapsed().as_secs_f64());
    let losses = server.losses(&view).await;
    let mut numbers = Numbers(Registry::with_prefix("lightbyte"));
    numbers.of_server(&server, &view, age);
    numbers.of_objects(&view);
    numbers.of_losses(&losses.tried);
    let mut text = String::new();
    encode(&mut text, &numbers.0).map_err(|error| {
        tracing::error!(%error, "metrics could not be written");
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the numbers could not be written: a bug of this server",
        )
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// The numbers so far.
struct Numbers(Registry);

impl Numbers {
    /// Adds a number for each set of labels.
    fn add(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    fn one(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    fn of_server(&mut self, server: &Server, view: &View, age: Option<f64>) {
        let leads =
            matches!(view.record(&Key::Leader), Some(Record::Leader(leader)) if leader.server == server.name);
        self.one("leads", "Whether this server leads", f64::from(u8::from(leads)));
        self.one("revision", "The revision that this server has seen", number(view.revision()));
        // One that was never confirmed may be of any age.
        let age = age.unwrap_or(f64::INFINITY);
        self.one("view_age_seconds", "How long ago this server knew that it has seen everything", age);
        let unreadable = view.unreadable_keys().count();
        self.one("unreadable", "Stored values that this version cannot read", number(unreadable as u64));
        let stuck = why::stuck(view, clock::now()).len();
        self.one("stuck", "Waits that are longer than is normal", number(stuck as u64));
    }

    fn of_objects(&mut self, view: &View) {
        let mut counts: BTreeMap<(Kind, &'static str), u64> = BTreeMap::new();
        for object in view.objects() {
            let Some((state, _)) = status::state(view, object) else { continue };
            *counts.entry((object.kind, state)).or_default() += 1;
        }
        let counts = counts.into_iter().map(|((kind, state), count)| {
            (vec![("kind", kind.word().to_owned()), ("state", state.to_owned())], number(count))
        });
        self.add("objects", "Objects of a kind in a state", counts);
        let groups = view
            .objects_of(Kind::ScaleGroup)
            .map(|group| (vec![("group", group.name.to_string())], scalegroup::counts(view, group)));
        let groups: Vec<(Labels, scalegroup::Counts<'_>)> = groups.collect();
        let of_group = |count: fn(&scalegroup::Counts<'_>) -> usize| {
            let of = |(labels, counts): &(Labels, _)| (labels.clone(), number(count(counts) as u64));
            groups.iter().map(of).collect::<Vec<_>>()
        };
        self.add("group_members", "Members of a scale group that live", of_group(|counts| counts.members));
        self.add(
            "group_members_ready",
            "Members of a scale group that serve",
            of_group(|counts| counts.ready),
        );
    }

    /// N-1: whether any one worker may be lost.
    fn of_losses(&mut self, losses: &[Loss]) {
        let of = |count: fn(&Loss) -> u64| {
            losses.iter().map(move |loss| (vec![("worker", loss.worker.to_string())], number(count(loss))))
        };
        let homeless = "Members of groups that would have no place if the worker were lost";
        self.add("loss_homeless", homeless, of(|loss| loss.homeless));
        let alone = "Other VMs on the worker, which would wait for its return";
        self.add("loss_waiting", alone, of(|loss| loss.alone));
        let survives = losses.iter().all(|loss| loss.homeless == 0);
        self.one(
            "survives_any_loss",
            "Whether every group would find room if any one worker were lost",
            f64::from(u8::from(survives)),
        );
    }
}

/// As a number of the format, which is exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "no count of ours comes near 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}
