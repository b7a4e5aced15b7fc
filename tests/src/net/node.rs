//! A node: a namespace with an uplink, a cgroup, a directory on bpffs, a directory of manifests, and a `shunt`.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Lane, Netns, Place, Pod, Shunt,
    cgroup::Cgroup,
    plan::{Dual, Family, node_addr},
    scratch::{BPFFS, Scratch},
    shunt,
};
use crate::traffic::{Client, Server};

/// Address of each node's `/readyz`, inside the node's own namespace.
const HEALTH: ([u8; 4], u16) = ([127, 0, 0, 1], 10256);

/// Time limit for `shunt` to become ready.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A node. Fields are dropped in this order.
#[derive(Debug)]
pub struct Node {
    index: usize,
    name: String,
    xdp: Option<Lane>,
    shunt: Mutex<Option<Shunt>>,
    past_logs: Mutex<String>,
    servers: Mutex<Vec<Server>>,
    place: Place,
    cgroup: Cgroup,
    bpffs: Scratch,
    manifests: PathBuf,
    netns: Arc<Netns>,
}

impl Node {
    /// `id` is unique on this machine; `manifests` exists already.
    pub(super) fn new(
        id: &str,
        index: usize,
        netns: Arc<Netns>,
        manifests: PathBuf,
        xdp: Option<Lane>,
    ) -> Result<Self> {
        let name = format!("node-{}", index + 1);
        let cgroup = Cgroup::new(&format!("{id}-{name}"))?;
        let place = Place::in_cgroup(netns.clone(), &cgroup)?;
        let bpffs = Scratch::new(Path::new(BPFFS).join(format!("{id}-{name}")))?;
        let (shunt, past_logs, servers) = Default::default();
        Ok(Self { index, name, xdp, shunt, past_logs, servers, place, cgroup, bpffs, manifests, netns })
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// `node-1`, `node-2`, ...: the name in `--node-name` and manifests.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn addr(&self) -> Dual {
        node_addr(self.index)
    }

    pub fn socket_addr(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr().of(family), port)
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The node's own processes create their sockets here: its namespace and its cgroup.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A pod's processes create their sockets here, as the kubelet starts them: in a cgroup below the node's, so that
    /// socket hooks for all processes run. (A [`Pod`]'s own place is not in a node's cgroup.)
    pub fn process_of(&self, pod: &Pod) -> Result<Place> {
        pod.place().with_cgroup(&self.cgroup)
    }

    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// Starts a TCP server among the node's own processes, on the node's address of that family.
    pub fn serve_tcp(&self, family: Family, port: u16, name: &str) -> Result<()> {
        let server = Server::tcp(&self.place, self.socket_addr(family, port), name)?;
        self.servers.lock().expect("no holder panics").push(server);
        Ok(())
    }

    /// Starts a UDP server among the node's own processes, on the node's address of that family.
    pub fn serve_udp(&self, family: Family, port: u16, name: &str) -> Result<()> {
        let server = Server::udp(&self.place, self.socket_addr(family, port), name)?;
        self.servers.lock().expect("no holder panics").push(server);
        Ok(())
    }

    /// Replies to other flows that its servers received.
    pub fn strays(&self) -> Vec<String> {
        let servers = self.servers.lock().expect("no holder panics");
        servers.iter().flat_map(Server::strays).collect()
    }

    /// Writes one manifest atomically, so that a follower never reads a partial file.
    pub fn write_manifest(&self, file: &str, text: &str) -> Result<()> {
        let half = self.manifests.join(format!(".{file}.half"));
        fs::write(&half, text)?;
        fs::rename(&half, self.manifests.join(file))?;
        Ok(())
    }

    /// Starts `shunt run` with the arguments `more` and waits until it is ready.
    pub fn start_shunt(&self, more: &[&str]) -> Result<()> {
        self.launch_shunt(more)?;
        self.wait_ready()
    }

    /// Starts `shunt run` with the arguments `more`.
    pub fn launch_shunt(&self, more: &[&str]) -> Result<()> {
        self.launch_shunt_by(&[shunt::binary()?.into()], more)
    }

    /// The same with another command.
    pub fn launch_shunt_by(&self, program: &[OsString], more: &[&str]) -> Result<()> {
        let mut running = self.shunt.lock().expect("no holder panics");
        if running.is_some() {
            bail!("{} has a shunt already", self.name);
        }
        let health = SocketAddr::from(HEALTH).to_string();
        let mut args = vec!["run".to_owned()];
        let follows_cluster = more.contains(&"--kubeconfig") || more.contains(&"--server");
        for (flag, value) in [
            ("--manifests", self.manifests.to_string_lossy().as_ref()),
            ("--node-name", &self.name),
            ("--bpffs", self.bpffs().to_string_lossy().as_ref()),
            ("--cgroup", self.cgroup().to_string_lossy().as_ref()),
            ("--healthz-bind-address", &health),
        ] {
            if !(follows_cluster && flag == "--manifests") {
                args.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        if let Some(lane) = self.xdp.filter(|_| !more.contains(&"--xdp")) {
            args.extend(["--xdp".to_owned(), lane.to_string()]);
        }
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        *running = Some(Shunt::start(&self.netns, &self.cgroup, program, &args)?);
        Ok(())
    }

    /// Waits until `/readyz` returns 200.
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            {
                let mut running = self.shunt.lock().expect("no holder panics");
                let shunt = running.as_mut().with_context(|| format!("{} has no shunt", self.name))?;
                if let Some(status) = shunt.ended()? {
                    bail!("shunt on {} ended with {status}; it wrote:\n{}", self.name, shunt.log());
                }
                if Instant::now() > deadline {
                    bail!(
                        "shunt on {} not ready after {READY_WITHIN:?}; it wrote:\n{}",
                        self.name,
                        shunt.log()
                    );
                }
            }
            if self.health("/readyz").is_ok_and(|status| status == 200) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Process id of the running shunt.
    pub fn shunt_pid(&self) -> Result<u32> {
        let running = self.shunt.lock().expect("no holder panics");
        Ok(running.as_ref().with_context(|| format!("{} has no shunt", self.name))?.pid())
    }

    /// Fails if shunt has exited by itself.
    pub fn still_runs(&self) -> Result<()> {
        let mut running = self.shunt.lock().expect("no holder panics");
        let shunt = running.as_mut().with_context(|| format!("{} has no shunt", self.name))?;
        match shunt.ended()? {
            Some(status) => bail!("shunt on {} ended with {status}", self.name),
            None => Ok(()),
        }
    }

    /// The HTTP status of a path of shunt's health server.
    pub fn health(&self, path: &str) -> Result<u16> {
        let answer = self.get(HEALTH.1, path)?;
        let status = answer.split_whitespace().nth(1).context("an empty answer")?;
        Ok(status.parse()?)
    }

    /// The full response of one of shunt's servers on the node's loopback address.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        let client = Client::at(&Place::inside(self.netns.clone()));
        let stream = client.connect((HEALTH.0, port).into())?;
        let mut stream = stream.into_inner();
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A memory line (`VmRSS`, `VmHWM`) of shunt's `/proc/PID/status`, in KiB.
    pub fn shunt_memory(&self, name: &str) -> Result<u64> {
        let running = self.shunt.lock().expect("no holder panics");
        let pid = running.as_ref().with_context(|| format!("{} has no shunt", self.name))?.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let words = line.with_context(|| format!("no {name} in /proc/{pid}/status"))?;
        Ok(words.trim().trim_end_matches(" kB").parse()?)
    }

    /// Stops shunt with SIGTERM.
    pub fn stop_shunt(&self) -> Result<()> {
        let log = self.take_shunt()?.stop()?;
        self.past_logs.lock().expect("no holder panics").push_str(&log);
        Ok(())
    }

    /// Kills shunt with SIGKILL.
    pub fn kill_shunt(&self) -> Result<()> {
        let log = self.take_shunt()?.kill()?;
        self.past_logs.lock().expect("no holder panics").push_str(&log);
        Ok(())
    }

    /// Waits until shunt exits by itself with status 0; returns its log.
    pub fn wait_ended(&self, within: Duration) -> Result<String> {
        let mut shunt = self.take_shunt()?;
        let deadline = Instant::now() + within;
        let status = loop {
            match shunt.ended()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    bail!("shunt runs on after {within:?}; it wrote:\n{}", shunt.log())
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let log = shunt.whole_log();
        if !status.success() {
            bail!("shunt on {} ended with {status}; it wrote:\n{log}", self.name);
        }
        self.past_logs.lock().expect("no holder panics").push_str(&log);
        Ok(log)
    }

    fn take_shunt(&self) -> Result<Shunt> {
        let taken = self.shunt.lock().expect("no holder panics").take();
        taken.with_context(|| format!("{} has no shunt", self.name))
    }

    /// The logs of all shunt processes of this node so far.
    pub fn shunt_log(&self) -> String {
        let past = self.past_logs.lock().expect("no holder panics").clone();
        let running = self.shunt.lock().expect("no holder panics").as_ref().map(Shunt::log);
        past + &running.unwrap_or_default()
    }

    /// Runs another shunt command on this node, with the node's `--bpffs`.
    pub fn shunt_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.netns.command(shunt::binary()?);
        command.args(args).arg("--bpffs").arg(self.bpffs()).env("NO_COLOR", "1");
        command.output().with_context(|| format!("running shunt {args:?}"))
    }

    /// The same, for commands that must succeed; returns stdout.
    pub fn shunt_command(&self, args: &[&str]) -> Result<String> {
        let output = self.shunt_output(args)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("shunt {args:?} on {}: {}: {stderr}", self.name, output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The value of one of the datapath's counters (`shunt counter list`).
    pub fn counter(&self, name: &str) -> Result<u64> {
        let list = self.shunt_json(&["counter", "list"])?;
        let found = list.as_array().into_iter().flatten().find(|row| row["name"] == name);
        found.and_then(|row| row["value"].as_u64()).with_context(|| format!("no counter {name} in {list}"))
    }

    /// The same, for commands that print JSON.
    pub fn shunt_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.shunt_command(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("shunt {args:?} -o json wrote:\n{text}"))
    }
}
