//! Private keys: sealed before they are stored, and opened only for the proxies that show them.
//!
//! ```text
//!   manifest ──> judge: does the key fit the chain? ──> seal ──> store, API, events, backups: only the sealed text
//!                                                                  └──> stream of a worker with a proxy ──> open
//! ```
//!
//! AES-256-GCM (NIST SP 800-38D) with a random nonce; the name of the secret is authenticated with it, so a sealed key is of no use
//! under another name. The sealing keys lie in a file of the servers, never in the store: who has only one of the two has no key.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lightbyte_api::kinds::secret::{Pair, PrivateKey, SEALED_PREFIX, Spec as SecretSpec};
use lightbyte_api::topology::{self, SecretText};
use lightbyte_api::{Manifest, Name, ObjectRef, Spec};
use lightbyte_certificate::{Certificate, certified, only_certificates};
use lightbyte_plan::View;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::Server;
use crate::problem::Failure;

/// The bytes of a sealing key.
const KEY_BYTES: usize = 32;
/// The largest file of sealing keys.
const FILE_BYTES_MAX: u64 = 4_096;
/// The form of sealed texts that this code writes and reads.
const FORM: &str = "1";

/// Why a file of sealing keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealingKeyError {
    /// It cannot be read.
    #[error("cannot read the sealing keys in {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("others than its owner may read the sealing keys in {path}: `chmod 600 {path}`")]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error(
        "line {line} of {path} is no sealing key: `openssl rand -hex 32` makes one, which all servers of a cluster share"
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// The keys that private keys are sealed with. All servers of a cluster have the same.
pub struct SealingKeys {
    /// The first seals; each opens what it sealed.
    keys: Vec<SealingKey>,
}

struct SealingKey {
    id: String,
    key: LessSafeKey,
}

/// Never prints a key.
impl std::fmt::Debug for SealingKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

impl SealingKeys {
    /// Reads a file with a key in each line, as 64 hexadecimal digits. The first one seals; those after it are older, and open what
    /// they sealed.
    ///
    /// # Errors
    /// [`SealingKeyError`]
    pub fn read(path: &Path) -> Result<SealingKeys, SealingKeyError> {
        let unreadable = |source| SealingKeyError::Unreadable { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.mode() & 0o077 != 0 {
            return Err(SealingKeyError::Open { path: path.to_owned() });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
        let key = |(index, line): (usize, &str)| {
            SealingKey::of(line)
                .ok_or_else(|| SealingKeyError::NoKey { path: path.to_owned(), line: index + 1 })
        };
        let keys = text.lines().enumerate().map(key).collect::<Result<Vec<SealingKey>, _>>()?;
        match keys.is_empty() {
            true => Err(SealingKeyError::NoKey { path: path.to_owned(), line: 1 }),
            false => Ok(SealingKeys { keys }),
        }
    }

    /// One key, for tests.
    #[cfg(test)]
    pub(crate) fn of_line(line: &str) -> SealingKeys {
        SealingKeys { keys: SealingKey::of(line).into_iter().collect() }
    }

    /// Seals a key for the secret of that name; nothing when the system has no random bytes.
    pub(crate) fn seal(&self, name: &Name, text: &SecretText) -> Option<String> {
        let SealingKey { id, key } = self.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = text.reveal().as_bytes().to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad(name), &mut sealed).ok()?;
        let bytes = [nonce.as_slice(), &sealed].concat();
        Some(format!("{SEALED_PREFIX}{FORM}:{id}:{}", BASE64.encode(bytes)))
    }

    /// Whether this was sealed, with the key that seals now.
    fn is_newest(&self, key: &PrivateKey) -> bool {
        let newest = self.keys.first().map(|newest| newest.id.as_str());
        newest.is_some() && key.sealed_with() == newest
    }

    /// Opens what was sealed for the secret of that name; nothing when it was not, or with another key.
    pub(crate) fn open(&self, name: &Name, sealed: &str) -> Option<SecretText> {
        let (form, rest) = sealed.strip_prefix(SEALED_PREFIX)?.split_once(':')?;
        let (id, bytes) = rest.split_once(':').filter(|_| form == FORM)?;
        let key = self.keys.iter().find(|key| key.id == id)?;
        let mut bytes = BASE64.decode(bytes).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = key.key.open_in_place(nonce, aad(name), sealed).ok()?;
        Some(SecretText::new(String::from_utf8(opened.to_vec()).ok()?))
    }
}

impl SealingKey {
    fn of(line: &str) -> Option<SealingKey> {
        let digits = line.trim().as_bytes();
        let byte = |two: &[u8]| u8::from_str_radix(str::from_utf8(two).ok()?, 16).ok();
        // `from_str_radix` would take a sign.
        let is_hexadecimal = digits.len() == 2 * KEY_BYTES && digits.iter().all(u8::is_ascii_hexdigit);
        let bytes = is_hexadecimal.then(|| digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>())??;
        let id = digest(&SHA256, &bytes).as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Some(SealingKey { id, key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?) })
    }
}

/// What is authenticated with a sealed key.
fn aad(name: &Name) -> Aad<Vec<u8>> {
    Aad::from(format!("lightbyte secret {name}").into_bytes())
}

impl Server {
    /// Opens a sealed key for a proxy. What cannot be opened is told to nobody, and the log says so.
    pub(crate) fn open(&self, name: &Name, sealed: &str) -> Option<SecretText> {
        let opened = self.sealing_keys.as_ref().and_then(|keys| keys.open(name, sealed));
        if opened.is_none() {
            tracing::error!(secret = %name, "no sealing key of this server opens this secret: its load balancers are told nothing new here");
        }
        opened
    }

    /// The manifest with its key sealed, if it has one.
    ///
    /// # Errors
    /// Refuses a key that does not fit its certificate, and one that was not sealed for this secret in this cluster.
    pub(crate) fn sealed(&self, view: &View, manifest: Manifest) -> Result<Manifest, Failure> {
        let Spec::Secret(SecretSpec::Given(spec)) = &manifest.spec else { return Ok(manifest) };
        let object = manifest.object();
        let keys = self.sealing_keys.as_ref().ok_or_else(|| {
            Failure::unavailable(
                "this server has no sealing key, so it takes no secrets",
                "start it with --sealing-key FILE",
            )
        })?;
        let problem =
            |what: String| Failure::bad("the manifest has a problem").details([format!("{object}: {what}")]);
        let name = &manifest.name;
        let plain = match &spec.key {
            PrivateKey::Plain(text) => text.clone(),
            PrivateKey::Sealed(sealed) => keys.open(name, sealed).ok_or_else(|| {
                problem(format!("spec.key: was not sealed for {object}, or not in this cluster"))
            })?,
        };
        judge(&spec.chain, &plain).map_err(problem)?;
        let stored = stored(view, &object).filter(|stored| is_same(keys, name, stored, &plain));
        // What was sealed with an older key is sealed anew: so a key comes out of use.
        let key = match stored.into_iter().chain([&spec.key]).find(|key| keys.is_newest(key)) {
            Some(sealed) => sealed.clone(),
            None => PrivateKey::Sealed(keys.seal(name, &plain).ok_or_else(|| {
                Failure::unavailable("the system gives no random bytes to seal with", "try again")
            })?),
        };
        let chain =
            only_certificates(&spec.chain).map_err(|error| problem(format!("spec.chain: {error}")))?;
        let spec = SecretSpec::Given(Pair { chain, key });
        Ok(Manifest { spec: Spec::Secret(spec), ..manifest })
    }
}

/// Whether proxies could show it.
pub(crate) fn judge(chain: &str, key: &SecretText) -> Result<(), String> {
    let read = Certificate::read(chain).map_err(|error| format!("spec.chain: {error}"))?;
    certified(chain, key.reveal()).map_err(|error| format!("spec: {error}"))?;
    let certificate = topology::Certificate {
        server_names: read.server_names,
        chain_pem: chain.to_owned(),
        key_pem: key.clone(),
    };
    certificate.check("spec.chain").map_err(|problem| problem.to_string())
}

/// The key that is stored for a secret.
fn stored<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a PrivateKey> {
    match &view.asked(object)?.spec {
        Spec::Secret(spec) => spec.given().map(|pair| &pair.key),
        _ => None,
    }
}

/// Whether `stored` is this very key, sealed: then it is kept, so that whoever applies the same again changes nothing. Digests are
/// compared: how far two keys agree takes no time that anybody could measure.
fn is_same(keys: &SealingKeys, name: &Name, stored: &PrivateKey, plain: &SecretText) -> bool {
    let PrivateKey::Sealed(sealed) = stored else { return false };
    let sum = |text: &SecretText| digest(&SHA256, text.reveal().as_bytes());
    keys.open(name, sealed).is_some_and(|opened| sum(&opened).as_ref() == sum(plain).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(lines: &[&str]) -> SealingKeys {
        SealingKeys { keys: lines.iter().map(|line| SealingKey::of(line).expect("a key")).collect() }
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn only_the_same_name_and_a_known_key_open() {
        let (one, other) = ("07".repeat(32), "a8".repeat(32));
        let sealer = keys(&[&one]);
        let text = SecretText::new("very secret".to_owned());
        let sealed = sealer.seal(&name("shop"), &text).expect("seals");
        assert!(sealed.starts_with("sealed:1:") && !sealed.contains("secret"), "{sealed}");
        assert_ne!(sealer.seal(&name("shop"), &text), Some(sealed.clone()), "no nonce is used twice");
        let check = |keys: &SealingKeys, of: &str, sealed: &str, opens: bool| {
            assert_eq!(keys.open(&name(of), sealed).is_some(), opens, "{of} {sealed}");
        };
        check(&sealer, "shop", &sealed, true);
        check(&sealer, "other", &sealed, false);
        check(&keys(&[&other]), "shop", &sealed, false);
        // After a rotation the older key still opens.
        check(&keys(&[&other, &one]), "shop", &sealed, true);
        let (text, last) = sealed.split_at(sealed.len() - 8);
        check(&sealer, "shop", &format!("{text}AAAA{}", &last[4..]), false);
        for other in
            ["", "sealed:", "sealed:1:", "sealed:2:00000000:AAAA", "sealed:1:00000000:AAAA", "sealed:1:x:?"]
        {
            check(&sealer, "shop", other, false);
        }
    }

    #[test]
    fn a_file_that_others_may_read_or_that_holds_no_key_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("lightbyte-sealing-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("keys");
        let check = |text: &str, mode: u32, expected: &str| {
            fs::write(&path, text).expect("is written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            let read = SealingKeys::read(&path);
            let told =
                read.map_or_else(|error| error.to_string(), |keys| format!("{} keys", keys.keys.len()));
            assert!(told.contains(expected), "{told}");
        };
        let key = format!("{}\n", "A8".repeat(32));
        check(&key, 0o600, "1 keys");
        check(&format!("{key}{key}"), 0o400, "2 keys");
        check(&key, 0o640, "others than its owner may read");
        check(&format!("{key}short\n"), 0o600, "line 2 of");
        check(&"+7".repeat(32), 0o600, "line 1 of");
        check("", 0o600, "line 1 of");
        fs::remove_dir_all(&directory).expect("is removed");
    }
}
