//! Images of others: a disk with a Linux on it, or a container's image. What they are made into is an image like any of ours:
//! a kernel, an initramfs with the guest's agent, and a root disk.
//!
//! Everything in them is a stranger's. Nothing is mounted and nothing of theirs is run; what is read is bounded.

mod cpio;
mod disk;
mod layers;
mod oci;
pub(crate) mod squeeze;
mod table;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::manifest::Manifest;

/// What an image is made from.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// What people will call the image.
    pub name: String,
    /// A disk (raw or qcow2), a container's image as a tar file, or a directory in OCI's layout.
    pub from: PathBuf,
    /// The directory of an image of ours: it has the agent, and the kernel for containers' images.
    pub base: PathBuf,
}

/// Makes the image in the directory `out`, which is created.
///
/// # Errors
/// In words for people, when it is nothing that can be made into an image.
pub fn make(foreign: &Foreign, out: &Path) -> Result<Manifest> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let base = Base::read(&foreign.base)
        .with_context(|| format!("read the image in {}, which has the agent", foreign.base.display()))?;
    match shape(&foreign.from).with_context(|| format!("look at {}", foreign.from.display()))? {
        Shape::Disk(disk) => disk::make(foreign, &disk, &base, out),
        Shape::Container => oci::make(foreign, &base, out),
    }
}

/// An image of ours.
struct Base {
    directory: PathBuf,
    manifest: Manifest,
}

impl Base {
    fn read(directory: &Path) -> Result<Base> {
        let text = fs::read(directory.join("manifest.json")).context(
            "read manifest.json: `cargo xtask images` makes an image; name its directory with --base",
        )?;
        let manifest = serde_json::from_slice(&text).context("read manifest.json")?;
        Ok(Base { directory: directory.to_owned(), manifest })
    }

    fn initramfs(&self) -> Result<PathBuf> {
        let initrd = self.manifest.initrd.as_ref().context("it has no initramfs")?;
        Ok(self.directory.join(&initrd.file))
    }

    fn kernel(&self) -> PathBuf {
        self.directory.join(&self.manifest.kernel.file)
    }
}

/// The kinds of disks.
enum DiskFormat {
    Raw,
    Qcow2,
}

/// What somebody brings.
enum Shape {
    Disk(DiskFormat),
    Container,
}

fn shape(from: &Path) -> Result<Shape> {
    if fs::metadata(from)?.is_dir() {
        return match from.join("oci-layout").is_file() {
            true => Ok(Shape::Container),
            false => bail!("it is a directory, and not one in OCI's layout: it has no file `oci-layout`"),
        };
    }
    let mut head = [0; 512];
    let mut file = File::open(from)?;
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..])? {
            0 => break,
            bytes => length += bytes,
        }
    }
    Ok(match () {
        () if head.starts_with(b"QFI\xfb") => Shape::Disk(DiskFormat::Qcow2),
        () if head[257..262] == *b"ustar" => Shape::Container,
        () if head.starts_with(b"KDMV") || head.starts_with(b"vhdxfile") || head.starts_with(b"<<< ") => {
            bail!(
                "it is a disk of another hypervisor; `qemu-img convert -O raw FILE DISK` makes one that can be imported"
            )
        }
        () if squeeze::is_squeezed(&head) => bail!("it is compressed; uncompress it first"),
        () => Shape::Disk(DiskFormat::Raw),
    })
}
