//! The same for an ordinary user, who reaches servers and VMs by ports of the loopback.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bed::{Bed, path, skip, until};
use crate::real::{machines, missing, page_at};

/// Nobody in particular: a user without a home, a group or a right.
const USER: u32 = 65_534;

/// A device like /dev/net/tun, for everybody or for nobody, that is removed at the end.
struct Tun(PathBuf);

impl Tun {
    fn new(test: &str, mode: &str) -> Tun {
        let tun = std::env::temp_dir().join(format!("lb-tun-{test}-{}", std::process::id()));
        let made = Command::new("mknod").args(["-m", mode, path(&tun), "c", "10", "200"]).status();
        assert!(made.expect("mknod runs").success(), "a device");
        Tun(tun)
    }

    /// The words that run others as the user, for whom /dev/net/tun is this device.
    fn words(&self) -> Vec<String> {
        let script = format!(
            "mount --bind {} /dev/net/tun && \
             exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$0\" \"$@\"",
            path(&self.0)
        );
        ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into()
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A place for the user's lab; `None` where there can be none, after saying why.
fn bed(test: &str, name: &str, tun: &Tun, words: &[&str]) -> Option<Bed> {
    let through = tun.words();
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let images = std::env::var_os("LIGHTBYTE_IMAGES").unwrap_or_default();
    let bed = Bed::new(name, words)?.through(&through).given_to(USER, Path::new(&images));
    let namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"];
    let (program, arguments) = through.split_first()?;
    let tried = Command::new(program).args(arguments).args(namespaces).stdin(Stdio::null()).output();
    let tried = tried.expect("unshare runs");
    if tried.status.success() {
        return Some(bed);
    }
    skip(test, &format!("no namespaces for ordinary users here: {}", String::from_utf8_lossy(&tried.stderr)));
    None
}

/// Where the first VM of the lab is reached from outside, as `dev status` tells people.
fn first_vm(bed: &Bed) -> String {
    let status = bed.ok(&["dev", "status", "--state", path(&bed.state())]);
    let url =
        status.split_whitespace().find(|word| word.starts_with("http://127.0.0.1:") && word.ends_with('/'));
    let url = url.unwrap_or_else(|| panic!("a port of the first VM in {status}"));
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

/// Every process of the user that belongs to the lab.
fn processes(bed: &Bed) -> Vec<String> {
    let state = bed.state().display().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let words = processes.filter_map(|process| {
        let words = std::fs::read(process.join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&words).replace('\0', " "))
    });
    words.filter(|words| words.contains(&state)).collect()
}

#[test]
fn an_ordinary_user_has_real_vms_behind_ports_of_the_loopback() {
    let test = "an_ordinary_user_has_real_vms_behind_ports_of_the_loopback";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let tun = Tun::new("open", "666");
    let Some(bed) = bed(test, "user", &tun, &["--vmm", "qemu"]) else { return };
    let mut supervisor = bed.start_as_child();
    bed.ok(&["run", "demo", "--name", "hello"]);
    let address = first_vm(&bed);
    let page = || page_at(&address).filter(|text| text.contains("hello"));
    assert!(page().is_some(), "the page answers behind {address}");

    // Power of its host: cut twice, given twice.
    let worker = bed.json(&["get", "vm/hello"])["status"]["worker"].as_str().unwrap_or_default().to_owned();
    let agent = || bed.process(&format!("{worker}-worker"));
    let first = agent();
    bed.dev("kill", &worker);
    bed.dev("kill", &worker);
    assert!(machines(&bed).is_empty() && page().is_none(), "its power is cut");
    bed.dev("start", &worker);
    until("its agent is back", || agent() != first);
    let second = agent();
    bed.dev("start", &worker);
    until("the VM is back", || page().is_some());
    assert_eq!(agent(), second, "what has power is left alone");

    // The supervisor dies, and leaves everything running where nobody reaches it any more.
    supervisor.kill().expect("the supervisor is killed");
    supervisor.wait().expect("and reaped");
    assert_eq!(machines(&bed).len(), 1);
    assert!(page().is_none());
    bed.start();
    assert_eq!(first_vm(&bed), address, "the ports stay");
    bed.ok(&["wait", "vm/hello", "--for", "ready"]);
    assert!(page().is_some() && machines(&bed).len() == 1);

    bed.ok(&["dev", "delete", "--state", path(&bed.state())]);
    assert_eq!(processes(&bed), Vec::<String>::new());
    assert!(!bed.state().exists());
}

#[test]
fn an_ordinary_user_is_told_what_is_in_the_way() {
    let test = "an_ordinary_user_is_told_what_is_in_the_way";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let tun = Tun::new("closed", "600");
    let Some(bed) = bed(test, "closed", &tun, &[]) else { return };
    let state = bed.state();
    let (code, errors) = bed.fails(&["dev", "--state", path(&state)]);
    assert!(code == 1 && errors.contains("`sudo chmod 666 /dev/net/tun`"), "{errors}");
    let (code, errors) = bed.fails(&["dev", "--nat", "--state", path(&state)]);
    assert!(code == 1 && errors.contains("--nat needs root"), "{errors}");
}
