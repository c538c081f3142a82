//! Parts of images in the cache that no image names any more: each build of the agent leaves some. They go to a quarantine
//! first, so that a lab which is being started still finds them, and are removed after a day there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// How long a part stays in quarantine.
const GRACE: Duration = Duration::from_secs(24 * 3_600);

/// Puts away what no manifest below `images` names, and removes what has been put away for long. A manifest that cannot be
/// read may name anything: then nothing is touched.
pub(super) fn tidy(images: &Path) -> Result<()> {
    let named = named(images)?;
    let (blobs, quarantine) = (images.join("blobs"), images.join("quarantine"));
    fs::create_dir_all(&quarantine).context("make the quarantine")?;
    for entry in fs::read_dir(&blobs).context("list the parts")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_part = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_part && !named.contains(&name) {
            let target = quarantine.join(&name);
            fs::rename(blobs.join(&name), &target).with_context(|| format!("put away {name}"))?;
            // A name of its own tells since when: the part's own time is that of its making, and may be another link's too.
            fs::write(target.with_extension("since"), "").context("note when")?;
        }
    }
    for entry in fs::read_dir(&quarantine).context("list the quarantine")? {
        let path = entry?.path();
        let is_note = path.extension().is_some_and(|extension| extension == "since");
        let age = fs::metadata(&path)
            .and_then(|found| found.modified())
            .ok()
            .and_then(|since| since.elapsed().ok());
        if is_note && age.is_some_and(|age| age >= GRACE) {
            let part = path.with_extension("");
            if part.exists() {
                fs::remove_file(part).context("remove a part")?;
            }
            fs::remove_file(path).context("remove its note")?;
        }
    }
    Ok(())
}

/// The checksums that the manifests of all images name.
fn named(images: &Path) -> Result<BTreeSet<String>> {
    let mut named = BTreeSet::new();
    for entry in fs::read_dir(images).context("list the images")? {
        let manifest = entry?.path().join("manifest.json");
        if !manifest.exists() {
            continue;
        }
        let what = || format!("read {}", manifest.display());
        let manifest: Value =
            serde_json::from_slice(&fs::read(&manifest).with_context(what)?).with_context(what)?;
        for part in ["kernel", "initrd", "root"] {
            named.extend(manifest[part]["sha256"].as_str().map(str::to_owned));
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_image_names_goes_in_steps() {
        let images = std::env::temp_dir().join(format!("lightbyte-blobs-tidy-{}", std::process::id()));
        let _ = fs::remove_dir_all(&images);
        for directory in ["blobs", "demo"] {
            fs::create_dir_all(images.join(directory)).unwrap();
        }
        let (kept, other) = ("a".repeat(64), "b".repeat(64));
        for name in [&kept, &other] {
            fs::write(images.join("blobs").join(name), "").unwrap();
        }
        fs::write(images.join("demo/manifest.json"), "{").unwrap();
        assert!(tidy(&images).is_err());
        assert!(images.join("blobs").join(&other).exists(), "nothing is put away on half a list");
        let manifest = format!("{{\"kernel\": {{\"sha256\": \"{kept}\"}}}}");
        fs::write(images.join("demo/manifest.json"), manifest).unwrap();
        tidy(&images).unwrap();
        assert!(images.join("blobs").join(&kept).exists() && !images.join("blobs").join(&other).exists());
        let (part, note) = (
            images.join("quarantine").join(&other),
            images.join("quarantine").join(format!("{other}.since")),
        );
        assert!(part.exists());
        let long_ago = fs::metadata(&note).unwrap().modified().unwrap() - GRACE;
        fs::File::options().write(true).open(&note).unwrap().set_modified(long_ago).unwrap();
        tidy(&images).unwrap();
        assert!(!part.exists() && !note.exists());
        fs::remove_dir_all(images).unwrap();
    }
}
