//! `lightbyte import image`: checked, sent to a server part by part, and registered, in this order: what is registered is
//! whole and in its place.

pub(crate) mod certificate;
mod foreign;
mod upload;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

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
use crate::terminal::print;
use crate::verbs::apply;

/// Read at once: large enough that the calls do not count.
const CHUNK_BYTES: usize = 1 << 20;

/// `manifest.json` of an image directory.
#[derive(Clone, Debug, Deserialize)]
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
    let made = words.from.as_ref().map(|from| foreign::make(words, from)).transpose()?;
    let directory = made.as_ref().map_or(words.image.as_path(), foreign::Made::directory);
    let manifest = read_manifest(directory)?;
    check_parts(directory, &manifest)?;
    for part in manifest.parts() {
        upload::send(cluster, directory, part).await?;
    }
    let (line, current) = register(cluster, &manifest, !words.no_current).await?;
    print(&format!("{line} (version {current} is current)"))?;
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
    let found = File::open(directory.join(&part.file)).and_then(hashed);
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

/// How long a file is, with its checksum (FIPS 180-4) in hexadecimal.
fn hashed(mut source: impl Read) -> io::Result<(u64, String)> {
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
        bytes += count as u64;
    }
    let digest = hasher.finalize();
    Ok((bytes, digest.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Adds the version to those that are known, and makes it the current one if that is asked. Says what was done, and which
/// version is current then.
async fn register(cluster: &Cluster, manifest: &ImageManifest, current: bool) -> Result<(String, String)> {
    let image = ObjectRef::new(Kind::Image, manifest.name.clone());
    let (document, version) = match cluster.object_with_version(&image).await {
        Ok((object, version)) => (with_version(manifest_of(&object), manifest, current), Some(version)),
        Err(error) if error.status() == Some(404) => {
            let empty = json!({"kind": "image", "name": manifest.name, "spec": {"versions": []}});
            // Its only version is the current one.
            (with_version(empty, manifest, true), None)
        }
        Err(error) => return Err(error).with_context(|| format!("look for `{image}`")),
    };
    let is_current = document["spec"]["current"].as_str().unwrap_or_default().to_owned();
    let request = Apply { documents: vec![document], create_only: version.is_none(), dry_run: false };
    let applied =
        cluster.apply(&request, version.as_deref()).await.with_context(|| format!("register `{image}`"))?;
    let lines = applied.changes.iter().map(apply::summary).collect::<Vec<_>>().join("\n");
    Ok((lines, is_current))
}

/// The image with this version in place of one of the same name, the newest at the end. When there are too many the oldest
/// goes that is neither the current one nor the one before it.
fn with_version(mut image: Value, manifest: &ImageManifest, current: bool) -> Value {
    let before = image["spec"]["current"].as_str().map(str::to_owned);
    if let Some(versions) = image.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        versions.retain(|version| version["version"] != manifest.version.as_str());
        versions.push(manifest.version());
        while versions.len() > VERSIONS_MAX {
            let at = versions.iter().position(|version| version["version"].as_str() != before.as_deref());
            versions.remove(at.unwrap_or(0));
        }
    }
    if current {
        image["spec"]["current"] = json!(manifest.version);
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
            let (bytes, sha256) = hashed(File::open(directory.0.join(file)).unwrap()).unwrap();
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
    fn a_good_image_becomes_an_object() {
        let directory = Directory::new("import");
        let manifest = image(&directory, false);
        check_parts(&directory.0, &manifest).unwrap();
        let empty = json!({"kind": "image", "name": "demo", "spec": {"versions": []}});
        let first = with_version(empty, &manifest, true);
        lightbyte_api::Manifest::read(&first).unwrap();
        assert_eq!(
            with_version(first.clone(), &manifest, true),
            first,
            "the same version again changes nothing"
        );
        let named = |version: &str| ImageManifest { version: version.to_owned(), ..manifest.clone() };
        let next = with_version(first.clone(), &named("v2"), true);
        assert_eq!(next["spec"]["current"], "v2");
        assert_eq!(next["spec"]["versions"].as_array().map(Vec::len), Some(2));
        // As many as may be, and the current one is the oldest: it stays.
        let many =
            (2..50).fold(first, |image, index| with_version(image, &named(&format!("v{index}")), false));
        lightbyte_api::Manifest::read(&many).unwrap();
        assert_eq!(many["spec"]["versions"].as_array().map(Vec::len), Some(VERSIONS_MAX));
        assert_eq!(
            (&many["spec"]["current"], &many["spec"]["versions"][0]["version"]),
            (&json!("v1"), &json!("v1"))
        );
    }

    #[test]
    fn a_broken_image_names_each_file_with_its_fault() {
        let directory = Directory::new("import-broken");
        let manifest = image(&directory, true);
        fs::write(directory.0.join("root.ext4"), "rooted").unwrap();
        let failure = check_parts(&directory.0, &manifest).unwrap_err();
        assert!(failure.details[0].starts_with("vmlinux: has the checksum "), "{failure:?}");
        assert_eq!(failure.details[1], "root.ext4: has 6 bytes, the manifest says 4194304");
        fs::remove_file(directory.0.join("root.ext4")).unwrap();
        let failure = check_parts(&directory.0, &manifest).unwrap_err();
        assert!(failure.details[1].starts_with("root.ext4: No such file"), "{failure:?}");
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
