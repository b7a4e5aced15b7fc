//! The forms in which a kubeconfig specifies servers, authorities and users.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Result, ensure};
use shunt::config::{Cluster, Origin};
use tests::api_server::{Api, kubeconfig, of_environment};

use crate::follower::{Follower, Options, SECOND, cluster, files, has};

/// Follows the servers of the kubeconfigs until all objects have arrived.
fn follows(server: &dyn Api, name: &str, origin: Origin) -> Result<()> {
    let mut follower = Follower::with(server, name, Options { origin: Some(origin), ..Options::default() })?;
    let took = follower.synced()?;
    ensure!(has(&follower.snapshot, "kubernetes", 1));
    eprintln!("{name}: everything was there after {took:?}");
    follower.finish()
}

/// A credential plugin that counts its calls.
fn plugin(path: &Path, answer: &str) -> Result<()> {
    let counter = path.with_extension("asked");
    fs::write(
        path,
        format!(
            "#!/bin/sh\necho x >> {}\necho \"$KUBERNETES_EXEC_INFO\" | grep -q ExecCredential || exit 1\ncat <<'E'\n{answer}\nE\n",
            counter.display()
        ),
    )?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn credential(status: &str) -> String {
    format!(
        "{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \"status\": {{{status}}}}}"
    )
}

#[test]
fn plugins_give_tokens_and_certificates() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("plugins")?;
    let directory = files.path();
    let token = server.token()?;
    let (certificate, key) = server.certificates().expect("it speaks TLS").client()?;
    let pem = |text: &str| serde_json::Value::from(text).to_string();
    let certificates =
        format!("\"clientCertificateData\": {}, \"clientKeyData\": {}", pem(&certificate), pem(&key));
    for (name, status) in [
        ("token", format!("\"token\": \"{token}\"")),
        ("short", format!("\"token\": \"{token}\", \"expirationTimestamp\": \"2020-01-01T00:00:00Z\"")),
        ("certificate", certificates),
    ] {
        plugin(&directory.join(name), &credential(&status))?;
        let config = directory.join(format!("{name}.conf"));
        // The plugin is next to the kubeconfig: a path with a slash is relative to it.
        let user = format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: ./{name}, interactiveMode: Never}}"
        );
        server.kubeconfig_as(&config, &user)?;
        follows(&*server, &format!("plugin-{name}"), Origin::Flag(config))?;
        let asked = fs::read_to_string(directory.join(format!("{name}.asked")))?.lines().count();
        eprintln!("{name}: the plugin was asked {asked} times");
        // Once for the certificate and once for the token; expired credentials are requested again for each request.
        ensure!(if name == "short" { asked > 2 } else { asked <= 2 }, "{name}: {asked}");
    }
    Ok(())
}

/// If the server rejects a plugin's credential, the plugin is called again.
#[test]
fn a_plugin_is_asked_again_when_its_token_is_refused() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("plugin-again")?;
    let path = files.path().join("give");
    plugin(&path, &credential("\"token\": \"expired\""))?;
    let user = Some(format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, interactiveMode: Never}}",
        path.display()
    ));
    let mut follower =
        Follower::with(&*server, "plugin-again-agent", Options { user, ..Options::default() })?;
    follower.listen(SECOND)?;
    ensure!(!follower.snapshot.is_synced());
    plugin(&path, &credential(&format!("\"token\": \"{}\"", server.token()?)))?;
    follower.synced()?;
    follower.finish()
}

#[test]
fn several_files_count_as_one() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("several-files")?;
    let directory = files.path();
    fs::create_dir(directory.join("users"))?;
    // Paths are relative to their own file; the first definition wins.
    fs::write(directory.join("ca.pem"), server.certificates().expect("it speaks TLS").authority())?;
    fs::write(directory.join("users/token"), format!("{}\n", server.token()?))?;
    let clusters = directory.join("clusters.conf");
    let first = format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: test, cluster: {{server: '{}', certificate-authority: ca.pem}}}}]\n",
        server.url()
    );
    fs::write(&clusters, first)?;
    let users = directory.join("users/users.conf");
    let second = "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
                  contexts: [{name: test, context: {cluster: test, user: test}}]\n\
                  clusters: [{name: test, cluster: {server: 'https://127.0.0.1:1'}}]\n\
                  users: [{name: test, user: {tokenFile: token}}]\n";
    fs::write(&users, second)?;
    follows(&*server, "merged", Origin::Environment(vec![clusters, users]))
}

#[test]
fn a_server_that_is_not_to_be_verified_is_not() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("insecure")?;
    let user = format!("token: {}", server.token()?);
    let config = files.path().join("kubeconfig");
    fs::write(&config, kubeconfig(&server.url(), ", insecure-skip-tls-verify: true", &user))?;
    follows(&*server, "insecure-agent", Origin::Flag(config.clone()))?;
    // Without this setting, no certificate is trusted.
    fs::write(&config, kubeconfig(&server.url(), "", &user))?;
    let options = Options { origin: Some(Origin::Flag(config)), ..Options::default() };
    let mut follower = Follower::with(&*server, "unverified", options)?;
    follower.listen(SECOND * 2)?;
    ensure!(!follower.snapshot.is_synced() && follower.snapshot.service_count() == 0);
    follower.finish()
}

/// The name in the certificate need not be the address.
#[test]
fn a_server_is_verified_by_the_name_that_is_given() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("names")?;
    fs::write(files.path().join("ca.pem"), server.certificates().expect("it speaks TLS").authority())?;
    let user = format!("token: {}", server.token()?);
    let config = files.path().join("kubeconfig");
    for (name, is_right) in [("192.168.8.1", true), ("kubernetes.example.org", false)] {
        let ca = format!(", certificate-authority: ca.pem, tls-server-name: {name}");
        fs::write(&config, kubeconfig(&server.url(), &ca, &user))?;
        let origin = Origin::Flag(config.clone());
        if is_right {
            follows(&*server, "named", origin)?;
        } else {
            let options = Options { origin: Some(origin), ..Options::default() };
            let mut follower = Follower::with(&*server, "misnamed", options)?;
            follower.listen(SECOND * 2)?;
            ensure!(!follower.snapshot.is_synced());
            follower.finish()?;
        }
    }
    Ok(())
}

/// The parts of a cluster's description that can be read without a server.
#[test]
fn a_user_without_a_name_is_nobody() -> Result<()> {
    let files = files("nobody")?;
    let config = files.path().join("kubeconfig");
    fs::write(&config, kubeconfig("https://127.0.0.1:1", "", "tokenFile: missing"))?;
    let cluster = Cluster { origin: Origin::Flag(config), servers: Vec::new(), watch_list: false };
    let error =
        shunt::sources::kube::KubeSource::open(&cluster, "node-1").expect_err("no such file").to_string();
    let missing = files.path().join("missing").display().to_string();
    ensure!(error.contains(&missing) && error.contains("No such file"), "{error}");
    Ok(())
}
