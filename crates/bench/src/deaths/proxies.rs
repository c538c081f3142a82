//! The proxies that are compared, each with what it is told.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use super::client;
use super::ground::{BACKEND_PORT, BACKENDS, Ground, backend_address, hub_address};
use crate::bed::Bed;
use crate::proxies::{self, OURS, program};

/// How long a proxy may take until it answers.
const START_MAX: Duration = Duration::from_secs(20);

/// The pause between two looks whether it does.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// haproxy as Debian's package sets it up, without more words: time-outs of 5 and 50 s, no checks.
const HAPROXY_DEFAULT: &str = "
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
backend all
    balance roundrobin
";

/// haproxy as somebody may set it up who wants to survive this: checks twice a second by HTTP, short time-outs, retries of
/// all that may be repeated on another server, and servers that fail three requests marked down.
const HAPROXY_TUNED: &str = "
defaults
    mode http
    timeout connect 300ms
    timeout client 50s
    timeout server 1s
    timeout check 500ms
    retries 3
    option redispatch 1
    retry-on all-retryable-errors
backend all
    balance roundrobin
    option httpchk GET /
    default-server check inter 500ms fall 2 rise 2 observe layer7 error-limit 3 on-error mark-down
";

/// nginx with time-outs of a second, connections that are kept, and else as it comes: the next server after an error or a
/// time-out, and one that failed once left alone for 10 s.
const NGINX: &str = "
daemon off; master_process off; worker_processes 1;
events { worker_connections 4096; }
";

/// The proxies that run.
pub(super) struct Proxies {
    running: Vec<(&'static str, SocketAddr, Child)>,
}

/// What of our own is missing.
pub(super) fn lacking() -> Option<String> {
    ours()
        .is_none()
        .then(|| format!("there is no `{OURS}` beside this program; `cargo build -p {OURS}` makes it"))
}

fn ours() -> Option<PathBuf> {
    std::env::current_exe().ok().map(|own| own.with_file_name(OURS)).filter(|program| program.is_file())
}

impl Proxies {
    /// Starts ours, and those of the others that are installed; says what would install the rest.
    ///
    /// # Errors
    /// When one that is there does not start.
    pub(super) async fn start(bed: &Bed, ground: &Ground) -> Result<Proxies> {
        let mut proxies = Proxies { running: Vec::new() };
        let listen = |port: u16| SocketAddr::from((hub_address(), port));
        let ours = ours().context("find our own proxy")?;
        let backends: Vec<_> =
            (1..=BACKENDS).map(|number| SocketAddr::from((backend_address(number), BACKEND_PORT))).collect();
        let arguments = proxies::lay_out(bed, &proxies::topology(listen(8_001), &backends)?)?;
        let child = ground.in_hub(&ours, &arguments, &bed.path("ours.log"))?;
        proxies.running.push((OURS, listen(8_001), child));
        for (name, port, text) in
            [("haproxy, default", 8_002, HAPROXY_DEFAULT), ("haproxy, tuned", 8_003, HAPROXY_TUNED)]
        {
            let Some(haproxy) = program("haproxy") else {
                eprintln!("deaths: no {name}: `apt-get install haproxy` installs it");
                continue;
            };
            let file = bed.path(&format!("haproxy-{port}.cfg"));
            fs::write(&file, haproxy_text(text, listen(port))).context("write a configuration")?;
            let arguments = ["-db".into(), "-f".into(), file.into_os_string()];
            let child = ground.in_hub(&haproxy, &arguments, &bed.path(&format!("haproxy-{port}.log")))?;
            proxies.running.push((name, listen(port), child));
        }
        match program("nginx") {
            None => eprintln!("deaths: no nginx: `apt-get install nginx-light` installs it"),
            Some(nginx) => {
                let file = bed.path("nginx.conf");
                fs::write(&file, nginx_text(bed, listen(8_004))).context("write a configuration")?;
                let prefix = bed.make("nginx")?.into_os_string();
                let log = bed.path("nginx.log");
                let arguments =
                    ["-c".into(), file.into_os_string(), "-p".into(), prefix, "-e".into(), "stderr".into()];
                let child = ground.in_hub(&nginx, &arguments, &log)?;
                proxies.running.push(("nginx", listen(8_004), child));
            }
        }
        for (name, address, _) in &proxies.running {
            until_up(name, *address).await?;
        }
        Ok(proxies)
    }

    pub(super) fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        self.running.iter().map(|(name, address, _)| (*name, *address)).collect()
    }

    /// In which row it comes.
    pub(super) fn place(&self, name: &str) -> usize {
        self.running.iter().position(|(own, ..)| *own == name).unwrap_or_default()
    }
}

/// Waits until it has answered once for each backend, so that the first requests of a run meet nothing new.
async fn until_up(name: &str, address: SocketAddr) -> Result<()> {
    let end = Instant::now() + START_MAX;
    let mut answers = 0;
    while answers < BACKENDS {
        match client::get(address, START_MAX).await.whole_ms {
            Some(_) => answers += 1,
            None if Instant::now() > end => bail!("{name} does not answer on {address}"),
            None => sleep(LOOK_PAUSE).await,
        }
    }
    Ok(())
}

fn haproxy_text(text: &str, listen: SocketAddr) -> String {
    let mut text = text.trim_start().to_owned();
    for number in 1..=BACKENDS {
        let _ = writeln!(text, "    server b{number} {}:{BACKEND_PORT}", backend_address(number));
    }
    let _ = write!(text, "frontend web\n    bind {listen}\n    default_backend all\n");
    text
}

fn nginx_text(bed: &Bed, listen: SocketAddr) -> String {
    let mut servers = String::new();
    for number in 1..=BACKENDS {
        let _ = write!(servers, "server {}:{BACKEND_PORT}; ", backend_address(number));
    }
    let pid = bed.path("nginx.pid");
    format!(
        "pid {};{NGINX}http {{\n access_log off;\n upstream all {{ {servers}keepalive 32; }}\n server {{\n  \
         listen {listen};\n  location / {{ proxy_pass http://all; proxy_http_version 1.1;\n   \
         proxy_set_header Connection \"\"; proxy_connect_timeout 1s; proxy_read_timeout 1s; }}\n }}\n}}\n",
        pid.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_are_told_names_every_backend() {
        let listen = ([127, 0, 0, 1], 80).into();
        for text in [haproxy_text(HAPROXY_DEFAULT, listen), haproxy_text(HAPROXY_TUNED, listen)] {
            assert_eq!(text.matches("    server b").count(), usize::from(BACKENDS), "{text}");
        }
    }
}
