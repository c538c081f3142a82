//! The names of the cluster, for the resolvers that follow this server: composed once for all of them, and only while
//! there are any.
//!
//! It looks at the newest view and not at each: a view in between would be told to nobody. A change that names cannot come
//! from costs one look at its keys.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lightbyte_api::Key;
use lightbyte_api::zone::{FORMAT, Zone};
use lightbyte_plan::{View, zone};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::Server;

/// The shortest time between two looks: what changes together is told together.
const LOOKS_APART_MIN: Duration = Duration::from_millis(5);
/// How much longer than a look the pause after it is: names take a tenth of a core at most.
const PAUSE_PER_LOOK: u32 = 9;
/// The longest pause: confirmations come no later than this, and resolvers wait 10 s for one.
const LOOKS_APART_MAX: Duration = Duration::from_secs(2);

/// The names as this server knows them.
pub(crate) struct Names {
    /// The zone's name.
    zone: String,
    newest: watch::Sender<Option<Told>>,
    /// Somebody has begun to follow.
    wanted: Notify,
}

/// All names, and how new they are.
#[derive(Clone)]
pub(crate) struct Told {
    /// The zone without its format and revision.
    text: Bytes,
    /// A revision of the view that had these names. It changes when they do.
    pub(crate) revision: u64,
    /// The newest revision of the view that has been seen to have the same names.
    pub(crate) current_at: u64,
    /// The moment before the newest linearizable read that this revision had reached.
    pub(crate) confirmed_at: Option<Instant>,
    /// Whether all names are in it. Otherwise it is never confirmed: those that are not would be denied.
    pub(crate) is_whole: bool,
}

impl Told {
    /// The zone as one line, in pieces: its text is shared by all who follow, and never copied for one.
    pub(crate) fn line(&self, revision: u64) -> [Bytes; 3] {
        let head = format!("{{\"zone\":{{\"format\":{FORMAT},\"revision\":{revision},");
        [head.into(), self.text.clone(), Bytes::from_static(b"}\n")]
    }
}

/// Everything of a zone but its format and revision.
#[derive(Serialize)]
struct Rest<'a> {
    name: &'a str,
    names: &'a std::collections::BTreeMap<String, lightbyte_api::zone::Records>,
    reverse: &'a [lightbyte_api::address::Cidr],
    pointers: &'a std::collections::BTreeMap<std::net::IpAddr, String>,
}

/// The text of a zone behind its format and revision, with the brace that ends it.
fn text(zone: &Zone) -> Bytes {
    // Whole, so that a new member cannot be forgotten here.
    let Zone { format: _, revision: _, name, names, reverse, pointers } = zone;
    // Plain data always serialises; a resolver would not take what is cut short, and keep what it has.
    let mut text = serde_json::to_vec(&Rest { name, names, reverse, pointers }).unwrap_or_default();
    if !text.is_empty() {
        text.remove(0);
    }
    text.into()
}

/// What the next look compares with.
struct Held {
    /// With the revision 0.
    composed: Arc<zone::Composed>,
    /// Where the epoch stands: with another one the history may be another.
    epoch: u64,
    told: Told,
}

impl Names {
    pub(crate) fn new(zone: &str) -> Names {
        Names { zone: zone.to_owned(), newest: watch::Sender::new(None), wanted: Notify::new() }
    }

    /// The zone's name.
    pub(crate) fn zone(&self) -> &str {
        &self.zone
    }

    /// A place among those who are told. The first thing that it sees may be from a time when nobody was.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Told>> {
        let told = self.newest.subscribe();
        self.wanted.notify_one();
        told
    }
}

/// Keeps the names until it is dropped.
pub(crate) async fn keep(server: Arc<Server>) {
    let mut knowledge = server.follower.knowledge();
    let mut held = None;
    loop {
        while server.names.newest.receiver_count() == 0 {
            server.names.wanted.notified().await;
        }
        let begun = Instant::now();
        held = look(&server, held).await;
        server.names.newest.send_replace(held.as_ref().map(|held| held.told.clone()));
        sleep((begun.elapsed() * PAUSE_PER_LOOK).clamp(LOOKS_APART_MIN, LOOKS_APART_MAX)).await;
        tokio::select! {
            // The sender lives as long as the server.
            _ = knowledge.changed() => {}
            () = server.names.wanted.notified() => {}
        }
    }
}

/// Looks at the newest view, and composes the names anew if they may have changed.
async fn look(server: &Server, held: Option<Held>) -> Option<Held> {
    let since = held.as_ref().map_or(0, |held| held.told.current_at);
    let moment = server.follower.moment(since)?;
    let (revision, epoch) = (moment.view.revision(), moment.view.mod_revision(&Key::Epoch));
    // The store may have gone back; then nothing follows from what was.
    let held = held.filter(|held| held.epoch == epoch && revision >= since);
    let may_differ = moment.changed.is_none_or(|changed| changed.iter().any(zone::concerns));
    let mut next = match held {
        Some(held) if !may_differ => held,
        held => compose(server, moment.view, epoch, held).await?,
    };
    next.told.current_at = revision;
    next.told.confirmed_at = moment.confirmed.map(|confirmed| confirmed.asked_at);
    Some(next)
}

/// Composes the names of a view. What is the same as before keeps its revision.
async fn compose(server: &Server, view: View, epoch: u64, held: Option<Held>) -> Option<Held> {
    let name = server.names.zone.clone();
    let composing = tokio::task::spawn_blocking(move || {
        let revision = view.revision();
        let mut composed = zone::compose(&view, &name);
        composed.zone.revision = 0;
        if let Some(held) = held.filter(|held| *held.composed == composed) {
            return held;
        }
        let is_whole = composed.left_out == 0;
        if !is_whole {
            tracing::error!(left_out = composed.left_out, "there are more names than resolvers take");
        }
        let told =
            Told { text: text(&composed.zone), revision, current_at: revision, confirmed_at: None, is_whole };
        Held { composed: Arc::new(composed), epoch, told }
    });
    match composing.await {
        Ok(held) => Some(held),
        Err(error) => {
            tracing::error!(%error, "the names could not be composed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::wire::ZoneLine;
    use lightbyte_api::zone::Records;

    #[test]
    fn the_pieces_of_a_line_are_the_zone() {
        let mut zone = Zone::new("lab", 7);
        let records = Records { a: vec![std::net::Ipv4Addr::LOCALHOST].into(), ..Records::default() };
        zone.names.insert("a.vm".to_owned(), records);
        zone.reverse.push("10.0.0.0/8".parse().unwrap());
        zone.pointers.insert("10.0.0.1".parse().unwrap(), "a.vm.lab".to_owned());
        for zone in [zone, Zone::new("lab", 7)] {
            let told =
                Told { text: text(&zone), revision: 7, current_at: 7, confirmed_at: None, is_whole: true };
            let line = told.line(9).concat();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            let found: ZoneLine = serde_json::from_slice(&line).unwrap();
            assert_eq!(found, ZoneLine::Zone(Box::new(Zone { revision: 9, ..zone })));
        }
    }
}
