//! Lines for people, on stderr.

use std::fmt::Arguments;
use std::io::Write as _;

/// Writes a line. A stderr that is gone takes nothing, and the proxy goes on: `eprintln!` would panic, and a panic in the
/// task of a port ends the port.
pub(crate) fn say(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "lightbyte-proxy: {line}");
}
