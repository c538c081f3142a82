//! What each tap may send from: one hardware address and one IPv4 address. Everything else that comes out of a tap is
//! dropped before the bridge sees it: frames and ARP of others, IPv6, tags of VLANs, and what is neither IPv4 nor ARP.
//!
//! One set holds a key for each tap, so that making or removing one changes an element and no rule. A tap without a key
//! may send nothing. Rules are made by the program `nft`, which alone knows how the kernel wants them.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use lightbyte_api::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::system;
use crate::driver::DriverError;

const NFT: &str = "nft";

/// How long `nft` may take. It takes milliseconds; the kernel makes it wait while others change rules.
const NFT_MAX: Duration = Duration::from_secs(10);

/// Most of its words that go into an error.
const WORDS_BYTES_MAX: u64 = 4096;

/// What `nft` says of a table that is not there (`ENOENT`).
const NO_TABLE: &str = "No such file or directory";

/// The table, as often as it is asked for. The type of a frame is read from the frame (`@ll`), not from what the kernel
/// took it for: that leaves out the tag of a VLAN.
const TABLE: &str = "\
add table bridge lightbyte-taps
add set bridge lightbyte-taps sources { type ifname . ether_addr . ipv4_addr; }
add chain bridge lightbyte-taps sent { type filter hook prerouting priority -300; policy accept; }
flush chain bridge lightbyte-taps sent
add rule bridge lightbyte-taps sent iifname != \"lb*\" accept
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 iifname . ether saddr . ip saddr @sources accept
add rule bridge lightbyte-taps sent @ll,96,16 0x0806 iifname . ether saddr . arp saddr ip @sources \
    iifname . arp saddr ether . arp saddr ip @sources accept
add rule bridge lightbyte-taps sent drop
";

/// What one tap may send from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) tap: String,
    pub(super) mac: MacAddress,
    pub(super) address: Ipv4Addr,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\" . {} . {}", self.tap, self.mac, self.address)
    }
}

/// Makes the table, and lets these taps and no others send.
///
/// # Errors
/// [`DriverError::Refused`] when `nft` is missing or says no.
pub(super) fn begin(all: &[Source]) -> Result<(), DriverError> {
    run(NFT, &format!("{TABLE}flush set bridge lightbyte-taps sources\n{}", elements("add", all)))
}

/// Lets `new` send, and what of `old` is not in it not any more. If the table is gone, as after somebody has flushed all
/// rules of the host, it is made again, and then `others` may send too.
///
/// # Errors
/// As [`begin`].
pub(super) fn change(old: &[Source], new: &[Source], others: &[Source]) -> Result<(), DriverError> {
    match run(NFT, &difference(old, new)) {
        Err(DriverError::Refused(why)) if why.contains(NO_TABLE) => {
            run(NFT, &format!("{TABLE}{}{}", elements("add", others), elements("add", new)))
        }
        outcome => outcome,
    }
}

fn difference(old: &[Source], new: &[Source]) -> String {
    let gone: Vec<Source> = old.iter().filter(|source| !new.contains(source)).cloned().collect();
    // One that is not there cannot be deleted, and adding one that is there changes nothing.
    [elements("add", &gone), elements("delete", &gone), elements("add", new)].concat()
}

fn elements(verb: &str, sources: &[Source]) -> String {
    if sources.is_empty() {
        return String::new();
    }
    let list: Vec<String> = sources.iter().map(Source::to_string).collect();
    format!("{verb} element bridge lightbyte-taps sources {{ {} }}\n", list.join(", "))
}

/// Carries out a script, whole or not at all.
fn run(program: &str, script: &str) -> Result<(), DriverError> {
    if script.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(program);
    command.args(["-f", "-"]).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DriverError::Refused(format!(
            "`{program}` is not on this host, and without it a VM could send from any address"
        )),
        _ => system(format!("start {program}"))(error),
    })?;
    // One that ended before it read says why; its end is what counts.
    let _ = child.stdin.take().map(|mut input| input.write_all(script.as_bytes()));
    let words = child.stderr.take();
    if !has_ended(&child).map_err(system(format!("wait for {program}")))? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(DriverError::Refused(format!("{program} has no end after {} s", NFT_MAX.as_secs())));
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(DriverError::Refused(format!("{program} refuses: {}", first_line(words)))),
        Err(error) => Err(system(format!("wait for {program}"))(error)),
    }
}

/// Waits for the child's end, and says whether it came in time.
fn has_ended(child: &Child) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let wait = Timespec::try_from(NFT_MAX).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&wait)) {
            Ok(ended) => return Ok(ended > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn first_line(words: Option<ChildStderr>) -> String {
    let mut text = String::new();
    let _ = words.map(|words| words.take(WORDS_BYTES_MAX).read_to_string(&mut text));
    text.lines().next().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(tap: &str, last: u8) -> Source {
        Source {
            tap: tap.to_owned(),
            mac: "02:00:00:00:00:01".parse().expect("a hardware address"),
            address: Ipv4Addr::new(10, 0, 0, last),
        }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let (a, b) = (source("lba", 1), source("lbb", 2));
        let check = |old: &[&Source], new: &[&Source], expected: &str| {
            let own = |list: &[&Source]| list.iter().copied().cloned().collect::<Vec<_>>();
            let found = difference(&own(old), &own(new));
            let short = found.replace(" element bridge lightbyte-taps sources", "");
            assert_eq!(short.replace(" . 02:00:00:00:00:01 . 10.0.0.", " "), expected);
        };
        check(&[], &[], "");
        check(&[], &[&a, &b], "add { \"lba\" 1, \"lbb\" 2 }\n");
        check(&[&a], &[&a], "add { \"lba\" 1 }\n");
        check(&[&a, &b], &[&a], "add { \"lbb\" 2 }\ndelete { \"lbb\" 2 }\nadd { \"lba\" 1 }\n");
    }

    #[test]
    fn a_host_without_nft_is_told_so() {
        let outcome = run("no-such-nft", TABLE).expect_err("no such program");
        assert!(matches!(outcome, DriverError::Refused(_)), "{outcome:?}");
        assert!(outcome.to_string().starts_with("`no-such-nft` is not on this host"), "{outcome}");
        let refused = run("false", TABLE).expect_err("it fails");
        assert_eq!(refused.to_string(), "false refuses: it said nothing");
    }
}
