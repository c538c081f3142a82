//! haproxy and nginx, each before a recorder of its own, as they come.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::check::Ports;
use super::recorder::Recorder;
use crate::rig::{free_port, get, until};

/// A proxy of somebody else; it ends when this is dropped.
pub(super) struct Peer {
    pub(super) ports: Ports,
    pub(super) recorder: Arc<Recorder>,
    child: Child,
    directory: PathBuf,
}

fn program(name: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

/// What is not there, and what would install it.
pub(super) fn lacking() -> Option<String> {
    let lacking: Vec<&str> =
        ["haproxy", "nginx"].into_iter().filter(|name| program(name).is_none()).collect();
    (!lacking.is_empty()).then(|| {
        format!("no {}; `apt-get install haproxy nginx-light` installs them", lacking.join(" and no "))
    })
}

/// Says why a test cannot run: on standard error, and as a line of the file that `LIGHTBYTE_SKIPPED` names.
pub(super) fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    let line = format!("skipped: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to the file");
    }
}

impl Peer {
    pub(super) async fn haproxy() -> Peer {
        let (port, h2_port, recorder) = (free_port(), free_port(), Arc::new(Recorder::start().await));
        let text = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 50s\n timeout server 50s\n \
             timeout http-request 5s\n\
             frontend h1\n bind 127.0.0.1:{port}\n default_backend all\n\
             frontend h2\n bind 127.0.0.1:{h2_port} proto h2\n default_backend all\n\
             backend all\n server one {}\n",
            recorder.address
        );
        Peer::start("haproxy", &["-db", "-f", "CONFIG"], &text, Ports { h1: port, h2: h2_port }, recorder)
            .await
    }

    pub(super) async fn nginx() -> Peer {
        let (port, h2_port, recorder) = (free_port(), free_port(), Arc::new(Recorder::start().await));
        let text = format!(
            "daemon off; master_process off; pid nginx.pid;\nevents {{ }}\nhttp {{\n access_log off;\n \
             client_header_timeout 5s;\n client_body_temp_path body; proxy_temp_path proxy;\n \
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n \
             server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{h2_port} http2;\n  \
             location / {{ proxy_pass http://{}; proxy_http_version 1.1; }} }} }}\n",
            recorder.address
        );
        let words = ["-c", "CONFIG", "-p", "DIRECTORY", "-e", "stderr"];
        Peer::start("nginx", &words, &text, Ports { h1: port, h2: h2_port }, recorder).await
    }

    async fn start(name: &str, words: &[&str], text: &str, ports: Ports, recorder: Arc<Recorder>) -> Peer {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("lightbyte-peer-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let config = directory.join("config");
        fs::write(&config, text).expect("writes");
        let words = words.iter().map(|word| match *word {
            "CONFIG" => config.clone().into_os_string(),
            "DIRECTORY" => directory.clone().into_os_string(),
            word => word.into(),
        });
        let child = Command::new(program(name).expect("was looked for"))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let port = ports.h1;
        let peer = Peer { ports, recorder, child, directory };
        let is_up = || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
                && get(port, "a/").await.status == 200
        };
        until(name, is_up).await;
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
