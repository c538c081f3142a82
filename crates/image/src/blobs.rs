//! Parts of images by content: where servers and workers look for them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::manifest::Manifest;

/// Puts the parts of the image in `image` into `store`, each named by its SHA-256: whole or not at all. On the same file
/// system they cost no room. Parts that are there already are left alone.
///
/// # Errors
/// If a part is missing, or the disk is full.
pub fn store(image: &Path, manifest: &Manifest, store: &Path) -> Result<()> {
    fs::create_dir_all(store).with_context(|| format!("create {}", store.display()))?;
    for part in manifest.parts() {
        let (source, target) = (image.join(&part.file), store.join(&part.sha256));
        if fs::metadata(&target).is_ok_and(|found| found.len() == part.bytes) {
            continue;
        }
        let growing = store.join(format!(".new-{}", std::process::id()));
        let put = || {
            match fs::remove_file(&growing) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Another file system cannot link it.
            fs::hard_link(&source, &growing).or_else(|_| fs::copy(&source, &growing).map(|_| ()))?;
            fs::rename(&growing, &target)
        };
        put().with_context(|| format!("store {}", part.file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Part;

    #[test]
    fn parts_are_stored_once_and_repaired() {
        let image = std::env::temp_dir().join(format!("lightbyte-blobs-{}", std::process::id()));
        fs::create_dir_all(&image).unwrap();
        let part = |file: &str| {
            fs::write(image.join(file), file).unwrap();
            Part { file: file.to_owned(), sha256: format!("hash of {file}"), bytes: file.len() as u64 }
        };
        let manifest = Manifest {
            name: "demo".to_owned(),
            version: "1".to_owned(),
            architecture: "x86_64".to_owned(),
            kernel: part("kernel"),
            initrd: None,
            command_line: String::new(),
            root: part("root"),
            agent_version: "1".to_owned(),
            built_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let blobs = image.join("blobs");
        for _ in 0..2 {
            store(&image, &manifest, &blobs).unwrap();
            assert_eq!(fs::read_to_string(blobs.join("hash of root")).unwrap(), "root");
            assert_eq!(fs::read_dir(&blobs).unwrap().count(), 2);
            // A part that is not whole, as a copy that somebody has cut.
            fs::remove_file(blobs.join("hash of root")).unwrap();
            fs::write(blobs.join("hash of root"), "ro").unwrap();
        }
        fs::remove_file(image.join("root")).unwrap();
        assert!(store(&image, &manifest, &blobs).is_err());
        fs::remove_dir_all(&image).unwrap();
    }
}
