//! `cargo xtask images`: builds the demo image from the downloaded kernel and busybox, with a guest agent of this
//! checkout.
//!
//! What an image is made of is for crates/image to know; here its inputs are brought together. When nothing has changed
//! this takes a fraction of a second.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::process;
use crate::setup::{self, Cache, Consent, Scope};
use crate::workspace::{PROFILE, Workspace};
use crate::{WrongWords, flags};

/// The image's name, and its directory's.
const NAME: &str = "demo";

/// Profile of what runs in guests.
const GUEST_PROFILE: &str = "guest";

/// Named although it is this machine's own: cargo then keeps what is linked statically in a folder of its own, and does
/// not link build scripts statically.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// `cargo xtask images [--yes]`
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let flags = flags(words, &["--yes"])?;
    if !cfg!(target_arch = "x86_64") {
        return Err(WrongWords::error("images are made for x86_64 on x86_64 alone so far"));
    }
    let cache = setup::ensure(Scope::Everything, Consent::from_flags(&flags))?;
    let image = ensure(workspace, &cache)?;
    println!("the image is {}", image.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the demo image unless it is there, and gives its directory. Its parts by content are in `images/blobs` of the
/// cache.
pub(crate) fn ensure(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let mut agent = workspace.cargo();
    agent.args(["build", "--quiet", "--package", "lightbyte-guest", "--bin", "lightbyte-guest"]);
    agent.args(["--profile", GUEST_PROFILE, "--target", GUEST_TARGET]);
    agent.env("RUSTFLAGS", "-C target-feature=+crt-static");
    process::run(&mut agent).context("build the guest agent")?;
    let mut packer = workspace.cargo();
    packer.args(["build", "--quiet", "--package", "lightbyte-image", "--profile", PROFILE]);
    process::run(&mut packer).context("build the image packer")?;

    let images = cache.directory.join("images");
    let image = images.join(NAME);
    let mut pack = Command::new(workspace.binary("lightbyte-image"));
    pack.arg(NAME).arg(cache.directory.join("kernel")).arg(busybox(&cache.directory));
    pack.arg(workspace.target.join(GUEST_TARGET).join(GUEST_PROFILE).join("lightbyte-guest"));
    pack.arg(&image).arg(images.join("blobs"));
    process::output(&mut pack).context("make the image")?;
    Ok(image)
}

/// Newer packages have it below `usr`.
pub(crate) fn busybox(cache: &Path) -> PathBuf {
    let places = ["busybox/bin/busybox", "busybox/usr/bin/busybox"].map(|place| cache.join(place));
    places.iter().find(|place| place.is_file()).unwrap_or(&places[0]).clone()
}
