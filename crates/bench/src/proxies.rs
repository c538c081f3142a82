//! Our proxy as a process that finds its topology on disk, and where programs of others are.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lightbyte_api::topology::{self, Backend, Check, Ejection, Probe, Topology};
use sha2::{Digest as _, Sha256};

use crate::bed::Bed;

/// Our program's name.
pub(crate) const OURS: &str = "lightbyte-proxy";

/// Somebody else's program, where it is installed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

/// What the server gives a load balancer that names backends and nothing else, with checks as they are by default.
pub(crate) fn topology(listen: SocketAddr, backends: &[SocketAddr]) -> Result<Topology> {
    let backend = |(number, address): (usize, &SocketAddr)| Backend {
        uid: format!("b{number}"),
        address: address.ip(),
        port: address.port(),
        weight: 1,
        retiring: false,
    };
    let web = format!(
        r#"{{"format":1,"revision":1,
        "listeners":[{{"name":"web","address":"{}","port":{},"protocol":"http"}}],
        "routes":[{{"name":"web","targets":[{{"pool":"web"}}]}}],"pools":[{{"name":"web"}}]}}"#,
        listen.ip(),
        listen.port()
    );
    let mut topology: Topology = serde_json::from_str(&web).context("read our own topology")?;
    let pool = topology.pools.first_mut().context("find the pool")?;
    pool.backends = backends.iter().enumerate().map(backend).collect();
    pool.check = Some(Check {
        probe: Probe::Tcp,
        every_ms: 2_000,
        timeout_ms: 1_000,
        healthy_after: 2,
        unhealthy_after: 2,
    });
    pool.ejection =
        Some(Ejection { failures: 3, first_ms: 1_000, longest_ms: 30_000, ejected_percent_max: 50 });
    Ok(topology)
}

/// Lays the topology where a proxy finds its last one, and says how to start it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn lay_out(bed: &Bed, topology: &Topology) -> Result<[OsString; 5]> {
    let text = serde_json::to_string(topology).context("write the topology")?;
    let checksum: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let sealed = topology::Sealed {
        checksum,
        topology: serde_json::value::RawValue::from_string(text).context("seal the topology")?,
    };
    let state = bed.make("ours")?;
    let sealed = serde_json::to_vec(&sealed).context("write the topology")?;
    fs::write(state.join("topology.json"), sealed).context("write the topology")?;
    Ok([
        "--control".into(),
        bed.path("ours.sock").into_os_string(),
        "--state".into(),
        state.into_os_string(),
        "--no-access-log".into(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_topology_is_one_that_a_proxy_takes() {
        let backends = [1, 2, 3].map(|last| SocketAddr::from(([198, 18, 231, last], 80)));
        let topology = topology(([127, 0, 0, 1], 80).into(), &backends).expect("is made");
        assert_eq!(topology.check().map_err(|problem| problem.to_string()), Ok(()));
        let addresses: Vec<_> = topology.pools.iter().flat_map(|pool| &pool.backends).collect();
        assert_eq!(addresses.len(), backends.len());
    }
}
