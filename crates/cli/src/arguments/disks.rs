//! Words for volumes and snapshots.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use lightbyte_api::{ByteSize, Name};

use super::Patience;

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The volume or snapshot to make
    #[arg(value_name = "KIND/NAME", required = true)]
    pub(crate) target: Vec<String>,
    /// What it is made from: the volume of a snapshot; the snapshot or image of a volume, which is blank without
    #[arg(long, value_name = "KIND/NAME")]
    pub(crate) from: Option<String>,
    /// The size of a volume, such as 10GiB; that of its source when left out
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<ByteSize>,
    /// The worker that it is on: of a volume, that of the first VM it is attached to when left out; of a snapshot, the
    /// volume's
    #[arg(long, value_name = "NAME")]
    pub(crate) worker: Option<Name>,
    /// What is on a blank volume at first
    #[arg(long, value_enum)]
    pub(crate) filesystem: Option<Filesystem>,
    /// Refuses to delete it until that is taken back
    #[arg(long)]
    pub(crate) protected: bool,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// See `volume.filesystem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Filesystem {
    /// An empty ext4
    Ext4,
    /// Nothing but zeros
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub(crate) volume: String,
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    /// Where the guest mounts it: an absolute path
    #[arg(long, value_name = "PATH")]
    pub(crate) mount: Option<String>,
    /// Lets the VM only read it; other VMs may then read it too
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Starts the VM again, so that it has the volume now
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub(crate) volume: String,
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
    /// Starts the VM again, so that the volume is free now
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct Grow {
    /// The volume, or a VM, whose root disk it is then
    #[arg(value_name = "KIND/NAME")]
    pub(crate) target: String,
    /// Its new size, such as 20GiB, or how much more, such as +5GiB
    #[arg(value_name = "SIZE")]
    pub(crate) size: Growth,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct Move {
    /// The volume or snapshot
    #[arg(value_name = "KIND/NAME")]
    pub(crate) target: String,
    /// The worker that it is to be on
    #[arg(value_name = "WORKER")]
    pub(crate) worker: Name,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// How large something is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// As large as this.
    To(ByteSize),
    /// Larger by this.
    By(ByteSize),
}

impl FromStr for Growth {
    type Err = String;
    fn from_str(text: &str) -> Result<Growth, String> {
        let read = |text: &str| text.parse::<ByteSize>().map_err(|error| error.to_string());
        match text.strip_prefix('+') {
            Some(more) => read(more).map(Growth::By),
            None => read(text).map(Growth::To),
        }
    }
}

/// A volume as `run` takes it: `NAME` attaches one that is there, `NAME:SIZE` makes a blank one, and `:PATH` behind
/// either says where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunVolume {
    pub(crate) name: Name,
    pub(crate) size: Option<ByteSize>,
    pub(crate) mount: String,
}

impl FromStr for RunVolume {
    type Err = String;
    fn from_str(text: &str) -> Result<RunVolume, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default().parse::<Name>().map_err(|error| error.to_string())?;
        let mut volume = RunVolume { mount: format!("/mnt/{name}"), name, size: None };
        for (index, part) in parts.enumerate() {
            match (index, part.starts_with('/')) {
                (0, false) => {
                    let size = part.parse::<ByteSize>();
                    volume.size =
                        Some(size.map_err(|error| format!("{error}; NAME[:SIZE][:/PATH] is needed"))?);
                }
                (0 | 1, true) => part.clone_into(&mut volume.mount),
                _ => return Err(format!("`{part}` is one part too many: NAME[:SIZE][:/PATH] is needed")),
            }
        }
        Ok(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_run_are_read() {
        let check = |text: &str, expect: &str| {
            let found = match text.parse::<RunVolume>() {
                Ok(RunVolume { name, size, mount }) => {
                    format!("{name} {} {mount}", size.map_or_else(|| "-".to_owned(), |size| size.to_string()))
                }
                Err(error) => error,
            };
            assert_eq!(found, expect, "{text}");
        };
        check("data", "data - /mnt/data");
        check("data:10GiB", "data 10GiB /mnt/data");
        check("data:/srv", "data - /srv");
        check("data:10GiB:/srv/a", "data 10GiB /srv/a");
        check("data:10GiB:srv", "`srv` is one part too many: NAME[:SIZE][:/PATH] is needed");
        check("data:/a:/b:/c", "`/c` is one part too many: NAME[:SIZE][:/PATH] is needed");
        check(":1GiB", "a name may not be empty");
        assert_eq!("+5GiB".parse(), Ok(Growth::By(ByteSize::from_mib(5 << 10))));
        assert_eq!("5GiB".parse(), Ok(Growth::To(ByteSize::from_mib(5 << 10))));
    }
}
