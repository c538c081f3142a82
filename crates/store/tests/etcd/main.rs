//! The store over real etcd: processes of its own, proxies in between, nothing left behind.
#![cfg(feature = "etcd")]

mod cluster;
mod conform;
mod faults;
mod proxy;

use std::io::Write as _;
use std::path::PathBuf;

/// Where etcd is, or `None` after telling, past the capture of the test harness, that this test was skipped.
pub(crate) fn etcd_or_skip(test: &str) -> Option<PathBuf> {
    let named = std::env::var_os("LIGHTBYTE_ETCD").map(PathBuf::from);
    let cached =
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/lightbyte/etcd/usr/bin/etcd"));
    let found = named.clone().or(cached).filter(|path| path.is_file());
    if found.is_none() {
        let looked =
            named.map_or("~/.cache/lightbyte/etcd/usr/bin/etcd".into(), |path| path.display().to_string());
        let hint = "set LIGHTBYTE_ETCD to an etcd binary, or unpack Debian's etcd-server into ~/.cache/lightbyte/etcd";
        let _ = writeln!(std::io::stderr(), "skipped: {test}: no etcd at {looked}; {hint}");
    }
    found
}
