//! `lightbyte import image DIR`: checked, stored by checksum, and registered, in this order: what is registered is
//! whole and in its place.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lightbyte_api::kinds::image::VERSIONS_MAX;
use lightbyte_api::object::ObjectRef;
use lightbyte_api::wire::Apply;
use lightbyte_api::{ByteSize, Kind, Name};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::arguments::ImportImage;
use crate::cluster::{Cluster, manifest_of};
use crate::failure::{Code, Failure};
use crate::terminal::{print, say};
use crate::verbs::apply;

/// Where a lab has its images.
const STORE_VARIABLE: &str = "LIGHTBYTE_IMAGES";
/// The directory in it with the parts of all images, by checksum.
const BLOBS: &str = "blobs";
/// Read and written at once: large enough that the calls do not count, and small enough to find the holes of a disk.
const CHUNK_BYTES: usize = 128 << 10;

/// `manifest.json` of an image directory.
#[derive(Debug, Deserialize)]
struct ImageManifest {
    name: Name,
    version: String,
    architecture: String,
    kernel: PartFile,
    #[serde(default)]
    initrd: Option<PartFile>,
    #[serde(default)]
    command_line: String,
    root: PartFile,
}

/// A file of the image, as the manifest promises it.
#[derive(Clone, Debug, Deserialize)]
struct PartFile {
    file: String,
    sha256: String,
    bytes: u64,
}

impl ImageManifest {
    fn parts(&self) -> impl Iterator<Item = &PartFile> {
        [&self.kernel, &self.root].into_iter().chain(&self.initrd)
    }

    /// The version as the API takes it.
    fn version(&self) -> Value {
        let part = |part: &PartFile| json!({"sha256": part.sha256, "size": ByteSize::from_bytes(part.bytes)});
        let mut version = json!({
            "version": self.version,
            "architecture": self.architecture,
            "kernel": part(&self.kernel),
            "command_line": self.command_line,
            "root": part(&self.root),
        });
        if let (Some(initrd), Value::Object(fields)) = (&self.initrd, &mut version) {
            fields.insert("initrd".to_owned(), part(initrd));
        }
        version
    }
}

pub(crate) async fn run(cluster: &Cluster, words: &ImportImage) -> Result<Code> {
    let named = std::env::var_os(STORE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let store = words.store.clone().or(named.map(|images| images.join(BLOBS))).ok_or_else(|| {
        Failure::usage("nothing says where the cluster keeps its images")
            .hint(format!("name the directory with `--store DIR` or {STORE_VARIABLE}"))
    })?;
    let manifest = read_manifest(&words.directory)?;
    check_parts(&words.directory, &manifest)?;
    for part in manifest.parts() {
        store_part(&words.directory, part, &store)?;
    }
    let line = register(cluster, &manifest).await?;
    print(&format!("{line} (version {} is current)", manifest.version))?;
    Ok(Code::Done)
}

fn read_manifest(directory: &Path) -> Result<ImageManifest> {
    let path = directory.join("manifest.json");
    let text = fs::read(&path).with_context(|| format!("read `{}`", path.display()))?;
    let manifest: ImageManifest =
        serde_json::from_slice(&text).with_context(|| format!("read `{}`", path.display()))?;
    for part in manifest.parts() {
        let is_plain =
            Path::new(&part.file).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let is_digest = part.sha256.len() == 64 && part.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        if part.file.is_empty() || !is_plain || !is_digest {
            let message = format!(
                "`{}` names a file or a checksum that cannot be one: `{}`",
                path.display(),
                part.file
            );
            return Err(Failure::new(Code::Error, message).into());
        }
    }
    Ok(manifest)
}

/// Every fault of every file at once.
fn check_parts(directory: &Path, manifest: &ImageManifest) -> Result<(), Failure> {
    let faults: Vec<String> = manifest.parts().filter_map(|part| fault(directory, part)).collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::Error,
        format!("the image in `{}` is broken; nothing was imported", directory.display()),
    )
    .details(faults)
    .hint("build it again, or copy it again from where it came"))
}

fn fault(directory: &Path, part: &PartFile) -> Option<String> {
    let found = File::open(directory.join(&part.file)).and_then(|file| copy_hashed(file, &mut io::sink()));
    let fault = match found {
        Err(error) => error.to_string(),
        Ok((bytes, _)) if bytes != part.bytes => {
            format!("has {bytes} bytes, the manifest says {}", part.bytes)
        }
        Ok((_, sha256)) if !sha256.eq_ignore_ascii_case(&part.sha256) => {
            format!("has the checksum {sha256}, the manifest says {}", part.sha256)
        }
        Ok(_) => return None,
    };
    Some(format!("{}: {fault}", part.file))
}

/// Copies, and returns how much it was with its checksum (FIPS 180-4) in hexadecimal.
fn copy_hashed(mut source: impl Read, target: &mut impl Write) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let count = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&chunk[..count]);
        target.write_all(&chunk[..count])?;
        bytes += count as u64;
    }
    let digest = hasher.finalize();
    Ok((bytes, digest.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Puts a part into the store under its checksum. It appears whole or not at all.
fn store_part(directory: &Path, part: &PartFile, store: &Path) -> Result<()> {
    let target = store.join(part.sha256.to_ascii_lowercase());
    let is_there = fs::metadata(&target).is_ok_and(|found| found.len() == part.bytes);
    if is_there {
        return Ok(());
    }
    let what = || format!("store `{}` in `{}`", part.file, store.display());
    fs::create_dir_all(store).with_context(what)?;
    let temporary = store.join(format!(".{}.{}.tmp", part.sha256, std::process::id()));
    let written = write_part(&directory.join(&part.file), part, &temporary)
        .and_then(|()| Ok(fs::rename(&temporary, &target)?));
    if written.is_err() {
        // What is left of a failed try is of no use; the first error is the one to tell.
        drop(fs::remove_file(&temporary));
    }
    written.with_context(what)?;
    say(&format!("stored {} ({})", part.file, ByteSize::from_bytes(part.bytes)));
    Ok(())
}

fn write_part(source: &Path, part: &PartFile, temporary: &Path) -> Result<()> {
    let mut target = Sparse(File::create(temporary)?);
    let (bytes, sha256) = copy_hashed(File::open(source)?, &mut target)?;
    target.0.set_len(bytes)?;
    target.0.sync_all()?;
    // The file may have changed since it was checked.
    if sha256.eq_ignore_ascii_case(&part.sha256) {
        return Ok(());
    }
    Err(Failure::new(Code::Error, "it changed while it was copied").hint("try again").into())
}

/// A file in which zeros are not written: disks are mostly holes, and stay so.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        match i64::try_from(chunk.len()) {
            Ok(length) if chunk.iter().all(|byte| *byte == 0) => {
                self.0.seek(SeekFrom::Current(length))?;
                Ok(chunk.len())
            }
            _ => self.0.write(chunk),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Adds the version to those that are known, and makes it the current one.
async fn register(cluster: &Cluster, manifest: &ImageManifest) -> Result<String> {
    let image = ObjectRef::new(Kind::Image, manifest.name.clone());
    let (document, version) = match cluster.object_with_version(&image).await {
        Ok((object, version)) => (with_version(manifest_of(&object), manifest), Some(version)),
        Err(error) if error.status() == Some(404) => {
            let empty = json!({"kind": "image", "name": manifest.name, "spec": {"versions": []}});
            (with_version(empty, manifest), None)
        }
        Err(error) => return Err(error).with_context(|| format!("look for `{image}`")),
    };
    let request = Apply { documents: vec![document], create_only: version.is_none(), dry_run: false };
    let applied =
        cluster.apply(&request, version.as_deref()).await.with_context(|| format!("register `{image}`"))?;
    Ok(applied.changes.iter().map(apply::summary).collect::<Vec<_>>().join("\n"))
}

/// The image with this version in place of one of the same name; the oldest goes when there are too many.
fn with_version(mut image: Value, manifest: &ImageManifest) -> Value {
    if let Some(versions) = image.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        versions.retain(|version| version["version"] != manifest.version.as_str());
        versions.push(manifest.version());
        let too_many = versions.len().saturating_sub(VERSIONS_MAX);
        versions.drain(..too_many);
    }
    image["spec"]["current"] = json!(manifest.version);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("lightbyte-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    /// The checksum of something else.
    const OTHER: &str = "9e2d3c0f9f1ccf6e9c0b5bde0f0e6ea1a3e3f9d1f1b9d9f6ae0b8b5d3b6f0d00";

    fn image(directory: &Directory, wrong_kernel: bool) -> ImageManifest {
        fs::write(directory.0.join("vmlinux"), "kernel").unwrap();
        // A disk with a hole, and another at its end.
        let mut root = vec![0; CHUNK_BYTES * 4];
        root[CHUNK_BYTES * 2] = 1;
        fs::write(directory.0.join("root.ext4"), root).unwrap();
        let part = |file: &str| {
            let (bytes, sha256) =
                copy_hashed(File::open(directory.0.join(file)).unwrap(), &mut io::sink()).unwrap();
            json!({"file": file, "sha256": sha256, "bytes": bytes})
        };
        let mut kernel = part("vmlinux");
        if wrong_kernel {
            kernel["sha256"] = json!(OTHER);
        }
        let manifest = json!({"name": "demo", "version": "v1", "architecture": "x86_64", "kernel": kernel,
            "command_line": "quiet", "root": part("root.ext4"), "agent_version": "0.1.0", "built_at": "2026-11-22T10:00:00Z"});
        fs::write(directory.0.join("manifest.json"), manifest.to_string()).unwrap();
        read_manifest(&directory.0).unwrap()
    }

    #[test]
    fn a_good_image_is_stored_by_checksum_and_becomes_an_object() {
        let directory = Directory::new("import");
        let store = Directory::new("import-store");
        let manifest = image(&directory, false);
        check_parts(&directory.0, &manifest).unwrap();
        for part in manifest.parts().chain(manifest.parts()) {
            store_part(&directory.0, part, &store.0).unwrap();
        }
        let mut stored: Vec<String> = fs::read_dir(&store.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        stored.sort();
        let mut expect: Vec<String> = manifest.parts().map(|part| part.sha256.clone()).collect();
        expect.sort();
        assert_eq!(stored, expect, "and no temporary file");
        let read = |path: PathBuf| fs::read(path).unwrap();
        assert_eq!(read(store.0.join(&manifest.root.sha256)), read(directory.0.join("root.ext4")));
        let empty = json!({"kind": "image", "name": "demo", "spec": {"versions": []}});
        let first = with_version(empty, &manifest);
        lightbyte_api::Manifest::read(&first).unwrap();
        assert_eq!(with_version(first.clone(), &manifest), first, "the same version again changes nothing");
        let next = with_version(first, &ImageManifest { version: "v2".to_owned(), ..manifest });
        assert_eq!(next["spec"]["current"], "v2");
        assert_eq!(next["spec"]["versions"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_broken_image_names_each_file_with_its_fault() {
        let directory = Directory::new("import-broken");
        let manifest = image(&directory, true);
        fs::write(directory.0.join("root.ext4"), "rooted").unwrap();
        let failure = check_parts(&directory.0, &manifest).unwrap_err();
        assert!(failure.details[0].starts_with("vmlinux: has the checksum "), "{failure:?}");
        assert_eq!(failure.details[1], "root.ext4: has 6 bytes, the manifest says 524288");
        fs::remove_file(directory.0.join("root.ext4")).unwrap();
        let failure = check_parts(&directory.0, &manifest).unwrap_err();
        assert!(failure.details[1].starts_with("root.ext4: No such file"), "{failure:?}");
    }

    #[test]
    fn a_failed_copy_leaves_nothing() {
        let directory = Directory::new("import-failed");
        let store = Directory::new("import-failed-store");
        let manifest = image(&directory, true);
        assert!(store_part(&directory.0, &manifest.kernel, &store.0).is_err());
        assert_eq!(fs::read_dir(&store.0).unwrap().count(), 0);
    }

    #[test]
    fn a_manifest_cannot_name_files_outside_its_directory() {
        let directory = Directory::new("import-outside");
        image(&directory, false);
        let path = directory.0.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap().replace("vmlinux", "../vmlinux");
        fs::write(&path, text).unwrap();
        assert!(read_manifest(&directory.0).is_err());
    }
}
