//! DNS records: nothing is chosen for them, and nothing on any host belongs to them.

use lightbyte_api::ObjectRef;

use super::{Inputs, Plan, end_when_unused};
use crate::view::View;

/// Plans a record.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    view.asked(object).map_or_else(Plan::rest, |asked| end_when_unused(view, object, &asked.meta))
}
