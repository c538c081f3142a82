//! Who this worker is: a uid that it minted itself, kept in its state directory.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use lightbyte_api::{Uid, WorkerId};

const FILE: &str = "worker-uid";
/// Changes with every boot of the kernel (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The uid in `state`; a new one is made on the first start. A file that cannot be read is an error, never a reason
/// for a new identity: the VMs of the old one are on this host.
///
/// # Errors
/// When the file is damaged, or the directory cannot be written.
pub fn load_or_make(state: &Path) -> Result<WorkerId> {
    fs::create_dir_all(state).with_context(|| format!("create {}", state.display()))?;
    let path = state.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(uid) => Ok(uid),
            Err(error) => bail!("{} is damaged: {error}", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let uid = WorkerId::new(Uid::from(fresh_uuid()));
            write_durably(&path, &format!("{uid}\n")).with_context(|| format!("write {}", path.display()))?;
            Ok(uid)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn fresh_uuid() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

/// Either the old content or the new is there after a crash, whole: a temporary name, fsync, rename, fsync.
fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// The identity of this boot of the kernel.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> Result<String> {
    Ok(fs::read_to_string(BOOT_ID).with_context(|| format!("read {BOOT_ID}"))?.trim().to_owned())
}
