//! `samovar doctor` on a healthy ledger, where it is silent, and on states that are broken for real, where the check whose
//! business it is says no.
//!
//! One state: `cargo test -p samovar-tests --test system doctor`, with `SAMOVAR_STATE=NAME`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{CertificateParams, KeyPair};
use samovar_tests::durability::Image;
use samovar_tests::{Daemon, Settings, binary};
use serde_json::Value;

/// A `no` that every ledger of one node has, and that is no fault.
const ONE_NODE: &str = "lose-node";
/// User and group that own nothing.
const NOBODY: u32 = 65534;

/// A daemon with the files that a system has around it, all of it in a directory of its own.
pub(super) struct Site {
    pub(super) daemon: Daemon,
    /// Where units and journal lie.
    pub(super) root: PathBuf,
}

/// What the doctor said.
struct Said {
    code: i32,
    answers: BTreeMap<String, String>,
    whole: Value,
}

impl Said {
    fn answer(&self, check: &str) -> &str {
        self.answers.get(check).map_or("no such check", String::as_str)
    }

    /// Checks that say no, but for the one that is no fault.
    fn faults(&self) -> Vec<&str> {
        self.answers.iter().filter(|(name, a)| *a == "no" && *name != ONE_NODE).map(|(name, _)| name.as_str()).collect()
    }
}

impl Site {
    /// A ledger in `directory/data` that runs, and a system's files in `directory/root`.
    pub(super) async fn new(directory: &Path, settings: Settings) -> Self {
        let root = directory.join("root");
        let unit = root.join("usr/lib/systemd/system/samovar.service");
        fs::create_dir_all(unit.parent().unwrap()).unwrap();
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/samovar.service"), &unit).unwrap();
        fs::create_dir_all(root.join("var/log/journal")).unwrap();
        let site = Self { daemon: Daemon::create(&directory.join("data"), settings).await.unwrap(), root };
        fs::create_dir_all(site.enabled().parent().unwrap()).unwrap();
        symlink("/usr/lib/systemd/system/samovar.service", site.enabled()).unwrap();
        site
    }

    fn enabled(&self) -> PathBuf {
        self.root.join("etc/systemd/system/multi-user.target.wants/samovar.service")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.daemon.data().join(name)
    }

    /// The configuration file that the daemon was started with.
    pub(super) fn config(&self) -> PathBuf {
        self.daemon.data().with_extension("toml")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary().unwrap());
        command.args(["doctor", "--output", "json", "--data"]).arg(self.daemon.data()).arg("--root").arg(&self.root);
        command.arg("--config").arg(self.config());
        command
    }

    fn doctor(&self) -> Said {
        Said::of(&mut self.command())
    }
}

impl Said {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let whole: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
            panic!("{e}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        });
        let word = |check: &Value, name: &str| check[name].as_str().unwrap().to_owned();
        let checks = whole["checks"].as_array().unwrap();
        let answers = checks.iter().map(|c| (word(c, "name"), word(c, "answer"))).collect();
        for check in checks.iter().filter(|c| c["answer"] != "yes") {
            assert!(check["next"].as_str().is_some_and(|n| !n.is_empty()), "what to do is missing: {check}");
        }
        Self { code: output.status.code().unwrap(), answers, whole }
    }
}

/// Writes a file, its directories too, and makes it anew if it is there.
pub(super) fn write(path: &Path, text: &str, mode: u32) {
    write_bytes(path, text.as_bytes(), mode);
}

/// The same of bytes.
pub(super) fn write_bytes(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).unwrap();
    file.write_all(content).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Puts another file in the place of one, and back when dropped.
struct Instead(PathBuf, PathBuf);

impl Instead {
    fn of(path: PathBuf, text: Option<&str>) -> Self {
        let aside = path.with_file_name(format!("{}.test-aside", path.file_name().unwrap().to_string_lossy()));
        fs::rename(&path, &aside).unwrap();
        if let Some(text) = text {
            write(&path, text, 0o600);
        }
        Self(path, aside)
    }
}

impl Drop for Instead {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        fs::rename(&self.1, &self.0).unwrap();
    }
}

/// A certificate that ended in 2001, and its key.
fn expired() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A broken state: its name, the check whose business it is, and how it comes about. What `make` returns undoes it when
/// dropped.
type State = (&'static str, &'static str, fn(&Site) -> Box<dyn std::any::Any>);

/// An undo that is a function.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn drop_in(site: &Site, text: &str) -> Box<dyn std::any::Any> {
    let path = site.root.join("etc/systemd/system/samovar.service.d/site.conf");
    write(&path, &format!("[Service]\n{text}\n"), 0o644);
    Box::new(Undo(move || fs::remove_file(&path).unwrap()))
}

/// The doctor is shown another configuration than the daemon was started with.
fn configured(site: &Site, toml: &str) -> Box<dyn std::any::Any> {
    let text = fs::read_to_string(site.config()).unwrap();
    Box::new(Instead::of(site.config(), Some(&format!("{text}{toml}"))))
}

fn mode(path: PathBuf, bits: u32) -> Box<dyn std::any::Any> {
    let before = path.metadata().unwrap().permissions().mode();
    chmod(&path, bits);
    Box::new(Undo(move || chmod(&path, before)))
}

/// States of a ledger whose daemon runs.
const RUNNING: &[State] = &[
    ("a key that everybody may read", "rights", |s| mode(s.file("tls/ca.key"), 0o644)),
    ("a token that the group may read", "rights", |s| mode(s.file("admin.token"), 0o640)),
    ("a data directory that everybody may enter", "rights", |s| mode(s.daemon.data().to_owned(), 0o755)),
    ("a configuration that everybody may write", "rights", |s| mode(s.config(), 0o666)),
    ("a drop-in without the watchdog", "unit", |s| drop_in(s, "WatchdogSec=0")),
    ("a drop-in with few descriptors", "unit", |s| drop_in(s, "LimitNOFILE=1024")),
    ("a drop-in that lets root run it", "unit", |s| drop_in(s, "User=root")),
    ("a drop-in with little memory", "memory", |s| drop_in(s, "MemoryMax=32M")),
    ("a unit that is not enabled", "reboot", |s| {
        let link = s.enabled();
        fs::remove_file(&link).unwrap();
        Box::new(Undo(move || symlink("/usr/lib/systemd/system/samovar.service", &link).unwrap()))
    }),
    ("a volatile journal by its directory", "journal", |s| {
        let (kept, volatile) = (s.root.join("var/log/journal"), s.root.join("run/log/journal"));
        fs::create_dir_all(&volatile).unwrap();
        fs::remove_dir(&kept).unwrap();
        Box::new(Undo(move || {
            fs::create_dir(&kept).unwrap();
            fs::remove_dir(&volatile).unwrap();
        }))
    }),
    ("a volatile journal by its configuration", "journal", |s| {
        let path = s.root.join("etc/systemd/journald.conf.d/small.conf");
        write(&path, "[Journal]\nStorage=volatile\n", 0o644);
        Box::new(Undo(move || fs::remove_file(&path).unwrap()))
    }),
    ("an unknown key in the configuration", "configuration", |s| configured(s, "\n[store]\nreserv = \"1MiB\"\n")),
    ("a mistake in the configuration, before a reboot", "reboot", |s| configured(s, "\n[store]\nqueue = 0\n")),
    ("a reserve that waits for a restart", "in-force", |s| configured(s, "\n[store]\nreserve = \"129MiB\"\n")),
    ("less room than the reserve", "disk", |s| configured(s, "\n[store]\nreserve = \"900000GiB\"\n")),
    ("an address that is not in the certificate", "names", |s| {
        let text = fs::read_to_string(s.config()).unwrap().replace("127.0.0.1", "127.0.0.2");
        Box::new(Instead::of(s.config(), Some(&text)))
    }),
    ("a port at which nobody answers", "port", |s| {
        let text = fs::read_to_string(s.config()).unwrap().replace("127.0.0.1", "127.0.0.2");
        Box::new(Instead::of(s.config(), Some(&text)))
    }),
    ("an expired certificate", "certificate", |s| Box::new(Instead::of(s.file("tls/node.pem"), Some(&expired().0)))),
    ("an expired CA", "authority", |s| Box::new(Instead::of(s.file("ca.pem"), Some(&expired().0)))),
    ("no CA", "authority", |s| Box::new(Instead::of(s.file("ca.pem"), None))),
    ("a key of another certificate", "tls-key", |s| Box::new(Instead::of(s.file("tls/node.key"), Some(&expired().1)))),
    ("fewer descriptors than connections", "connections", |s| {
        let id = s.daemon.id().unwrap().to_string();
        run("prlimit", &["--pid", &id, "--nofile=600:"]);
        Box::new(Undo(move || run("prlimit", &["--pid", &id, "--nofile=4096:"])))
    }),
    ("a daemon that hangs", "daemon", |s| {
        let id = s.daemon.id().unwrap().to_string();
        run("kill", &["-STOP", &id]);
        Box::new(Undo(move || run("kill", &["-CONT", &id])))
    }),
];

/// States of a ledger whose daemon does not run.
const STOPPED: &[State] = &[
    ("a daemon that does not run", "daemon", |_| Box::new(())),
    ("a lock that another process holds", "lock", |s| {
        let file = fs::File::open(s.file("samovar.lock")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        Box::new(file)
    }),
    ("a port that another process has", "port", |s| {
        Box::new(TcpListener::bind(("127.0.0.1", s.daemon.port())).unwrap())
    }),
    ("a promise that is gone", "directory", |s| Box::new(Instead::of(s.file("promise"), None))),
    ("a promise that is gone, before a reboot", "reboot", |s| Box::new(Instead::of(s.file("promise"), None))),
    ("an init that did not finish", "directory", |s| {
        let path = s.file("init.partial");
        fs::create_dir(&path).unwrap();
        Box::new(Undo(move || fs::remove_dir(&path).unwrap()))
    }),
];

/// Makes each state, looks, undoes it; returns what went wrong and how many states there were. None of the checks may say no
/// before; that every state was undone shows at the end.
fn walk(site: &Site, states: &[State]) -> (Vec<String>, usize) {
    let wanted = std::env::var("SAMOVAR_STATE").ok();
    let chosen: Vec<&State> = states.iter().filter(|s| wanted.as_ref().is_none_or(|w| w == s.0)).collect();
    let before = site.doctor();
    let mut wrong = Vec::new();
    for (name, check, make) in &chosen {
        if before.answer(check) == "no" && *name != "a daemon that does not run" {
            wrong.push(format!("{name}: `{check}` said no before: {:#}", before.whole));
        }
        let made = make(site);
        let said = site.doctor();
        drop(made);
        if (said.answer(check), said.code) != ("no", 1) {
            wrong.push(format!(
                "{name}: expected `{check}` to say no and exit code 1, got {} and {}: {:#}\nonly this one: SAMOVAR_STATE='{name}'",
                said.answer(check),
                said.code,
                said.whole
            ));
        }
    }
    (wrong, chosen.len())
}

fn silent(site: &Site, when: &str) {
    let said = site.doctor();
    assert_eq!(said.faults(), Vec::<&str>::new(), "{when}: a healthy ledger has no fault: {:#}", said.whole);
    assert_eq!((said.code, said.answer(ONE_NODE)), (0, "no"), "{when}: {:#}", said.whole);
    for check in
        ["daemon", "lock", "port", "rights", "certificate", "names", "tls-key", "unit", "reboot", "ledger", "in-force"]
    {
        assert_eq!(said.answer(check), "yes", "{when}: {check}: {:#}", said.whole);
    }
}

/// What can be wrong with a ledger whose private keys are sealed under `kek` beside its data directory.
const SEALED: &[State] = &[
    ("a private key in the clear", "sealed", |s| Box::new(Instead::of(s.file("tls/node.key"), Some(&expired().1)))),
    ("a configuration without the key-encryption key", "sealed", |s| {
        let path = s.daemon.data().with_file_name("kek");
        Box::new(Instead::of(path, None))
    }),
    ("another key-encryption key", "sealed", |s| {
        let path = s.daemon.data().with_file_name("kek");
        Box::new(Instead::of(path, Some(&"07".repeat(32))))
    }),
    ("a key-encryption key that everybody may read", "sealed", |s| mode(s.daemon.data().with_file_name("kek"), 0o644)),
    ("a file under another key-encryption key", "sealed", |s| {
        let text = format!("samovar sealed 1 {}\n", "07".repeat(8));
        Box::new(Instead::of(s.file("tls/ca.key"), Some(&text)))
    }),
];

#[tokio::test]
async fn doctor_knows_whether_private_keys_are_sealed() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let kek = directory.path().join("kek");
    write(&kek, &"5a".repeat(32), 0o600);
    let toml = format!("[node]\nkek = \"{}\"\n", kek.display());
    let site = Site::new(directory.path(), Settings { toml, ..Settings::default() }).await;
    silent(&site, "sealed");
    assert_eq!(site.doctor().answer("sealed"), "yes");
    let (wrong, states) = walk(&site, SEALED);
    silent(&site, "after every state was undone");
    assert!(wrong.is_empty(), "{} of {states} states:\n{}", wrong.len(), wrong.join("\n\n"));
    println!("RESULT doctor: {states} states of sealed private keys are named");
}

#[tokio::test]
async fn doctor_is_silent_on_a_healthy_ledger_and_right_on_broken_ones() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut site = Site::new(directory.path(), Settings::default()).await;
    silent(&site, "at first");
    let (mut wrong, running) = walk(&site, RUNNING);
    silent(&site, "after every state was undone");
    site.daemon.stop().unwrap();
    let (more, stopped) = walk(&site, STOPPED);
    wrong.extend(more);
    assert!(wrong.is_empty(), "{} of {} states:\n{}", wrong.len(), running + stopped, wrong.join("\n\n"));
    println!("RESULT doctor: {running} states of a running ledger and {stopped} of a stopped one are named");
}

/// A store that the daemon itself found damaged and set aside.
#[tokio::test]
async fn doctor_names_a_store_that_was_set_aside() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut site = Site::new(directory.path(), Settings::default()).await;
    site.daemon.client().await.unwrap().put("/v1/keys/a", "value").await.unwrap();
    site.daemon.stop().unwrap();
    let db = site.file("store/db");
    let length = db.metadata().unwrap().len();
    let nothing = vec![0; usize::try_from(length).unwrap()];
    fs::OpenOptions::new().write(true).open(&db).unwrap().write_all(&nothing).unwrap();
    site.daemon.start().await.unwrap();
    assert!(site.file("store.damaged-1").exists(), "the daemon sets it aside: {}", site.daemon.log());
    let said = site.doctor();
    for check in ["copies", "ledger"] {
        assert_eq!(said.answer(check), "no", "{check}: {:#}", said.whole);
    }
    fs::remove_dir_all(site.file("store.damaged-1")).unwrap();
    assert_eq!(site.doctor().answer("copies"), "yes", "once it is removed");
}

/// An upgrade that put another file in the binary's place, and no restart since.
#[tokio::test]
async fn doctor_names_a_binary_that_was_replaced() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let copy = directory.path().join("samovar");
    fs::copy(binary().unwrap(), &copy).unwrap();
    // The word after it is the binary under test.
    let script = format!("shift; exec {} \"$@\"", copy.display());
    let settings = Settings { wrapper: ["sh", "-c", &script, "sh"].map(str::to_owned).into(), ..Settings::default() };
    let site = Site::new(directory.path(), settings).await;
    assert_eq!(site.doctor().answer("version"), "yes", "before");
    fs::remove_file(&copy).unwrap();
    let said = site.doctor();
    assert_eq!((said.answer("version"), said.faults()), ("no", vec!["version"]), "{:#}", said.whole);
}

/// What needs root: file systems of all kinds, files of others, a machine without a time source, a user without rights.
#[tokio::test]
#[ignore = "needs root, loop devices and mounts; tests/run runs it where they are"]
async fn doctor_as_root_names_what_needs_mounts_and_users() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = Image::create(directory.path(), "disk", 512 << 20).unwrap();
    // A machine where systemd runs and nothing synchronises the clock: the daemon's own question finds nobody.
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec \"$@\"";
    let alone = ["unshare", "--mount", "sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    let mut site = Site::new(image.path(), Settings { wrapper: alone, ..Settings::default() }).await;
    let expect = |check: &str, answer: &str, what: &str, said: &Said| {
        assert_eq!(said.answer(check), answer, "{what}: {:#}", said.whole);
    };
    expect("clock", "no", "nothing synchronises the clock", &site.doctor());
    let mount = image.path().to_string_lossy().into_owned();
    expect("file-system", "yes", "ext4", &site.doctor());
    run("mount", &["-o", "remount,barrier=0", &mount]);
    expect("file-system", "no", "ext4 without barriers", &site.doctor());
    run("mount", &["-o", "remount,barrier=1", &mount]);

    let stray = site.file("archive/stray");
    write(&stray, "", 0o600);
    std::os::unix::fs::chown(&stray, Some(NOBODY), None).unwrap();
    expect("owner", "no", "a file of another user", &site.doctor());
    fs::remove_file(&stray).unwrap();

    // By nobody: the directory is closed, so nothing of it is known, and nothing of it may be yes.
    chmod(directory.path(), 0o755);
    let said = Said::of(site.command().uid(NOBODY).gid(NOBODY));
    for check in [
        "daemon",
        "lock",
        "rights",
        "owner",
        "directory",
        "certificate",
        "names",
        "tls-key",
        "reboot",
        "ledger",
        "clock",
    ] {
        expect(check, "unknown", "a user without rights", &said);
    }

    let ballast = image.path().join("ballast");
    let file = fs::File::create(&ballast).unwrap();
    let room = rustix::fs::statvfs(image.path()).unwrap();
    let bytes = (room.f_bavail * room.f_frsize).saturating_sub(1 << 20);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    expect("disk", "no", "a full disk", &site.doctor());
    drop(file);
    fs::remove_file(&ballast).unwrap();

    site.daemon.stop().unwrap();
    run("mount", &["-o", "remount,ro", &mount]);
    expect("file-system", "no", "a read-only disk", &site.doctor());
    run("mount", &["-o", "remount,rw", &mount]);

    let memory = directory.path().join("memory");
    fs::create_dir(&memory).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=256m", "none", &memory.to_string_lossy()]);
    let unmount = Undo(|| run("umount", &[&memory.to_string_lossy()]));
    let said = {
        let site = Site::new(&memory, Settings::default()).await;
        site.doctor()
    };
    drop(unmount);
    expect("file-system", "no", "a tmpfs", &said);
    println!("RESULT doctor as root: 6 states, and a user without rights");
}
