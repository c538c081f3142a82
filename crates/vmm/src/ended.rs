//! What VMs said whose end was asked for: kept for a while, for whoever asks why.
//!
//! ```text
//!   <state>/ended/<uid>/name, console.log, console.log.1, console.begin, console.life
//! ```
//!
//! Each has two MiB at the most. Which are still to be found is a matter of their age, and not of a sweep in time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use lightbyte_api::wire::EndedVm;
use lightbyte_api::{Name, Timestamp, Uid, VmId};

use crate::console;

/// How long it is kept.
pub const ENDED_KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Of how many VMs it is kept: the newest.
pub const ENDED_MAX: usize = 256;

/// The file that holds the VM's name; its age is that of the end.
const NAME: &str = "name";

/// Held by whoever keeps or sweeps: half of what is kept is not to be swept.
static KEEPING: Mutex<()> = Mutex::new(());

/// The directory of one.
pub(crate) fn directory(place: &Path, uid: Uid) -> PathBuf {
    place.join(uid.to_string())
}

/// Moves what the VM said from its own directory to `place`. Without a console nothing happens.
///
/// # Errors
/// When a file cannot be written or moved.
pub(crate) fn keep(place: &Path, of_vm: &Path, uid: Uid, name: &Name) -> io::Result<()> {
    let _one_at_a_time = KEEPING.lock().unwrap_or_else(PoisonError::into_inner);
    let console = of_vm.join(console::CONSOLE);
    if console.exists() {
        // Nobody may have looked at it since its machine ended.
        let _ = console::rotate(&console);
        let to = directory(place, uid);
        fs::create_dir_all(&to)?;
        fs::write(to.join(NAME), name.as_str())?;
        // The console itself is the last: one that is killed in between begins again.
        for file in console::files(of_vm) {
            let Some(file_name) = file.file_name() else { continue };
            match fs::rename(&file, to.join(file_name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    sweep_alone(place);
    Ok(())
}

/// Removes what is too old, or too much.
pub(crate) fn sweep(place: &Path) {
    let _one_at_a_time = KEEPING.lock().unwrap_or_else(PoisonError::into_inner);
    sweep_alone(place);
}

fn sweep_alone(place: &Path) {
    let mut all = list(place);
    all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let now = SystemTime::from(Timestamp::now());
    let old = |at: &Option<SystemTime>| at.is_none_or(|at| is_old(at, now));
    let surplus = all.iter().enumerate().filter(|(index, (at, _))| *index >= ENDED_MAX || old(at));
    for (_, (_, path)) in surplus {
        // What cannot be removed now is looked at again.
        let _ = fs::remove_dir_all(path);
    }
}

/// The newest VM of that name.
pub(crate) fn find(place: &Path, name: &Name) -> Option<EndedVm> {
    let now = SystemTime::from(Timestamp::now());
    let found = list(place).into_iter().filter_map(|(at, path)| {
        let at = at.filter(|at| !is_old(*at, now))?;
        let is_it = fs::read_to_string(path.join(NAME)).is_ok_and(|found| found == name.as_str());
        let uid: Uid = path.file_name()?.to_str()?.parse().ok().filter(|_| is_it)?;
        Some((at, uid))
    });
    let (at, uid) = found.max_by_key(|(at, _)| *at)?;
    Some(EndedVm { vm: VmId::new(uid), at: Timestamp::try_from(at).ok()? })
}

/// All of them, with the time of their end if that is known.
fn list(place: &Path) -> Vec<(Option<SystemTime>, PathBuf)> {
    let Ok(found) = fs::read_dir(place) else { return Vec::new() };
    let paths = found.filter_map(|entry| Some(entry.ok()?.path()));
    let at = |path: &Path| fs::metadata(path.join(NAME)).and_then(|found| found.modified()).ok();
    paths.map(|path| (at(&path), path)).collect()
}

fn is_old(at: SystemTime, now: SystemTime) -> bool {
    now.duration_since(at).is_ok_and(|age| age > ENDED_KEPT_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_name_is_found_for_a_week() {
        let place = std::env::temp_dir().join(format!("lightbyte-ended-{}", std::process::id()));
        let name = Name::new("web").expect("a name");
        let end = |uid: u128, ago: Duration| {
            let of_vm = place.join("vm");
            fs::create_dir_all(&of_vm).expect("make a directory");
            fs::write(of_vm.join(console::CONSOLE), uid.to_string()).expect("write");
            let ended = place.join("ended");
            keep(&ended, &of_vm, Uid::from_bits(uid), &name).expect("keep it");
            let file = directory(&ended, Uid::from_bits(uid)).join(NAME);
            let file = fs::File::options().write(true).open(file).expect("its name");
            file.set_modified(SystemTime::from(Timestamp::now()) - ago).expect("set its age");
            assert!(!of_vm.join(console::CONSOLE).exists());
        };
        let ended = place.join("ended");
        assert_eq!(find(&ended, &name), None);
        let (hour, week) = (Duration::from_secs(3_600), ENDED_KEPT_FOR);
        end(1, week + hour);
        assert_eq!(find(&ended, &name), None, "too old");
        end(2, 2 * hour);
        end(3, hour);
        end(4, 3 * hour);
        assert_eq!(find(&ended, &name).map(|found| found.vm.uid()), Some(Uid::from_bits(3)));
        assert_eq!(find(&ended, &Name::new("other").expect("a name")), None);
        assert!(!directory(&ended, Uid::from_bits(1)).exists(), "the next end swept it");
        // A VM that said nothing leaves nothing.
        keep(&ended, &place.join("vm"), Uid::from_bits(5), &name).expect("nothing to keep");
        assert!(!directory(&ended, Uid::from_bits(5)).exists());
        fs::remove_dir_all(&place).expect("remove it");
    }
}
