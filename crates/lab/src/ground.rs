//! What a lab stands on: the programs and images that it is started with, and the objects that it begins with.

use std::iter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use lightbyte_api::object::Object;
use lightbyte_api::wire::{Applied, Apply, List};
use lightbyte_link::{Client, Endpoint};
use serde_json::{Value, json};

use crate::dev::{LOOK_EVERY, READY_WITHIN};
use crate::rack::{Lan, Places, Rack, VmmChoice};

/// Waits until every worker is ready, and gives the cluster what VMs stand on.
pub(crate) async fn prepare(rack: &Rack, places: &Places) -> Result<()> {
    let endpoints: Vec<Endpoint> = rack.servers().iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
    let client = Client::new(endpoints);
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    loop {
        let workers = client.get::<List<Object>>("/v1/objects/worker").await;
        let ready = match &workers {
            Ok(list) => list.value.items.iter().filter(|worker| worker.status.ready).count(),
            Err(_) => 0,
        };
        if ready >= rack.hosts.len() {
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "{ready} of {} workers are ready after {} s; {} has the reason",
                rack.hosts.len(),
                READY_WITHIN.as_secs(),
                places.state.join("log").display()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let apply = Apply { documents: ground(rack, places)?, create_only: false, dry_run: false };
    loop {
        match client.post::<_, Applied>("/v1/apply", &apply).await {
            Ok(_) => return Ok(()),
            // The same again changes nothing, so a server that dies now costs no more than another try.
            Err(error)
                if error.status().is_none_or(|status| status >= 500)
                    && tokio::time::Instant::now() < deadline => {}
            Err(error) => return Err(error).context("make the default network and images"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The manifests of what every lab has.
fn ground(rack: &Rack, places: &Places) -> Result<Vec<Value>> {
    let lan = rack.lan.unwrap_or(Lan { octet: 77 });
    // Each host's own resolver. Where there are only fake hosts nobody asks it.
    let dns = [lan.resolver()];
    let spec = json!({
        "subnet": lan.subnet(), "gateway": lan.gateway(), "pool_first": lan.first_vm(), "dns": dns,
    });
    let network = json!({ "kind": "network", "name": "default", "spec": spec });
    let images = match rack.wish.vmm {
        VmmChoice::Qemu => packed_images(&places.images)?,
        VmmChoice::Fake => {
            // No bytes are ever read of it.
            let part = json!({ "sha256": "0".repeat(64), "size": "64MiB" });
            let version = json!({ "version": "fake", "architecture": std::env::consts::ARCH, "kernel": part, "root": part });
            vec![("demo".to_owned(), version.clone()), ("proxy".to_owned(), version)]
        }
    };
    let image = |(name, version): (String, Value)| {
        let spec = json!({ "current": version["version"], "versions": [version] });
        json!({ "kind": "image", "name": name, "spec": spec })
    };
    Ok(iter::once(network).chain(images.into_iter().map(image)).collect())
}

/// Names and versions of all images that were made, by their directories.
fn packed_images(images: &Path) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(images).with_context(|| format!("list {}", images.display()))? {
        let entry = entry.with_context(|| format!("list {}", images.display()))?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().join("manifest.json").is_file()
        {
            found.push((name, packed_image(&entry.path())?));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}

/// The version that a packed image's `manifest.json` describes, as an image object lists it.
fn packed_image(directory: &Path) -> Result<Value> {
    let path = directory.join("manifest.json");
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let manifest: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
    let part = |name: &str| {
        let part = &manifest[name];
        (!part.is_null()).then(|| json!({ "sha256": part["sha256"], "size": part["bytes"] }))
    };
    Ok(json!({
        "version": manifest["version"],
        "architecture": manifest["architecture"],
        "kernel": part("kernel"),
        "initrd": part("initrd"),
        "command_line": manifest["command_line"],
        "root": part("root"),
    }))
}

/// Gives the first host the parts of all images that were made, as an import through its server would. Other hosts fetch
/// what they need.
pub(crate) fn seed(rack: &Rack, places: &Places) -> Result<()> {
    let (VmmChoice::Qemu, Some(host)) = (rack.wish.vmm, rack.hosts.first()) else { return Ok(()) };
    let parts = places.parts(host);
    std::fs::create_dir_all(&parts).with_context(|| format!("create {}", parts.display()))?;
    for (name, version) in packed_images(&places.images)? {
        for part in ["kernel", "initrd", "root"] {
            let Some(sha256) = version[part]["sha256"].as_str() else { continue };
            let (source, target) = (places.images.join("blobs").join(sha256), parts.join(sha256));
            if !target.exists() {
                lend(&source, &target).with_context(|| format!("give it the {part} of {name}"))?;
            }
        }
    }
    Ok(())
}

/// The same file under another name; a copy with its holes where that is not allowed, such as on another file system.
fn lend(source: &Path, target: &Path) -> Result<()> {
    if std::fs::hard_link(source, target).is_ok() {
        return Ok(());
    }
    let growing = target.with_extension("new");
    let mut copy = std::process::Command::new("cp");
    copy.args(["--reflink=auto", "--sparse=always"]).arg(source).arg(&growing);
    let copied = copy.output().context("start cp")?;
    if !copied.status.success() {
        bail!("cp: {}", String::from_utf8_lossy(&copied.stderr).trim());
    }
    std::fs::rename(&growing, target).context("rename the copy")
}

/// Where the set-up keeps what it has fetched and made.
fn cache() -> Option<PathBuf> {
    from_environment("LIGHTBYTE_CACHE")
        .or_else(|| Some(from_environment("XDG_CACHE_HOME")?.join("lightbyte")))
        .or_else(|| Some(from_environment("HOME")?.join(".cache/lightbyte")))
}

fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The images of real VMs: named, or from the environment or the set-up's cache.
pub(crate) fn find_images(named: Option<PathBuf>, vmm: VmmChoice) -> Result<PathBuf> {
    let cached = || Some(cache()?.join("images"));
    let images = named.or_else(|| from_environment("LIGHTBYTE_IMAGES")).or_else(cached).unwrap_or_default();
    if vmm == VmmChoice::Fake {
        return Ok(images);
    }
    if !images.join("demo/manifest.json").is_file() {
        bail!("there is no demo image in {}: `cargo xtask images` makes it", images.display());
    }
    std::path::absolute(images).context("find the images")
}

/// The etcd program: named, or from the environment, the set-up's cache, or the path.
pub(crate) fn find_etcd(named: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(etcd) = named.or_else(|| from_environment("LIGHTBYTE_ETCD")) {
        return if etcd.is_file() { Ok(etcd) } else { bail!("{} is not there", etcd.display()) };
    }
    let cached = cache().map(|cache| cache.join("etcd/usr/bin/etcd"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("etcd"));
    match cached.into_iter().chain(on_path).find(|path| path.is_file()) {
        Some(etcd) => Ok(etcd),
        None => bail!(
            "there is no etcd on this machine: `cargo xtask setup` fetches one, or name yours with --etcd"
        ),
    }
}
