//! What is done once in the life of a root disk: keys, files, then a script.
//!
//! ```text
//! nothing asked ──> nothing
//! asked, no marker ──> keys and files ──(answered: ready)──> script ──ended, well or not──> marker
//! marker ──> nothing; what it says is told
//! ```
//!
//! The marker is written last and durably, so what a crash cuts short is done again as a whole.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lightbyte_guest::protocol::{FirstBoot, FirstBootState, NewFile};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::boot::read_limited;
use crate::{login, mounts};

/// Says that all is done, and what went wrong.
const MARKER: &str = "/var/lib/lightbyte/first-boot.json";

/// Longest marker that is read.
const MARKER_BYTES_MAX: u64 = 16 * 1024;

/// Longest error that is kept.
const ERROR_BYTES_MAX: usize = 1024;

/// Where the script lies while it runs.
const SCRIPT: &str = "/run/lightbyte/first-boot";

/// How long the script may run.
const SCRIPT_MAX: Duration = Duration::from_secs(60 * 60);

/// Keys and files that one VM may have; the body's limit bounds their size.
const KEYS_MAX: usize = 256;
const FILES_MAX: usize = 256;

/// Longest list of keys of an image that is kept.
const KEYS_BYTES_MAX: u64 = 1 << 20;

/// Mode of files that say none.
const FILE_MODE: u32 = 0o644;

/// What an earlier boot has done; nothing if none has.
pub(crate) fn before() -> Option<FirstBootState> {
    let text = read_limited(Path::new(MARKER), MARKER_BYTES_MAX).ok()?;
    // A marker that says nothing readable is one all the same.
    let found = serde_json::from_str(&text).unwrap_or_default();
    Some(FirstBootState { done: true, ..found })
}

/// Writes keys and files. Waits for the disk.
///
/// # Errors
/// The first; what can be written is.
pub(crate) fn write(wanted: &FirstBoot) -> Result<()> {
    ensure!(wanted.ssh_keys.len() <= KEYS_MAX, "more than {KEYS_MAX} keys");
    ensure!(wanted.files.len() <= FILES_MAX, "more than {FILES_MAX} files");
    let home = login::environment().remove("HOME").unwrap_or_default();
    let mut first = write_keys(Path::new(&home), &wanted.ssh_keys).context("write the keys");
    for file in &wanted.files {
        first = first.and(write_file(file).with_context(|| format!("write `{}`", file.path)));
    }
    first
}

/// Adds keys to those that may log in as root.
fn write_keys(home: &Path, keys: &[String]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    for key in keys {
        ensure!(!key.contains(['\n', '\r', '\0']), "a key has more than one line");
    }
    let directory = home.join(".ssh");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).context("make `.ssh`")?;
    let path = directory.join("authorized_keys");
    let mut text = read_limited(&path, KEYS_BYTES_MAX).unwrap_or_default();
    for key in keys.iter().map(|key| key.trim()).filter(|key| !key.is_empty()) {
        if text.lines().all(|line| line.trim() != key) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(key);
            text.push('\n');
        }
    }
    replace(&path, text.as_bytes(), 0o600)
}

fn write_file(file: &NewFile) -> Result<()> {
    mounts::check_path(&file.path)?;
    ensure!(!file.path.ends_with('/'), "the path is that of a directory");
    ensure!(file.mode <= 0o7777, "{:o} is no mode", file.mode);
    let path = Path::new(&file.path);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).context("make its directory")?;
    }
    replace(path, file.content.as_bytes(), if file.mode == 0 { FILE_MODE } else { file.mode })
}

/// Replaces a file as a whole, and waits until it is on the disk.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let (Some(name), Some(directory)) = (path.file_name(), path.parent()) else { bail!("it has no name") };
    let new = directory.join(format!(".{}.lightbyte-new", name.to_string_lossy()));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .context("create it")?;
    let written = file
        .write_all(content)
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.context("write it")
}

/// Runs the script, if there is one, and writes the marker. `error` is what went wrong before.
pub(crate) async fn finish(agent: Rc<Agent>, script: String, error: String) {
    let ran = if script.trim().is_empty() { Ok(()) } else { run(&agent, &script).await };
    let mut error = match ran {
        Err(ran) if error.is_empty() => format!("{ran:#}"),
        _ => error,
    };
    let end = (0..=ERROR_BYTES_MAX.min(error.len())).rev().find(|end| error.is_char_boundary(*end));
    error.truncate(end.unwrap_or(0));
    if !error.is_empty() {
        println!("lightbyte-guest: first boot: {error}");
    }
    let mut state = FirstBootState { done: true, error };
    let mark = state.clone();
    let marked = tokio::task::spawn_blocking(move || write_marker(&mark)).await;
    if let Ok(Err(failed)) = marked {
        println!("lightbyte-guest: first boot: {failed:#}");
        state = FirstBootState { done: false, error: format!("{failed:#}") };
    }
    agent.first_boot.replace(state);
}

fn write_marker(state: &FirstBootState) -> Result<()> {
    let directory = Path::new(MARKER).parent().context("find its directory")?;
    fs::create_dir_all(directory).context("make the marker's directory")?;
    // What the script wrote is to be there when the marker is.
    rustix::fs::sync();
    replace(Path::new(MARKER), &serde_json::to_vec(state)?, FILE_MODE).context("write the marker")
}

/// What it says goes where the agent's own words go: to the console, and to the journal where there is one.
async fn run(agent: &Rc<Agent>, script: &str) -> Result<()> {
    let directory = Path::new(SCRIPT).parent().context("find its directory")?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).context("make its directory")?;
    // It may hold what others should not read.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(SCRIPT);
    file.and_then(|mut file| file.write_all(script.as_bytes())).context("write the script")?;
    let mut command = Command::new("/bin/sh");
    command.arg(SCRIPT).env_clear().envs(login::environment()).current_dir("/").stdin(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.spawn().context("start the script")?;
    let exit = agent.children.register(child.id());
    let code = timeout(SCRIPT_MAX, exit).await;
    if code.is_err() {
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("read its process id")?;
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = fs::remove_file(SCRIPT);
    match code {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(code)) => bail!("the script ended with code {code}"),
        Ok(Err(_)) => bail!("nobody knows how the script ended"),
        Err(_) => bail!("the script was ended after {} minutes", SCRIPT_MAX.as_secs() / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> std::path::PathBuf {
        let directory = std::env::temp_dir().join(format!("lightbyte-first-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn keys_are_added_once_and_are_for_root_alone() {
        let home = directory("keys");
        let path = home.join(".ssh/authorized_keys");
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        write_keys(&home, &[]).unwrap();
        assert!(!path.exists());
        write_keys(&home, &keys(&["ssh-ed25519 AAAA a ", ""])).unwrap();
        fs::write(&path, "ssh-ed25519 AAAA a").unwrap();
        write_keys(&home, &keys(&["ssh-ed25519 BBBB b", "ssh-ed25519 AAAA a"])).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(home.join(".ssh")).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(write_keys(&home, &keys(&["a\ncommand=\"x\" b"])).is_err());
        fs::remove_dir_all(&home).unwrap();
    }

    #[test]
    fn files_are_replaced_whole_with_their_modes() {
        let root = directory("files");
        let path = root.join("deep/er/file").display().to_string();
        let file = |mode, content: &str| NewFile { path: path.clone(), mode, content: content.to_owned() };
        write_file(&file(0, "a")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        write_file(&file(0o4750, "b")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o4750);
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert_eq!(fs::read_dir(root.join("deep/er")).unwrap().count(), 1, "nothing else is left");
        for bad in [
            NewFile { path: "relative".into(), ..NewFile::default() },
            NewFile { path: format!("{path}/"), ..NewFile::default() },
            NewFile { path: format!("{}/../up", root.display()), ..NewFile::default() },
            NewFile { mode: 0o10000, ..file(0, "") },
            NewFile { path: root.join("deep").display().to_string(), ..NewFile::default() },
        ] {
            assert!(write_file(&bad).is_err(), "{bad:?}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
