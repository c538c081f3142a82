//! A small world as text in, plans as text out. A change of the API touches this folder and no test.
//!
//! A world is written line by line, one thing per line:
//!
//! ```text
//! rack                                                  workers n1 and n2, image demo v1, network default
//! worker n3 cpus=4 memory=1GiB [architecture=aarch64] [cordoned] [away] [deleting] [silent]
//!           [listens=n3:7701] [has=a]…
//! image demo v1,v2 [current=v2] [root=64MiB] [architecture=x86_64] [deleting]
//! network lan 10.78.0.0/24 pool=2-4 [gateway=10.78.0.1] [deleting]
//! squatted lan 10.78.0.3                                an address that somebody else has
//! vm a [walled] [opens=app:web]… [port=8080:80]… [image=demo] [cpus=1] [memory=128MiB] [disk=1GiB] [nic=lan:10.78.0.3]… [nonic] [stopped] [deleting]
//!      [virtual=10.77.0.9 [leaving]] [has=10.77.0.9 [left]] [turn=1]   a virtual address, assigned and reported
//!      [checked [unchecked_before] [health=healthy]]         its health is checked by TCP
//!      [generation=2] [restarts=1] [label=k:v]
//!      [on=n1 [wanted=removed] [sequence=2] [at_generation=1] [address=10.77.0.2]
//!       [observed=running] [seen=1] [squatted=10.77.0.2]… [problem=no_bridge] [volume=present]]
//! asked KIND/NAME SPEC [deleting] [owner=KIND/NAME]     an object of any kind, its specification in JSON
//! opaque KEY                                            a value that no version of ours can read
//! drop KEY                                              the key is gone
//! ```
//!
//! In a KEY, `{vm/a}` stands for the uid of that object.

mod lines;
mod placed;
mod random;
mod render;
mod store;

use lightbyte_api::{Key, Kind, Name, ObjectRef, Timestamp, Uid};
use lightbyte_plan::planner::secret::acme::News;
use lightbyte_plan::planner::{self, Inputs};

pub(crate) use random::Random;
pub(crate) use render::{Names, Show, transaction, writes};
pub(crate) use store::Store;

/// When the world was made.
pub(crate) const MADE_AT: i64 = 1_800_000_000;
/// How many plans in a row may write before an object counts as restless.
const ROUNDS_MAX: u64 = 8;

/// The time `seconds` after the world was made.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(MADE_AT + seconds).expect("a time in range")
}

/// The name `text`.
pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// The object `text`, such as `vm/a`.
pub(crate) fn object(text: &str) -> ObjectRef {
    text.parse().expect("an object")
}

/// The uid that `object` has in every world: a hash of its kind and name.
pub(crate) fn uid(object: &ObjectRef) -> Uid {
    let text = object.to_string();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Uid::from_bits(u128::from(hash))
}

/// The uid of the worker `text`.
pub(crate) fn worker_id(text: &str) -> lightbyte_api::WorkerId {
    lightbyte_api::WorkerId::new(uid(&ObjectRef::new(Kind::Worker, name(text))))
}

/// Builds the world that `text` describes.
pub(crate) fn world(text: &str) -> Store {
    let mut store = Store::default();
    add(&mut store, text);
    store
}

/// Adds what `text` describes, in place of what is there.
pub(crate) fn add(store: &mut Store, text: &str) {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| lines::read(store, line));
}

/// Makes the next plan for `object` and applies it; what it writes, with the view that it was made from.
pub(crate) fn apply_next(
    store: &mut Store,
    object_text: &str,
    seconds: i64,
) -> Option<(lightbyte_plan::View, lightbyte_plan::Transaction)> {
    apply_with(store, object_text, seconds, None)
}

/// The same with news of an order.
fn apply_with(
    store: &mut Store,
    object_text: &str,
    seconds: i64,
    news: Option<News>,
) -> Option<(lightbyte_plan::View, lightbyte_plan::Transaction)> {
    let view = store.view();
    view.check().expect("indexes that say what the entries say");
    let fresh = u128::from(store.revision()) << 64;
    let inputs = Inputs {
        view_read_at: Some(at(seconds)),
        news: news.map(Into::into),
        ..Inputs::at(at(seconds), fresh)
    };
    let found = decide(&view, &object(object_text), &inputs)?;
    store.commit(&found).expect("a plan fits the view that it was made from");
    Some((view, found))
}

/// The same in words.
pub(crate) fn next_plan(store: &mut Store, object_text: &str, seconds: i64) -> String {
    let applied = apply_next(store, object_text, seconds);
    applied.map_or_else(|| "nothing".to_owned(), |(view, found)| writes(&Names::of(&view), &found))
}

/// The same with news of an order.
pub(crate) fn plan_with_news(store: &mut Store, object_text: &str, seconds: i64, news: News) -> String {
    let applied = apply_with(store, object_text, seconds, Some(news));
    applied.map_or_else(|| "nothing".to_owned(), |(view, found)| writes(&Names::of(&view), &found))
}

/// What a planner writes for `object`, plan after plan, until it writes nothing: so every plan is applied, and the
/// one after the last is seen to find nothing, even an hour later if it waits for no time. The plans are made a minute after the world.
pub(crate) fn plans(text: &str, object_text: &str) -> String {
    let mut store = world(text);
    let object = object(object_text);
    let mut shown = Vec::new();
    for round in 0..ROUNDS_MAX {
        let view = store.view();
        view.check().expect("indexes that say what the entries say");
        let inputs = Inputs { view_read_at: Some(at(60)), ..Inputs::at(at(60), u128::from(round + 1) << 64) };
        let Some(found) = decide(&view, &object, &inputs) else {
            let later = Inputs { now: at(3_660), view_read_at: Some(at(3_660)), ..inputs.clone() };
            let waits_for_time = planner::plan(&view, &object, &inputs).again.is_some();
            if !waits_for_time {
                assert_eq!(decide(&view, &object, &later), None, "time alone changes the plan");
            }
            return if shown.is_empty() { "nothing".to_owned() } else { shown.join("\nthen\n") };
        };
        shown.push(writes(&Names::of(&view), &found));
        store.commit(&found).expect("a plan fits the view that it was made from");
    }
    panic!("{object} never rests:\n{}", shown.join("\nthen\n"));
}

/// One plan as the reconciler would make it.
fn decide(
    view: &lightbyte_plan::View,
    object: &ObjectRef,
    inputs: &Inputs,
) -> Option<lightbyte_plan::Transaction> {
    let plan = match planner::frozen(view, object) {
        Some(frozen) => lightbyte_plan::Plan::wait(frozen),
        None => planner::plan(view, object, inputs),
    };
    planner::complete(view, object, plan, inputs.now)
}

/// The first plan for `object` with everything that it rests on.
pub(crate) fn guarded(text: &str, object_text: &str) -> String {
    let view = world(text).view();
    let inputs = Inputs { view_read_at: Some(at(60)), ..Inputs::at(at(60), 1 << 64) };
    let found = decide(&view, &object(object_text), &inputs).expect("a plan that writes");
    transaction(&view, &found)
}

/// Replaces `{kind/name}` by the uid of that object.
fn with_uids(text: &str) -> String {
    let mut parts = text.split('{');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (named, rest) = part.split_once('}').expect("a closing brace");
        filled.push_str(&uid(&object(named)).to_string());
        filled.push_str(rest);
    }
    filled
}

/// The key `text`, with `{kind/name}` for uids.
pub(crate) fn key(text: &str) -> Key {
    with_uids(text).parse().expect("a key")
}
