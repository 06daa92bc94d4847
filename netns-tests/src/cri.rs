//! Edge: a real container runtime on a machine, driven over CRI as a kubelet does.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, PortMapping,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tokio::runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::host::Host;
use crate::image::BUSYBOX_IMAGE;
use crate::program::{Process, binary};
use crate::run::wait_until;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/containerd.toml");
const CONFLIST: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/kubernetes/10-limpet.conflist");
const SOCKET: &str = "/run/containerd/containerd.sock";

/// The longest that any one request may take.
const LIMIT: Duration = Duration::from_secs(30);

/// containerd on a machine, with limpet's plugin and the conflist that limpet ships.
#[derive(Debug)]
pub struct Containerd {
    host: Host,
    process: Process,
}

/// What a kubelet knows a pod by.
#[derive(Clone, Debug)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, which a new pod of the same name does not share.
    pub uid: String,
    /// How many sandboxes the pod had before this one.
    pub attempt: u32,
}

impl PodName {
    /// The first sandbox of a pod.
    #[must_use]
    pub fn new(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            attempt: 0,
        }
    }
}

/// A pod's sandbox in the runtime.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its ID, which is the plugin's container ID.
    pub id: String,
    /// Its addresses, as the runtime reports them to the kubelet.
    pub addresses: Vec<IpAddr>,
    config: PodSandboxConfig,
}

impl Containerd {
    /// Installs limpet beside the stock plugins and starts containerd, with `images` imported.
    #[must_use]
    pub fn start(host: &Host, images: &[PathBuf]) -> Self {
        let bin = host.path_from_outside("/opt/cni/bin");
        for plugin in ["loopback", "portmap", "bandwidth"] {
            fs::copy(Path::new("/usr/lib/cni").join(plugin), bin.join(plugin)).unwrap();
        }
        fs::copy(binary("limpet"), bin.join("limpet")).unwrap();
        fs::copy(CONFLIST, host.path_from_outside("/etc/cni/net.d/10-limpet.conflist")).unwrap();
        let mut command = host.command("containerd");
        command.args(["--config", CONFIG]);
        let process = Process::start(command, &host.dir().join("containerd.log"));
        let socket = host.path_from_outside(SOCKET);
        wait_until(Duration::from_secs(20), "containerd listens", || socket.exists());
        wait_until(Duration::from_secs(20), "containerd answers", || {
            host.try_sh("ctr version").is_ok()
        });
        for image in images {
            host.run(&format!("ctr -n k8s.io images import {}", image.display()));
        }
        Self { host: host.clone(), process }
    }

    /// Everything it has logged.
    #[must_use]
    pub fn logged(&self) -> String {
        self.process.output()
    }

    /// `RunPodSandbox`; `ports` are pairs of a host's port and the pod's.
    ///
    /// # Errors
    ///
    /// What the runtime answers.
    pub fn run_pod(&self, pod: &PodName, ports: &[(u16, u16)]) -> Result<Sandbox, String> {
        let mapping = |&(outside, inside): &(u16, u16)| PortMapping {
            host_port: outside.into(),
            container_port: inside.into(),
            ..PortMapping::default()
        };
        let PodName { namespace, name, uid, attempt } = pod.clone();
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: name.clone(), uid, namespace, attempt }),
            hostname: name,
            port_mappings: ports.iter().map(mapping).collect(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..PodSandboxConfig::default()
        };
        self.ask(async |mut runtime| {
            let request =
                RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
            let status = runtime.pod_sandbox_status(request).await?.into_inner().status;
            let network = status.and_then(|status| status.network).unwrap_or_default();
            let texts = std::iter::once(network.ip)
                .chain(network.additional_ips.into_iter().map(|ip| ip.ip));
            let addresses = texts.filter_map(|text| text.parse().ok()).collect();
            Ok(Sandbox { id, addresses, config: config.clone() })
        })
    }

    /// Runs a web server in the pod that answers every request for `/` with `text`.
    ///
    /// # Errors
    ///
    /// What the runtime answers.
    pub fn serve(&self, sandbox: &Sandbox, text: &str) -> Result<(), String> {
        let script = format!("echo {text} > /www/index.html; exec httpd -f -p 80 -h /www");
        let attempt = sandbox.config.metadata.as_ref().map_or(0, |pod| pod.attempt);
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "web".to_owned(), attempt }),
            image: Some(ImageSpec { image: BUSYBOX_IMAGE.to_owned(), ..Default::default() }),
            args: vec!["-c".to_owned(), script],
            ..ContainerConfig::default()
        };
        self.ask(async |mut runtime| {
            let request = CreateContainerRequest {
                pod_sandbox_id: sandbox.id.clone(),
                config: Some(config.clone()),
                sandbox_config: Some(sandbox.config.clone()),
            };
            let container_id = runtime.create_container(request).await?.into_inner().container_id;
            runtime.start_container(StartContainerRequest { container_id }).await?;
            Ok(())
        })
    }

    /// `StopPodSandbox`.
    ///
    /// # Errors
    ///
    /// What the runtime answers.
    pub fn stop_pod(&self, id: &str) -> Result<(), String> {
        self.ask(async |mut runtime| {
            runtime
                .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.to_owned() })
                .await?;
            Ok(())
        })
    }

    /// `RemovePodSandbox`.
    ///
    /// # Errors
    ///
    /// What the runtime answers.
    pub fn remove_pod(&self, id: &str) -> Result<(), String> {
        self.ask(async |mut runtime| {
            runtime
                .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() })
                .await?;
            Ok(())
        })
    }

    /// Connects, asks, and turns a failure into words.
    fn ask<T>(
        &self,
        question: impl AsyncFn(RuntimeServiceClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, String> {
        let socket = self.host.path_from_outside(SOCKET);
        let asking = async {
            let connect = service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
            });
            // The address is never used: the connector above knows the socket.
            let channel =
                Endpoint::from_static("http://localhost").connect_with_connector(connect).await;
            let client = RuntimeServiceClient::new(channel.map_err(|error| error.to_string())?);
            question(client).await.map_err(|status| status.to_string())
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async { tokio::time::timeout(LIMIT, asking).await })
            .map_err(|_| format!("no answer within {LIMIT:?}"))?
    }
}
