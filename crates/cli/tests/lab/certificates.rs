//! TLS: certificates from files, shown by real proxies, and changed while clients connect.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::balancers::{Client, manifests};
use crate::bed::{Bed, path, until};

/// The name that the certificates are for.
const NAME: &str = "shop.example";

/// A certificate in files.
struct Made {
    chain: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
}

impl Made {
    fn new(bed: &Bed, name: &str) -> Made {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("a certificate");
        let (chain, key) = (bed.file(&format!("{name}.pem")), bed.file(&format!("{name}.key")));
        fs::write(&chain, made.cert.pem()).expect("a file");
        fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
        let der = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).expect("a certificate");
        Made { chain, key, der }
    }

    fn import(&self) -> [&str; 7] {
        ["import", "certificate", "shop", "--chain", path(&self.chain), "--key", path(&self.key)]
    }
}

/// Asks a proxy by TLS, and says which certificate it showed. Any of `known` will do.
fn ask(proxy: &str, known: &[CertificateDer<'static>]) -> Result<CertificateDer<'static>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(known.iter().cloned());
    assert_eq!(added, known.len());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let server_name = ServerName::try_from(NAME).expect("a name");
    let mut client =
        ClientConnection::new(Arc::new(config), server_name).map_err(|error| error.to_string())?;
    let address: SocketAddr = format!("{proxy}:443").parse().expect("an address");
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(failed)?;
    socket.set_read_timeout(Some(Duration::from_secs(20))).map_err(failed)?;
    let mut stream = Stream::new(&mut client, &mut socket);
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.lines().next() {
        Some("HTTP/1.1 200 OK") => {}
        other => return Err(format!("{other:?}")),
    }
    let shown = client.peer_certificates().and_then(|shown| shown.first()).cloned();
    shown.map(CertificateDer::into_owned).ok_or_else(|| "no certificate".to_owned())
}

/// A load balancer begins to speak TLS, and is given another certificate while clients ask.
pub(crate) fn change_under_load(bed: &Bed, proxies: &[String]) {
    let (first, second) = (Made::new(bed, "first"), Made::new(bed, "second"));
    let mut wrong = first.import();
    wrong[6] = path(&second.key);
    let (_, errors) = bed.fails(&wrong);
    assert!(errors.contains("not usable together"), "{errors}");
    assert!(!errors.contains("PRIVATE"), "{errors}");

    assert_eq!(bed.ok(&first.import()).trim(), "secret/shop created");
    assert_eq!(bed.ok(&first.import()).trim(), "secret/shop unchanged");
    let secret = bed.json(&["get", "secret/shop"]);
    assert_eq!(secret["status"]["server_names"], serde_json::json!([NAME]));
    assert!(secret["spec"]["key"].as_str().is_some_and(|key| key.starts_with("sealed:")), "{secret}");

    let tls = "listeners: [{port: 80}, {port: 443, protocol: https}], certificates: [shop]";
    let text = manifests("2", 128).replace("listeners: [{port: 80}]", tls);
    let file = bed.manifests(&text);
    bed.ok(&["apply", "-f", path(&file)]);
    let known = vec![first.der.clone(), second.der.clone()];
    let all_show = |what: &str, made: &Made| {
        until(what, || proxies.iter().all(|proxy| ask(proxy, &known).as_ref() == Ok(&made.der)));
    };
    all_show("all speak TLS", &first);

    let asked = known.clone();
    let client = Client::begin_with(proxies, move |proxy| ask(proxy, &asked).map(drop));
    assert_eq!(bed.ok(&second.import()).trim(), "secret/shop changed");
    all_show("all show the new certificate", &second);
    // A handshake takes a while in a guest that is emulated.
    client.end_without_failure(20);

    // Who shows it goes on with it.
    bed.ok(&["delete", "secret/shop", "--yes", "--no-wait"]);
    until("it says who shows it", || bed.ok(&["why", "secret/shop"]).contains("loadbalancer/web"));
    all_show("all go on with it", &second);
}
