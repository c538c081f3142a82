//! What the host says to the proxy in a guest, and asks it, by way of the guest's agent.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use lightbyte_api::assigned::VirtualAddress;
use lightbyte_api::explain::{EXPLAINED_BYTES_MAX, Explained, Question};
use lightbyte_api::topology::Sealed;
use lightbyte_api::wire::Carried;
use lightbyte_api::{Span, Uid, VmId};
use lightbyte_guest::protocol::{self, Problem, ProxyStatus};
use lightbyte_plan::agent::Told;
use lightbyte_plan::agent::proxy::Answer;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{ANSWER_MAX, answer};
use crate::driver::{DriverError, Guest};

/// How long a proxy may take to apply a topology: it writes it to its disk first.
const TOLD_MAX: Duration = Duration::from_secs(25);

/// How long a guest may take to set an address and to ask its proxy: clients wait for one that hangs.
const ADDRESSED_MAX: Duration = Duration::from_secs(2);

/// Tells the proxy what is `told`, if anything, and asks what it does. The order counts: what is in flight is asked after the
/// proxy has acknowledged.
pub(crate) fn ask_proxy(guest: &dyn Guest, vm: VmId, told: Option<&Told>) -> Answer {
    if let Some(told) = told {
        match tell(guest, vm, told) {
            Ok(None) => {}
            Ok(Some(because)) => return Answer::Refused(because),
            Err(error) => return Answer::Silent(error.chain()),
        }
    }
    match status(guest, vm, ANSWER_MAX) {
        Ok(ProxyStatus { revision, in_flight, uptime_ms, .. }) => {
            let in_flight = in_flight.iter().filter(|(_, count)| **count > 0);
            let in_flight = in_flight.filter_map(|(uid, _)| uid.parse::<Uid>().ok()).collect();
            Answer::Does { revision, in_flight, uptime_ms }
        }
        Err(error) => Answer::Silent(error.chain()),
    }
}

/// Asks the proxy in a guest what it would do with a request. A guest is hostile: what it says is as long as an answer may be, and
/// of the form that is asked for; no more is known of it.
///
/// # Errors
/// When it does not answer, answers nonsense, or says why it does not.
pub fn explain(
    guest: &dyn Guest,
    vm: VmId,
    question: &Question,
    wait: Duration,
) -> Result<Explained, DriverError> {
    let body = serde_json::json!(question).to_string();
    let nonsense = || DriverError::Refused("its proxy answers nonsense".to_owned());
    match answer(guest, vm, ("POST", "/v1/proxy/explain"), &body, wait)? {
        (200, answer) if answer.len() > EXPLAINED_BYTES_MAX => Err(nonsense()),
        (200, answer) => {
            let mut said: Value = serde_json::from_slice(&answer).map_err(|_| nonsense())?;
            make_harmless(&mut said);
            serde_json::from_value(said).map_err(|_| nonsense())
        }
        (status, answer) => {
            let words = serde_json::from_slice::<Problem>(&answer).unwrap_or_default().error;
            let words: String = words.chars().filter(|character| !character.is_control()).collect();
            Err(DriverError::Refused(if words.is_empty() {
                format!("its agent answers {status}")
            } else {
                words
            }))
        }
    }
}

/// Takes out of all texts what a terminal might obey.
fn make_harmless(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|character| !character.is_control()),
        Value::Array(items) => items.iter_mut().for_each(make_harmless),
        Value::Object(fields) => fields.values_mut().for_each(make_harmless),
        _ => {}
    }
}

/// Tells a guest that it has a virtual address, with one of IPv6 that goes with it, or none. Whether it was to leave it, and has.
pub(crate) fn tell_address(
    guest: &dyn Guest,
    vm: VmId,
    wanted: Option<VirtualAddress>,
    address6: Option<Ipv6Addr>,
) -> Result<bool, DriverError> {
    let said = protocol::VirtualAddress {
        address: wanted.map(|wanted| wanted.address),
        address6: address6.filter(|_| wanted.is_some()),
        leaves_within_ms: wanted.and_then(|wanted| wanted.leaves_within).map(Span::millis),
    };
    let body = serde_json::json!(said).to_string();
    match answer(guest, vm, ("PUT", "/v1/virtual-address"), &body, ADDRESSED_MAX)? {
        (200, answer) => serde_json::from_slice::<protocol::Addressed>(&answer)
            .map(|addressed| addressed.left)
            .map_err(|_| DriverError::Refused("its agent answers nonsense".to_owned())),
        (status, answer) => {
            let words = serde_json::from_slice::<Problem>(&answer).unwrap_or_default().error;
            Err(DriverError::Refused(format!(
                "its agent does not take the virtual address ({status}): {words}"
            )))
        }
    }
}

/// Why the proxy refuses it, if it does.
fn tell(guest: &dyn Guest, vm: VmId, told: &Told) -> Result<Option<String>, DriverError> {
    let nonsense =
        |error: serde_json::Error| DriverError::Refused(format!("what it is told is no JSON: {error}"));
    let topology = RawValue::from_string(told.document.reveal().to_owned()).map_err(nonsense)?;
    let checksum =
        Sha256::digest(told.document.reveal().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let body = serde_json::to_string(&Sealed { checksum, topology }).map_err(nonsense)?;
    let (status, answer) = answer(guest, vm, ("PUT", "/v1/topology"), &body, TOLD_MAX)?;
    let words = || serde_json::from_slice::<Problem>(&answer).unwrap_or_default().error;
    match status {
        200 => Ok(None),
        // It is another topology, or an older one, or bad: to say it again changes nothing.
        409 | 413 | 422 | 500 => Ok(Some(words())),
        status => Err(DriverError::Refused(format!("its agent answers {status}: {}", words()))),
    }
}

/// What the proxy in a guest has carried, by backend: its own word, of names that are uids.
///
/// # Errors
/// When it does not answer, or answers nonsense.
pub fn carried(guest: &dyn Guest, vm: VmId, wait: Duration) -> Result<BTreeMap<Uid, Carried>, DriverError> {
    let said = status(guest, vm, wait)?;
    let mut carried: BTreeMap<Uid, Carried> = BTreeMap::new();
    // A backend may be in several pools.
    for backend in said.backends {
        if let Ok(uid) = backend.uid.parse::<Uid>() {
            let sum = &mut carried.entry(uid).or_default().requests;
            *sum = sum.saturating_add(backend.requests);
        }
    }
    for (uid, count) in said.in_flight {
        if let Ok(uid) = uid.parse::<Uid>() {
            carried.entry(uid).or_default().in_flight = count;
        }
    }
    Ok(carried)
}

fn status(guest: &dyn Guest, vm: VmId, wait: Duration) -> Result<ProxyStatus, DriverError> {
    match answer(guest, vm, ("GET", "/v1/proxy"), "", wait)? {
        (200, answer) => serde_json::from_slice(&answer)
            .map_err(|_| DriverError::Refused("its proxy answers nonsense".to_owned())),
        (status, _) => Err(DriverError::Refused(format!("its agent answers {status}"))),
    }
}
