//! Against a real authority: Debian's `pebble`, which is made to be tested against.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::path::{Path, PathBuf};
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

/// Answers by path.
type Shown = Arc<Mutex<BTreeMap<String, String>>>;
/// Texts by name.
type Texts = Arc<Mutex<Vec<(String, String)>>>;

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
    port: u16,
    names: SocketAddr,
    root: rustls::pki_types::CertificateDer<'static>,
    /// What is answered at the place where names lead, by path.
    answers: Shown,
    /// What texts its names have.
    texts: Texts,
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

/// Answers every question for an address with this machine's, one for a text with those that are known, and every other with nothing.
async fn names_lead_here(texts: Texts) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut query = [0; 1_024];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).expect("a name") + 5;
            let records: Vec<Vec<u8>> = match query[end - 3] {
                1 => vec![Ipv4Addr::LOCALHOST.octets().to_vec()],
                16 => {
                    let name = String::from_utf8_lossy(&query[13..end - 5]).to_ascii_lowercase();
                    let texts = texts.lock().expect("whole");
                    // Labels are compared with their lengths for dots: no length here is a letter.
                    let is_asked = |known: &str| {
                        known.len() == name.len()
                            && known.bytes().zip(name.bytes()).all(|(k, n)| k == n || (k == b'.' && n < 64))
                    };
                    let texts = texts.iter().filter(|(known, _)| is_asked(known)).map(|(_, text)| text);
                    texts
                        .map(|text| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat())
                        .collect()
                }
                _ => Vec::new(),
            };
            let mut answer = query[..end].to_vec();
            (answer[2], answer[3]) = (0x81, 0x80);
            answer[6..12].copy_from_slice(&[0, u8::try_from(records.len()).expect("few"), 0, 0, 0, 0]);
            for record in records {
                answer.extend([0xc0, 12, 0, query[end - 3], 0, 1, 0, 0, 0, 0, 0]);
                answer.push(u8::try_from(record.len()).expect("short"));
                answer.extend(record);
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    address
}

/// Where all names lead.
async fn answer_by(answers: Shown) -> u16 {
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

fn pebble(directory: &Path, names: SocketAddr) -> Child {
    Command::new("pebble")
        .arg("-config")
        .arg(directory.join("config.json"))
        .args(["-dnsserver", &names.to_string()])
        .env("PEBBLE_VA_NOSLEEP", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
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
        let (answers, texts) = (Shown::default(), Texts::default());
        let (names, http_port) =
            (names_lead_here(Arc::clone(&texts)).await, answer_by(Arc::clone(&answers)).await);
        let port = free_port();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"), "certificate": certificate, "privateKey": key,
            "httpPort": http_port, "tlsPort": free_port(),
        }});
        file("config.json", config.to_string());
        let process = pebble(&directory, names);
        let url = format!("https://localhost:{port}/dir");
        let root = issued.cert.der().clone();
        let authority = Authority { process, directory, url, port, names, root, answers, texts };
        authority.listens().await;
        Some(authority)
    }

    async fn listens(&self) {
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, listens).await.expect("listens");
    }

    /// It begins anew and knows nobody.
    async fn forget(&mut self) {
        self.process.kill().expect("is ended");
        self.process.wait().expect("is reaped");
        self.process = pebble(&self.directory, self.names);
        self.listens().await;
    }

    fn builder(&self) -> Result<AccountBuilder> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(Account::builder_with_http(Box::new(http::Https::trusting(roots)?)))
    }

    fn acme(&self, names: &[&str]) -> Acme {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let contact = vec!["me@example.org".to_owned()];
        Acme { names, challenge: Proof::Http, directory: self.url.clone(), contact }
    }

    async fn order(&self, acme: &Acme, account: Option<SealedAccount>) -> (SealedAccount, Order) {
        let news = customer().order(|| self.builder(), acme.clone(), account).await.expect("is ordered");
        let News::Ordered { account, order } = news else { panic!("{news:?}") };
        (account, order)
    }

    async fn answer(&self, account: &SealedAccount, order: Order) -> Result<News> {
        let account = self.builder()?.from_credentials(customer().opened(account)?).await?;
        customer().answer(&account, order).await?.context("the authority takes its time")
    }

    fn show(&self, order: &Order) {
        let shown =
            order.challenges.iter().map(|one| (format!("{CHALLENGE_PATH}{}", one.token), one.answer.clone()));
        self.answers.lock().expect("whole").extend(shown);
    }
}

fn customer() -> Customer {
    let keys = Arc::new(SealingKeys::of_line(&"07".repeat(32)));
    Customer { keys, name: "shop".parse().expect("a name"), zone: "cloud.example.org".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_that_names_lead_to_him_is_given_a_certificate() {
    let Some(mut authority) = Authority::start("given").await else { return };
    let acme = authority.acme(&["a.example.org", "b.example.org"]);
    let (account, ordered) = authority.order(&acme, None).await;
    assert_eq!(ordered.acme, acme);
    assert_eq!(ordered.challenges.len(), 2, "one for each name");
    assert!(!format!("{account:?}").contains("key"), "{account:?}");
    authority.show(&ordered);
    let given = authority.answer(&account, ordered.clone()).await.expect("is given");
    let News::Issued { url, pair: Pair { chain, key: PrivateKey::Sealed(key) } } = given.clone() else {
        panic!("{given:?}")
    };
    assert_eq!(url, ordered.url);
    let mut names = Certificate::read(&chain).expect("a chain").server_names;
    names.sort();
    assert_eq!(names, acme.names);
    let key = customer().keys.open(&customer().name, &key).expect("was sealed for it");
    certified(&chain, key.reveal()).expect("the key fits");
    // Whoever leads next goes on with an order, wherever it stands.
    let late = authority.answer(&account, ordered).await.expect("is given again");
    assert_eq!(late, given);
    let (again, _) = authority.order(&acme, Some(account.clone())).await;
    assert_eq!(again, account, "the account is used again");
    // One that nobody can open, or that the authority has forgotten, is replaced.
    let closed = SealedAccount { sealed: "sealed:1:00000000:AAAA".to_owned(), ..account.clone() };
    let (opened, _) = authority.order(&acme, Some(closed)).await;
    assert_ne!(opened, account);
    authority.forget().await;
    let (new, _) = authority.order(&acme, Some(account.clone())).await;
    assert_ne!(new, account);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_zone_are_shown_by_texts_and_so_are_wildcards() {
    let Some(authority) = Authority::start("texts").await else { return };
    let by_dns = |names: &[&str]| Acme { challenge: Proof::Dns, ..authority.acme(names) };
    let acme = by_dns(&["*.cloud.example.org", "a.cloud.example.org", "cloud.example.org"]);
    let (account, ordered) = authority.order(&acme, None).await;
    let mut names: Vec<&str> = ordered.texts.iter().map(|text| text.name.as_str()).collect();
    names.sort_unstable();
    let apex = "_acme-challenge.cloud.example.org";
    assert_eq!(names, ["_acme-challenge.a.cloud.example.org", apex, apex]);
    assert!(ordered.challenges.is_empty());
    let refused = authority.answer(&account, ordered).await.expect_err("nothing is there");
    assert!(format!("{refused:#}").contains("cloud.example.org"), "{refused:#}");
    let (_, ordered) = authority.order(&acme, Some(account.clone())).await;
    let texts = ordered.texts.iter().map(|text| (text.name.clone(), text.value.clone()));
    authority.texts.lock().expect("whole").extend(texts);
    let news = authority.answer(&account, ordered).await.expect("is given");
    let News::Issued { pair, .. } = news else { panic!("{news:?}") };
    let mut names = Certificate::read(&pair.chain).expect("a chain").server_names;
    names.sort();
    assert_eq!(names, acme.names);
    let elsewhere = customer().order(|| authority.builder(), by_dns(&["a.example.org"]), Some(account)).await;
    let told = elsewhere.expect_err("is not ours").to_string();
    assert!(told.starts_with("a.example.org is not in the zone cloud.example.org"), "{told}");
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
    let acme =
        Acme { names: acme.into(), challenge: Proof::Http, directory: url.clone(), contact: Vec::new() };
    let builder = || Ok(Account::builder_with_http(Box::new(http::Https::trusting(RootCertStore::empty())?)));
    let failed = customer().order(builder, acme, None).await.expect_err("nobody is there");
    let told = format!("{failed:#}");
    assert!(told.contains(&url) && told.contains("connect"), "{told}");
}

#[test]
fn nothing_comes_to_stand_in_the_zone_but_what_is_ordered() {
    let names = ["*.cloud.example.org", "www.example.org"].map(str::to_owned).into();
    let acme = Acme { names, challenge: Proof::Dns, directory: String::new(), contact: Vec::new() };
    let check = |name: &str, expected: &str| {
        let text = customer().text(&acme, &Identifier::Dns(name.to_owned()), "v".to_owned());
        let told = text.map_or_else(|error| error.to_string(), |text| text.name);
        assert!(told.starts_with(expected), "{name}: {told}");
    };
    check("cloud.example.org", "_acme-challenge.cloud.example.org");
    check("www.example.org", "www.example.org is not in the zone cloud.example.org");
    for other in ["db.cloud.example.org", "a b.cloud.example.org", ""] {
        check(other, &format!("it asks for {other}, which is not ordered"));
    }
}

#[test]
fn what_somebody_far_away_says_is_made_harmless() {
    assert_eq!(harmless("a\u{1b}[2Jb\nc"), "a [2Jb c");
    assert_eq!(harmless(&"x".repeat(10_000)).len(), BECAUSE_CHARS_MAX);
}
