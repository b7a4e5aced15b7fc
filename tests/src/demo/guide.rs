//! The demo's message once its cluster is up: an overview, and commands to try with the scripts of
//! [`super::entrances`].

use super::stage::Stage;

/// Prints the overview and the commands to try.
pub fn print(stage: &Stage) {
    let become_root = if std::env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let into = format!("{become_root}{}/in", stage.cluster.files().display());
    println!("\nThe cluster is up:");
    for node in stage.cluster.nodes() {
        println!("  {}  {}  shunt's pins in {}", node.name(), node.addr().v4, node.bpffs().display());
    }
    for pod in stage.control.pods() {
        println!("  pod {:<14} {:<14} on node-{}", pod.name(), pod.addr().v4, pod.node() + 1);
    }
    println!("  outside  {}", stage.cluster.outside_addr().v4);
    let vip = stage.control.cluster_ip("new-nginx").unwrap_or("CLUSTER-IP");
    let client = stage.control.pods_of("client").next().map_or("POD", |pod| pod.name());
    println!("\nIn another terminal:");
    for line in [
        "node-1 shunt service list".to_owned(),
        format!("node-1 curl -s http://{vip}/"),
        format!("{client} curl -s http://{vip}/"),
        "node-1 shunt conntrack list".to_owned(),
        "node-2 shunt map dump FRONTENDS".to_owned(),
        format!("outside ping -c 1 {vip}"),
    ] {
        println!("  {into}/{line}");
    }
    println!(
        "\nChange the manifests in {}: make new-nginx a NodePort, scale it,",
        stage.manifests().display()
    );
    println!("set externalTrafficPolicy, add files; pods and Services follow. `outside` then reaches it by");
    println!("  {into}/outside curl -s http://192.168.8.201:NODEPORT/");
    println!("\nCtrl-C takes everything down.");
}
