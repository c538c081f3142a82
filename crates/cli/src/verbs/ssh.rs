//! `lightbyte ssh`: the system's `ssh`, by the cluster's own way into the guest.
//!
//! Who the guest is, the cluster knows already, so nobody is asked about its key: the first one is taken and kept by the
//! VM's uid. A VM that is made anew under the same name has another uid, and no warning of an older key comes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;

use crate::arguments::Ssh;
use crate::cluster::Cluster;
use crate::context;
use crate::failure::{Code, Exit, Failure};
use crate::remote::{self, AGENT};
use crate::target;

/// Where ssh servers listen.
const PORT: &str = "22";

/// Keys of guests, beside the contexts.
const KNOWN_HOSTS: &str = "known_hosts";

pub(crate) async fn run(cluster: &Cluster, words: &Ssh, context: Option<&str>) -> Result<Exit> {
    let object = target::read_vm(std::slice::from_ref(&words.target))?;
    let found = cluster.object(&object).await.with_context(|| format!("look for `{object}`"))?;
    let (output, _unheard) = mpsc::channel(1);
    let reached = remote::run(cluster, &object, &[AGENT, "reaches", PORT], None, output).await?;
    if reached.code != 0 {
        return Err(Failure::new(Code::Error, format!("no ssh server listens in `{object}`"))
            .hint(format!("`lightbyte exec {object}` opens a shell without one"))
            .into());
    }
    let known_hosts = context::directory()?.join(KNOWN_HOSTS);
    if let Some(directory) = known_hosts.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("make `{}`", directory.display()))?;
    }
    let program = std::env::current_exe().context("find this program")?;
    let proxy = proxy(&program, context, &object.to_string());
    let mut ssh = Command::new("ssh");
    ssh.args(options(&proxy, &found.uid.to_string(), &known_hosts));
    ssh.args(["-l", &words.login]);
    for identity in &words.identity {
        ssh.arg("-i").arg(identity);
    }
    ssh.arg(object.name.as_str()).args(&words.command);
    let status = match ssh.status() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::new(Code::Error, "there is no `ssh` on this machine")
                .hint("install it (Debian's package is openssh-client)")
                .into());
        }
        status => status.context("start ssh")?,
    };
    Ok(Exit::of_command(status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(u32::MAX)))
}

/// Settings of ssh (ssh_config(5)).
fn options(proxy: &str, uid: &str, known_hosts: &Path) -> Vec<String> {
    let settings = [
        format!("ProxyCommand={proxy}"),
        format!("HostKeyAlias=lightbyte-{uid}"),
        format!("UserKnownHostsFile={}", quoted_for_settings(known_hosts)),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        "StrictHostKeyChecking=accept-new".to_owned(),
        "CheckHostIP=no".to_owned(),
        // It would say that a key was added, each first time.
        "LogLevel=ERROR".to_owned(),
    ];
    settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect()
}

/// A command for the shell that ssh gives it to, in which ssh itself replaces what follows a `%`.
fn proxy(program: &Path, context: Option<&str>, object: &str) -> String {
    let mut words = vec![quoted(&program.to_string_lossy())];
    if let Some(context) = context {
        words.extend(["--context".to_owned(), quoted(context)]);
    }
    words.extend(["forward".to_owned(), "--stdio".to_owned(), quoted(object), PORT.to_owned()]);
    words.join(" ").replace('%', "%%")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Names of files are lists there, and `%` and `~` mean something.
fn quoted_for_settings(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_place_of_this_program_survives_the_shell_and_ssh() {
        let proxy = proxy(Path::new("/a b/it's/100%/lightbyte"), Some("de v"), "vm/a");
        assert_eq!(proxy, r"'/a b/it'\''s/100%%/lightbyte' --context 'de v' forward --stdio 'vm/a' 22");
        let options = options(&proxy, "u1", Path::new("/home/x y/known_hosts"));
        assert!(options.contains(&"HostKeyAlias=lightbyte-u1".to_owned()));
        assert!(options.contains(&"UserKnownHostsFile=\"/home/x y/known_hosts\"".to_owned()));
    }
}
