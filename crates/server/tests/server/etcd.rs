//! One member of real etcd, for what must survive every server.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lightbyte_store::{EtcdOptions, EtcdStore, Store as _};

use crate::cluster::{ROOT, TempDir, until_some};

/// How often it says how far it is, as the lab has it: versions before 3.4.25 are not believed when asked.
const PROGRESS: &str = "--experimental-watch-progress-notify-interval=1s";

/// A running member; dropping it ends it and removes its files.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) url: String,
    _directory: TempDir,
}

impl Etcd {
    /// Starts one; nothing, after telling so, where there is no etcd.
    pub(crate) async fn start(test: &str) -> Option<Etcd> {
        let binary = binary(test)?;
        let directory = TempDir::new();
        let [client, peer] =
            [free(), free()].map(|listener| format!("http://{}", listener.local_addr().expect("an address")));
        // Should this process be killed, etcd goes with it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(binary)
            .arg(format!("--data-dir={}", directory.0.display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .args([format!("--initial-cluster=default={peer}"), PROGRESS.to_owned()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start etcd");
        let etcd = Etcd { child, url: client, _directory: directory };
        let store = etcd.store().await;
        until_some("etcd serves", || async { store.get("x").await.ok() }).await;
        Some(etcd)
    }

    /// A store over it, beside those of the servers.
    pub(crate) async fn store(&self) -> EtcdStore {
        let options =
            EtcdOptions { request_timeout: Duration::from_secs(2), ..EtcdOptions::new([&self.url], ROOT) };
        EtcdStore::connect(options).await.expect("connect")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("bind a loopback port")
}

/// Where etcd is. Where it is not, that is told past the capture of the test harness, and to whoever counts.
fn binary(test: &str) -> Option<PathBuf> {
    let named = std::env::var_os("LIGHTBYTE_ETCD").map(PathBuf::from);
    let cached =
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/lightbyte/etcd/usr/bin/etcd"));
    let found = named.or(cached).filter(|path| path.is_file());
    if found.is_none() {
        let line =
            format!("skipped: {test}: no etcd; set LIGHTBYTE_ETCD, or `cargo xtask setup` fetches one\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
            let file = std::fs::File::options().create(true).append(true).open(path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to the file");
        }
    }
    found
}
