//! A bare Debian with what README presupposes and nothing else: Rust by rustup, `cc`, `git` for the clone, and `curl`,
//! which rustup's own line and README's need.
//!
//! How this machine reaches its registries (sources, proxies, authorities) is copied from its own configuration, so no
//! host is named here, and behind a mirror it works as well as this machine does.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::room::Room;
use crate::process;
use crate::setup::mirror;
use crate::workspace::Workspace;

/// `cc` with the headers of C, not build-essential: what building needs beyond that, the set-up has to bring.
const PACKAGES: &str = "ca-certificates,curl,gcc,git,libc6-dev";

/// Where the clone is, within the tree.
const CLONE: &str = "/root/lightbyte";

/// Where users of Debian find programs, with rustup's directory first.
const PATH: &str = "/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What rustup puts beside itself: links to it.
const PROXIES: &[&str] =
    &["cargo", "cargo-clippy", "cargo-fmt", "clippy-driver", "rustc", "rustdoc", "rustfmt"];

/// Variables that say how registries are reached; everything else of the environment stays outside.
const PASSED_ON_BEGINNINGS: &[&str] = &["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_SOURCE_"];

/// The same, by their ends: `http_proxy`, `NO_PROXY`.
const PASSED_ON_ENDS: &[&str] = &["_proxy", "_PROXY"];

/// Gives the tree what a running machine has. Run within the room, so all of it goes with the room.
///
/// The tree is mounted on itself because `ip netns exec` changes the mount `/`, which a plain directory is not. Shared
/// memory and `/run` are its own: sockets and namespaces' names of this machine's labs are none of its business.
const MOUNTS: &str = r#"
set -eu
tree=$1 rustup=$2
mount --bind "$tree" "$tree"
for directory in /dev /sys; do
    mount --rbind "$directory" "$tree$directory"
    mount --make-rslave "$tree$directory"
done
mount -t tmpfs tmpfs "$tree/dev/shm"
mount -t tmpfs tmpfs "$tree/run"
mount -t proc proc "$tree/proc"
mkdir -p "$tree$rustup"
mount --bind "$rustup" "$tree$rustup"
mount -o remount,bind,ro "$tree$rustup"
"#;

/// The bare Debian, in a room.
pub(super) struct Tree<'a> {
    room: &'a Room,
    root: PathBuf,
    rustup: PathBuf,
}

impl<'a> Tree<'a> {
    /// Makes it at `root`, which must not be there yet.
    pub(super) fn make(room: &'a Room, root: PathBuf) -> Result<Self> {
        let rustup = rustup_home().context("find rustup's directory")?;
        let mut command = room.command("mmdebstrap");
        command.args(["--mode=root", "--variant=apt", "--quiet", &format!("--include={PACKAGES}")]);
        command.args(mirror::options()?.into_iter().map(|option| format!("--aptopt={option}")));
        command.arg(mirror::SUITE).arg(&root).args(mirror::sources()?);
        process::run(&mut command).context("make a bare Debian")?;
        let tree = Self { room, root, rustup };
        tree.bring_rust()?;
        tree.bring_connections()?;
        let mut mounts = room.command("sh");
        mounts.args(["-c", MOUNTS, "mounts"]).arg(&tree.root).arg(&tree.rustup);
        process::output(&mut mounts).context("mount what a machine has")?;
        process::output(&mut tree.bare("update-ca-certificates"))?;
        Ok(tree)
    }

    /// Clones the checkout's HEAD into it, as a user would. What is not committed stays outside.
    pub(super) fn clone_head(&self, workspace: &Workspace) -> Result<()> {
        let mut git = workspace.git();
        // The other end runs without our `-c`, so it gets its own.
        git.args(["clone", "--quiet", "--no-hardlinks", "--upload-pack=git -c safe.directory=* upload-pack"]);
        git.arg(&workspace.root).arg(self.inside(CLONE));
        process::run(&mut git)
    }

    /// A program in the clone, as root's shell would start it.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.bare("env");
        command.arg(format!("--chdir={CLONE}")).args(words);
        command
    }

    /// A program in the tree, with an environment that is not ours.
    fn bare(&self, program: &str) -> Command {
        let mut command = self.room.command("chroot");
        command.arg(&self.root).args(["env", "--ignore-environment", "HOME=/root", "LANG=C.UTF-8"]);
        command.arg(format!("PATH={PATH}")).arg(format!("RUSTUP_HOME={}", self.rustup.display()));
        let passed_on = env::vars().filter(|(name, _)| is_passed_on(name));
        command.args(passed_on.map(|(name, value)| format!("{name}={value}")));
        command.arg(program);
        command
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// rustup's program, with a home of cargo's that holds nothing else but the machine's configuration. The toolchain
    /// itself is mounted, read-only: half a gigabyte that need not be copied, and that nobody should change.
    fn bring_rust(&self) -> Result<()> {
        let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
        let home = home.context("find cargo's directory")?;
        let bin = self.inside("/root/.cargo/bin");
        fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
        copy(&home.join("bin/rustup"), &bin.join("rustup"))?;
        for proxy in PROXIES {
            std::os::unix::fs::symlink("rustup", bin.join(proxy)).with_context(|| format!("link {proxy}"))?;
        }
        let configuration = home.join("config.toml");
        if configuration.is_file() {
            copy(&configuration, &self.inside("/root/.cargo/config.toml"))?;
        }
        Ok(())
    }

    /// Names and authorities that this machine trusts beside Debian's.
    fn bring_connections(&self) -> Result<()> {
        for file in ["/etc/resolv.conf", "/etc/hosts"].into_iter().filter(|file| Path::new(file).is_file()) {
            copy(Path::new(file), &self.inside(file))?;
        }
        let authorities = "/usr/local/share/ca-certificates";
        let into = self.inside(authorities);
        fs::create_dir_all(&into).with_context(|| format!("create {}", into.display()))?;
        for entry in fs::read_dir(authorities).into_iter().flatten().flatten() {
            copy(&entry.path(), &into.join(entry.file_name()))?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    // A link in the tree would lead to a file of this machine.
    match fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", to.display()));
        }
        _ => {}
    }
    fs::copy(from, to).map(|_| ()).with_context(|| format!("copy {}", from.display()))
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

fn rustup_home() -> Option<PathBuf> {
    let named = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    named.or_else(|| Some(home()?.join(".rustup"))).filter(|path| path.join("toolchains").is_dir())
}

fn is_passed_on(name: &str) -> bool {
    PASSED_ON_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || PASSED_ON_ENDS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reaches_registries_gets_in() {
        let table = [
            ("https_proxy", true),
            ("NO_PROXY", true),
            ("CARGO_NET_GIT_FETCH_WITH_CLI", true),
            ("CARGO_TARGET_DIR", false),
            ("RUSTFLAGS", false),
            ("PATH", false),
        ];
        for (name, expected) in table {
            assert_eq!(is_passed_on(name), expected, "{name}");
        }
    }
}
