//! Scripts that run a user's commands in the demo's machines, one per machine.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Result;

use super::control::Control;
use crate::net::{Cluster, shunt};

/// Writes one script per node, per pod and for the outside client: `node-1 COMMAND...` runs the command there.
pub fn write(cluster: &Cluster, control: &Control) -> Result<()> {
    let dir = cluster.files().join("in");
    fs::create_dir_all(&dir)?;
    let shunt = shunt::binary()?;
    for node in cluster.nodes() {
        // Join the node's cgroup first: the socket hooks are attached there. bpffs must stay visible: nsenter, not `ip
        // netns`.
        let body = format!(
            "echo $$ > {cgroup}/cgroup.procs\n\
             if [ \"$1\" = shunt ]; then shift; set -- {shunt} \"$@\" --bpffs {bpffs}; fi\n\
             exec nsenter --net={netns} \"$@\"\n",
            cgroup = node.cgroup().display(),
            shunt = shunt.display(),
            bpffs = node.bpffs().display(),
            netns = node.netns().path().display(),
        );
        write_script(&dir.join(node.name()), &body)?;
    }
    let pods = control.pods().map(|pod| (pod.name(), pod.place()));
    for (name, place) in pods.chain([("outside", cluster.outside())]) {
        write_script(
            &dir.join(name),
            &format!("exec nsenter --net={} \"$@\"\n", place.netns().path().display()),
        )?;
    }
    Ok(())
}

fn write_script(path: &Path, body: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{body}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
