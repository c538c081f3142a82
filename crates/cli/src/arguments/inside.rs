//! The words of verbs that reach into a VM.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) target: String,
    /// The command and its words
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// A setting of its environment; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Where it starts
    #[arg(short, long, value_name = "DIR")]
    pub(crate) directory: Option<String>,
    /// Gives it no terminal, although this is one
    #[arg(short = 'T', long)]
    pub(crate) no_terminal: bool,
    /// Gives it no input: its standard input ends at once
    #[arg(short, long)]
    pub(crate) no_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// What is copied: VM:PATH, a path here, or - for a tar stream on standard input
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where it goes: VM:PATH, a path here, or - for a tar stream on standard output
    #[arg(value_name = "TO")]
    pub(crate) to: String,
}

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) target: String,
    /// A port here and the VM's, such as 8080:80; the same one for both when there is no colon, and 0 here takes a free one
    #[arg(value_name = "HERE:THERE", required = true, value_parser = read_ports)]
    pub(crate) ports: Vec<Ports>,
    /// Joins standard input and output to the VM's port: a ProxyCommand of ssh
    #[arg(long)]
    pub(crate) stdio: bool,
}

/// A port of this machine, and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) here: u16,
    pub(crate) guest: u16,
}

#[derive(Debug, Args)]
pub(crate) struct Ssh {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) target: String,
    /// What runs there instead of a shell
    #[arg(value_name = "COMMAND", last = true)]
    pub(crate) command: Vec<String>,
    /// Who logs in
    #[arg(short, long, value_name = "USER", default_value = "root")]
    pub(crate) login: String,
    /// A private key; may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub(crate) identity: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The VM, or a group: then all that are its members now, and with -f also those that are made later
    #[arg(value_name = "VM|group/NAME", required = true)]
    pub(crate) target: Vec<String>,
    /// Goes on with what is still to come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The life of its machine before this one; of a VM that was deleted in the last seven days, the last
    #[arg(long, conflicts_with_all = ["follow", "unit"])]
    pub(crate) previous: bool,
    /// How many of the last lines to begin with; all that are kept when left out
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) lines: Option<usize>,
    /// A service of the VM's systemd, such as ssh
    #[arg(short, long, value_name = "NAME")]
    pub(crate) unit: Option<String>,
}

fn read_ports(text: &str) -> Result<Ports, String> {
    let (here, guest) = text.split_once(':').unwrap_or((text, text));
    match (here.parse(), guest.parse()) {
        (Ok(here), Ok(guest @ 1..)) => Ok(Ports { here, guest }),
        _ => Err("ports are numbers up to 65535, such as 8080:80".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_checked_where_they_are_typed() {
        for (text, expect) in [
            ("8080:80", Some((8080, 80))),
            ("80", Some((80, 80))),
            ("0:80", Some((0, 80))),
            ("0", None),
            ("80:", None),
            ("1:2:3", None),
            ("80:65536", None),
        ] {
            assert_eq!(read_ports(text).ok(), expect.map(|(here, guest)| Ports { here, guest }), "{text}");
        }
    }
}
