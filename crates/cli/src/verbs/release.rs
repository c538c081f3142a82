//! `lightbyte release`: a squatted address may be given again.

use anyhow::{Context as _, Result};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::{Kind, Subnet};

use crate::arguments::Release;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::terminal::print;

pub(crate) async fn run(cluster: &Cluster, words: &Release) -> Result<Code> {
    let network = match &words.network {
        Some(name) => ObjectRef::new(Kind::Network, name.clone()),
        None => only_network(cluster, words).await?,
    };
    let address = words.address;
    let released = cluster.release(&network, address).await;
    released.with_context(|| format!("release {address} of {network}"))?;
    print(&format!("{network}: {address} may be given again"))?;
    Ok(Code::Done)
}

/// The network whose subnet holds the address.
async fn only_network(cluster: &Cluster, words: &Release) -> Result<ObjectRef> {
    let holds = |network: &Object| {
        let subnet = network.spec["subnet"].as_str().and_then(|text| text.parse::<Subnet>().ok());
        subnet.is_some_and(|subnet| subnet.contains(words.address))
    };
    let networks = cluster.objects(Kind::Network, &[]).await.context("list the networks")?;
    let mut found = networks.into_iter().filter(holds).map(|network| network.name);
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(ObjectRef::new(Kind::Network, name)),
        (None, _) => {
            let failure =
                Failure::new(Code::NotFound, format!("no network has the address {}", words.address));
            Err(failure.hint("`lightbyte get networks -o wide` lists them").into())
        }
        (Some(first), Some(second)) => {
            let message =
                format!("the networks `{first}` and `{second}` both have the address {}", words.address);
            Err(Failure::usage(message).hint("add `--network NAME`").into())
        }
    }
}
