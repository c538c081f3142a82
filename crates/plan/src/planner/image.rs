//! Images: nothing is chosen for them. One that is to go waits until no VM and no volume names it.

use lightbyte_api::ObjectRef;

use super::{Inputs, Plan, end_when_unused};
use crate::view::View;

/// Plans an image.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    view.asked(object).map_or_else(Plan::rest, |asked| end_when_unused(view, object, &asked.meta))
}
