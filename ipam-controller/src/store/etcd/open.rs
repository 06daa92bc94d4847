//! Edge: finding the store in etcd, or making it if there is none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use etcd_client::{
    Certificate, Compare, CompareOp, ConnectOptions, Identity, TlsOptions, Txn, TxnOp,
    TxnOpResponse,
};
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::layout::{FORMAT, Layout};
use super::lease::Lease;
use super::members::Members;
use super::{Etcd, Options};
use crate::random;

/// Why the store in etcd was not opened. Nothing was written to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    /// A file that was named cannot be read.
    #[error("cannot read {}, which {flag} names", .path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has not what it should.
    #[error("{}, which {flag} names, {reason}", .path.display())]
    Contents {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The system has no random bits for a new store's identity.
    #[error("cannot draw an identity for a new store")]
    Random(#[source] io::Error),
    /// Etcd did not answer, or refused.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A newer program made the store, and this one could only spoil it.
    #[error(
        "the store under {prefix} in etcd has format {found}, and this program knows formats up to {FORMAT}: start a newer limpet-controller"
    )]
    NewerFormat {
        /// What its keys start with.
        prefix: String,
        /// The version it has, as it is written there.
        found: String,
    },
    /// There is one of the two keys that every store has.
    #[error(
        "under {prefix} in etcd there is a part of a store: its format or its identity is missing; restore it from a backup, or give another --etcd-prefix"
    )]
    Partial {
        /// What its keys start with.
        prefix: String,
    },
}

impl OpenError {
    /// Whether it may be otherwise in a while, without anybody's changing how the controller is
    /// started.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Failure(failure) if !failure.is_lasting())
    }
}

impl Etcd {
    /// Gets ready to open the store: reads files, and connects to nothing.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with which file.
    pub(crate) fn prepare(options: &Options) -> Result<Self, OpenError> {
        let layout = Arc::new(Layout::new(&options.prefix));
        let urls = options.endpoints.iter().map(|endpoint| endpoint.url().to_owned()).collect();
        let probe = layout.format().to_owned();
        let members = Arc::new(Members::new(urls, connect_options(options)?, probe));
        Ok(Self {
            lease: Lease::new(Arc::clone(&members), options.lease),
            members,
            layout,
            identity: Mutex::new(Bytes::new()),
            closed: CancellationToken::new(),
            under_way: RwLock::default(),
        })
    }

    /// Finds the store, or makes it if there is none. May be called again after an error that
    /// passes.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong, and what to do.
    pub(crate) async fn open(&self) -> Result<(), OpenError> {
        let identity = random::token().map_err(OpenError::Random)?;
        let identity = format!("\"{identity}\"");
        let layout = &self.layout;
        let there = [layout.format().to_owned(), layout.identity()];
        let make = |client: etcd_client::Client| {
            let absent = there.clone().map(|key| Compare::mod_revision(key, CompareOp::Equal, 0));
            let puts = [
                TxnOp::put(layout.format(), FORMAT.to_string(), None),
                TxnOp::put(layout.identity(), identity.clone(), None),
            ];
            let gets = there.clone().map(|key| TxnOp::get(key, None));
            let make = Txn::new().when(absent).and_then(puts).or_else(gets);
            async move { client.kv_client().txn(make).await }
        };
        // Where the answer is lost and the store was made, it is found the next time.
        let answer = self.members.repeatedly(make).await?;
        if answer.succeeded() {
            self.adopt(identity.into());
            return Ok(());
        }
        let mut found = answer.op_responses().into_iter().map(|found| match found {
            TxnOpResponse::Get(found) => {
                found.kvs().first().map(|found| Bytes::copy_from_slice(found.value()))
            }
            _ => None,
        });
        match (found.next().flatten(), found.next().flatten()) {
            (Some(format), _) if format != FORMAT.to_string() => Err(OpenError::NewerFormat {
                prefix: self.prefix(),
                found: String::from_utf8_lossy(&format).into_owned(),
            }),
            (Some(_), Some(identity)) => {
                self.adopt(identity);
                Ok(())
            }
            _ => Err(OpenError::Partial { prefix: self.prefix() }),
        }
    }

    fn prefix(&self) -> String {
        self.layout.format().trim_end_matches("/format").to_owned()
    }
}

fn connect_options(options: &Options) -> Result<ConnectOptions, OpenError> {
    let mut connect = ConnectOptions::new();
    if let Some(path) = &options.ca {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(pem(
            "--etcd-ca",
            path,
            "CERTIFICATE",
        )?));
        if let Some((certificate, key)) = &options.identity {
            let certificate = pem("--etcd-cert", certificate, "CERTIFICATE")?;
            let key = pem("--etcd-key", key, "PRIVATE KEY")?;
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        connect = connect.with_tls(tls);
    }
    if let Some((user, path)) = &options.user {
        let flag = "--etcd-password-file";
        let password = String::from_utf8(read(flag, path)?).map_err(|_| OpenError::Contents {
            flag,
            path: path.clone(),
            reason: "has a password that is no text",
        })?;
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            let path = path.clone();
            return Err(OpenError::Contents { flag, path, reason: "has no password in it" });
        }
        connect = connect.with_user(user, password);
    }
    Ok(connect)
}

/// Reads a file that must have something of a kind in it.
fn pem(flag: &'static str, path: &Path, kind: &str) -> Result<Vec<u8>, OpenError> {
    let bytes = read(flag, path)?;
    let text = String::from_utf8_lossy(&bytes);
    let has = |line: &str| line.starts_with("-----BEGIN ") && line.contains(kind);
    if text.lines().any(has) {
        return Ok(bytes);
    }
    let reason = if kind == "CERTIFICATE" {
        "has no certificate in PEM format in it"
    } else {
        "has no private key in PEM format in it"
    };
    Err(OpenError::Contents { flag, path: path.to_owned(), reason })
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, OpenError> {
    fs::read(path).map_err(|source| OpenError::File { flag, path: path.to_owned(), source })
}
