//! What an agent asks of its shell, and what the shell answers: reports to a server, steps on the host.

use lightbyte_api::assigned::HostObject;
use lightbyte_api::health::HealthCheck;
use lightbyte_api::observed::Observed;
use lightbyte_api::{Timestamp, VmId};
use serde::{Deserialize, Serialize};

use super::Stamped;
use super::address;
use super::facts::Saved;
use super::proxy::Told;

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this report.
    Report(Report),
    /// Do this on the host, then observe it.
    Step(Step),
    /// Try this in the guest, and say what came of it.
    Check(HealthCheck),
    /// Tell the proxy in the guest this, if anything, and ask what it does; then say what came of it.
    Proxy(Option<Told>),
    /// Tell the guest of its virtual address, and then the network, and say what came of it.
    Address(address::Errand),
}

/// A report to send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which object.
    pub object: HostObject,
    /// What is true; `None` withdraws the report.
    pub observed: Option<Observed>,
    /// The revision of this worker's last report, 0 when there is none: compared.
    pub own_revision: u64,
    /// For a claim: the revision of the assignment that was seen, compared too.
    pub assigned_revision: Option<u64>,
}

/// The answer to a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was stored.
    Accepted {
        /// At this revision.
        revision: u64,
    },
    /// Something else was there than the worker thought.
    Refused {
        /// The report that is stored.
        observed: Option<Stamped<Observed>>,
        /// The revision of the assignment that is stored, 0 when there is none.
        assigned_revision: u64,
    },
    /// No answer came.
    Lost,
}

/// One idempotent step on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Save this durably.
    Save(Saved),
    /// Make the VM's taps as they are assigned.
    EnsureTaps,
    /// Ask the VM's networks whether somebody else has its addresses, and save who does.
    Probe,
    /// Remove the VM's taps.
    RemoveTaps,
    /// Start the machine process.
    Start,
    /// Ask the guest to shut down.
    Shutdown,
    /// End the machine process now, and remove what it leaves.
    Kill,
    /// Make the volume's file from its source, which these machines may be writing to: their guests bring what they hold
    /// in memory to it, and hold their breath meanwhile.
    CreateDisk {
        /// The machines.
        written_by: Vec<VmId>,
    },
    /// Make the volume's file as large as is assigned, and tell these machines.
    GrowDisk {
        /// The machines that use it.
        used_by: Vec<VmId>,
    },
    /// Fetch some of what differs from the disk that another worker has. It is done again until all was fetched, so that
    /// whatever else is to be done with the volume never waits long.
    FetchDisk,
    /// What was fetched is the volume's file from now on.
    TakeDisk,
    /// Remove what was fetched.
    DropFetched,
    /// Put the volume's file into quarantine: another worker has it.
    QuarantineDisk,
    /// Remove the volume's file.
    RemoveDisk,
    /// Remove what was saved, and the object's directory.
    Forget,
    /// Do nothing: the host is observed after every step. So no observation is older than a step that it follows.
    Look,
}

/// What a pure next-step function answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Do this.
    Do(Step),
    /// Nothing before then.
    Until(Timestamp),
    /// Nothing.
    Rest,
}
