//! Asks the network's DHCP server for a card's address (RFC 2131), and renews the lease for as long as the card has it.
//!
//! The host sees the exchange and lets the card send from what was acknowledged, from nothing else. It forgets what was not
//! acknowledged again for two days, so no lease is taken for longer than one.
//!
//! The protocol is smoltcp's. Between exchanges its socket is closed, so that no packet of the guest is read twice.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lightbyte_guest::protocol::{Identity, Nic};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::dhcpv4::{Event, Socket};
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{DhcpOption, EthernetAddress, IpCidr, Ipv4Cidr};
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout, timeout_at};

use crate::agent::Agent;
use crate::wire::Wire;
use crate::{network, ready};

/// How long the host is kept waiting for the first lease: less than it waits for an answer. It asks again.
const FIRST_LEASE_WITHIN: Duration = Duration::from_secs(6);

/// The pause after which servers are looked for again. Some look for three seconds whether an address is in use before they offer
/// it, and what answers an earlier question does not count.
const DISCOVER_EVERY: SmolDuration = SmolDuration::from_secs(4);

/// The first pause after which a request that its server did not answer is sent again.
const REQUEST_EVERY: SmolDuration = SmolDuration::from_secs(2);

/// The longest lease that is taken.
const LEASE_MAX: SmolDuration = SmolDuration::from_secs(24 * 60 * 60);

/// How long an answer may take. With nothing asked for so long the socket is closed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The pause between two turns, whatever comes: a network that never falls silent must not take a processor.
const TURN_PAUSE: Duration = Duration::from_millis(10);

/// The pause after a lease was given or lost, whatever its length.
const CHANGE_PAUSE: Duration = Duration::from_secs(1);

/// The option that says a client's name (RFC 2132, 3.14).
const HOST_NAME: u8 = 12;

/// What a server has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_length: u8,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) dns: Vec<Ipv4Addr>,
}

/// The clients of all cards, by hardware address.
#[derive(Default)]
pub(crate) struct Clients(BTreeMap<String, Client>);

struct Client {
    task: AbortHandle,
    state: watch::Receiver<State>,
}

/// How far a client is.
#[derive(Clone, Debug, Default)]
struct State {
    lease: Option<Lease>,
    /// Why the card has not got what was given.
    problem: Option<String>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Clients {
    /// What servers have given, by hardware address.
    pub(crate) fn leases(&self) -> BTreeMap<String, Lease> {
        let lease =
            |(mac, client): (&String, &Client)| Some((mac.clone(), client.state.borrow().lease.clone()?));
        self.0.iter().filter_map(lease).collect()
    }
}

/// Waits until every card that needs one has a lease.
pub(crate) async fn all_leased(agent: &Agent) {
    let states: Vec<_> = agent.dhcp.borrow().0.values().map(|client| client.state.clone()).collect();
    for mut state in states {
        // A client that has ended gets none any more.
        let _ = state.wait_for(|state| state.lease.is_some()).await;
    }
}

/// Has a client for each card that needs one and none for others, and waits until all have a lease.
///
/// # Errors
/// If no server has answered for one in time, or what it gave cannot be set up. The client goes on.
pub(crate) async fn apply(agent: &Rc<Agent>, identity: &Identity) -> Result<()> {
    let cards: Vec<&Nic> = identity.nics.iter().filter(|nic| nic.address.is_empty()).collect();
    agent
        .dhcp
        .borrow_mut()
        .0
        .retain(|mac, client| cards.iter().any(|nic| nic.mac == *mac) && !client.task.is_finished());
    let until = tokio::time::Instant::now() + FIRST_LEASE_WITHIN;
    for nic in &cards {
        if !agent.dhcp.borrow().0.contains_key(&nic.mac) {
            let client = begin(agent, &identity.name, nic)?;
            agent.dhcp.borrow_mut().0.insert(nic.mac.clone(), client);
        }
    }
    for nic in cards {
        let state = agent.dhcp.borrow().0.get(&nic.mac).map(|client| client.state.clone());
        let mut state = state.context("its client has gone")?;
        let leased = timeout_at(until, state.wait_for(|state| state.lease.is_some())).await;
        let Ok(Ok(state)) = leased else { bail!("no DHCP server has given {} an address yet", nic.mac) };
        if let Some(problem) = &state.problem {
            bail!("{} by DHCP: {problem}", nic.mac);
        }
    }
    Ok(())
}

fn begin(agent: &Rc<Agent>, name: &str, nic: &Nic) -> Result<Client> {
    let index = network::interface(&nic.mac).with_context(|| format!("there is no interface {}", nic.mac))?;
    let mac = ethernet(&nic.mac).with_context(|| format!("{} is no Ethernet address", nic.mac))?;
    let (tell, state) = watch::channel(State::default());
    let card = Card { index, mac, name: name.to_owned() };
    let (agent, takes_route) = (agent.clone(), nic.takes_route);
    let mut telling: Option<AbortHandle> = None;
    let mut is_first = true;
    let take = move |lease: Option<Lease>| {
        let before = tell.borrow().lease.clone();
        let taken = network::take_lease(index, before.as_ref(), lease.as_ref(), takes_route);
        let problem = taken.err().map(|error| format!("{error:#}"));
        tell.send_replace(State { lease, problem });
        // Before the guest is who it is to be, that is written with all else.
        let identity = agent.identity.borrow().clone();
        let leases = agent.dhcp.borrow().leases();
        let written = identity.map_or(Ok(()), |identity| network::write_files(&identity, &leases));
        if let Err(error) = written {
            eprintln!("lightbyte-guest: a lease: {error:#}");
        }
        // The host reports what it saw, and what hinders the guest, when it is told that the guest is ready. Of the first lease
        // it hears by itself.
        if !std::mem::replace(&mut is_first, false) {
            let before = telling.replace(spawn_local(ready::tell()).abort_handle());
            before.iter().for_each(AbortHandle::abort);
        }
    };
    let task = spawn_local(async move {
        // A card that goes is one that the host took away.
        if let Err(error) = run(&card, take).await {
            eprintln!("lightbyte-guest: DHCP: {error}");
        }
    });
    Ok(Client { task: task.abort_handle(), state })
}

struct Card {
    index: u32,
    mac: EthernetAddress,
    /// What the guest is called, for the server's list.
    name: String,
}

/// Asks and renews for ever, and tells of each change.
///
/// # Errors
/// If the card cannot be spoken through.
async fn run(card: &Card, mut take: impl FnMut(Option<Lease>)) -> io::Result<()> {
    let began = Instant::now();
    let now = || SmolInstant::from_micros(i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX));
    let mut wire = Wire::new(card.index, card.mac);
    let mut config = Config::new(card.mac.into());
    config.random_seed = seed()?;
    let mut interface = Interface::new(config, &mut wire, now());
    let options = [DhcpOption { kind: HOST_NAME, data: card.name.as_bytes() }];
    let mut sockets = SocketSet::new(Vec::new());
    let socket = sockets.add(client(if card.name.is_empty() { &[] } else { &options }));
    loop {
        wire.begin_turn()?;
        interface.poll(now(), &mut wire, &mut sockets);
        let is_changed = match sockets.get_mut::<Socket<'_>>(socket).poll() {
            None => false,
            // It says so once when it begins.
            Some(Event::Deconfigured) if interface.ipv4_addr().is_none() => false,
            Some(Event::Configured(found)) => {
                let lease = Lease {
                    address: found.address.address(),
                    prefix_length: found.address.prefix_len(),
                    gateway: found.router,
                    dns: found.dns_servers.iter().copied().collect(),
                };
                // To renew it by: a request is sent from the address that it is about.
                set_address(&mut interface, Some(found.address), found.router);
                take(Some(lease));
                true
            }
            Some(Event::Deconfigured) => {
                set_address(&mut interface, None, None);
                take(None);
                true
            }
        };
        sleep(if is_changed { CHANGE_PAUSE } else { TURN_PAUSE }).await;
        let pause = interface.poll_delay(now(), &sockets).map_or(ANSWER_WITHIN, Duration::from);
        let left = ANSWER_WITHIN.saturating_sub(wire.silent_for());
        if left.is_zero() && pause > ANSWER_WITHIN {
            wire.close();
            sleep(pause).await;
        } else if let Ok(heard) =
            timeout(if left.is_zero() { pause } else { pause.min(left) }, wire.readable()).await
        {
            heard?;
        }
    }
}

fn client<'a>(options: &'a [DhcpOption<'a>]) -> Socket<'a> {
    let mut client = Socket::new();
    client.set_outgoing_options(options);
    client.set_max_lease_duration(Some(LEASE_MAX));
    let mut retry = client.get_retry_config();
    (retry.discover_timeout, retry.initial_request_timeout) = (DISCOVER_EVERY, REQUEST_EVERY);
    client.set_retry_config(retry);
    client
}

fn set_address(interface: &mut Interface, address: Option<Ipv4Cidr>, router: Option<Ipv4Addr>) {
    interface.update_ip_addrs(|all| {
        all.clear();
        // There is room for one.
        let _ = address.map(|address| all.push(IpCidr::Ipv4(address)));
    });
    interface.routes_mut().remove_default_ipv4_route();
    // The server may be behind a relay. There is room for one route.
    let _ = router.map(|router| interface.routes_mut().add_default_ipv4_route(router));
}

/// What the numbers of requests begin with: nobody should guess them.
fn seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn ethernet(text: &str) -> Option<EthernetAddress> {
    let mut parts = text.split(':').map(|part| u8::from_str_radix(part, 16).ok());
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        *byte = parts.next()??;
    }
    parts.next().is_none().then_some(EthernetAddress(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_has_six_parts() {
        let good = EthernetAddress([2, 0, 0x0a, 0x4d, 0, 0x0b]);
        assert_eq!(ethernet("02:00:0a:4d:00:0b"), Some(good));
        for bad in ["", "02:00:0a:4d:00", "02:00:0a:4d:00:0b:00", "02:00:0a:4d:00:xx"] {
            assert_eq!(ethernet(bad), None, "{bad}");
        }
    }
}
