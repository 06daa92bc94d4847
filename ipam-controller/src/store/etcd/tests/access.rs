//! Edge: who is let in: certificates, users, layouts, and what is said to those who are not.

use std::fs;
use std::path::Path;
use std::process::Command;

use etcd_client::{Permission, PermissionType};

use super::super::{Endpoint, OpenError};
use super::*;

/// Why a store is not opened, with all causes.
async fn refused(options: &Options) -> String {
    let opened = match Etcd::prepare(options) {
        Ok(store) => store.open().await,
        Err(error) => Err(error),
    };
    let error = opened.unwrap_err();
    assert!(!error.may_pass(), "{error}");
    said(&error)
}

fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an authority and, of it, a certificate for a server or a client.
fn certificate(dir: &Path, ca: &str, name: &str) {
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    if !dir.join(format!("{ca}.pem")).exists() {
        let args = format!("req -x509 {ec} -keyout {ca}.key -out {ca}.pem -subj /CN={ca} -days 2");
        openssl(dir, &args);
    }
    openssl(dir, &format!("req {ec} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
    // Servers of a test are somewhere in the loopback's first few addresses.
    let names: Vec<String> = (0..=255).map(|n| format!("IP:127.79.0.{n}")).collect();
    fs::write(dir.join("names"), format!("subjectAltName={}", names.join(","))).unwrap();
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -out {name}.pem -days 2 -extfile names"
        ),
    );
}

fn with_tls(dir: &tempfile::TempDir) -> Vec<String> {
    let dir = dir.path();
    certificate(dir, "ca", "server");
    certificate(dir, "ca", "client");
    certificate(dir, "stranger", "unknown");
    let file = |name: &str| dir.join(name).display().to_string();
    [("--cert-file", "server.pem"), ("--key-file", "server.key"), ("--trusted-ca-file", "ca.pem")]
        .into_iter()
        .flat_map(|(flag, name)| [flag.to_owned(), file(name)])
        .chain(["--client-cert-auth".to_owned()])
        .collect()
}

#[tokio::test]
async fn with_tls_both_sides_show_who_they_are() {
    let cluster = Cluster::start_with(1, "https", with_tls);
    let file = |name: &str| cluster.directory().join(name);
    let mut options = cluster.options("/limpet");
    options.ca = Some(file("ca.pem"));
    options.identity = Some((file("client.pem"), file("client.key")));
    let store = Etcd::prepare(&options).unwrap();
    store.open().await.unwrap();
    committed(&store, put("a", "1")).await;

    let wrong_ca = Options { ca: Some(file("stranger.pem")), ..options.clone() };
    let said = refused(&wrong_ca).await;
    assert!(said.contains("check --etcd-ca") && said.contains("UnknownIssuer"), "{said}");

    let nobody = Options { identity: None, ..options.clone() };
    let said = refused(&nobody).await;
    assert!(said.contains("--etcd-cert"), "{said}");

    let stranger = Some((file("unknown.pem"), file("unknown.key")));
    let said = refused(&Options { identity: stranger, ..options.clone() }).await;
    assert!(said.contains("--etcd-cert"), "{said}");

    let absent = Options { ca: Some(file("absent.pem")), ..options.clone() };
    let said = refused(&absent).await;
    assert!(said.contains("absent.pem, which --etcd-ca names: No such file"), "{said}");
    let no_pem = Options { ca: Some(file("names")), ..options.clone() };
    let said = refused(&no_pem).await;
    assert!(said.contains("has no certificate in PEM format in it"), "{said}");
    let swapped = Some((file("client.key"), file("client.pem")));
    let said = refused(&Options { identity: swapped, ..options }).await;
    assert!(said.contains("which --etcd-cert names, has no certificate"), "{said}");
}

#[tokio::test]
async fn a_user_needs_the_password_and_the_right_to_the_prefix() {
    let cluster = Cluster::start_with(1, "http", |_| {
        // So that tokens end while the test looks on.
        ["--auth-token-ttl".to_owned(), "1".to_owned()].to_vec()
    });
    let mut root = cluster.client().await;
    root.user_add("root", "secret", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("limpet", "shellfish", None).await.unwrap();
    root.role_add("limpet").await.unwrap();
    let readwrite = Permission::new(PermissionType::Readwrite, "/limpet/").with_prefix();
    root.role_grant_permission("limpet", readwrite).await.unwrap();
    root.user_grant_role("limpet", "limpet").await.unwrap();
    root.auth_enable().await.unwrap();

    let password = cluster.directory().join("password");
    fs::write(&password, "shellfish\n").unwrap();
    let mut options = cluster.options("/limpet");
    options.user = Some(("limpet".to_owned(), password.clone()));
    let store = Etcd::prepare(&options).unwrap();
    store.open().await.unwrap();
    let start = committed(&store, ephemeral("meta/a")).await;
    let mut watch = store.watch(start).await.unwrap();
    time::sleep(Duration::from_secs(3)).await;
    let end = committed(&store, put("b", "1")).await;
    assert_eq!(
        watch.next().await.unwrap().revision,
        end,
        "its token has ended, and it has another"
    );
    assert_eq!(keys(&store, "meta/").await, ["meta/a", "meta/store-id"]);

    let elsewhere = Options { prefix: "/other".parse().unwrap(), ..options.clone() };
    let said = refused(&elsewhere).await;
    assert!(said.contains("does not permit it"), "{said}");
    let said = refused(&Options { user: None, ..options.clone() }).await;
    assert!(said.contains("does not accept the user: it wants one"), "{said}");
    fs::write(&password, "oyster").unwrap();
    let said = refused(&options).await;
    assert!(said.contains("check --etcd-user and --etcd-password-file"), "{said}");
    fs::write(&password, "\n").unwrap();
    assert!(refused(&options).await.contains("has no password in it"));
    fs::remove_file(&password).unwrap();
    assert!(refused(&options).await.contains("which --etcd-password-file names: No such file"));
}

#[tokio::test]
async fn a_newer_layout_is_left_alone_also_by_those_who_are_running() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    let mut client = cluster.client().await;
    client.put("/limpet/format", "2", None).await.unwrap();
    let told = store.commit(vec![put("a", "1")]).await.unwrap_err();
    assert!(said(&told).contains("has format 2, and this program knows formats up to 1"), "{told}");
    let said = refused(&cluster.options("/limpet")).await;
    assert!(said.contains("the store under /limpet in etcd has format 2"), "{said}");
    assert!(keys(&store, "a").await.is_empty());

    client.delete("/limpet/format", None).await.unwrap();
    assert!(refused(&cluster.options("/limpet")).await.contains("a part of a store"));
}

#[tokio::test]
async fn an_etcd_that_is_away_may_come() {
    let mut cluster = Cluster::start(1);
    let options = cluster.options("/limpet");
    cluster.kill(0);
    let store = Etcd::prepare(&options).unwrap();
    let away = store.open().await.unwrap_err();
    assert!(matches!(away, OpenError::Failure(_)) && away.may_pass(), "{away}");
    assert!(away.to_string().contains("cannot connect to etcd at http://127.79."), "{away}");
    cluster.restart(0);
    store.open().await.unwrap();

    let nowhere: Endpoint = "http://no-such-host.invalid:2379".parse().unwrap();
    let store = Etcd::prepare(&Options { endpoints: vec![nowhere], ..options }).unwrap();
    let away = store.open().await.unwrap_err();
    assert!(away.may_pass() && away.to_string().contains("no-such-host.invalid"), "{away}");
}
