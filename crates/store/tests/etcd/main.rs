//! The store over real etcd: processes of its own, proxies in between, nothing left behind.
#![cfg(feature = "etcd")]

mod cluster;
mod conform;
mod faults;
mod proxy;
mod room;

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
        tell(&format!("skipped: {test}: no etcd at {looked}; {hint}\n"));
    }
    found
}

/// To standard error, past the capture of libtest; and, since nextest hides what passing tests print, also to the end
/// of the file that `LIGHTBYTE_SKIPPED` names, one line a test, for whoever counts.
fn tell(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("append to the file of LIGHTBYTE_SKIPPED");
    }
}
