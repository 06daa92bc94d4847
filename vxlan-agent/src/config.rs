//! Pure: the program's arguments, checked.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use limpet_api::client::Endpoint;
use limpet_api::config::Role;
use limpet_net_types::{HostName, NameGlob, Prefix};

use crate::mark::{DEFAULT_MASK, MarkMask};

/// Keeps this host's kernel equal to what the limpet controller says, and passes the CNI plugin's requests on.
#[derive(Debug, Parser)]
#[command(name = "limpet-agent", version, about, args_conflicts_with_subcommands = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) config: Config,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// What to do instead of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Verb {
    /// Print the commands that would make the kernel right, and change nothing.
    ///
    /// Asks the running agent, or, if there is none, a controller.
    Plan,
    /// Print how things stand with the running agent: joined, severed containers, what is wrong.
    Status,
    /// Print what is wrong on this host: what others did to it, and where its kernel is not as it should be.
    ///
    /// Asks the running agent; without one it looks for itself. Exit codes: 0 nothing is wrong, 1 something is, 2
    /// that cannot be told.
    Check {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What others did that limpet undoes if it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mend {
    /// A chain FORWARD of iptables that drops the overlay's packets: two rules let them pass.
    ForwardPolicy,
}

/// Where things are, and what the host is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Config {
    /// The address of a controller, such as `http://192.0.2.1:7600`; several are tried in their order.
    #[arg(
        long,
        env = "LIMPET_CONTROLLER",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7600",
        global = true
    )]
    pub(crate) controller: Vec<Endpoint>,
    /// Speak plain HTTP with the controller: whoever can read or change packets on the way can do as he likes.
    #[arg(long, env = "LIMPET_PLAIN_HTTP", global = true)]
    #[arg(value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) plain_http: bool,
    /// The name of this host; its hostname, in lower case, if left out.
    #[arg(long, env = "LIMPET_HOST", global = true)]
    pub(crate) host: Option<HostName>,
    /// What the host is for, as asked for at its first join: node, member or gateway; can be repeated.
    /// Afterwards an operator decides.
    #[arg(long, env = "LIMPET_ROLE", value_delimiter = ',', default_value = "node", global = true)]
    pub(crate) role: Vec<Role>,
    /// A prefix behind this gateway, as asked for at its first join; can be repeated.
    #[arg(long, env = "LIMPET_EXTERNAL", value_delimiter = ',', global = true)]
    pub(crate) external: Vec<Prefix>,
    /// The address that VXLAN packets come from and go to; if left out, one of the default route's device, or
    /// of the only device that has a global address.
    #[arg(long, env = "LIMPET_UNDERLAY", global = true)]
    pub(crate) underlay: Option<IpAddr>,
    /// Devices whose addresses are not told to the other hosts, by a pattern; can be repeated.
    #[arg(
        long,
        env = "LIMPET_SKIP_DEVICE",
        value_delimiter = ',',
        default_value = "docker*,br-*,virbr*,lxcbr*,lxdbr*,podman*,cni*,kube-*,nodelocaldns",
        global = true
    )]
    pub(crate) skip_device: Vec<NameGlob>,
    /// The bits of packets' marks that are limpet's; needed on hosts of networks with an address space of their own.
    #[arg(long, env = "LIMPET_MARK_MASK", default_value = DEFAULT_MASK, global = true)]
    pub(crate) mark_mask: MarkMask,
    /// The unix socket for the CNI plugin.
    #[arg(long, env = "LIMPET_SOCKET", default_value = "/run/limpet/agent.sock", global = true)]
    pub(crate) socket: PathBuf,
    /// The directory of what must outlive a reboot: which installation this is.
    #[arg(long, env = "LIMPET_STATE_DIR", default_value = "/var/lib/limpet-agent", global = true)]
    pub(crate) state_dir: PathBuf,
    /// The file of what must not outlive a reboot: which boot this is.
    #[arg(long, env = "LIMPET_BOOT_ID_FILE", default_value = "/run/limpet/boot-id", global = true)]
    pub(crate) boot_id_file: PathBuf,
    /// Undo what others did to this host: `forward-policy` sets two rules in the iptables chain DOCKER-USER, or else
    /// FORWARD, where that drops the overlay's packets; can be repeated.
    #[arg(long, env = "LIMPET_MEND", value_delimiter = ',', global = true)]
    pub(crate) mend: Vec<Mend>,
    /// The address and port at which anybody may read metrics, such as `192.0.2.1:7601`; nobody may if left out.
    #[arg(long, env = "LIMPET_METRICS_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// What to log: error, warn, info, debug, trace, or a filter such as `limpet_agent=debug`.
    #[arg(long, env = "LIMPET_LOG", default_value = "info", global = true)]
    pub(crate) log: String,
}

/// Arguments that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Plain HTTP without being told so.
    #[error(
        "controller {0} is reached by plain HTTP, which anybody on the way can read and change: \
         give --plain-http if that network is yours alone"
    )]
    PlainHttp(String),
    /// The host's own name is none that limpet takes.
    #[error("cannot take the hostname {0:?} for the host's name: give --host")]
    HostName(String),
}

impl Config {
    /// Refuses what is well-formed and still must not be.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let plain =
            self.controller.iter().find(|endpoint| matches!(endpoint, Endpoint::Http { .. }));
        match plain {
            Some(endpoint) if !self.plain_http => Err(ConfigError::PlainHttp(endpoint.to_string())),
            _ => Ok(()),
        }
    }

    /// The host's name: the one given, or else `hostname`.
    pub(crate) fn host_name(&self, hostname: &str) -> Result<HostName, ConfigError> {
        match &self.host {
            Some(name) => Ok(name.clone()),
            None => hostname
                .trim()
                .to_ascii_lowercase()
                .parse()
                .map_err(|_| ConfigError::HostName(hostname.trim().to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["limpet-agent"].iter().chain(arguments))
    }

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_and_variable_is_in_the_manual() {
        let manual = include_str!("../../docs/agent.md");
        let command = Cli::command();
        let ours = command.get_arguments().filter(|flag| flag.get_env().is_some());
        for flag in ours {
            let long = format!("`--{}`", flag.get_long().unwrap());
            let variable = flag.get_env().unwrap().to_str().unwrap();
            assert!(manual.contains(&format!("| {long} | `{variable}` |")), "{long} {variable}");
        }
        assert_eq!(command.get_arguments().filter(|flag| flag.get_env().is_some()).count(), 14);
    }

    #[test]
    fn plain_http_must_be_asked_for() {
        let config = parse(&["--controller", "http://192.0.2.1:7600"]).unwrap().config;
        assert!(matches!(config.check(), Err(ConfigError::PlainHttp(_))));
        let config = parse(&["--plain-http"]).unwrap().config;
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn wrong_arguments_are_refused_with_what_is_wrong() {
        let long = "x".repeat(300);
        for (arguments, complaint) in [
            (["--host", "a/b"], "'/' at position 2"),
            (["--host", "b\u{e4}r"], "position 2"),
            (["--host", long.as_str()], "300 characters"),
            (["--role", "king"], "node, member or gateway"),
            (["--external", "192.0.2.1/24"], "192.0.2.0/24"),
            (["--underlay", "eth0"], "--underlay"),
            (["--controller", "https://a:1"], "TLS"),
            (["--metrics-listen", "7601"], "invalid socket address"),
        ] {
            let error = parse(&arguments).unwrap_err().to_string();
            assert!(error.contains(complaint), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_hostname_is_the_default_name() {
        let config = parse(&[]).unwrap().config;
        assert_eq!(config.host_name("Node-A\n").unwrap().as_str(), "node-a");
        assert!(config.host_name("(none)").is_err());
        assert_eq!(parse(&["plan"]).unwrap().verb, Some(Verb::Plan));
        assert_eq!(parse(&["status"]).unwrap().verb, Some(Verb::Status));
    }
}
