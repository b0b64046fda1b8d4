//! The embedded authority on disk: the root that signs, those trusted besides, and what was revoked.
//!
//! | file | |
//! | --- | --- |
//! | `root-key.pem`, `root-cert.pem` | the root that signs |
//! | `next-key.pem`, `next-cert.pem` | the root that will: trusted already, while a rotation begins |
//! | `previous-key.pem`, `previous-cert.pem` | the root that did: trusted until the rotation is finished |
//! | `revoked.pem` | a revocation list of each root that has signed |
//! | `trust.pem` | further roots and revocation lists, written by nobody but the operator |

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use orlop_model::TrustDomain;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::error::NO_KEY;
use crate::leaf::{Leaf, revoked_serials};
use crate::signer::{self_signed_root, signed_revocations};
use crate::{IdentityError, Signer, Trust};

/// What is in `dir`: the root that signs, made first if there is none, and whom to trust.
pub(crate) fn open(
    dir: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(Signer, Trust), IdentityError> {
    let files = Files::in_directory(dir)?;
    // The certificate is the last to appear, so a pair that is there is whole, and needs no lock:
    // the directory may be read-only.
    if !(exists(&files.root.key)? && exists(&files.root.certificate)?) {
        files.create(trust_domain, now)?;
    }
    files.read(trust_domain, now)
}

/// What is in `dir`, where a root must have been made before: one that is gone is not replaced by another.
pub(crate) fn reopen(
    dir: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(Signer, Trust), IdentityError> {
    Files::at(dir)?.read(trust_domain, now)
}

/// When the files that [`open`] reads last changed.
pub(crate) fn stamp(dir: &Path) -> Stamp {
    FILES.map(|name| {
        let metadata = fs::metadata(dir.join(name)).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

pub(crate) type Stamp = [Option<(u64, u64, i64, i64)>; FILES.len()];

const FILES: [&str; 6] =
    ["root-key.pem", "root-cert.pem", "next-cert.pem", "previous-cert.pem", "revoked.pem", "trust.pem"];

/// Makes the next root, which is trusted from now on and signs nothing. One that is there already will do.
pub(crate) fn begin_rotation(
    dir: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), IdentityError> {
    reopen(dir, trust_domain, now)?;
    let files = Files::at(dir)?;
    let _lock = files.lock()?;
    if exists(&files.previous.certificate)? {
        return Err(IdentityError::RotationUnfinished { path: files.previous.certificate });
    }
    if exists(&files.next.certificate)? {
        return Ok(());
    }
    files.make_root(&files.next, trust_domain, now)
}

/// Makes the next root sign. The one that did so far stays trusted.
pub(crate) fn switch_root(
    dir: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), IdentityError> {
    let files = Files::at(dir)?;
    let _lock = files.lock()?;
    let (key, _) = read(&files.root.key)?;
    let (certificate, _) = read(&files.root.certificate)?;
    files.replace(&files.previous.key, &key)?;
    files.replace(&files.previous.certificate, &certificate)?;
    files.rename(&files.next.key, &files.root.key)?;
    files.complete_rotation(trust_domain, now)
}

/// Trusts the previous root no more. Returns how long it has been the previous one, without doing anything yet if
/// that is less than `at_least`.
pub(crate) fn finish_rotation(
    dir: &Path,
    at_least: Duration,
    now: SystemTime,
) -> Result<Duration, IdentityError> {
    let files = Files::at(dir)?;
    let _lock = files.lock()?;
    let certificate = &files.previous.certificate;
    if !exists(certificate)? {
        return Err(IdentityError::NoRotation { path: certificate.clone() });
    }
    let switched = fs::metadata(certificate)
        .and_then(|metadata| metadata.modified())
        .map_err(failed("read", certificate))?;
    let since = now.duration_since(switched).unwrap_or_default();
    if since >= at_least {
        fs::remove_file(certificate).map_err(failed("remove", certificate))?;
        fs::remove_file(&files.previous.key).map_err(failed("remove", &files.previous.key))?;
    }
    Ok(since)
}

/// Revokes certificates by their serial numbers, of whichever of the roots that have signed.
pub(crate) fn revoke(
    dir: &Path,
    trust_domain: &TrustDomain,
    serials: &[Vec<u8>],
    now: SystemTime,
) -> Result<(), IdentityError> {
    reopen(dir, trust_domain, now)?;
    let files = Files::at(dir)?;
    let _lock = files.lock()?;
    let mut signers = vec![files.load(&files.root, trust_domain, now)?];
    if exists(&files.previous.certificate)? {
        signers.push(files.load(&files.previous, trust_domain, now)?);
    }
    let mut revoked = BTreeMap::new();
    for list in files.lists(&files.revoked)? {
        let known = revoked_serials(&list).map_err(|reason| files.unusable(&files.revoked, LIST, reason))?;
        revoked.extend(known);
    }
    for serial in serials {
        revoked.entry(serial.clone()).or_insert(now);
    }
    let mut text = String::new();
    for signer in &signers {
        text += &signed_revocations(signer, &revoked, now)?;
    }
    files.replace(&files.revoked, text.as_bytes())
}

struct Files {
    dir: PathBuf,
    root: Pair,
    next: Pair,
    previous: Pair,
    revoked: PathBuf,
    trust: PathBuf,
    lock: PathBuf,
}

/// The two files of a root.
struct Pair {
    key: PathBuf,
    certificate: PathBuf,
}

impl Files {
    fn in_directory(dir: &Path) -> Result<Self, IdentityError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        Self::at(dir)
    }

    fn at(dir: &Path) -> Result<Self, IdentityError> {
        let mode = fs::metadata(dir).map_err(failed("read", dir))?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(IdentityError::DirectoryExposed { path: dir.to_owned(), mode });
        }
        let pair = |name: &str| Pair {
            key: dir.join(format!("{name}-key.pem")),
            certificate: dir.join(format!("{name}-cert.pem")),
        };
        Ok(Self {
            dir: dir.to_owned(),
            root: pair("root"),
            next: pair("next"),
            previous: pair("previous"),
            revoked: dir.join("revoked.pem"),
            trust: dir.join("trust.pem"),
            lock: dir.join(".lock"),
        })
    }

    fn read(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(Signer, Trust), IdentityError> {
        let root = match self.load(&self.root, trust_domain, now) {
            // Between the two renames of a rotation, or after one that was broken off there.
            Err(IdentityError::KeyMismatch { .. }) if exists(&self.next.certificate)? => {
                let _lock = self.lock()?;
                self.complete_rotation(trust_domain, now)?;
                self.load(&self.root, trust_domain, now)?
            }
            root => root?,
        };
        let trust = self.trust(&root)?;
        Ok((root, trust))
    }

    /// Held until the file is dropped; it stays where it is, or two processes could each lock a different one.
    fn lock(&self) -> Result<File, IdentityError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.lock)
            .map_err(failed("open", &self.lock))?;
        lock.lock().map_err(failed("lock", &self.lock))?;
        Ok(lock)
    }

    /// Makes the root unless another process has meanwhile.
    fn create(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), IdentityError> {
        let _lock = self.lock()?;
        let Pair { key, certificate } = &self.root;
        match (exists(key)?, exists(certificate)?) {
            (true, true) => Ok(()),
            (false, true) => {
                Err(IdentityError::HalfPresent { present: certificate.clone(), missing: key.clone() })
            }
            (true, false) if exists(&staged(certificate))? => self.rename(&staged(certificate), certificate),
            (true, false) => {
                Err(IdentityError::HalfPresent { present: key.clone(), missing: certificate.clone() })
            }
            (false, false) => self.make_root(&self.root, trust_domain, now),
        }
    }

    /// Both files are complete on disk before the first gets its name, so that a crash between the two renames can
    /// be made good by the next start.
    fn make_root(&self, to: &Pair, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), IdentityError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let certificate = self_signed_root(&key, trust_domain, now)?;
        write_new(&staged(&to.certificate), certificate.pem().as_bytes())?;
        write_new(&staged(&to.key), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        self.rename(&staged(&to.key), &to.key)?;
        self.rename(&staged(&to.certificate), &to.certificate)?;
        tracing::info!(file = %to.certificate.display(), %trust_domain, "made a new root certificate");
        Ok(())
    }

    /// The last step of making the next root sign, unless it was done meanwhile: its key has taken its place.
    fn complete_rotation(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), IdentityError> {
        let renamed = Pair { key: self.root.key.clone(), certificate: self.next.certificate.clone() };
        if !exists(&renamed.certificate)? {
            return Ok(());
        }
        self.load(&renamed, trust_domain, now)?;
        self.rename(&renamed.certificate, &self.root.certificate)
    }

    /// Whom to trust besides the root that signs.
    fn trust(&self, root: &Signer) -> Result<Trust, IdentityError> {
        let mut others = Vec::new();
        let mut lists = Vec::new();
        for path in [&self.next.certificate, &self.previous.certificate, &self.trust] {
            let unusable = |error: pem::Error| self.unusable(path, "certificate", error.to_string());
            if let Some(text) = read_if_there(path)? {
                let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
                others.extend(certificates.map_err(unusable)?);
            }
        }
        for path in [&self.revoked, &self.trust] {
            lists.extend(self.lists(path)?);
        }
        Trust::new(root.certificate.clone(), others, lists)
    }

    fn lists(&self, path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
        let Some(text) = read_if_there(path)? else { return Ok(Vec::new()) };
        let lists = CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<_, _>>();
        lists.map_err(|error| self.unusable(path, LIST, error.to_string()))
    }

    fn unusable(&self, path: &Path, what: &'static str, reason: String) -> IdentityError {
        IdentityError::Unusable { path: path.to_owned(), what, reason }
    }

    /// Replaces a whole file at once.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), IdentityError> {
        write_new(&staged(path), content)?;
        self.rename(&staged(path), path)
    }

    fn load(
        &self,
        from: &Pair,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Signer, IdentityError> {
        let key = self.load_key(&from.key)?;
        let unusable = |reason: String| self.unusable(&from.certificate, "root certificate", reason);
        let (text, _) = read(&from.certificate)?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|error| unusable(error.to_string()))?;
        let leaf = Leaf::read(&certificate).map_err(unusable)?;
        if !leaf.ca || !leaf.signs_certificates {
            return Err(unusable("it may not sign certificates".to_owned()));
        }
        if leaf.public_key != key.subject_public_key_info() {
            return Err(IdentityError::KeyMismatch {
                key: from.key.clone(),
                certificate: from.certificate.clone(),
            });
        }
        if leaf.uris != [format!("spiffe://{trust_domain}")] {
            let found =
                if leaf.uris.is_empty() { "no trust domain".to_owned() } else { leaf.uris.join(", ") };
            return Err(IdentityError::RootTrustDomain { found, expected: trust_domain.clone() });
        }
        let root = Signer {
            key,
            certificate,
            chain: Vec::new(),
            trust_domain: trust_domain.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        };
        root.check_time(now)?;
        Ok(root)
    }

    fn load_key(&self, path: &Path) -> Result<Zeroizing<KeyPair>, IdentityError> {
        let (text, mode) = read(path)?;
        if mode & 0o077 != 0 {
            return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
        }
        let unusable = |reason: String| self.unusable(path, "ECDSA P-256 key (PKCS#8)", reason);
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| unusable(NO_KEY.to_owned()))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        der.zeroize();
        key.map(Zeroizing::new).map_err(|error| unusable(error.to_string()))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), IdentityError> {
        fs::rename(from, to).map_err(failed("create", to))?;
        // Or the name could be lost with the power.
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("write", &self.dir))
    }
}

const LIST: &str = "revocation list";

/// Where a file is written before it gets its name.
fn staged(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn exists(path: &Path) -> Result<bool, IdentityError> {
    path.try_exists().map_err(failed("read", path))
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", path)(error)),
        _ => {}
    }
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(failed("write", path))
}

fn read_if_there(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    match read(path) {
        Ok((text, _)) => Ok(Some(text)),
        Err(IdentityError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The content, and the permission bits of the very file it came from.
fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), IdentityError> {
    let read = || {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o7777;
        let mut content = Zeroizing::new(Vec::with_capacity(KEY_FILE));
        file.take(MAX_FILE).read_to_end(&mut content)?;
        Ok((content, mode))
    };
    read().map_err(failed("read", path))
}

/// The buffer's first capacity: growing it would leave copies of a key behind.
const KEY_FILE: usize = 16 * 1024;

/// A revocation list takes some 40 bytes a certificate, and a third more as PEM.
const MAX_FILE: u64 = 64 << 20;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::File { action, path: path.to_owned(), source }
}
