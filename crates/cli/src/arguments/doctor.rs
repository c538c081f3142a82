//! The words of `lightbyte doctor`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lightbyte_api::ByteSize;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Where the worker keeps its VMs, or is to keep them
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lightbyte")]
    pub(crate) state: PathBuf,
    /// The bridge of the VMs' network
    #[arg(long, value_name = "NAME", default_value = "br0")]
    pub(crate) bridge: String,
    /// How VMs are to run; whatever works when left out
    #[arg(long, value_enum)]
    pub(crate) vmm: Option<DoctorVmm>,
    /// Firecracker; the one in PATH when left out
    #[arg(long, value_name = "FILE", default_value = "firecracker", hide_default_value = true)]
    pub(crate) firecracker: PathBuf,
    /// Firecracker's jailer; the one beside it or in PATH when left out
    #[arg(long, value_name = "FILE")]
    pub(crate) jailer: Option<PathBuf>,
    /// Where jails are; a directory in the state when left out
    #[arg(long, value_name = "DIR")]
    pub(crate) jails: Option<PathBuf>,
    /// The room for disks below which it warns
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    pub(crate) reserve: ByteSize,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = DoctorForm::Table)]
    pub(crate) output: DoctorForm,
}

/// How VMs of the host are to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DoctorVmm {
    /// Firecracker microVMs
    Firecracker,
    /// QEMU microVMs
    Qemu,
}

/// How the findings are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DoctorForm {
    /// A line for each check, and more for those that are not ok
    Table,
    /// The same, and why each check matters
    Wide,
    /// JSON: {"verdict", "checks": […]}
    Json,
}
