//! The words of verbs on networks and their addresses.

use std::net::Ipv4Addr;

use clap::Args;
use lightbyte_api::Name;

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The address
    #[arg(value_name = "address/IP", value_parser = read_address)]
    pub(crate) address: Ipv4Addr,
    /// Its network; need not be said where only one has it
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<Name>,
}

fn read_address(text: &str) -> Result<Ipv4Addr, String> {
    let address = text.strip_prefix("address/").unwrap_or(text);
    address.parse().map_err(|_| "name it as `address/IP`, such as address/10.77.0.9".to_owned())
}
