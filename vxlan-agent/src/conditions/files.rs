//! Edge: what files say of the machine: which programs run that manage networks, and what they were told.
//!
//! Everything is read below a root, which is `/` but in tests. What cannot be read says nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::managers::take_section;
use super::surroundings::Managers;

/// Where systemd looks for configuration, the last one counts most.
const SYSTEMD: [&str; 4] =
    ["usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd"];

/// The same of `NetworkManager`.
const NETWORK_MANAGER: [&str; 3] =
    ["usr/lib/NetworkManager/conf.d", "run/NetworkManager/conf.d", "etc/NetworkManager/conf.d"];

/// What the kernel has of the names of programs: at most 15 characters.
const COMMANDS: [&str; 3] = ["firewalld", "systemd-network", "NetworkManager"];

/// The files of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    pub(crate) fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A file's text; none if there is none that can be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    /// The programs that manage networks. `devices` are limpet's: index and name.
    pub(crate) fn managers(&self, devices: &[(u32, String)]) -> Managers {
        let [firewalld, networkd, network_manager] = self.running();
        let is_of = |directory: &'static str, says: fn(&str) -> bool| {
            let of_it = devices.iter().filter(move |(index, _)| {
                self.text(&format!("{directory}/{index}")).is_some_and(|text| says(&text))
            });
            of_it.map(|(_, name)| name.clone()).collect::<Vec<_>>()
        };
        Managers {
            firewalld: firewalld.then(|| self.firewall_backend()),
            networkd: networkd.then(|| self.networkd()),
            networkd_devices: if networkd {
                is_of("run/systemd/netif/links", is_configured)
            } else {
                Vec::new()
            },
            network_manager: network_manager.then(|| self.network_manager()),
            network_manager_devices: if network_manager {
                is_of("run/NetworkManager/devices", |text| {
                    text.lines().any(|l| l == "managed=true")
                })
            } else {
                Vec::new()
            },
        }
    }

    /// Which of [`COMMANDS`] run in this network namespace.
    fn running(&self) -> [bool; 3] {
        let mut running = [false; 3];
        let namespace = |of: &Path| fs::read_link(of.join("ns/net")).ok();
        let own = namespace(&self.root.join("proc/self"));
        let Ok(processes) = fs::read_dir(self.root.join("proc")) else { return running };
        for process in processes.filter_map(Result::ok).map(|process| process.path()) {
            let Ok(command) = fs::read_to_string(process.join("comm")) else { continue };
            let known = COMMANDS.iter().position(|known| *known == command.trim_end());
            // One of a container manages the container's network.
            if let Some(found) = known.filter(|_| namespace(&process) == own)
                && let Some(runs) = running.get_mut(found)
            {
                *runs = true;
            }
        }
        running
    }

    fn firewall_backend(&self) -> String {
        let told = self.text("etc/firewalld/firewalld.conf").unwrap_or_default();
        let backend = told.lines().find_map(|line| line.trim().strip_prefix("FirewallBackend="));
        backend.unwrap_or("nftables").trim().to_owned()
    }

    /// What systemd-networkd was told below `[Network]`: the file of the most important directory, then the drop-ins of
    /// all by their names, of which the most important directory's counts.
    fn networkd(&self) -> BTreeMap<String, String> {
        let mut told = BTreeMap::new();
        let main = SYSTEMD.iter().rev().find_map(|at| self.text(&format!("{at}/networkd.conf")));
        take_section(&mut told, "Network", &main.unwrap_or_default());
        for text in self.drop_ins(&SYSTEMD.map(|at| format!("{at}/networkd.conf.d"))) {
            take_section(&mut told, "Network", &text);
        }
        told
    }

    fn network_manager(&self) -> String {
        let main = self.text("etc/NetworkManager/NetworkManager.conf").unwrap_or_default();
        let parts = self.drop_ins(&NETWORK_MANAGER.map(str::to_owned));
        parts.into_iter().fold(main, |all, part| all + "\n" + &part)
    }

    /// The texts of all `.conf` files of some directories, by their names; of two of one name the later directory's.
    fn drop_ins(&self, directories: &[String]) -> Vec<String> {
        let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for directory in directories {
            let Ok(entries) = fs::read_dir(self.root.join(directory)) else { continue };
            let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
            for path in paths.filter(|path| path.extension().is_some_and(|end| end == "conf")) {
                if let Some(name) = path.file_name() {
                    files.insert(name.to_owned(), path.clone());
                }
            }
        }
        files.values().filter_map(|path| fs::read_to_string(path).ok()).collect()
    }

    /// How many neighbour entries did not fit since the machine started; none where the kernel does not say.
    pub(crate) fn neighbours_refused(&self) -> Option<u64> {
        let tables = ["arp_cache", "ndisc_cache"];
        let counts = tables.iter().filter_map(|table| {
            let text = self.text(&format!("proc/net/stat/{table}"))?;
            let mut lines = text.lines();
            let column = lines.next()?.split_whitespace().position(|name| name == "table_fulls")?;
            // A line for each processor.
            let of_each = lines.filter_map(|line| line.split_whitespace().nth(column));
            Some(of_each.filter_map(|count| u64::from_str_radix(count, 16).ok()).sum::<u64>())
        });
        counts.reduce(|all, count| all + count)
    }
}

/// Whether systemd-networkd's state of a link says that it configures it.
fn is_configured(state: &str) -> bool {
    let mut lines = state.lines();
    let managed = ["configuring", "configured", "failed"];
    lines
        .any(|line| line.strip_prefix("ADMIN_STATE=").is_some_and(|state| managed.contains(&state)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Directory;

    fn write(root: &Directory, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn files(root: &Directory) -> Files {
        Files::below(&root.path(""))
    }

    #[test]
    fn networkds_configuration_is_what_it_reads_itself() {
        let root = Directory::new("networkd");
        let network = |text: &str| format!("[Network]\n{text}\n");
        write(
            &root,
            &[
                ("proc/7/comm", "systemd-network\n"),
                ("etc/systemd/networkd.conf", &network("ManageForeignRoutes=yes\nSpeedMeter=yes")),
                ("usr/lib/systemd/networkd.conf", &network("ManageForeignNextHops=no")),
                (
                    "usr/lib/systemd/networkd.conf.d/20-limpet.conf",
                    &network("ManageForeignRoutes=no"),
                ),
                ("usr/lib/systemd/networkd.conf.d/30-x.conf", &network("SpeedMeter=maybe")),
                ("etc/systemd/networkd.conf.d/30-x.conf", &network("SpeedMeter=no")),
                ("etc/systemd/networkd.conf.d/40-x.txt", &network("SpeedMeter=never")),
                ("run/systemd/netif/links/5", "ADMIN_STATE=configured\nNETWORK_FILE=/x\n"),
                ("run/systemd/netif/links/6", "ADMIN_STATE=unmanaged\n"),
            ],
        );
        let devices =
            [(5, "limpet1".to_owned()), (6, "limpet2".to_owned()), (7, "limpet3".to_owned())];
        let found = files(&root).managers(&devices);
        let told: Vec<_> = found.networkd.unwrap().into_iter().collect();
        let [routes, meter] = [("ManageForeignRoutes", "no"), ("SpeedMeter", "no")];
        assert_eq!(told, [routes, meter].map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(found.networkd_devices, ["limpet1"]);
        assert_eq!((found.firewalld, found.network_manager), (None, None));
    }

    #[test]
    fn firewalld_and_network_manager_are_found_by_their_processes() {
        let root = Directory::new("managers");
        write(
            &root,
            &[
                ("proc/7/comm", "firewalld\n"),
                ("proc/8/comm", "NetworkManager\n"),
                ("etc/firewalld/firewalld.conf", "# x\nFirewallBackend=iptables\n"),
                ("etc/NetworkManager/NetworkManager.conf", "[main]\nplugins=keyfile"),
                ("etc/NetworkManager/conf.d/limpet.conf", "[keyfile]\nunmanaged-devices=x\n"),
                ("run/NetworkManager/devices/5", "[device]\nmanaged=true\n"),
                ("run/NetworkManager/devices/6", "[device]\nmanaged=false\n"),
                // Left by one that has gone.
                ("run/systemd/netif/links/5", "ADMIN_STATE=configured\n"),
            ],
        );
        let found = files(&root).managers(&[(5, "limpet1".to_owned()), (6, "limpet2".to_owned())]);
        assert_eq!(found.firewalld.as_deref(), Some("iptables"));
        assert!(found.network_manager.unwrap().contains("unmanaged-devices=x"));
        assert_eq!(found.network_manager_devices, ["limpet1"]);
        assert_eq!((found.networkd, found.networkd_devices.len()), (None, 0));
    }

    #[test]
    fn what_did_not_fit_is_counted_over_all_processors_and_families() {
        let root = Directory::new("neighbours");
        assert_eq!(files(&root).neighbours_refused(), None);
        let head = "entries  allocs   unresolved_discards table_fulls\n";
        let table = |fulls: &str| format!("{head}00000005 0 0 {fulls}\n00000005 0 0 00000001\n");
        write(&root, &[("proc/net/stat/arp_cache", &table("00000010"))]);
        assert_eq!(files(&root).neighbours_refused(), Some(17));
        write(&root, &[("proc/net/stat/ndisc_cache", &table("00000000"))]);
        assert_eq!(files(&root).neighbours_refused(), Some(18));
    }
}
