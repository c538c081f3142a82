//! Which cluster is meant: `LIGHTBYTE_API`, or a context in `contexts.yaml`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lightbyte_link::Endpoint;
use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::yaml;

/// The servers of a cluster, before any context.
pub(crate) const API_VARIABLE: &str = "LIGHTBYTE_API";

/// The file `contexts.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Contexts {
    /// The context that is used when nobody says otherwise.
    current: Option<String>,
    /// All contexts by name.
    contexts: BTreeMap<String, Cluster>,
}

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    /// Its servers: `http://host:port` or `unix:/path`.
    servers: Vec<String>,
}

/// The servers to ask: of `LIGHTBYTE_API`, else of the context `name`, else of the current context.
pub(crate) fn servers(name: Option<&str>) -> Result<Vec<Endpoint>> {
    if let Some(text) = environment(API_VARIABLE) {
        return read_servers(text.split(',').map(str::trim)).with_context(|| format!("read {API_VARIABLE}"));
    }
    let path = path()?;
    let contexts = read(&path)?;
    let Some(name) = name.map(str::to_owned).or_else(|| contexts.current.clone()) else {
        return Err(no_cluster());
    };
    let Some(cluster) = contexts.contexts.get(&name) else {
        let known: Vec<String> = contexts.contexts.keys().map(|name| format!("`{name}`")).collect();
        let hint = if known.is_empty() {
            "`cargo xtask dev` or `lightbyte dev` starts a cluster on this machine".to_owned()
        } else {
            format!("contexts are: {}", known.join(", "))
        };
        let message = format!("there is no context `{name}` in `{}`", path.display());
        return Err(Failure::new(Code::NotFound, message).hint(hint).into());
    };
    read_servers(cluster.servers.iter().map(String::as_str))
        .with_context(|| format!("read context `{name}` of `{}`", path.display()))
}

fn no_cluster() -> anyhow::Error {
    Failure::new(Code::Error, "no cluster is known here")
        .hint(format!(
            "`cargo xtask dev` or `lightbyte dev` starts one on this machine; {API_VARIABLE} names another's servers"
        ))
        .into()
}

fn read_servers<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Endpoint>> {
    let servers: Vec<Endpoint> =
        texts.filter(|text| !text.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    if servers.is_empty() { Err(no_cluster()) } else { Ok(servers) }
}

/// Adds the context `name` or replaces it, and makes it the current one. The others stay as they are; the file is
/// replaced whole, so that nobody reads half of it.
pub(crate) fn write_context(name: &str, servers: &[String]) -> Result<PathBuf> {
    let path = path()?;
    write_context_to(&path, name, servers)?;
    Ok(path)
}

fn write_context_to(path: &Path, name: &str, servers: &[String]) -> Result<()> {
    let mut contexts = read(path)?;
    let cluster = Cluster { servers: servers.to_vec() };
    contexts.contexts.insert(name.to_owned(), cluster);
    contexts.current = Some(name.to_owned());
    let text = yaml::write(&contexts)?;
    replace(path, &text).with_context(|| format!("write `{}`", path.display()))
}

fn read(path: &Path) -> Result<Contexts> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contexts::default()),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
        Ok(text) if text.trim().is_empty() => Ok(Contexts::default()),
        Ok(text) => yaml::read(&text).with_context(|| format!("read `{}`", path.display())),
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Two writers have two names; the last rename wins as a whole.
    let temporary = path.with_extension(format!("yaml.{}.tmp", std::process::id()));
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of a failed try is of no use; the first error is the one to tell.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn path() -> Result<PathBuf> {
    Ok(directory()?.join("contexts.yaml"))
}

/// Where the contexts are, and what else is kept for a person (XDG Base Directory Specification 0.8: `$XDG_CONFIG_HOME`,
/// else `~/.config`).
pub(crate) fn directory() -> Result<PathBuf> {
    let home = || environment("HOME").map(|home| PathBuf::from(home).join(".config"));
    let directory = environment("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = directory.or_else(home).ok_or_else(|| {
        Failure::new(Code::Error, "neither HOME nor XDG_CONFIG_HOME says where the contexts are")
            .hint(format!("{API_VARIABLE} names the servers without a file"))
    })?;
    Ok(directory.join("lightbyte"))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_servers(texts: &[&str], expect: &str) {
        let found = match read_servers(texts.iter().copied()) {
            Ok(servers) => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(found, expect, "{texts:?}");
    }

    #[test]
    fn servers_are_urls_or_sockets() {
        check_servers(&["http://n1:7700", "", "unix:/run/a.sock"], "http://n1:7700 unix:/run/a.sock");
        check_servers(
            &["n1"],
            "`n1` is not a server such as http://10.0.0.1:7700 or unix:/run/lightbyte/api.sock",
        );
        check_servers(&[], "no cluster is known here");
    }

    #[test]
    fn a_context_is_added_beside_the_others() {
        let directory = std::env::temp_dir().join(format!("lightbyte-context-{}", std::process::id()));
        let path = directory.join("deep").join("contexts.yaml");
        write_context_to(&path, "home", &["unix:/a".to_owned()]).unwrap();
        write_context_to(&path, "dev", &["http://a".to_owned(), "http://b".to_owned()]).unwrap();
        write_context_to(&path, "dev", &["http://c".to_owned()]).unwrap();
        let contexts = read(&path).unwrap();
        assert_eq!(contexts.current.as_deref(), Some("dev"));
        assert_eq!(contexts.contexts["home"].servers, ["unix:/a"]);
        assert_eq!(contexts.contexts["dev"].servers, ["http://c"]);
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left");
        fs::write(&path, "current: [").unwrap();
        assert!(write_context_to(&path, "dev", &[]).is_err(), "a file that cannot be read is not replaced");
        assert_eq!(fs::read_to_string(&path).unwrap(), "current: [");
        fs::remove_dir_all(&directory).unwrap();
    }
}
