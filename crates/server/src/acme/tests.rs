//! Against a real authority: Debian's `pebble`, which is made to be tested against.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use lightbyte_api::topology::CHALLENGE_PATH;
use lightbyte_certificate::{Certificate, certified};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

/// A test that waits for longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says why a test cannot run: on standard error, and as a line of the file that `LIGHTBYTE_SKIPPED` names.
fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    let line = format!("skipped: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to the file");
    }
}

/// An authority, whose every name leads to `answers`.
struct Authority {
    process: Child,
    directory: PathBuf,
    url: String,
    root: rustls::pki_types::CertificateDer<'static>,
    /// What is answered at the place where names lead, by path.
    answers: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn free_port() -> u16 {
    let listener = StdTcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Answers every question for an address with this machine's, and every other with nothing.
async fn names_lead_here() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut query = [0; 1_024];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).expect("a name") + 5;
            let is_for_address = query[end - 4..end - 2] == [0, 1];
            let mut answer = query[..end].to_vec();
            (answer[2], answer[3]) = (0x81, 0x80);
            answer[6..12].copy_from_slice(&[0, u8::from(is_for_address), 0, 0, 0, 0]);
            if is_for_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(Ipv4Addr::LOCALHOST.octets());
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    address
}

/// Where all names lead.
async fn answer_by(answers: Arc<Mutex<BTreeMap<String, String>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4_096];
            let length = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let found = answers.lock().expect("whole").get(path).cloned();
            let (status, body) = found.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

impl Authority {
    /// Nothing, where the authority is not installed.
    async fn start(test: &str) -> Option<Authority> {
        if Command::new("pebble").arg("--help").stderr(Stdio::null()).status().is_err() {
            skip(test, "pebble is not installed; apt-get install pebble makes it run");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("lightbyte-acme-{test}-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("issues");
        let file = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).expect("is written");
            path
        };
        let certificate = file("certificate.pem", issued.cert.pem());
        let key = file("key.pem", issued.signing_key.serialize_pem());
        let answers = Arc::new(Mutex::new(BTreeMap::new()));
        let (names, http_port) = (names_lead_here().await, answer_by(Arc::clone(&answers)).await);
        let port = free_port();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"), "certificate": certificate, "privateKey": key,
            "httpPort": http_port, "tlsPort": free_port(),
        }});
        let config = file("config.json", config.to_string());
        let process = Command::new("pebble")
            .arg("-config")
            .arg(config)
            .args(["-dnsserver", &names.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let url = format!("https://localhost:{port}/dir");
        let authority = Authority { process, directory, url, root: issued.cert.der().clone(), answers };
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, listens).await.expect("listens");
        Some(authority)
    }

    fn builder(&self) -> AccountBuilder {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("is a certificate");
        Account::builder_with_http(Box::new(http::Https::trusting(roots).expect("a client")))
    }

    fn acme(&self, names: &[&str]) -> Acme {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Acme { names, directory: self.url.clone(), contact: vec!["me@example.org".to_owned()] }
    }

    async fn order(&self, acme: &Acme, account: Option<SealedAccount>) -> (SealedAccount, Order) {
        let news = order(self.builder(), &keys(), &name(), acme.clone(), account).await.expect("is ordered");
        let News::Ordered { account, order } = news else { panic!("{news:?}") };
        (account, order)
    }

    async fn answer(&self, account: &SealedAccount, order: Order) -> Result<News> {
        let account = self.builder().from_credentials(opened(&keys(), &name(), account)?).await?;
        answer(&account, &keys(), &name(), order).await
    }

    fn show(&self, order: &Order) {
        let shown =
            order.challenges.iter().map(|one| (format!("{CHALLENGE_PATH}{}", one.token), one.answer.clone()));
        self.answers.lock().expect("whole").extend(shown);
    }
}

fn keys() -> SealingKeys {
    SealingKeys::of_line(&"07".repeat(32))
}

fn name() -> Name {
    "shop".parse().expect("a name")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_that_names_lead_to_him_is_given_a_certificate() {
    let Some(authority) = Authority::start("given").await else { return };
    let acme = authority.acme(&["a.example.org", "b.example.org"]);
    let (account, ordered) = authority.order(&acme, None).await;
    assert_eq!(ordered.acme, acme);
    assert_eq!(ordered.challenges.len(), 2, "one for each name");
    assert!(!format!("{account:?}").contains("key"), "{account:?}");
    authority.show(&ordered);
    let news = authority.answer(&account, ordered.clone()).await.expect("is given");
    let News::Issued { url, pair: Pair { chain, key: PrivateKey::Sealed(key) } } = news else {
        panic!("{news:?}")
    };
    assert_eq!(url, ordered.url);
    let mut names = Certificate::read(&chain).expect("a chain").server_names;
    names.sort();
    assert_eq!(names, acme.names);
    let key = keys().open(&name(), &key).expect("was sealed for it");
    certified(&chain, key.reveal()).expect("the key fits");
    // Whoever comes late to an order has no key to its certificate.
    let late = authority.answer(&account, ordered).await.expect_err("is over");
    assert!(late.to_string().contains("its order is Valid"), "{late:#}");
    let (again, _) = authority.order(&acme, Some(account.clone())).await;
    assert_eq!(again, account, "the account is used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_is_told_for_which_name() {
    let Some(authority) = Authority::start("refused").await else { return };
    let acme = authority.acme(&["a.example.org"]);
    let (account, order) = authority.order(&acme, None).await;
    let refused = authority.answer(&account, order).await.expect_err("nothing is shown");
    let told = format!("{refused:#}");
    assert!(told.contains("a.example.org") && told.contains("404"), "{told}");
}

#[tokio::test]
async fn an_authority_that_is_not_there_is_named() {
    let (url, acme) = (format!("https://localhost:{}/dir", free_port()), ["a.example.org".to_owned()]);
    let acme = Acme { names: acme.into(), directory: url.clone(), contact: Vec::new() };
    let builder = Account::builder_with_http(Box::new(
        http::Https::trusting(RootCertStore::empty()).expect("a client"),
    ));
    let failed = order(builder, &keys(), &name(), acme, None).await.expect_err("nobody is there");
    let told = format!("{failed:#}");
    assert!(told.contains(&url) && told.contains("connect"), "{told}");
}

#[test]
fn what_somebody_far_away_says_is_made_harmless() {
    assert_eq!(harmless("a\u{1b}[2Jb\nc"), "a [2Jb c");
    assert_eq!(harmless(&"x".repeat(10_000)).len(), BECAUSE_CHARS_MAX);
}
