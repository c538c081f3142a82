//! The words of the command line. One grammar: `lightbyte VERB KIND/NAME`.

mod daemons;
pub(crate) mod disks;
mod doctor;
mod groups;
mod import;
mod inside;
mod network;
mod plan;
mod reading;
mod status;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lightbyte_api::placing::WORKER_LABEL;
use lightbyte_api::{ByteSize, Name, Span};

pub(crate) use self::daemons::{Dns, Server, Worker, WorkerVmm};
use self::disks::{Attach, Create, Detach, Grow, Move, RunVolume};
pub(crate) use self::doctor::{Doctor, DoctorForm, DoctorVmm};
pub(crate) use self::groups::{
    Drain, OneGroup, OneWorker, Replicas, Rollout, RolloutDiff, RolloutOn, RolloutUndo, Scale,
};
pub(crate) use self::import::{Import, ImportCertificate, ImportImage};
pub(crate) use self::inside::{Cp, Exec, Forward, Logs, Ports, Ssh};
pub(crate) use self::network::Release;
pub(crate) use self::plan::{Plan, PlanForm, PlanStep, Supposition};
pub(crate) use self::reading::{Describe, Diff, Form, Get, Test, Top, Why};
pub(crate) use self::status::{Etcd, Status, StatusForm};

/// A small cloud that you own: virtual machines, kept as you asked for them, that explains itself.
#[derive(Debug, Parser)]
#[command(name = "lightbyte", version, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Asks this cluster of contexts.yaml instead of the current one (LIGHTBYTE_API wins over both)
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
A verb is followed by KIND/NAME (or KIND NAME, or NAME alone where only one kind has it).
Kinds: `lightbyte explain`. Begin with `lightbyte dev`, then `lightbyte run demo --name hello`.
Exit codes: 0 done, 1 error, 2 differs or has no place, 3 time-out, 4 conflict, 5 not found, 64 usage.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Makes a VM of an image, waits for it, and prints its address
    #[command(after_help = "Example: lightbyte run demo --name hello && lightbyte why hello")]
    Run(Run),
    /// Lists objects, or shows one
    #[command(
        after_help = "Examples:\n  lightbyte get vms\n  lightbyte get vm/hello -o json\n  lightbyte get vms -l app=web -w\n  lightbyte get vms --at 10m"
    )]
    Get(Get),
    /// Tells everything about an object: what is asked, what is true, and why
    Describe(Describe),
    /// Makes manifests true: creates what is missing, changes what differs
    #[command(
        after_help = "Examples:\n  lightbyte apply -f examples/vm.yaml\n  lightbyte plan -f web.yaml -o json > plan.json && lightbyte apply --plan plan.json\n  lightbyte apply -f shop/ --prune -l app=shop"
    )]
    Apply(Apply),
    /// Shows what `apply` would change, or what was changed between two points of the past; exit code 2 when anything is
    #[command(
        after_help = "Examples:\n  lightbyte diff -f web.yaml\n  lightbyte diff --from 1h\n  lightbyte diff group/web --from 812 --to 10m"
    )]
    Diff(Diff),
    /// Tells what a change would do, step by step, and changes nothing; exit code 2 when something would have no place
    #[command(after_help = plan::HELP)]
    Plan(Plan),
    /// Opens an object in $EDITOR and applies what was changed
    Edit(One),
    /// Deletes objects and waits until nothing of them is left
    #[command(
        after_help = "Examples:\n  lightbyte delete vm/hello\n  lightbyte delete --yes -f examples/vm.yaml\n  lightbyte delete vm/web-3     (a member: its group makes another first)"
    )]
    Delete(Delete),
    /// Keeps a volume or a snapshot from being deleted, and a member from going when its group gets smaller
    #[command(after_help = "Examples:\n  lightbyte protect volume/data\n  lightbyte protect vm/web-3")]
    Protect(One),
    /// Takes back what `protect` did
    #[command(after_help = "Example: lightbyte unprotect volume/data")]
    Unprotect(One),
    /// Makes a volume or a snapshot
    #[command(
        after_help = "Examples:\n  lightbyte create volume/data --size 10GiB\n  lightbyte create snapshot/before --from volume/data\n  lightbyte create volume/copy --from snapshot/before"
    )]
    Create(Create),
    /// Attaches a volume to a VM, from its next start on
    #[command(after_help = "Example: lightbyte attach volume/data vm/hello --mount /data --restart")]
    Attach(Attach),
    /// Detaches a volume from a VM, from its next start on
    #[command(after_help = "Example: lightbyte detach volume/data vm/hello --restart")]
    Detach(Detach),
    /// Makes a volume, or a VM's root disk, larger while it is used
    #[command(after_help = "Examples:\n  lightbyte grow volume/data 20GiB\n  lightbyte grow vm/hello +1GiB")]
    Grow(Grow),
    /// Moves a volume or a snapshot to another worker; what a VM has is copied, and moves when the VM lets go of it
    #[command(after_help = "Example: lightbyte move volume/data n2")]
    Move(Move),
    /// Starts a stopped VM
    Start(Power),
    /// Stops a VM; it keeps its worker, disks and addresses
    Stop(Power),
    /// Stops a VM and starts it again
    Restart(Power),
    /// Changes how many members a group has, and waits until they are available
    #[command(after_help = "Examples:\n  lightbyte scale group/web 5\n  lightbyte scale web +2")]
    Scale(Scale),
    /// Follows and steers the update of a group
    #[command(
        subcommand,
        after_help = "Examples:\n  lightbyte rollout status group/web\n  lightbyte rollout diff web\n  lightbyte rollout promote web\n  lightbyte rollout undo web --to 3"
    )]
    Rollout(Rollout),
    /// Places no new VM on a worker; those that run go on
    Cordon(OneWorker),
    /// Places VMs on a worker again
    Uncordon(OneWorker),
    /// Empties a worker: cordons it, and has members of groups made again elsewhere before they end there
    #[command(
        after_help = "Done is said when they run elsewhere and nothing is left. What does not leave by itself is named.\nExample: lightbyte drain worker/n2"
    )]
    Drain(Drain),
    /// Ends a drain, at any moment of it
    Undrain(OneWorker),
    /// Lets an address be given again that a machine which is no VM of ours had
    #[command(after_help = "Example: lightbyte release address/10.77.0.9")]
    Release(Release),
    /// Explains an object: what was decided, why, what it waits for, and what would give it a place
    #[command(after_help = "Examples:\n  lightbyte why vm/web-3\n  lightbyte why vm/web-3 --on n2")]
    Why(Why),
    /// Lists what waits longer than is normal
    Stuck,
    /// Tells where a load balancer would send a request, and why; sends none
    #[command(
        after_help = "Examples:\n  lightbyte test lb/web http://shop.example.org/api\n  lightbyte test lb/web https://shop.example.org/ -H 'cookie: session=7' -X POST"
    )]
    Test(Test),
    /// Shows what workers, groups and VMs use, the busiest VMs first; goes on until Ctrl-C
    #[command(after_help = "Examples:\n  lightbyte top\n  lightbyte top --once | head")]
    Top(Top),
    /// Waits until an object is as asked, or gone
    #[command(after_help = "Example: lightbyte wait vm/hello --for ready --timeout 30s")]
    Wait(Wait),
    /// Shows the cluster: servers, etcd, workers, and whether anything is stuck
    Status(Status),
    /// Shows the members of etcd, or makes their files smaller
    #[command(
        subcommand,
        after_help = "Examples:\n  lightbyte etcd status\n  lightbyte etcd defrag     (the server that leads does so by itself when it is worth it)"
    )]
    Etcd(Etcd),
    /// Tells whether this machine is fit to be a VM host, and what to do where it is not
    #[command(after_help = "Example: sudo lightbyte doctor --state /var/lib/lightbyte --bridge br0")]
    Doctor(Doctor),
    /// Lists what happened in the last seven days, and who did it; of one object, or of all
    #[command(after_help = EVENTS_HELP)]
    Events(Events),
    /// Runs a command in a VM, with its input, outputs, terminal and exit code; a shell when none is named
    #[command(
        after_help = "Examples:\n  lightbyte exec hello\n  lightbyte exec hello -- ls -l /\n  echo hi | lightbyte exec hello -- cat"
    )]
    Exec(Exec),
    /// Copies files and directories into a VM, or out of it; `VM:PATH` is a path in a VM
    #[command(
        after_help = "Examples:\n  lightbyte cp hello:/etc/hosts .\n  lightbyte cp site/. hello:/srv/www\n  lightbyte cp hello:/var/log - | tar -t"
    )]
    Cp(Cp),
    /// Makes ports of a VM ports of this machine, until Ctrl-C
    #[command(after_help = "Example: lightbyte forward hello 8080:80")]
    Forward(Forward),
    /// Logs in to a VM by ssh, without an address and without questions
    #[command(after_help = "Examples:\n  lightbyte ssh hello\n  lightbyte ssh hello -- uptime")]
    Ssh(Ssh),
    /// Opens a VM's serial console; Ctrl-] leaves it
    #[command(after_help = "Example: lightbyte console hello")]
    Console(One),
    /// Shows what a VM wrote to its console, or one of its services to the journal
    #[command(
        after_help = "Examples:\n  lightbyte logs hello -f --lines 20\n  lightbyte logs hello --unit ssh\n  lightbyte logs group/web -f"
    )]
    Logs(Logs),
    /// Tells what kinds there are, and which fields they have
    #[command(
        after_help = "Examples:\n  lightbyte explain\n  lightbyte explain vm\n  lightbyte explain vm.disks"
    )]
    Explain(Explain),
    /// Brings something into the cluster from files
    #[command(subcommand)]
    Import(Import),
    /// Runs a whole cluster on this machine
    #[command(args_conflicts_with_subcommands = true, after_help = DEV_HELP)]
    Dev(Dev),
    /// Runs a server: the API, and the leader's loop when it is elected
    #[command(hide = true)]
    Server(Server),
    /// Runs the agent of a VM host
    #[command(hide = true)]
    Worker(Worker),
    /// Answers names of the cluster on a host (DNS)
    #[command(hide = true)]
    Dns(Dns),
    /// Prints the completions for a shell
    #[command(
        after_help = "Example: lightbyte completions bash > ~/.local/share/bash-completion/completions/lightbyte"
    )]
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The image; `lightbyte get images` lists them
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Name,
    /// The VM's name; made from the image's when left out
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u64>,
    /// Memory, such as 256MiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Size of the root disk, such as 2GiB; as large as the image's when left out
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<ByteSize>,
    /// A volume: NAME attaches one that is there, NAME:SIZE makes a blank one; mounted at /mnt/NAME, or at PATH; may be
    /// given several times
    #[arg(long = "volume", value_name = "NAME[:SIZE][:PATH]")]
    pub(crate) volumes: Vec<RunVolume>,
    /// A file with public keys that may log in as root; may be given several times
    #[arg(long = "ssh-key", value_name = "FILE")]
    pub(crate) ssh_keys: Vec<PathBuf>,
    /// A script that /bin/sh runs at its first boot
    #[arg(long, value_name = "FILE")]
    pub(crate) script: Option<PathBuf>,
    /// The network it is on
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<Name>,
    /// The address it must have; the next free one when left out
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<Ipv4Addr>,
    /// The worker that it goes to, or a label that its worker must have; may be given several times
    #[arg(long = "on", value_name = "WORKER|KEY=VALUE", value_parser = read_place)]
    pub(crate) on: Vec<(String, String)>,
    /// A label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = read_label)]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// How long a verb waits for what it asked.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Patience {
    /// Returns at once; `lightbyte wait` waits later
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = read_time)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// The object
    #[arg(value_name = "KIND/NAME", required = true)]
    pub(crate) target: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// A manifest, a directory of them, or - for standard input; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE", num_args = 1.., required_unless_present = "plan")]
    pub(crate) files: Vec<PathBuf>,
    /// Checks everything and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Makes the changes of a plan (`lightbyte plan -o json`), unless they would do something else by now
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "dry_run"])]
    pub(crate) plan: Option<PathBuf>,
    /// Deletes what has the labels of -l and is in no file
    #[arg(long, requires = "labels", conflicts_with = "plan")]
    pub(crate) prune: bool,
    /// The label of what belongs together, for --prune; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = read_label, requires = "prune")]
    pub(crate) labels: Vec<(String, String)>,
    /// Does not ask before something is deleted
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The objects
    #[arg(value_name = "KIND/NAME", required_unless_present = "files")]
    pub(crate) targets: Vec<String>,
    /// The objects of these manifests
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Does not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct Power {
    /// The VM
    #[arg(value_name = "VM", required = true)]
    pub(crate) target: Vec<String>,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The object
    #[arg(value_name = "KIND/NAME", required = true)]
    pub(crate) target: Vec<String>,
    /// What to wait for
    #[arg(long = "for", value_enum, default_value_t = Goal::Ready)]
    pub(crate) goal: Goal,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = read_time)]
    pub(crate) timeout: Duration,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Goal {
    /// What was asked last is reached
    Ready,
    /// It stands still, as asked
    Stopped,
    /// Nothing of it is left
    Deleted,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// KIND, KIND/NAME or NAME; everything when left out
    #[arg(value_name = "KIND[/NAME]")]
    pub(crate) targets: Vec<String>,
    /// Goes on with a line for each change of state
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A kind, or a field of it; all kinds when left out
    #[arg(value_name = "KIND[.FIELD]")]
    pub(crate) path: Option<String>,
}

impl Verb {
    /// The point in the past that is asked about, if not now.
    pub(crate) fn past(&self) -> Option<String> {
        match self {
            Verb::Get(Get { past, .. })
            | Verb::Describe(Describe { past, .. })
            | Verb::Why(Why { past, .. }) => past.at.clone(),
            Verb::Plan(Plan { at, .. }) => at.clone(),
            _ => None,
        }
    }
}

const EVENTS_HELP: &str = "\
What people call themselves is shown as unproven: `user@machine`, or LIGHTBYTE_WHO where that is set.
Examples:
  lightbyte events hello
  lightbyte events groups -w";

const DEV_HELP: &str = "\
Without a command it starts a cluster, says what to do next, and stays until Ctrl-C.
Examples:
  lightbyte dev --vmm fake
  lightbyte dev --state ~/lab --nodes 5 --detach
  lightbyte dev kill n2
  lightbyte dev delete --state ~/lab";

#[derive(Debug, Args)]
pub(crate) struct Dev {
    #[command(subcommand)]
    pub(crate) command: Option<DevCommand>,
    #[command(flatten)]
    pub(crate) start: DevStart,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DevStart {
    /// Where the cluster is kept; without it everything ends with Ctrl-C
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// How many hosts; the first three run etcd and a server
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) nodes: usize,
    /// The CPUs that each host offers to VMs
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) host_cpus: u64,
    /// The memory that each host offers to VMs
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    pub(crate) host_memory: ByteSize,
    /// How VMs run
    #[arg(long, value_enum, default_value_t = VmmWord::Qemu)]
    pub(crate) vmm: VmmWord,
    /// Lets VMs reach what this machine reaches; needs root
    #[arg(long)]
    pub(crate) nat: bool,
    /// Returns when the hosts are ready; needs --state
    #[arg(long, requires = "state")]
    pub(crate) detach: bool,
    /// The etcd program; the one that `cargo xtask setup` fetched when left out
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd: Option<PathBuf>,
    /// The images of real VMs; those that `cargo xtask images` made when left out
    #[arg(long, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

/// How VMs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VmmWord {
    /// In memory: everything is real but the machines
    Fake,
    /// QEMU microVMs
    Qemu,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Shows the hosts of a running cluster
    Status(DevState),
    /// Stops a cluster; one with a named state is kept
    Stop(DevState),
    /// Ends everything on a host at once, as if its power were cut
    Kill(DevHost),
    /// Restores the power of a host
    Start(DevHost),
    /// Stops a cluster and removes everything of it
    Delete(DevState),
}

#[derive(Debug, Args)]
pub(crate) struct DevState {
    /// Which cluster; the one that runs without a named state when left out
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DevHost {
    /// The host, such as n2
    #[arg(value_name = "HOST")]
    pub(crate) host: String,
    #[command(flatten)]
    pub(crate) state: DevState,
}

fn read_time(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(Span::duration).map_err(|error| error.to_string())
}

fn read_place(text: &str) -> Result<(String, String), String> {
    match text.contains('=') {
        true => read_label(text),
        false => text
            .parse::<Name>()
            .map(|worker| (WORKER_LABEL.to_owned(), worker.to_string()))
            .map_err(|error| error.to_string()),
    }
}

fn read_label(text: &str) -> Result<(String, String), String> {
    let is_plain = |text: &str| {
        text.chars().all(|character| character.is_ascii_alphanumeric() || "-_./".contains(character))
    };
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && is_plain(key) && is_plain(value) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("a label is KEY=VALUE, of letters, digits, -, _, . and /".to_owned()),
    }
}

/// Words of other tools that people's fingers know, and the verbs that they mean here.
const ALIASES: [(&str, &[&str]); 3] = [("ls", &["get"]), ("ps", &["get", "vms"]), ("rm", &["delete"])];

/// Replaces an alias by what it means, and says which verb that is.
pub(crate) fn expand_alias(words: Vec<OsString>) -> (Vec<OsString>, Option<String>) {
    let Some(place) = place_of_verb(&words) else { return (words, None) };
    let Some((alias, meaning)) = ALIASES.iter().find(|(alias, _)| words[place] == **alias) else {
        return (words, None);
    };
    let note = format!("`{alias}` is `lightbyte {}`", meaning.join(" "));
    let mut expanded = words;
    expanded.splice(place..=place, meaning.iter().map(OsString::from));
    (expanded, Some(note))
}

/// Where the verb stands: the first word after the program that is neither an option nor the value of `--context`.
fn place_of_verb(words: &[OsString]) -> Option<usize> {
    let mut place = 1;
    while place < words.len() {
        match words[place].to_str() {
            Some("--context") => place += 2,
            Some(word) if word.starts_with('-') => place += 1,
            _ => return Some(place),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_has_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_guide_names_every_verb() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/cli.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let command = Arguments::command();
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let name = verb.get_name();
            assert!(
                guide.contains(&format!("`lightbyte {name}")),
                "docs/guide/cli.md does not tell of `{name}`"
            );
        }
    }

    #[test]
    fn aliases_say_what_they_mean() {
        let check = |text: &str, expect: &str, note: Option<&str>| {
            let words = text.split(' ').map(OsString::from).collect();
            let (found, said) = expand_alias(words);
            let found: Vec<_> = found.iter().map(|word| word.to_string_lossy()).collect();
            assert_eq!((found.join(" ").as_str(), said.as_deref()), (expect, note), "{text}");
        };
        check("lightbyte ls", "lightbyte get", Some("`ls` is `lightbyte get`"));
        check("lightbyte ps hello", "lightbyte get vms hello", Some("`ps` is `lightbyte get vms`"));
        check(
            "lightbyte --context ls rm vm/a",
            "lightbyte --context ls delete vm/a",
            Some("`rm` is `lightbyte delete`"),
        );
        check("lightbyte get ps", "lightbyte get ps", None);
        check("lightbyte", "lightbyte", None);
        check("lightbyte --help", "lightbyte --help", None);
    }

    #[test]
    fn labels_and_times_are_checked_where_they_are_typed() {
        let check = |text: &str, expect: bool| assert_eq!(read_label(text).is_ok(), expect, "{text}");
        check("app=web", true);
        check("app.k8s.io/name=", true);
        check("app", false);
        check("=web", false);
        check("a&b=c", false);
        assert_eq!(read_time("90s"), Ok(Duration::from_secs(90)));
        assert!(read_time("90").is_err());
    }
}
