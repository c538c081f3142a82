//! Layers of a container's image become one tar file: what an upper layer hides or replaces is left out. So one unpacking
//! makes the tree, by the code that unpacks everything else, and no name of a stranger is ever joined to a path here.
//!
//! Source: OCI image specification 1.1, `layer.md` (whiteouts).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tar::{Archive, Builder, EntryType};

/// Most entries of all layers together.
const ENTRIES_MAX: usize = 2_000_000;
/// Most bytes of all files of all layers together.
const BYTES_MAX: u64 = 256 << 30;
/// What hides a name of lower layers.
const WHITEOUT: &str = ".wh.";
/// What hides everything that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// What upper layers say of lower ones.
#[derive(Default)]
struct Above {
    /// Names that they have; those of directories do not hide what lower ones have in them.
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    hidden: BTreeSet<PathBuf>,
    opaque: BTreeSet<PathBuf>,
}

impl Above {
    /// Whether the entry of a lower layer is there in the end.
    fn lets_through(&self, path: &Path, is_directory: bool) -> bool {
        let hides = |part: &Path| self.hidden.contains(part) || self.files.contains(part);
        if hides(path) || (!is_directory && self.directories.contains(path)) {
            return false;
        }
        path.ancestors().skip(1).all(|part| !hides(part) && !self.opaque.contains(part))
    }
}

/// How the layers are read: any number of times, the lowest being 0.
pub(crate) trait Layers {
    /// How many there are.
    fn count(&self) -> usize;
    /// The layer's tar file, uncompressed.
    fn open(&self, index: usize) -> Result<Box<dyn Read>>;
}

/// Writes everything that is there in the end as one tar file.
pub(crate) fn flatten(layers: &dyn Layers, output: impl Write) -> Result<()> {
    let mut above = Above::default();
    let mut kept: Vec<Vec<bool>> = vec![Vec::new(); layers.count()];
    let (mut entries, mut bytes) = (0, 0_u64);
    for index in (0..layers.count()).rev() {
        let mut own = Above::default();
        each(layers, index, |path, entry| {
            entries += 1;
            bytes = bytes.saturating_add(entry.size());
            ensure!(entries <= ENTRIES_MAX, "more than {ENTRIES_MAX} files");
            ensure!(bytes <= BYTES_MAX, "more than {BYTES_MAX} bytes");
            kept[index].push(judge(&path, entry.header().entry_type(), &above, &mut own));
            Ok(())
        })?;
        above.files.append(&mut own.files);
        above.directories.append(&mut own.directories);
        above.hidden.append(&mut own.hidden);
        above.opaque.append(&mut own.opaque);
    }
    let mut builder = Builder::new(output);
    builder.sparse(false);
    for (index, kept) in kept.iter().enumerate() {
        write(layers, index, kept, &mut builder)?;
    }
    builder.finish().context("end the tar file")
}

/// Whether an entry is kept; what it means for lower layers is noted.
fn judge(path: &Path, kind: EntryType, above: &Above, own: &mut Above) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new(""));
    if name == OPAQUE {
        own.opaque.insert(parent.to_owned());
        return false;
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        own.hidden.insert(parent.join(hidden));
        return false;
    }
    let is_directory = kind.is_dir();
    let names = if is_directory { &mut own.directories } else { &mut own.files };
    names.insert(path.to_owned());
    above.lets_through(path, is_directory)
}

/// Copies the kept entries of a layer. A hard link to a file that was replaced gets the file's content itself.
fn write(layers: &dyn Layers, index: usize, kept: &[bool], builder: &mut Builder<impl Write>) -> Result<()> {
    let mut heirs: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut places: HashMap<PathBuf, bool> = HashMap::new();
    let mut number = 0;
    each(layers, index, |path, entry| {
        let is_kept = kept.get(number).copied().unwrap_or(false);
        number += 1;
        if entry.header().entry_type().is_hard_link() && is_kept {
            let target = clean(&entry.link_name()?.context("a link to nothing")?)?;
            if places.get(&target) == Some(&false) {
                heirs.entry(target).or_insert(path);
            }
        } else {
            places.insert(path, is_kept);
        }
        Ok(())
    })?;
    let mut number = 0;
    each(layers, index, |path, mut entry| {
        let is_kept = kept.get(number).copied().unwrap_or(false);
        number += 1;
        let heir = heirs.get(&path).filter(|_| !is_kept);
        let name = match heir {
            Some(heir) => heir.clone(),
            None if is_kept => path,
            None => return Ok(()),
        };
        let mut header = entry.header().clone();
        // Names of a stranger are cleaned; longer ones than a header holds are written as GNU's tar does.
        if header.entry_type().is_hard_link() || header.entry_type().is_symlink() {
            let mut link = entry.link_name()?.context("a link to nothing")?.into_owned();
            if header.entry_type().is_hard_link() {
                link = clean(&link)?;
                match heirs.get(&link) {
                    Some(heir) if *heir == name => return Ok(()),
                    Some(heir) => link = heir.clone(),
                    None => {}
                }
                link = Path::new(".").join(link);
            }
            header.set_size(0);
            return builder.append_link(&mut header, Path::new(".").join(name), link).context("write a link");
        }
        header.set_size(entry.size());
        let name = if name.as_os_str().is_empty() { PathBuf::from("./") } else { Path::new(".").join(name) };
        builder.append_data(&mut header, name, &mut entry).context("write a file")
    })
}

/// Calls for every entry of a layer with its cleaned path, in order.
fn each(
    layers: &dyn Layers,
    index: usize,
    mut call: impl FnMut(PathBuf, tar::Entry<'_, Box<dyn Read>>) -> Result<()>,
) -> Result<()> {
    let what = || format!("read layer {}", index + 1);
    let mut archive = Archive::new(layers.open(index).with_context(what)?);
    for entry in archive.entries().with_context(what)? {
        let entry = entry.with_context(what)?;
        // A global head says nothing of files.
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        let path = clean(&entry.path().with_context(what)?).with_context(what)?;
        call(path, entry).with_context(what)?;
    }
    Ok(())
}

/// A path below the root: one that leads out of it is refused.
fn clean(path: &Path) -> Result<PathBuf> {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("a file is named `{}`, which leads out of the image", path.display())
            }
        }
    }
    Ok(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    struct InMemory(Vec<Vec<u8>>);

    impl Layers for InMemory {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn open(&self, index: usize) -> Result<Box<dyn Read>> {
            Ok(Box::new(Cursor::new(self.0[index].clone())))
        }
    }

    /// A layer: `dir/`, `file=content`, `link->target` (hard).
    fn layer(entries: &[&str]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for entry in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            if let Some((name, target)) = entry.split_once("->") {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            } else if let Some((name, content)) = entry.split_once('=') {
                header.set_size(content.len() as u64);
                // As a stranger would: the builder refuses such names.
                let bytes = name.as_bytes();
                header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            } else {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                builder.append_data(&mut header, entry, std::io::empty()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn flat(layers: &[&[&str]]) -> Result<Vec<String>> {
        let layers = InMemory(layers.iter().map(|entries| layer(entries)).collect());
        let mut output = Vec::new();
        flatten(&layers, &mut output)?;
        let mut found = Vec::new();
        for entry in Archive::new(output.as_slice()).entries()? {
            let mut entry = entry?;
            let mut content = String::new();
            entry.read_to_string(&mut content)?;
            let path = entry.path()?.display().to_string();
            let link = entry.link_name()?.map(|link| format!("->{}", link.display())).unwrap_or_default();
            let content = if content.is_empty() { content } else { format!("={content}") };
            found.push(format!("{}{link}{content}", path.trim_start_matches("./").trim_end_matches('/')));
        }
        Ok(found)
    }

    #[test]
    fn upper_layers_replace_and_hide() {
        let check =
            |layers: &[&[&str]], expect: &[&str]| assert_eq!(flat(layers).unwrap(), expect, "{layers:?}");
        check(&[&["a=1", "d/", "d/b=2"], &["a=3"]], &["d", "d/b=2", "a=3"]);
        check(&[&["d/", "d/b=2", "d/c=3"], &["d/.wh.b="]], &["d", "d/c=3"]);
        // A whole directory is hidden, and comes back with something else in it.
        check(&[&["d/", "d/b=2"], &[".wh.d="], &["d/", "d/n=1"]], &["d", "d/n=1"]);
        check(&[&["d/", "d/b=2"], &["d/", "d/.wh..wh..opq=", "d/n=1"]], &["d", "d", "d/n=1"]);
        // What a layer hides of lower ones it may have itself.
        check(&[&["a=1"], &[".wh.a=", "a=2"]], &["a=2"]);
        // A file where a directory was hides what was in it.
        check(&[&["d/", "d/b=2"], &["d=file"]], &["d=file"]);
        check(&[&["d=file"], &["d/", "d/b=2"]], &["d", "d/b=2"]);
        check(&[&["a=1"], &["b/"], &["c=2"]], &["a=1", "b", "c=2"]);
    }

    #[test]
    fn a_hard_link_outlives_the_file_that_it_named() {
        let found = flat(&[&["a=1", "b->a", "c->a"], &[".wh.a="]]).unwrap();
        assert_eq!(found, ["b=1", "c->./b"]);
        let found = flat(&[&["a=1", "b->a"], &["a=2"]]).unwrap();
        assert_eq!(found, ["b=1", "a=2"]);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for bad in ["../a=1", "d/../../a=1"] {
            let error = flat(&[&[bad]]).unwrap_err();
            assert!(format!("{error:#}").contains("leads out of the image"), "{error:#}");
        }
        assert_eq!(flat(&[&["/etc/passwd=1"]]).unwrap(), ["etc/passwd=1"]);
    }
}
