//! Pure: the flags of the program, and what is wrong with them together.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Parser};
use limpet_api::{After, Span};

use crate::reclaim::Limits;
use crate::store::{Endpoint, EtcdOptions, EtcdPrefix, Options};

/// How long what is a controller's own in etcd outlives it.
const LEASE: Duration = Duration::from_secs(15);

/// In seconds.
const DAY: u64 = 86_400;

/// The flags as written.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "limpet-controller",
    version,
    about = "Keeps limpet's networks, pools, reservations and attachments, and decides who gets which address",
    after_help = "Every flag can be given in the environment instead: --store as LIMPET_STORE, and so on.\n\
                  Logs go to standard error; LIMPET_LOG sets their level, such as `debug` or `info,limpet_controller=debug`.\n\
                  SIGTERM and SIGINT stop the controller once requests under way are finished."
)]
pub(crate) struct Flags {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "LIMPET_LISTEN",
        default_value = "127.0.0.1:7600",
        value_name = "ADDRESS:PORT"
    )]
    pub(crate) listen: SocketAddr,

    /// File of the embedded store; made if absent, its directory must exist
    #[arg(
        long,
        env = "LIMPET_STORE",
        default_value = "/var/lib/limpet-controller/store.redb",
        value_name = "FILE"
    )]
    pub(crate) store: PathBuf,

    /// Members of etcd, where several controllers share a store; instead of --store
    #[arg(
        long,
        env = "LIMPET_ETCD",
        value_name = "URL[,URL...]",
        value_delimiter = ',',
        conflicts_with = "store"
    )]
    pub(crate) etcd: Vec<Endpoint>,

    /// What all keys in etcd start with
    #[arg(
        long,
        env = "LIMPET_ETCD_PREFIX",
        default_value = "/limpet",
        value_name = "PREFIX",
        requires = "etcd"
    )]
    pub(crate) etcd_prefix: EtcdPrefix,

    /// Certificates (PEM) of who vouches for etcd's members; needed for https
    #[arg(long, env = "LIMPET_ETCD_CA", value_name = "FILE", requires = "etcd")]
    pub(crate) etcd_ca: Option<PathBuf>,

    /// This controller's certificate (PEM) for etcd
    #[arg(
        long,
        env = "LIMPET_ETCD_CERT",
        value_name = "FILE",
        requires_all = ["etcd_ca", "etcd_key"]
    )]
    pub(crate) etcd_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, env = "LIMPET_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,

    /// User of etcd
    #[arg(
        long,
        env = "LIMPET_ETCD_USER",
        value_name = "NAME",
        requires_all = ["etcd", "etcd_password_file"]
    )]
    pub(crate) etcd_user: Option<String>,

    /// File with the user's password
    #[arg(long, env = "LIMPET_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub(crate) etcd_password_file: Option<PathBuf>,

    /// Serve HTTP without TLS: whoever reaches the port can read and change everything
    #[arg(
        long,
        env = "LIMPET_PLAIN_HTTP",
        action = ArgAction::SetTrue,
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) plain_http: bool,

    /// How many revisions the embedded store's change log keeps, from which agents resume
    #[arg(
        long,
        env = "LIMPET_LOG_REVISIONS",
        default_value_t = 100_000,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(crate) log_revisions: u64,

    /// Memory for pages of the embedded store's file, in MiB
    #[arg(
        long,
        env = "LIMPET_CACHE_MIB",
        default_value_t = 64,
        value_name = "MIB",
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub(crate) cache_mib: u32,

    /// How long a host may be silent before its attachments are ended, such as 1h; reservations stay
    #[arg(
        long,
        env = "LIMPET_SILENT_HOSTS_END_AFTER",
        default_value = "never",
        value_name = "TIME"
    )]
    pub(crate) silent_hosts_end_after: After,
    /// How many records of history are kept: one for each attachment that has ended
    #[arg(long, env = "LIMPET_HISTORY_RECORDS", default_value_t = 1_000_000, value_name = "COUNT")]
    pub(crate) history_records: usize,

    /// For how many days a record of history is kept, counted while controllers run
    #[arg(
        long,
        env = "LIMPET_HISTORY_DAYS",
        default_value_t = 90,
        value_name = "DAYS",
        value_parser = clap::value_parser!(u64).range(..=36_500)
    )]
    pub(crate) history_days: u64,

    /// Do nothing on an empty store until a backup is restored into it: hosts that found it empty would
    /// take down what they have
    #[arg(
        long,
        env = "LIMPET_AWAIT_RESTORE",
        action = ArgAction::SetTrue,
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) await_restore: bool,

    /// File to write the bound address to, once requests are served
    #[arg(long, env = "LIMPET_READY_FILE", value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

/// What the program does, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// Where the store is.
    pub(crate) store: StorePlace,
    /// What is kept, and for how long.
    pub(crate) limits: Limits,
    /// Whether an empty store is to wait for a backup.
    pub(crate) await_restore: bool,
    /// Where to write the bound address.
    pub(crate) ready_file: Option<PathBuf>,
}

/// Where the store is, and what it may keep.
#[derive(Clone, Debug)]
pub(crate) enum StorePlace {
    /// In a file of this controller's own.
    File(Options),
    /// In etcd, which several controllers share.
    Etcd(EtcdOptions),
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(options) => options.path.display().fmt(f),
            Self::Etcd(options) => {
                let urls: Vec<_> = options.endpoints.iter().map(Endpoint::url).collect();
                write!(f, "{} in etcd at {}", options.prefix, urls.join(","))
            }
        }
    }
}

/// Why flags that are right by themselves are not together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// TLS is not spoken yet, and its absence is nothing to overlook.
    #[error(
        "this version serves HTTP without TLS only: give --plain-http to accept that, on a network \
         where everybody may change everything"
    )]
    NoTls,
    /// Without it nobody could tell whether etcd is etcd.
    #[error(
        "{url} speaks TLS: name the file with the certificates of who vouches for it with --etcd-ca"
    )]
    MissingCa {
        /// The first such member.
        url: String,
    },
    /// One of them would be spoken to in the clear.
    #[error(
        "--etcd-ca is given, and {url} does not speak TLS: write https:// if it does, or leave out --etcd-ca"
    )]
    MixedSchemes {
        /// The first such member.
        url: String,
    },
}

impl TryFrom<Flags> for Config {
    type Error = ConfigError;

    fn try_from(flags: Flags) -> Result<Self, ConfigError> {
        if !flags.plain_http {
            return Err(ConfigError::NoTls);
        }
        let store = if flags.etcd.is_empty() {
            let cache_bytes = usize::try_from(flags.cache_mib).unwrap_or(usize::MAX);
            StorePlace::File(Options {
                path: flags.store,
                cache_bytes: cache_bytes.saturating_mul(1 << 20),
                log_revisions: flags.log_revisions,
            })
        } else {
            let member = |is_https| flags.etcd.iter().find(|url| url.is_https() == is_https);
            match (&flags.etcd_ca, member(true), member(false)) {
                (None, Some(url), _) => {
                    return Err(ConfigError::MissingCa { url: url.url().to_owned() });
                }
                (Some(_), _, Some(url)) => {
                    return Err(ConfigError::MixedSchemes { url: url.url().to_owned() });
                }
                _ => {}
            }
            StorePlace::Etcd(EtcdOptions {
                endpoints: flags.etcd,
                prefix: flags.etcd_prefix,
                ca: flags.etcd_ca,
                identity: flags.etcd_cert.zip(flags.etcd_key),
                user: flags.etcd_user.zip(flags.etcd_password_file),
                lease: LEASE,
            })
        };
        let limits = Limits {
            silent_hosts_end_after: flags.silent_hosts_end_after,
            history_records: flags.history_records,
            history_age: Span::from_seconds(flags.history_days * DAY),
        };
        let Flags { listen, await_restore, ready_file, .. } = flags;
        Ok(Self { listen, store, limits, await_restore, ready_file })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn without_tls_nothing_is_served_unless_that_was_said() {
        let parse = |args: &[&str]| {
            let args = ["limpet-controller"].iter().chain(args);
            Config::try_from(Flags::try_parse_from(args).unwrap())
        };
        assert!(matches!(parse(&[]), Err(ConfigError::NoTls)));
        assert_eq!(parse(&["--plain-http"]).unwrap().listen, "127.0.0.1:7600".parse().unwrap());
    }

    #[test]
    fn what_is_said_of_etcd_goes_together() {
        let parse = |args: &str| {
            let args = ["limpet-controller", "--plain-http"].into_iter().chain(args.split(' '));
            let flags = Flags::try_parse_from(args).map_err(|error| error.to_string())?;
            Config::try_from(flags).map(|config| config.store).map_err(|error| error.to_string())
        };
        let StorePlace::Etcd(options) =
            parse("--etcd https://a:1,https://b:2 --etcd-ca ca --etcd-cert c --etcd-key k")
                .unwrap()
        else {
            panic!("not in etcd");
        };
        assert_eq!(options.endpoints.len(), 2);
        assert_eq!(options.prefix.to_string(), "/limpet");
        assert_eq!(options.identity, Some(("c".into(), "k".into())));
        for (args, said) in [
            ("--etcd http://a:1 --store /x", "cannot be used with"),
            ("--etcd https://a:1", "--etcd-ca"),
            ("--etcd http://a:1 --etcd-ca ca", "does not speak TLS"),
            ("--etcd http://a:1,https://b:1 --etcd-ca ca", "does not speak TLS"),
            ("--etcd https://a:1 --etcd-ca ca --etcd-cert c", "--etcd-key"),
            ("--etcd http://a:1 --etcd-user u", "--etcd-password-file"),
            ("--etcd-user u --etcd-password-file p", "--etcd"),
            ("--etcd a:1", "is not a URL"),
            ("--etcd http://a:1 --etcd-prefix limpet", "is no prefix"),
        ] {
            let refused = parse(args).unwrap_err();
            assert!(refused.contains(said), "{args}: {refused}");
        }
    }

    #[test]
    fn every_flag_is_documented() {
        let docs = include_str!("../../docs/controller.md");
        for argument in Flags::command().get_arguments() {
            let flag = argument.get_long().map(|long| format!("`--{long}"));
            let env = argument.get_env().map(|env| format!("`{}`", env.to_string_lossy()));
            for name in [flag, env].into_iter().flatten() {
                assert!(docs.contains(&name), "docs/controller.md says nothing of {name}");
            }
        }
    }
}
