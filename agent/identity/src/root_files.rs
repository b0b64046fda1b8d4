//! The embedded authority's root on disk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orlop_model::TrustDomain;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::IdentityError;
use crate::ca::self_signed_root;
use crate::leaf::Leaf;

/// A root whose parts have been found to fit.
pub(crate) struct Root {
    pub(crate) key: Zeroizing<KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Root {
    pub(crate) fn check_time(&self, now: SystemTime) -> Result<(), IdentityError> {
        if now >= self.not_after {
            return Err(IdentityError::RootExpired { not_after: self.not_after.into() });
        }
        if now < self.not_before {
            return Err(IdentityError::RootNotYetValid { not_before: self.not_before.into() });
        }
        Ok(())
    }
}

/// The root in `dir`, made first if there is none.
pub(crate) fn open(dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Root, IdentityError> {
    let files = Files::in_directory(dir)?;
    // The certificate is the last to appear, so a pair that is there is whole, and needs no lock:
    // the directory may be read-only.
    if !(exists(&files.key)? && exists(&files.certificate)?) {
        files.create(trust_domain, now)?;
    }
    files.load(trust_domain, now)
}

struct Files {
    dir: PathBuf,
    key: PathBuf,
    certificate: PathBuf,
    staged_key: PathBuf,
    staged_certificate: PathBuf,
    lock: PathBuf,
}

impl Files {
    fn in_directory(dir: &Path) -> Result<Self, IdentityError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        let mode = fs::metadata(dir).map_err(failed("read", dir))?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(IdentityError::DirectoryExposed { path: dir.to_owned(), mode });
        }
        Ok(Self {
            dir: dir.to_owned(),
            key: dir.join("root-key.pem"),
            certificate: dir.join("root-cert.pem"),
            staged_key: dir.join(".root-key.pem.new"),
            staged_certificate: dir.join(".root-cert.pem.new"),
            lock: dir.join(".lock"),
        })
    }

    /// Makes the root unless another process has meanwhile. Both files are complete on disk before the
    /// first gets its name, so that a crash between the two renames can be made good by the next start.
    fn create(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), IdentityError> {
        // Held until the end of this function; the file itself stays, or two processes could each
        // lock a different one.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.lock)
            .map_err(failed("open", &self.lock))?;
        lock.lock().map_err(failed("lock", &self.lock))?;

        match (exists(&self.key)?, exists(&self.certificate)?) {
            (true, true) => Ok(()),
            (false, true) => Err(IdentityError::HalfPresent {
                present: self.certificate.clone(),
                missing: self.key.clone(),
            }),
            (true, false) if exists(&self.staged_certificate)? => {
                self.rename(&self.staged_certificate, &self.certificate)
            }
            (true, false) => Err(IdentityError::HalfPresent {
                present: self.key.clone(),
                missing: self.certificate.clone(),
            }),
            (false, false) => {
                let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
                let certificate = self_signed_root(&key, trust_domain, now)?;
                write_new(&self.staged_certificate, certificate.pem().as_bytes())?;
                write_new(&self.staged_key, Zeroizing::new(key.serialize_pem()).as_bytes())?;
                self.rename(&self.staged_key, &self.key)?;
                self.rename(&self.staged_certificate, &self.certificate)?;
                tracing::info!(directory = %self.dir.display(), %trust_domain, "made a new root certificate");
                Ok(())
            }
        }
    }

    fn load(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Root, IdentityError> {
        let key = self.load_key()?;
        let unusable = |reason: String| IdentityError::Unusable {
            path: self.certificate.clone(),
            what: "root certificate",
            reason,
        };
        let (text, _) = read(&self.certificate)?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|error| unusable(error.to_string()))?;
        let leaf = Leaf::read(&certificate).map_err(unusable)?;
        if !leaf.ca || !leaf.signs_certificates {
            return Err(unusable("it may not sign certificates".to_owned()));
        }
        if leaf.public_key != key.subject_public_key_info() {
            return Err(IdentityError::KeyMismatch {
                key: self.key.clone(),
                certificate: self.certificate.clone(),
            });
        }
        if leaf.uris != [format!("spiffe://{trust_domain}")] {
            let found =
                if leaf.uris.is_empty() { "no trust domain".to_owned() } else { leaf.uris.join(", ") };
            return Err(IdentityError::RootTrustDomain { found, expected: trust_domain.clone() });
        }
        let root = Root { key, certificate, not_before: leaf.not_before, not_after: leaf.not_after };
        root.check_time(now)?;
        Ok(root)
    }

    fn load_key(&self) -> Result<Zeroizing<KeyPair>, IdentityError> {
        let (text, mode) = read(&self.key)?;
        if mode & 0o077 != 0 {
            return Err(IdentityError::KeyExposed { path: self.key.clone(), mode });
        }
        let unusable = |reason: String| IdentityError::Unusable {
            path: self.key.clone(),
            what: "ECDSA P-256 key (PKCS#8)",
            reason,
        };
        let mut der =
            PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|error| unusable(error.to_string()))?;
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

/// The content, and the permission bits of the very file it came from.
fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), IdentityError> {
    let read = || {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o7777;
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE));
        file.take(MAX_FILE as u64).read_to_end(&mut content)?;
        Ok((content, mode))
    };
    read().map_err(failed("read", path))
}

/// Also the buffer's first capacity: growing it would leave copies of a key behind.
const MAX_FILE: usize = 16 * 1024;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::File { action, path: path.to_owned(), source }
}
