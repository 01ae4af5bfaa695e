//! A network of the lane's own: each node in a network namespace, all on one bridge, clients beside them.
//!
//! `tests/faults` runs the lane in a network, mount and process namespace, so that nothing of this is outside, and all is gone
//! with the lane.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Where clients are.
pub(super) const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Address of the node at a place.
pub(super) fn address(place: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(place + 1).unwrap_or(u8::MAX))
}

fn namespace(place: usize) -> String {
    format!("node-{}", place + 1)
}

/// Words before a command that is to run where the node at a place is.
pub(super) fn within(place: usize) -> Vec<String> {
    vec!["nsenter".into(), format!("--net=/run/netns/{}", namespace(place))]
}

/// Runs a program.
///
/// # Errors
/// With what it said, when it fails.
pub(super) fn run(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("running {}", words[0]))?;
    if !output.status.success() {
        bail!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn at(place: usize, words: &[&str]) -> Result<()> {
    let within = within(place);
    let all: Vec<&str> = within.iter().map(String::as_str).chain(words.iter().copied()).collect();
    run(&all)
}

/// Makes the bridge and a namespace for each of so many nodes.
///
/// # Errors
/// When this process may not, or iproute2 is missing.
pub(super) fn build(nodes: usize) -> Result<()> {
    let word = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let ip = |text: String| {
        let words = word(&text);
        run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    ip("ip link set lo up".into())?;
    ip("ip link add bridge type bridge".into())?;
    ip(format!("ip addr add {CLIENTS}/24 dev bridge"))?;
    ip("ip link set bridge up".into())?;
    for place in 0..nodes {
        let (name, address) = (namespace(place), address(place));
        ip(format!("ip netns add {name}"))?;
        ip(format!("ip link add {name} type veth peer name eth0 netns {name}"))?;
        ip(format!("ip link set {name} master bridge up"))?;
        ip(format!("ip -n {name} addr add {address}/24 dev eth0"))?;
        ip(format!("ip -n {name} link set eth0 up"))?;
        ip(format!("ip -n {name} link set lo up"))?;
    }
    Ok(())
}

/// What is dropped of what comes to a node from an address, until this is dropped.
pub(super) struct Cut {
    place: usize,
    rule: Vec<String>,
}

impl Cut {
    /// Everything.
    ///
    /// # Errors
    /// When iptables fails.
    pub(super) fn all(from: Ipv4Addr, to: usize) -> Result<Self> {
        Self::new(from, to, &[])
    }

    /// So many packets in a hundred, at random.
    ///
    /// # Errors
    /// When iptables fails.
    pub(super) fn percent(from: Ipv4Addr, to: usize, percent: u8) -> Result<Self> {
        let share = format!("{:.2}", f64::from(percent) / 100.0);
        Self::new(from, to, &["-m", "statistic", "--mode", "random", "--probability", &share])
    }

    fn new(from: Ipv4Addr, to: usize, matches: &[&str]) -> Result<Self> {
        let mut rule: Vec<String> = vec!["INPUT".into(), "-s".into(), from.to_string()];
        rule.extend(matches.iter().map(|word| (*word).to_owned()));
        rule.extend(["-j".into(), "DROP".into()]);
        let cut = Self { place: to, rule };
        cut.iptables("-A")?;
        Ok(cut)
    }

    fn iptables(&self, what: &str) -> Result<()> {
        let words = ["iptables", "-w", what].into_iter().chain(self.rule.iter().map(String::as_str));
        at(self.place, &words.collect::<Vec<_>>())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = self.iptables("-D") {
            eprintln!("faults: a cut stays: {error:#}");
        }
    }
}

/// A node whose line is slow: all that it sends queues behind so many kbit/s, until this is dropped.
pub(super) struct Slow(usize);

impl Slow {
    /// # Errors
    /// When tc fails.
    pub(super) fn new(place: usize, kbit: u32) -> Result<Self> {
        let rate = format!("{kbit}kbit");
        at(
            place,
            &[
                "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "16k", "latency",
                "400ms",
            ],
        )?;
        Ok(Self(place))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        if let Err(error) = at(self.0, &["tc", "qdisc", "del", "dev", "eth0", "root"]) {
            eprintln!("faults: a slow line stays: {error:#}");
        }
    }
}
