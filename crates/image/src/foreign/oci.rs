//! A container's image: in OCI's layout, as a directory or a tar file, or as `docker save` writes it. Its layers become a root
//! disk in which the agent of ours is process 1. What its configuration would start is not started: a VM has no such thing.
//!
//! Sources: OCI image specification 1.1 (`image-layout.md`, `manifest.md`, `config.md`); Docker image specification 1.2.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lightbyte_guest::archive::{Keep, Unpacked, unpack};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::layers::{self, Layers};
use super::{Base, Foreign, squeeze};
use crate::ext4::{self, Disk};
use crate::manifest::Manifest;
use crate::{full, pack};

/// Longest description that is read.
const DESCRIPTION_BYTES_MAX: u64 = 4 << 20;
/// Most layers: more than any builder makes.
const LAYERS_MAX: usize = 512;
/// Most files of the tar file that an image comes as.
const FILES_MAX: usize = 10_000;
/// How deep lists of images may lie in each other.
const LISTS_MAX: usize = 3;
/// Journal of a disk on which things are installed.
const JOURNAL_MIB: u32 = 16;
/// Room on the disk beside what is in the image; a VM's clone may be larger.
const SPARE_BYTES: u64 = 64 << 20;
/// What a file takes beside its content: the rest of its last block, and its inode.
const FILE_BYTES: u64 = 16 << 10;
/// What a tiny system stands on, whatever its image has.
const MOUNT_POINTS: &[&str] = &["dev", "etc", "mnt", "proc", "run", "sys", "tmp"];

/// Makes the image.
pub(super) fn make(foreign: &Foreign, base: &Base, out: &Path) -> Result<Manifest> {
    let container = Container::open(&foreign.from).context("read the container's image")?;
    let tar = out.join("root.tar");
    let flat = File::create(&tar).context("create the flattened image")?;
    layers::flatten(&container, io::BufWriter::new(flat)).context("put its layers together")?;
    let tree = out.join("root.tree");
    fs::create_dir_all(&tree).context("make the tree")?;
    let mut unpacked = Unpacked::default();
    let open = || File::open(&tar).map(io::BufReader::new).context("open the flattened image");
    unpack(open()?, &tree.join("."), Keep::Modes, &mut unpacked).context("unpack it")?;
    let inodes = full::still_there(full::inodes(tar::Archive::new(open()?)).context("read owners")?, &tree);
    for name in MOUNT_POINTS.iter().map(|name| tree.join(name)) {
        // A link of a stranger is left as it is: it would lead out of the tree.
        if name.symlink_metadata().is_err() {
            fs::create_dir(&name).with_context(|| format!("make {}", name.display()))?;
        }
    }
    let content = unpacked.bytes + unpacked.entries * FILE_BYTES;
    let bytes = (content + content / 8 + SPARE_BYTES).next_multiple_of(1 << 20);
    ext4::make(&out.join("root.ext4"), &tree, &Disk { bytes, journal_mib: JOURNAL_MIB, inodes })?;
    fs::remove_dir_all(&tree).context("remove the tree")?;
    fs::remove_file(&tar).context("remove the flattened image")?;
    for (source, target) in [(base.kernel(), pack::KERNEL), (base.initramfs()?, pack::INITRAMFS)] {
        fs::copy(&source, out.join(target)).with_context(|| format!("copy {}", source.display()))?;
    }
    pack::describe(&foreign.name, "", &base.manifest.agent_version, out)
}

// --------------------------------------------------------------------------------------------------- descriptions

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct ImageManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One of the images in `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Configuration {
    architecture: String,
    os: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image whose layers were seen to be what its configuration says.
struct Container {
    files: Files,
    layers: Vec<String>,
}

impl Container {
    fn open(from: &Path) -> Result<Container> {
        let files = Files::open(from)?;
        let (config, layers) = match files.has("oci-layout") {
            true => of_layout(&files)?,
            false => of_docker(&files)?,
        };
        ensure!(layers.len() <= LAYERS_MAX, "it has {} layers, and {LAYERS_MAX} are taken", layers.len());
        let config: Configuration = serde_json::from_slice(&config).context("read its configuration")?;
        let (system, architecture) = (&config.os, &config.architecture);
        ensure!(
            system == "linux" && architecture == "amd64",
            "it is for {system} on {architecture}; a VM here needs one for linux on amd64"
        );
        ensure!(config.rootfs.diff_ids.len() == layers.len(), "its configuration speaks of other layers");
        let container = Container { files, layers };
        for (index, expected) in config.rootfs.diff_ids.iter().enumerate() {
            let found =
                digest(container.open(index)?).with_context(|| format!("read layer {}", index + 1))?;
            ensure!(found == *expected, "layer {} is damaged: its checksum is {found}", index + 1);
        }
        Ok(container)
    }
}

impl Layers for Container {
    fn count(&self) -> usize {
        self.layers.len()
    }

    fn open(&self, index: usize) -> Result<Box<dyn Read>> {
        let name = self.layers.get(index).context("there is no such layer")?;
        squeeze::reader(io::BufReader::new(self.files.read(name)?))
    }
}

/// The configuration, and the names of the layers' files.
fn of_layout(files: &Files) -> Result<(Vec<u8>, Vec<String>)> {
    let mut index: Index =
        serde_json::from_slice(&files.description("index.json")?).context("read index.json")?;
    for _ in 0..LISTS_MAX {
        let chosen = choose(&index.manifests)?;
        let text = files.blob(&chosen)?;
        if chosen.media_type.ends_with("index.v1+json") || chosen.media_type.ends_with("list.v2+json") {
            index = serde_json::from_slice(&text).context("read a list of images")?;
            continue;
        }
        let manifest: ImageManifest = serde_json::from_slice(&text).context("read the image's manifest")?;
        let layers = manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect::<Result<_>>()?;
        return Ok((files.blob(&manifest.config)?, layers));
    }
    bail!("its lists of images lie more than {LISTS_MAX} deep in each other")
}

/// The image for this kind of machine.
fn choose(manifests: &[Descriptor]) -> Result<Descriptor> {
    let fits = |found: &&Descriptor| {
        found
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
    };
    let found: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    match found.as_slice() {
        [only] => Ok((*only).clone()),
        [] => bail!("it has no image for linux on amd64"),
        several => bail!("it has {} images; save one alone", several.len()),
    }
}

fn of_docker(files: &Files) -> Result<(Vec<u8>, Vec<String>)> {
    let text =
        files.description("manifest.json").context("it is neither in OCI's layout nor by `docker save`")?;
    let mut saved: Vec<Saved> = serde_json::from_slice(&text).context("read manifest.json")?;
    match (saved.pop(), saved.is_empty()) {
        (Some(only), true) => Ok((files.description(&only.config)?, only.layers)),
        _ => bail!("it has several images, or none; save one alone"),
    }
}

fn blob_name(digest: &str) -> Result<String> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(is_digest, "a digest is not one of SHA-256: `{digest}`");
    Ok(format!("blobs/sha256/{hex}"))
}

fn digest(mut content: impl Read) -> Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(format!("sha256:{}", pack::hex(&hash.finalize()))),
            bytes => hash.update(&buffer[..bytes]),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- files

/// The files that the image consists of, wherever they are.
enum Files {
    Directory(PathBuf),
    Tar { file: PathBuf, places: HashMap<String, (u64, u64)> },
}

impl Files {
    fn open(from: &Path) -> Result<Files> {
        if from.is_dir() {
            return Ok(Files::Directory(from.to_owned()));
        }
        let mut archive = tar::Archive::new(File::open(from)?);
        let mut places = HashMap::new();
        for entry in archive.entries_with_seek().context("read the tar file")? {
            let entry = entry.context("read the tar file")?;
            ensure!(places.len() < FILES_MAX, "it has more than {FILES_MAX} files");
            if entry.header().entry_type().is_file() {
                let name = entry.path().context("read a name")?.to_string_lossy().into_owned();
                let name = name.trim_start_matches("./").to_owned();
                places.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(Files::Tar { file: from.to_owned(), places })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Files::Directory(directory) => directory.join(name).is_file(),
            Files::Tar { places, .. } => places.contains_key(name),
        }
    }

    fn read(&self, name: &str) -> Result<Box<dyn Read>> {
        match self {
            Files::Directory(directory) => {
                let is_plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
                let path = directory.join(name);
                // A link could lead to a file of this machine.
                let found = path.symlink_metadata().with_context(|| format!("find `{name}`"))?;
                ensure!(is_plain && found.is_file(), "`{name}` is no file of it");
                Ok(Box::new(File::open(path).with_context(|| format!("open `{name}`"))?))
            }
            Files::Tar { file, places } => {
                let (position, length) =
                    places.get(name).with_context(|| format!("it has no file `{name}`"))?;
                let mut file = File::open(file).context("open the tar file")?;
                file.seek(SeekFrom::Start(*position)).context("find a file in it")?;
                Ok(Box::new(file.take(*length)))
            }
        }
    }

    fn description(&self, name: &str) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        self.read(name)?
            .take(DESCRIPTION_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .with_context(|| format!("read `{name}`"))?;
        ensure!(
            text.len() as u64 <= DESCRIPTION_BYTES_MAX,
            "`{name}` has more than {DESCRIPTION_BYTES_MAX} bytes"
        );
        Ok(text)
    }

    /// A description by its digest.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let text = self.description(&blob_name(&descriptor.digest)?)?;
        let is_right = text.len() as u64 == descriptor.size && digest(text.as_slice())? == descriptor.digest;
        ensure!(is_right, "`{}` is damaged", descriptor.digest);
        Ok(text)
    }
}
