use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{Client, Ends};

/// How long a daemon may take to get ready before a test gives up on it.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take to end when it is told to.
const STOP_DEADLINE: Duration = Duration::from_secs(90);

/// The binary under test: `SAMOVAR_BIN`, or the newest one that cargo built.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SAMOVAR_BIN") {
        return Ok(path.into());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/x86_64-unknown-linux-gnu");
    let built = ["release", "debug"].map(|profile| target.join(profile).join("samovar"));
    let newest = built.into_iter().filter_map(|p| Some((fs::metadata(&p).ok()?.modified().ok()?, p))).max();
    newest.map(|(_, path)| path).context("no samovar binary: run `cargo build --release` first, or set SAMOVAR_BIN")
}

/// What differs from the defaults.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Lines added to the configuration file.
    pub toml: String,
    /// Words before the command, as in `["taskset", "1"]`.
    pub wrapper: Vec<String>,
    /// Where it listens, for clients and peers; by default on loopback.
    pub host: Option<Ipv4Addr>,
}

impl Settings {
    fn host(&self) -> Ipv4Addr {
        self.host.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    /// With quotas that no test reaches: one client asks as often as it can, which is not what they are for. They are
    /// counted all the same.
    #[must_use]
    pub fn unbounded() -> Self {
        let keys = ["api", "api_per_address", "upload", "upload_per_address"];
        let lines: String = keys.iter().map(|key| format!("{key} = \"1000000/1s\"\n")).collect();
        Self { toml: format!("[limits]\n{lines}"), ..Self::default() }
    }

    /// The same with a port for peers.
    #[must_use]
    pub fn with_peers(mut self, port: u16) -> Self {
        self.toml = format!("[peers]\nlisten = \"{}:{port}\"\n{}", self.host(), self.toml);
        self
    }
}

/// A running daemon with its data directory. Killed when dropped.
pub struct Daemon {
    data: PathBuf,
    port: u16,
    settings: Settings,
    /// Where the admin's token lies: that of the node which began the cluster.
    token: PathBuf,
    child: Option<Child>,
}

/// A free port of this machine.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Daemon {
    /// Makes a ledger in `data`, which must not exist, and starts it on a free port.
    ///
    /// # Errors
    /// With what the binary said.
    pub async fn create(data: &Path, settings: Settings) -> Result<Self> {
        let port = free_port()?;
        let init = Command::new(binary()?)
            .args(["init", "--name", "box-01", "--listen", &format!("{}:{port}", settings.host()), "--data"])
            .arg(data)
            .output()?;
        if !init.status.success() {
            bail!("samovar init: {}", String::from_utf8_lossy(&init.stderr));
        }
        let mut daemon = Self::existing(data, port, settings);
        daemon.start().await?;
        Ok(daemon)
    }

    /// Makes the data directory of a node that joins the cluster of this one, with a token in a file; it is not started.
    ///
    /// # Errors
    /// With what the binary said.
    pub fn join(&self, data: &Path, name: &str, token: &Path) -> Result<Self> {
        self.join_with(data, name, token, Settings::default())
    }

    /// The same with settings; the section `[peers]` is added.
    ///
    /// # Errors
    /// As [`Daemon::join`].
    pub fn join_with(&self, data: &Path, name: &str, token: &Path, settings: Settings) -> Result<Self> {
        let (port, peers) = (free_port()?, free_port()?);
        let mut command = Command::new(binary()?);
        command.args(["join", &format!("https://{}", self.address()), "--name", name]);
        command.args(["--peers", &format!("{}:{peers}", settings.host())]);
        let joined = command.arg("--token-file").arg(token).arg("--data").arg(data).output()?;
        if !joined.status.success() {
            bail!("{}", String::from_utf8_lossy(&joined.stderr));
        }
        let mut daemon = Self::existing(data, port, settings.with_peers(peers));
        daemon.token.clone_from(&self.token);
        Ok(daemon)
    }

    /// A ledger that exists already, not started.
    #[must_use]
    pub fn existing(data: &Path, port: u16, settings: Settings) -> Self {
        Self { data: data.to_owned(), port, settings, token: data.join("admin.token"), child: None }
    }

    /// The same, asked with the admin's token in this file.
    #[must_use]
    pub fn with_token(mut self, token: &Path) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// Other lines in the configuration file, from the next start on.
    pub fn configure(&mut self, toml: &str) {
        toml.clone_into(&mut self.settings.toml);
    }

    /// More lines in the configuration file, from the next start on.
    pub fn append(&mut self, toml: &str) {
        self.settings.toml.push_str(toml);
    }

    /// Other words before the command, from the next start on.
    pub fn wrap(&mut self, wrapper: Vec<String>) {
        self.settings.wrapper = wrapper;
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with what it said.
    pub async fn start(&mut self) -> Result<Duration> {
        self.start_until("/ready").await
    }

    /// Starts the daemon and waits until it answers, ready or not.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_unready(&mut self) -> Result<Duration> {
        self.start_until("/health").await
    }

    /// Starts the daemon and does not wait for it. What it writes is added to what it wrote.
    ///
    /// # Errors
    /// When there is no binary, or it cannot be run.
    pub fn spawn(&mut self) -> Result<()> {
        let config = self.data.with_extension("toml");
        let listen = format!("[listen]\napi = \"{}\"\n{}", self.address(), self.settings.toml);
        fs::File::create(&config).and_then(|mut f| std::io::Write::write_all(&mut f, listen.as_bytes()))?;
        let log = fs::File::options().create(true).append(true).open(self.data.with_extension("log"))?;
        let mut words = self.settings.wrapper.clone();
        words.push(binary()?.to_string_lossy().into_owned());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--config"])
            .arg(&config)
            .arg("--data")
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the daemon")?;
        self.child = Some(child);
        Ok(())
    }

    async fn start_until(&mut self, path: &str) -> Result<Duration> {
        let started = Instant::now();
        // What [`Daemon::log`] gives is of this start.
        fs::File::create(self.data.with_extension("log"))?;
        self.spawn()?;
        while started.elapsed() < READY_DEADLINE {
            if let Some(status) = self.ended()? {
                bail!("the daemon ended ({status}): {}", self.log());
            }
            if let Ok(mut client) = self.client().await
                && client.get(path).await.is_ok_and(|a| a.status == 200)
            {
                return Ok(started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the daemon was not ready in {READY_DEADLINE:?}: {}", self.log())
    }

    /// How it ended, if it did so by itself since it was started or this was asked last.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.child.as_mut().map_or(Ok(None), Child::try_wait)?;
        if ended.is_some() {
            self.child = None;
        }
        Ok(ended)
    }

    /// Sends a signal to the process, if it runs.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let Some(id) = self.id() else { return Ok(()) };
        let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw).context("the daemon has no id")?;
        Ok(rustix::process::kill_process(id, signal)?)
    }

    /// SIGKILL, as a crash of the process.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When the daemon does not end well.
    pub fn stop(&mut self) -> Result<()> {
        match self.terminate()? {
            Some(status) if !status.success() => bail!("the daemon ended with {status}: {}", self.log()),
            _ => Ok(()),
        }
    }

    /// SIGTERM, and waits for the end, however it comes; `None` if the daemon did not run. One that is told so before it
    /// has begun to listen for signals dies of this one.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(&mut self) -> Result<Option<ExitStatus>> {
        self.signal(rustix::process::Signal::TERM)?;
        let begun = Instant::now();
        while self.id().is_some() {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if begun.elapsed() > STOP_DEADLINE {
                bail!("the daemon was told to stop and still runs after {STOP_DEADLINE:?}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// A new connection with the admin's token.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn client(&self) -> Result<Client> {
        let token = fs::read_to_string(&self.token)?;
        Client::connect_to(self.address(), &self.data.join("ca.pem"), Some(token.trim()), Ends::default()).await
    }

    /// A command of the binary against this daemon.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(words).env("SAMOVAR_DATA", &self.data);
        Ok(command)
    }

    /// Process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it answers clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (self.settings.host(), self.port).into()
    }

    /// How it ended, if it ended by itself.
    ///
    /// # Errors
    /// When that cannot be asked.
    pub fn has_ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        if ended.is_some() {
            self.child = None;
        }
        Ok(ended)
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The file with the admin's token.
    #[must_use]
    pub fn token(&self) -> &Path {
        &self.token
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What it wrote since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is left to do about a process that cannot be killed.
        let _ = self.kill();
    }
}
