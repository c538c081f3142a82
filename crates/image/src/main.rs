//! `lightbyte-image NAME KERNEL_TREE ROOT AGENT OUT BLOBS [PROXY]`: makes an image in OUT, and its parts by content in BLOBS.
//! ROOT is a static busybox, or a file `*.tar` with a whole Debian; beside busybox PROXY makes it an image of load balancers.
//! If it was made from the same before, nothing is done. Prints the manifest.

use std::fs;
use std::path::Path;

use anyhow::Context;
use lightbyte_image::blobs;
use lightbyte_image::manifest::Manifest;
use lightbyte_image::pack::{Root, Sources, key, pack};

/// Says from what the image beside it was made.
const KEY: &str = ".key";

const USAGE: &str = "usage: lightbyte-image NAME KERNEL_TREE ROOT AGENT OUT BLOBS [PROXY]";

/// All ports are the proxy's, so no page.
const PROXY_COMMAND_LINE: &str = "";

/// The agent serves its page.
const DEMO_COMMAND_LINE: &str = "lightbyte.page";

/// The agent in the initramfs hands over to the root's own init.
const SYSTEM_COMMAND_LINE: &str = "lightbyte.init=/sbin/init";

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, kernel_tree, root, agent, out, store, proxy @ ..] = words.as_slice() else {
        anyhow::bail!("{USAGE}");
    };
    let is_system = Path::new(root).extension().is_some_and(|extension| extension == "tar");
    let busybox =
        |proxy: Option<&String>| Root::Busybox { busybox: root.into(), proxy: proxy.map(Into::into) };
    let (root, command_line) = match proxy {
        [] if is_system => (Root::System(root.into()), SYSTEM_COMMAND_LINE),
        [] => (busybox(None), DEMO_COMMAND_LINE),
        [proxy] if !is_system => (busybox(Some(proxy)), PROXY_COMMAND_LINE),
        _ => anyhow::bail!("{USAGE}"),
    };
    let sources = Sources {
        name: name.clone(),
        kernel_tree: kernel_tree.into(),
        root,
        agent: agent.into(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: command_line.to_owned(),
    };
    let (out, store) = (Path::new(out), Path::new(store));
    let key = key(&sources)?;
    let made = made_before(out, &key);
    let manifest = match made {
        Some(manifest) => manifest,
        None => pack(&sources, out)?,
    };
    blobs::store(out, &manifest, store)?;
    // Last: an image whose making was cut short is made again.
    fs::write(out.join(KEY), key).context("write the key")?;
    println!("{}", serde_json::to_string_pretty(&manifest).context("print the manifest")?);
    Ok(())
}

/// The image in `out`, if it was made from what has this key.
fn made_before(out: &Path, key: &str) -> Option<Manifest> {
    let found = fs::read_to_string(out.join(KEY)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&fs::read(out.join("manifest.json")).ok()?).ok()?;
    let is_there = |file: &str, bytes| fs::metadata(out.join(file)).is_ok_and(|found| found.len() == bytes);
    let is_whole = manifest.parts().all(|part| is_there(&part.file, part.bytes));
    (found == key && is_whole).then_some(manifest)
}
