//! Puts an image together.

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::cpio::Archive;
use crate::manifest::{Manifest, Part};
use crate::modules::{MODULES, without_signature};
use crate::{full, kernel, tiny};

/// What an image is made from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What people will call the image.
    pub name: String,
    /// An unpacked `linux-image-…-cloud-amd64`.
    pub kernel_tree: PathBuf,
    /// What its root disk is made from.
    pub root: Root,
    /// The static guest agent.
    pub agent: PathBuf,
    /// Its version.
    pub agent_version: String,
    /// The image's own kernel arguments.
    pub command_line: String,
}

/// What a root disk is made from.
#[derive(Clone, Debug)]
pub enum Root {
    /// A static busybox: a tiny root, in which the agent is process 1.
    Busybox {
        /// The program.
        busybox: PathBuf,
        /// The static proxy of load balancers, if it is for these.
        proxy: Option<PathBuf>,
    },
    /// A tar file with a whole Debian, its kernel's modules included: the agent is a service of its systemd.
    System(PathBuf),
}

impl Root {
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Busybox { busybox, proxy } => [busybox].into_iter().chain(proxy).cloned().collect(),
            Self::System(tar) => vec![tar.clone()],
        }
    }
}

/// Makes the image in the directory `out`, which is created and may hold an older one.
///
/// # Errors
/// If a source is missing or broken, or the disk is full; then `out` has no manifest.
pub fn pack(sources: &Sources, out: &Path) -> anyhow::Result<Manifest> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let _ = fs::remove_file(out.join("manifest.json"));
    let bzimage = kernel_file(&sources.kernel_tree)?;
    let elf =
        kernel::extract(&fs::read(&bzimage).context("read the kernel")?).context("unpack the kernel")?;
    write(out, KERNEL, &elf)?;
    write(out, INITRAMFS, &initramfs(sources).context("make the initramfs")?)?;
    match &sources.root {
        Root::Busybox { busybox, proxy } => tiny::make(busybox, proxy.as_deref(), out),
        Root::System(tar) => full::make(tar, out),
    }
    .context("make the root disk")?;
    describe(&sources.name, &sources.command_line, &sources.agent_version, out)
}

/// The files of an image, beside its manifest.
pub(crate) const KERNEL: &str = "vmlinux";
pub(crate) const INITRAMFS: &str = "initramfs.cpio";
const ROOT: &str = "root.ext4";

/// Writes the manifest of the image whose files are in `out`.
pub(crate) fn describe(
    name: &str,
    command_line: &str,
    agent_version: &str,
    out: &Path,
) -> anyhow::Result<Manifest> {
    let part = |file: &str| part(out, file).with_context(|| format!("hash {file}"));
    let (kernel, initrd, root) = (part(KERNEL)?, part(INITRAMFS)?, part(ROOT)?);
    let mut hash = Sha256::new();
    for text in [kernel.sha256.as_str(), &initrd.sha256, &root.sha256, command_line] {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    let manifest = Manifest {
        name: name.to_owned(),
        version: hex(&hash.finalize())[..12].to_owned(),
        architecture: "x86_64".to_owned(),
        kernel,
        initrd: Some(initrd),
        command_line: command_line.to_owned(),
        root,
        agent_version: agent_version.to_owned(),
        built_at: jiff::Timestamp::now(),
    };
    let mut text = serde_json::to_vec_pretty(&manifest).context("write the manifest")?;
    text.push(b'\n');
    write(out, "manifest.json", &text)?;
    Ok(manifest)
}

/// The kernel of an unpacked package.
fn kernel_file(tree: &Path) -> anyhow::Result<PathBuf> {
    only_entry(&tree.join("boot"), "vmlinuz-").context("find the kernel")
}

/// Its modules; newer packages have them below `usr`.
fn module_tree(tree: &Path) -> anyhow::Result<PathBuf> {
    let places = [tree.join("lib/modules"), tree.join("usr/lib/modules")];
    let place = places.iter().find(|place| place.is_dir()).unwrap_or(&places[0]);
    Ok(only_entry(place, "").context("find the modules")?.join("kernel"))
}

/// A hash of everything that the image is made from, this program included.
///
/// # Errors
/// If a source is missing.
pub fn key(sources: &Sources) -> anyhow::Result<String> {
    let mut files = vec![
        std::env::current_exe().context("find this program")?,
        kernel_file(&sources.kernel_tree)?,
        sources.agent.clone(),
    ];
    files.extend(sources.root.files());
    let modules = module_tree(&sources.kernel_tree)?;
    files.extend(MODULES.iter().map(|path| modules.join(path)));
    let mut hash = Sha256::new();
    for text in [&sources.name, &sources.agent_version, &sources.command_line] {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    for file in files {
        let (sha256, _) = digest(&file).with_context(|| format!("hash {}", file.display()))?;
        hash.update(sha256.as_bytes());
    }
    Ok(hex(&hash.finalize()))
}

fn initramfs(sources: &Sources) -> anyhow::Result<Vec<u8>> {
    let modules = module_tree(&sources.kernel_tree)?;
    let mut archive = Archive::default();
    archive.directory("dev")?;
    archive.device("dev/console", 5, 1)?;
    archive.directory("modules")?;
    let mut list = String::new();
    for path in MODULES {
        let module = fs::read(modules.join(path)).with_context(|| format!("read {path}"))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        archive.file(&format!("modules/{name}"), 0o644, without_signature(&module))?;
        let _ = writeln!(list, "{name}");
    }
    archive.file("modules/list", 0o644, list.as_bytes())?;
    archive.file("init", 0o755, &fs::read(&sources.agent).context("read the agent")?)?;
    archive.finish().context("finish the archive")
}

/// The entry of a directory whose name begins so; there must be exactly one.
fn only_entry(directory: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            found.push(entry.path());
        }
    }
    ensure!(found.len() == 1, "{} entries `{prefix}*` in {}", found.len(), directory.display());
    found.pop().context("find an entry")
}

/// A new file: one of that name may be linked to a place where its content must not change.
fn write(out: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let _ = fs::remove_file(out.join(name));
    fs::write(out.join(name), bytes).with_context(|| format!("write {name}"))
}

fn part(out: &Path, file: &str) -> anyhow::Result<Part> {
    let (sha256, bytes) = digest(&out.join(file))?;
    Ok(Part { file: file.to_owned(), sha256, bytes })
}

/// Hash and length of a file.
fn digest(path: &Path) -> anyhow::Result<(String, u64)> {
    let mut reader = fs::File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok((hex(&hash.finalize()), bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
