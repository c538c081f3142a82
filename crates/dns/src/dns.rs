//! The resolver as a whole: how it starts, how another zone comes to hold, and how it does.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lightbyte_api::zone::{Problem, Zone, canonical};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::bind::{BindError, bind};
use crate::counters::Counts;
use crate::disk::{self, Disk};
use crate::forward::{Forwarder, UPSTREAMS_MAX};
use crate::state::Shared;
use crate::table::Table;
use crate::tcp::{self, Service};
use crate::udp::Port;

/// Addresses that one resolver listens on: each is threads and sockets.
const LISTEN_MAX: usize = 64;
/// Threads of one address: more than the cores of a small host would only wait for each other.
const UDP_THREADS_MAX: usize = 16;

/// What a resolver is given at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The zone's name, such as `lightbyte.internal`: without a zone it has to be known which names are not known.
    pub zone: String,
    /// Where queries are taken, over UDP and TCP. Port 0 lets the kernel choose. There is no default: who answers on
    /// all addresses answers strangers. Of an unspecified address the kernel chooses which address answers over
    /// UDP, and clients of a host with several may refuse that.
    pub listen: Vec<SocketAddr>,
    /// Where the last zone is kept. It is made if it is not there.
    pub state_dir: PathBuf,
    /// Resolvers that are asked for names that are not the zone's, in this order, three at most; none refuses such
    /// names.
    pub forward_to: Vec<SocketAddr>,
    /// Threads that answer over UDP, for each address, 1 to 16.
    pub udp_threads: usize,
}

impl Options {
    /// For a zone that is kept in a directory: nowhere to listen yet, nobody to forward to, one thread an address.
    #[must_use]
    pub fn new(zone: &str, state_dir: &Path) -> Options {
        Options {
            zone: canonical(zone),
            listen: Vec::new(),
            state_dir: state_dir.to_owned(),
            forward_to: Vec::new(),
            udp_threads: 1,
        }
    }
}

/// Why a resolver did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Options(String),
    /// A port could not be taken; [`BindError::hint`] says what to do.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The last zone could not be read, or its directory could not be made.
    #[error("read the last zone in {}", directory.display())]
    Disk {
        /// Where it is kept.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread or a task could not be started.
    #[error("start to answer")]
    Threads(#[source] io::Error),
}

/// Why a zone was not applied. What held before still holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotApplied {
    /// It breaks rules, all of which are told.
    #[error("the zone breaks {} rules, the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Bad(Vec<Problem>),
    /// It is another zone than this resolver's.
    #[error("it is the zone `{found}`, and this resolver answers for `{own}`")]
    OtherZone {
        /// Its name.
        found: String,
        /// The resolver's.
        own: String,
    },
    /// What holds is newer. Where a cluster was made anew under an old name, its resolvers' directories are to be removed.
    #[error("revision {asked} is older than {holds}, which holds")]
    Older {
        /// Of the zone.
        asked: u64,
        /// Of what holds.
        holds: u64,
    },
    /// The same revision holds with another content.
    #[error("revision {0} holds already, with another content")]
    Another(u64),
}

/// How a resolver does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Of the zone that holds; `None` if there is none.
    pub revision: Option<u64>,
    /// How long ago a server was asked that said that this is the newest, in milliseconds; `None` if none has since the
    /// start.
    pub confirmed_age_ms: Option<u64>,
    /// Whether names that the zone does not have are denied. If not, they get SERVFAIL: there may be a newer zone.
    pub denies_unknown: bool,
    /// Why the zone that holds is not on disk, if it is not. It is answered from all the same.
    pub not_saved: Option<String>,
    /// Threads that answer over UDP. Fewer than asked for means that a port broke.
    pub udp_threads: usize,
    /// What was counted since the start.
    pub counts: Counts,
}

/// What is known of the zone that holds.
#[derive(Debug, Default)]
struct Held {
    /// Of its text; `None` if it came from the disk, perhaps written by another version.
    checksum: Option<String>,
    not_saved: Option<String>,
}

/// A resolver. It answers until it is dropped. Its UDP ports are free then, and those of TCP a moment later: [`Dns::stop`]
/// waits for that.
#[derive(Debug)]
pub struct Dns {
    shared: Arc<Shared>,
    zone: String,
    disk: Disk,
    /// Held while a zone is applied: one after the other.
    held: Mutex<Held>,
    addresses: Vec<SocketAddr>,
    ports: Vec<Port>,
    /// Ends them when it is dropped.
    tasks: JoinSet<()>,
}

impl Dns {
    /// Takes up the last zone on disk, and starts to answer. A damaged file is put aside and told in the log; then the
    /// resolver starts with nothing, as it does the first time.
    ///
    /// The disk is read on the caller's thread, so this blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StartError`]. Then no port is held.
    pub async fn start(options: Options) -> Result<Dns, StartError> {
        check(&options)?;
        let disk_failed = |source| StartError::Disk { directory: options.state_dir.clone(), source };
        let shared = Arc::new(Shared::new(&options.zone, !options.forward_to.is_empty()));
        let disk = Disk::open(&options.state_dir).map_err(disk_failed)?;
        restore(&disk, &options.zone, &shared).map_err(disk_failed)?;
        let bound = options.listen.iter().map(|address| bind(*address)).collect::<Result<Vec<_>, _>>()?;
        let mut dns = Dns {
            shared,
            zone: options.zone,
            disk,
            held: Mutex::default(),
            addresses: Vec::new(),
            ports: Vec::new(),
            tasks: JoinSet::new(),
        };
        let forwarder = (!options.forward_to.is_empty())
            .then(|| Forwarder::start(&options.forward_to, &dns.shared, &mut dns.tasks));
        for (udp, tcp) in bound {
            dns.addresses.push(udp.local_addr().map_err(StartError::Threads)?);
            let listener = tokio::net::TcpListener::from_std(tcp).map_err(StartError::Threads)?;
            let service = Service { shared: Arc::clone(&dns.shared), forwarder: forwarder.clone() };
            dns.tasks.spawn(tcp::serve(listener, service));
            let port = Port::start(udp, options.udp_threads, &dns.shared, forwarder.as_ref());
            dns.ports.push(port.map_err(StartError::Threads)?);
        }
        Ok(dns)
    }

    /// Where it listens, in the order that was asked for, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Lets a zone hold, and gives its revision. Queries that come after this returns are answered from it. It counts as
    /// confirmed when its predecessor was; of the first zone nobody knows that before [`Dns::confirm`].
    ///
    /// It is then written to disk durably. If that fails the zone holds all the same ([`Status::not_saved`]): a full disk
    /// is no reason to give old answers. The revision that holds may be applied again, which tries the disk again.
    ///
    /// This checks, compiles and writes on the caller's thread: up to a second for the largest zone.
    ///
    /// # Errors
    /// [`NotApplied`].
    pub fn apply(&self, zone: &Zone) -> Result<u64, NotApplied> {
        let problems = zone.check();
        if !problems.is_empty() {
            return Err(NotApplied::Bad(problems));
        }
        if zone.name != self.zone {
            return Err(NotApplied::OtherZone { found: zone.name.clone(), own: self.zone.clone() });
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = self.shared.revision();
        if let Some(holds) = holds.filter(|holds| *holds > zone.revision) {
            return Err(NotApplied::Older { asked: zone.revision, holds });
        }
        let known = held.checksum.clone().filter(|_| holds == Some(zone.revision));
        if known.is_none() {
            // Before all else: to seal it takes as long as to compile it.
            self.shared.publish(Table::new(zone), zone.revision);
            held.checksum = None;
        }
        let saved = match disk::seal(zone) {
            Ok(sealed) if known.as_ref().is_some_and(|known| *known != sealed.checksum) => {
                return Err(NotApplied::Another(zone.revision));
            }
            Ok(_) if known.is_some() && held.not_saved.is_none() => return Ok(zone.revision),
            Ok(sealed) => {
                let saved = self.disk.save(&sealed).map_err(|error| error.to_string());
                held.checksum = Some(sealed.checksum);
                saved
            }
            Err(error) => Err(error.to_string()),
        };
        held.not_saved = saved.err();
        if let Some(error) = &held.not_saved {
            tracing::warn!(error, revision = zone.revision, "the DNS zone holds and could not be saved");
        }
        Ok(zone.revision)
    }

    /// Notes that a server said that this revision is the newest. `asked` is when it was asked: its answer may have been
    /// long on its way, and is only as good as the moment when it can have been given at the earliest.
    ///
    /// A server that was asked before this resolver started confirms nothing.
    ///
    /// Says whether it is the revision that holds. If not, nothing changes, and the newer zone has to be fetched.
    pub fn confirm(&self, revision: u64, asked: Instant) -> bool {
        self.shared.confirm(revision, asked)
    }

    /// Ends it. When this returns all its ports are free.
    pub async fn stop(mut self) {
        self.ports.clear();
        self.tasks.shutdown().await;
    }

    /// How it does. It waits while a zone is applied.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            revision: self.shared.revision(),
            confirmed_age_ms: self.shared.age_ms(),
            denies_unknown: self.shared.denies_unknown(),
            not_saved: self.held.lock().unwrap_or_else(PoisonError::into_inner).not_saved.clone(),
            udp_threads: self.ports.iter().map(Port::threads).sum(),
            counts: self.shared.counters.counts(),
        }
    }
}

fn check(options: &Options) -> Result<(), StartError> {
    let refuse = |what: String| Err(StartError::Options(what));
    if options.zone != canonical(&options.zone) {
        let rule = "is to be in lower case, without a dot at its end";
        return refuse(format!("the zone's name `{}` {rule}", options.zone));
    }
    if let Some(problem) = Zone::new(&options.zone, 0).check().first() {
        return refuse(format!("the zone's {problem}"));
    }
    if options.listen.is_empty() || options.listen.len() > LISTEN_MAX {
        return refuse(format!(
            "{} addresses to listen on, 1 to {LISTEN_MAX} are allowed",
            options.listen.len()
        ));
    }
    if !(1..=UDP_THREADS_MAX).contains(&options.udp_threads) {
        return refuse(format!(
            "{} threads an address, 1 to {UDP_THREADS_MAX} are allowed",
            options.udp_threads
        ));
    }
    if options.forward_to.len() > UPSTREAMS_MAX {
        return refuse(format!(
            "{} resolvers to ask, at most {UPSTREAMS_MAX} are allowed",
            options.forward_to.len()
        ));
    }
    match options.forward_to.iter().find(|upstream| options.listen.contains(upstream)) {
        Some(own) => refuse(format!("{own} would be asked by itself, for ever")),
        None => Ok(()),
    }
}

fn restore(disk: &Disk, name: &str, shared: &Shared) -> io::Result<()> {
    let (zone, refusal) = disk.load(name)?;
    if let Some(refusal) = refusal {
        let fate = if refusal.is_damage() { "was put aside" } else { "is of no use now and stays" };
        tracing::warn!(%refusal, "the DNS zone on disk {fate}");
    }
    if let Some(zone) = zone {
        shared.publish(Table::new(&zone), zone.revision);
    }
    Ok(())
}
