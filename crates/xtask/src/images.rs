//! `cargo xtask images`: builds images with a guest agent of this checkout: the demo and that of load balancers from the
//! downloaded kernel and busybox, and when asked `debian`, a whole one, from Debian's packages.
//!
//! What an image is made of is for crates/image to know; here its inputs are brought together. When nothing has changed
//! this takes a fraction of a second for the demo, and a second for Debian.

mod blobs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::profile;
use crate::setup::{self, Cache, Consent, Scope, mirror};
use crate::workspace::{PROFILE, Workspace};
use crate::{WrongWords, flags};

/// Images' names, and their directories'.
const DEMO: &str = "demo";
const PROXY: &str = "proxy";
const DEBIAN: &str = "debian";

/// Crates, and their binaries, of what runs in guests.
const AGENT_CRATE: &str = "lightbyte-guest";
const PROXY_CRATE: &str = "lightbyte-proxy";

/// Profile of what runs in guests.
const GUEST_PROFILE: &str = "guest";

/// Profile of the proxy in images that are to be used.
const PROXY_PROFILE: &str = "proxy";

/// Named although it is this machine's own: cargo then keeps what is linked statically in a folder of its own, and does
/// not link build scripts statically.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What is in the Debian beside what every Debian has: what makes it a machine, and what people expect to find. dbus and
/// sessions because without them `systemctl reboot` complains, though it works.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,udev,kmod,openssh-server,iproute2,iputils-ping,procps,e2fsprogs,\
                        ca-certificates,netbase,sudo,less,curl,nano,vim-tiny";

/// Left out of it: translations and manuals, half of its size.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Run in the tree, as root of it, before it is packed: `$1` is the tree. What depmod makes lets `modprobe` find the
/// kernel's modules.
const FINISH: &str = r#"chown -R 0:0 "$1/usr/lib/modules" && chroot "$1" depmod VERSION"#;

/// How the proxy is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speed {
    /// Soon, and with its assertions: for tests and labs, which do not measure it. That of a lab must not cost whoever starts
    /// one for the first time as much as all the rest.
    OfBuilding,
    /// As quick as it can be. From nothing it takes two cores three minutes, and after each change one core half of that.
    OfRunning,
}

impl Speed {
    const fn profile(self) -> &'static str {
        match self {
            Self::OfBuilding => PROFILE,
            Self::OfRunning => PROXY_PROFILE,
        }
    }
}

/// `cargo xtask images [demo] [proxy] [debian] [--yes]`
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let flags = flags(words, &[DEMO, PROXY, DEBIAN, "--yes"])?;
    if !cfg!(target_arch = "x86_64") {
        return Err(WrongWords::error("images are made for x86_64 on x86_64 alone so far"));
    }
    let consent = Consent::from_flags(&flags);
    let cache = setup::ensure(Scope::Everything, consent)?;
    let is_any_named = flags.iter().any(|flag| *flag != "--yes");
    let is_wanted = |name| flags.contains(&name) || (!is_any_named && name != DEBIAN);
    if is_wanted(DEMO) {
        println!("the image is {}", ensure(workspace, &cache)?.display());
    }
    if is_wanted(PROXY) {
        println!("the image is {}", ensure_proxy(workspace, &cache, Speed::OfRunning)?.display());
    }
    if is_wanted(DEBIAN) {
        println!("the image is {}", ensure_debian(workspace, &cache, consent)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the demo image unless it is there, and gives its directory. Its parts by content are in `images/blobs` of the
/// cache.
pub(crate) fn ensure(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    pack(workspace, cache, DEMO, &busybox(&cache.directory), None)
}

/// Makes the image of load balancers unless it is there, and gives its directory. It takes the place of one whose proxy was
/// built in another way.
pub(crate) fn ensure_proxy(workspace: &Workspace, cache: &Cache, speed: Speed) -> Result<PathBuf> {
    let flags = match speed {
        Speed::OfBuilding => String::new(),
        Speed::OfRunning => profile::flags_of(&cache.directory)?,
    };
    let proxy = build_static(workspace, PROXY_CRATE, &["--bin", PROXY_CRATE], speed.profile(), &flags);
    let proxy = proxy.context("build the proxy")?.join(PROXY_CRATE);
    pack(workspace, cache, PROXY, &busybox(&cache.directory), Some(&proxy))
}

/// Makes the image of a whole Debian unless it is there, and gives its directory.
pub(crate) fn ensure_debian(workspace: &Workspace, cache: &Cache, consent: Consent) -> Result<PathBuf> {
    setup::ensure(Scope::BareDebian, consent)?;
    let tree = ensure_tree(&cache.directory).context("make a Debian")?;
    pack(workspace, cache, DEBIAN, &tree, None)
}

/// Builds the proxy as it is shipped, and bare pingora in the same way, and gives the directory with `lightbyte-proxy` and
/// `examples/bare`.
pub(crate) fn build_shipped_proxy(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let what = ["--bin", PROXY_CRATE, "--example", "bare"];
    let flags = profile::flags_of(&cache.directory)?;
    build_static(workspace, PROXY_CRATE, &what, PROXY_PROFILE, &flags).context("build the proxy")
}

/// Builds the proxy as it is shipped, but so that it writes to `counts` what it has done; and gives its directory.
pub(crate) fn build_counting_proxy(workspace: &Workspace, target: &Path, counts: &Path) -> Result<PathBuf> {
    let flags = format!(" -Cprofile-generate={}", counts.display());
    let workspace = Workspace { root: workspace.root.clone(), target: target.to_owned() };
    let what = ["--bin", PROXY_CRATE];
    build_static(&workspace, PROXY_CRATE, &what, PROXY_PROFILE, &flags).context("build the proxy")
}

/// Builds programs of a crate that need no library of a guest, and gives their directory.
fn build_static(
    workspace: &Workspace,
    package: &str,
    what: &[&str],
    profile: &str,
    flags: &str,
) -> Result<PathBuf> {
    let mut build = workspace.cargo();
    build.args(["build", "--quiet", "--package", package]).args(what);
    build.args(["--profile", profile, "--target", GUEST_TARGET]);
    build.env("RUSTFLAGS", format!("-C target-feature=+crt-static{flags}"));
    process::run(&mut build)?;
    Ok(workspace.target.join(GUEST_TARGET).join(profile))
}

fn pack(
    workspace: &Workspace,
    cache: &Cache,
    name: &str,
    root: &Path,
    proxy: Option<&Path>,
) -> Result<PathBuf> {
    let agent = build_static(workspace, AGENT_CRATE, &["--bin", AGENT_CRATE], GUEST_PROFILE, "");
    let agent = agent.context("build the guest agent")?.join(AGENT_CRATE);
    let mut packer = workspace.cargo();
    packer.args(["build", "--quiet", "--package", "lightbyte-image", "--profile", PROFILE]);
    process::run(&mut packer).context("build the image packer")?;

    let images = cache.directory.join("images");
    let image = images.join(name);
    let mut pack = Command::new(workspace.binary("lightbyte-image"));
    pack.arg(name).arg(cache.directory.join("kernel")).arg(root);
    pack.arg(agent).arg(&image).arg(images.join("blobs")).args(proxy);
    process::output(&mut pack).context("make the image")?;
    blobs::tidy(&images).context("tidy up parts of images")?;
    Ok(image)
}

/// Newer packages have it below `usr`.
pub(crate) fn busybox(cache: &Path) -> PathBuf {
    let places = ["busybox/bin/busybox", "busybox/usr/bin/busybox"].map(|place| cache.join(place));
    places.iter().find(|place| place.is_file()).unwrap_or(&places[0]).clone()
}

/// Makes a Debian with the modules of the downloaded kernel, as a tar file, unless that was made from the same words
/// before. As with other downloads a newer Debian comes only after the file was removed: what tests ran with yesterday
/// they run with today.
fn ensure_tree(cache: &Path) -> Result<PathBuf> {
    let directory = cache.join("debian");
    let (tree, key_file) = (directory.join("root.tar"), directory.join("root.key"));
    let (modules, version) = modules(cache)?;
    let finish = FINISH.replace("VERSION", &version);
    let key = [&[mirror::SUITE, PACKAGES, &finish], LEFT_OUT].concat().join("\n");
    if tree.is_file() && fs::read_to_string(&key_file).is_ok_and(|found| found == key) {
        return Ok(tree);
    }
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    eprintln!(
        "making a Debian of {} packages and what they need; it takes a minute",
        PACKAGES.split(',').count()
    );
    let growing = directory.join(format!(".new-{}.tar", std::process::id()));
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--quiet", &format!("--include={PACKAGES}")]);
    command.args(mirror::options()?.into_iter().map(|option| format!("--aptopt={option}")));
    command.args(["--aptopt=APT::Install-Recommends \"false\""]);
    command.args(LEFT_OUT.iter().map(|option| format!("--dpkgopt={option}")));
    command.arg(format!("--customize-hook=copy-in '{}' /usr/lib", modules.display()));
    command.arg(format!("--customize-hook={finish}"));
    command.arg(mirror::SUITE).arg(&growing);
    // Where the machine's lists name another Debian, mmdebstrap's own mirror is as good.
    command.args(mirror::sources().unwrap_or_default());
    let made = process::run(&mut command)
        .and_then(|()| fs::write(&key_file, "").context("empty the key"))
        .and_then(|()| fs::rename(&growing, &tree).context("rename it"))
        .and_then(|()| fs::write(&key_file, key).context("write the key"));
    if made.is_err() {
        let _nothing_to_remove = fs::remove_file(&growing).is_err();
    }
    made.map(|()| tree)
}

/// The directory with the kernel's modules, and their version.
fn modules(cache: &Path) -> Result<(PathBuf, String)> {
    let places = ["kernel/lib/modules", "kernel/usr/lib/modules"].map(|place| cache.join(place));
    let place = places.iter().find(|place| place.is_dir()).unwrap_or(&places[0]).clone();
    let mut versions = fs::read_dir(&place)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>())
        .with_context(|| format!("list {}", place.display()))?;
    match (versions.pop().and_then(|version| version.into_string().ok()), versions.as_slice()) {
        (Some(version), []) if !version.contains(|character: char| " '\"$`\\".contains(character)) => {
            Ok((place, version))
        }
        _ => bail!("{} does not hold the modules of one kernel", place.display()),
    }
}
