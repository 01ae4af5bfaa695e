//! `samovar console`: what a person at the box needs to see, on its terminals: 80 columns of ASCII, read-only, drawn again when
//! something changed. It is small and stays in memory, where an interpreter would take twenty times as much.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use samovar_node::rt;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Client, Request};
use crate::output;
use crate::serve::{SOCKET_FILE, VKEY_FILE};
use crate::update::{self, DIRECTORY};

const DRAW_EVERY: Duration = Duration::from_secs(5);
/// A serial line is drawn again no more often than this: somebody may be reading it.
const SERIAL_EVERY: Duration = Duration::from_secs(30);
/// Time for the daemon's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
const COLUMNS: usize = 79;
const CLEAR: &str = "\x1b[2J\x1b[H";
const LEDGER: &str = "/var/lib/samovar";
/// What image this is, and what is wrong with the site file or the data partition, in words.
const IMAGE: &str = "/usr/lib/samovar/image";
const PROBLEM: &str = "/run/samovar/problem";
/// Flags of open(2): no terminal of this process's own, and never wait for one.
const OPEN_FLAGS: i32 = (rustix::fs::OFlags::NOCTTY.bits() | rustix::fs::OFlags::NONBLOCK.bits()).cast_signed();

/// Draw the state of the box on its terminals, for as long as it runs
///
/// Part of the appliance's image.
#[derive(Debug, clap::Args)]
pub(crate) struct Console {
    /// Terminals, such as /dev/tty1 and /dev/ttyS0
    #[arg(required = true)]
    terminals: Vec<PathBuf>,
}

/// What a terminal shows.
struct Shown {
    terminal: PathBuf,
    text: String,
    at: Option<Instant>,
}

pub(crate) async fn run(command: &Console) -> anyhow::Result<()> {
    let blank = |terminal: &PathBuf| Shown { terminal: terminal.clone(), text: String::new(), at: None };
    let mut shown: Vec<Shown> = command.terminals.iter().map(blank).collect();
    loop {
        let text = screen(&Facts::gather().await);
        shown.iter_mut().for_each(|terminal| terminal.show(&text));
        rt::sleep(DRAW_EVERY).await;
    }
}

impl Shown {
    fn show(&mut self, text: &str) {
        let serial = !self.terminal.starts_with("/dev/tty1");
        let due = !serial || self.at.is_none_or(|at| at.elapsed() >= SERIAL_EVERY);
        let changed = if serial { settled(text) != settled(&self.text) } else { text != self.text };
        if !(due && changed) {
            return;
        }
        let ascii: String = text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
        let before = if serial { "\r\n" } else { CLEAR };
        let mut open = std::fs::OpenOptions::new();
        // A terminal that is not there, or that takes nothing now, is tried again with the next change.
        if let Ok(mut file) = open.write(true).custom_flags(OPEN_FLAGS).open(&self.terminal)
            && file.write_all(format!("{before}{}", ascii.replace('\n', "\r\n")).as_bytes()).is_ok()
        {
            text.clone_into(&mut self.text);
            self.at = Some(Instant::now());
        }
    }
}

/// The screen without its clock and counters: what is worth drawing again on a serial line.
fn settled(text: &str) -> Vec<&str> {
    let first = |line: &'_ str| line.get(..55).map_or(line.len(), str::len);
    let lines = text.lines().filter(|line| ![" LEDGER", " DISK"].iter().any(|counter| line.starts_with(counter)));
    lines.enumerate().map(|(n, line)| if n == 0 { &line[..first(line)] } else { line }).collect()
}

/// What the screen is drawn from.
#[derive(Default)]
struct Facts {
    host: String,
    image: String,
    cmdline: String,
    now_ms: u64,
    /// Whether there is a ledger.
    made: bool,
    status: Option<Value>,
    update: Option<Value>,
    addresses: Vec<(String, IpAddr)>,
    fingerprint: Option<String>,
    problem: Option<String>,
}

impl Facts {
    async fn gather() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let ledger = Path::new(LEDGER);
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            image: read(IMAGE).unwrap_or_default(),
            cmdline: read("/proc/cmdline").unwrap_or_default(),
            now_ms: rt::now_ms(),
            made: ledger.join(VKEY_FILE).exists(),
            status: status(ledger).await,
            update: update::state(Path::new(DIRECTORY)).ok(),
            addresses: addresses(),
            fingerprint: fingerprint(&ledger.join("ca.pem")),
            problem: read(PROBLEM),
        }
    }

    /// A value of `NAME=VALUE`, from what says what image this is or from the kernel's command line.
    fn word<'a>(text: &'a str, name: &str) -> &'a str {
        text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).unwrap_or("?")
    }
}

async fn status(ledger: &Path) -> Option<Value> {
    let socket = ledger.join(SOCKET_FILE);
    if !socket.exists() {
        return None;
    }
    let request = Request::get("/v1/status").patience(Duration::ZERO).bounds(ANSWER_TIMEOUT, 1 << 20);
    Client::local(&socket).send(request).await.ok()?.json().ok()
}

/// Interfaces with addresses that others can reach them by.
fn addresses() -> Vec<(String, IpAddr)> {
    let networks = sysinfo::Networks::new_with_refreshed_list();
    let of = |(name, data): (&String, &sysinfo::NetworkData)| -> Vec<(String, IpAddr)> {
        data.ip_networks().iter().map(|network| (name.clone(), network.addr)).collect()
    };
    let mut all: Vec<_> = networks.iter().flat_map(of).filter(|(_, address)| reachable(*address)).collect();
    all.sort_unstable();
    all
}

fn reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

/// Fingerprint of the ledger's CA, to compare with what a browser shows.
fn fingerprint(file: &Path) -> Option<String> {
    let certificate = CertificateDer::from_pem_file(file).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &certificate);
    let groups: Vec<String> = digest.as_ref().as_chunks().0.iter().map(|[a, b]| format!("{a:02X}{b:02X}")).collect();
    Some(groups.join(" "))
}

/// The lines to show.
fn screen(facts: &Facts) -> String {
    let number = |name: &str| facts.status.as_ref().and_then(|s| s.get(name)).and_then(Value::as_u64).unwrap_or(0);
    let (version, slot) = (Facts::word(&facts.image, "version"), Facts::word(&facts.cmdline, "rauc.slot"));
    let title = format!(" {:<13} {version} slot {slot}{}", facts.host, spare(facts.update.as_ref(), slot));
    let time = output::time(facts.now_ms);
    let time = format!("{} {} UTC", time.get(..10).unwrap_or_default(), time.get(11..16).unwrap_or_default());
    let mut lines = vec![format!("{title:<56}{time}"), format!(" STATE   {}", state(facts))];
    if !facts.addresses.is_empty() {
        let host = |address: &IpAddr| if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let urls: Vec<_> = facts.addresses.iter().take(2).map(|(_, a)| format!("https://{}:8443/", host(a))).collect();
        lines.push(format!(" OPEN    {}", urls.join("   ")));
    }
    if let Some((first, second)) = facts.fingerprint.as_ref().and_then(|text| text.split_at_checked(40)) {
        lines.extend([format!(" CA SHA256  {}", first.trim_end()), format!("            {second}")]);
    }
    let named: Vec<_> = facts.addresses.iter().take(3).map(|(name, address)| format!("{name} {address}")).collect();
    lines.push(format!(" NET     {}", if named.is_empty() { "no address yet".to_owned() } else { named.join(", ") }));
    if facts.status.is_some() {
        let (height, size, keys) = (number("height"), number("size"), number("keys"));
        lines.push(format!(" LEDGER  height {height}  entries {size}  keys {keys}"));
        lines.push(format!(" DISK    {} MiB free", number("free_bytes") >> 20));
    }
    let errors = facts.status.iter().filter_map(|s| s.get("errors")?.as_array()).flatten().filter_map(Value::as_str);
    let message = facts.update.as_ref().and_then(|u| u.get("message")).and_then(Value::as_str).unwrap_or_default();
    let mut attention: Vec<String> = errors.take(4).map(str::to_owned).collect();
    if facts.image.contains("keys=development") {
        attention.push("DEVELOPMENT KEY: updates are signed by a key made for trials, not for production".into());
    }
    attention.extend([message.to_owned(), facts.problem.clone().unwrap_or_default()]);
    lines.extend(attention.iter().filter(|text| !text.is_empty()).flat_map(|text| wrapped(text)));
    lines.iter().map(|line| line.chars().take(COLUMNS).collect::<String>() + "\n").collect()
}

/// The other slot, in a few words. Right after a change of slots the state is still that of the version before, and not shown.
fn spare(update: Option<&Value>, own: &str) -> String {
    let text = |name| update.and_then(|u| u.pointer(name)).and_then(Value::as_str);
    match (text("/spare/slot"), text("/spare/version"), text("/spare/standing")) {
        (Some(slot), Some(version), Some(standing)) if slot != own => {
            format!(" ({slot}: {version} {standing})").replace("  ", " ")
        }
        _ => String::new(),
    }
}

fn state(facts: &Facts) -> String {
    if facts.cmdline.contains("samovar.rescue=1") {
        return "[!!] RESCUE: no slot is left to start; ssh works, the ledger does not run".into();
    }
    let Some(status) = &facts.status else {
        let said = if facts.made { "ledger not serving: journalctl -u samovar" } else { "starting" };
        return format!("[..] {said}");
    };
    let role = status.get("role").and_then(Value::as_str).unwrap_or("?");
    match status.get("errors").and_then(Value::as_array) {
        Some(errors) if !errors.is_empty() => format!("[!!] ledger serving, {role}, with what is said below"),
        _ => format!("[OK] ledger serving, {role}"),
    }
}

/// A text behind an exclamation mark, in lines that fit.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![" !      ".to_owned()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= COLUMNS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("         {word}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts() -> Facts {
        Facts {
            host: "box-01".into(),
            image: "version=0.4.2\nkeys=production\n".into(),
            cmdline: "ro rauc.slot=A samovar.try=1".into(),
            now_ms: 1_000,
            made: true,
            status: Some(
                json!({ "role": "leader", "height": 7, "size": 9, "keys": 3, "free_bytes": 5 << 20, "errors": [] }),
            ),
            addresses: vec![("eth0".into(), "192.0.2.10".parse().expect("an address"))],
            fingerprint: Some("AAAA ".repeat(16).trim_end().to_owned()),
            ..Facts::default()
        }
    }

    #[test]
    fn the_screen_says_where_and_how_the_ledger_is() {
        let half = "AAAA ".repeat(8);
        assert_eq!(
            screen(&facts()),
            format!(
                " box-01        0.4.2 slot A                             1970-01-01 00:00 UTC\n\
                 \x20STATE   [OK] ledger serving, leader\n\
                 \x20OPEN    https://192.0.2.10:8443/\n\
                 \x20CA SHA256  {half}\n            {half}\n\
                 \x20NET     eth0 192.0.2.10\n\
                 \x20LEDGER  height 7  entries 9  keys 3\n\
                 \x20DISK    5 MiB free\n",
                half = half.trim_end()
            )
        );
    }

    #[test]
    fn what_is_wrong_stands_below_in_lines_that_fit() {
        let wrong = Facts {
            problem: Some("word ".repeat(40)),
            update: Some(
                json!({ "message": "version 0.5.0 fell back", "spare": { "slot": "B", "version": "0.5.0", "standing": "bad" } }),
            ),
            status: None,
            ..facts()
        };
        let text = screen(&wrong);
        assert!(text.contains("slot A (B: 0.5.0 bad)"), "{text}");
        assert!(text.contains(" !       version 0.5.0 fell back\n !       word word"), "{text}");
        assert!(text.contains("[..] ledger not serving"), "{text}");
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        let other = Facts { cmdline: "rauc.slot=B".into(), ..wrong };
        assert!(
            screen(&other).contains("slot B  "),
            "the state of before the change of slots is not shown: {}",
            screen(&other)
        );
        let rescue = Facts { cmdline: "samovar.rescue=1".into(), ..facts() };
        assert!(screen(&rescue).contains("RESCUE"), "{}", screen(&rescue));
    }

    #[test]
    fn a_clock_alone_is_no_change_on_a_serial_line() {
        let later = Facts { now_ms: 3_600_000, ..facts() };
        assert_eq!(settled(&screen(&later)), settled(&screen(&facts())));
        let other = Facts { host: "box-02".into(), ..facts() };
        assert_ne!(settled(&screen(&other)), settled(&screen(&facts())));
    }
}
