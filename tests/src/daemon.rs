use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::Client;

/// How long a daemon may take to get ready before a test gives up on it.
const READY_DEADLINE: Duration = Duration::from_secs(60);

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
            .args(["init", "--name", "box-01", "--listen", &format!("127.0.0.1:{port}"), "--data"])
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
        let (port, peers) = (free_port()?, format!("127.0.0.1:{}", free_port()?));
        let mut command = Command::new(binary()?);
        command.args(["join", &format!("https://127.0.0.1:{}", self.port), "--name", name, "--peers", &peers]);
        let joined = command.arg("--token-file").arg(token).arg("--data").arg(data).output()?;
        if !joined.status.success() {
            bail!("{}", String::from_utf8_lossy(&joined.stderr));
        }
        let settings = Settings { toml: format!("[peers]\nlisten = \"{peers}\"\n"), ..Settings::default() };
        let mut daemon = Self::existing(data, port, settings);
        daemon.token.clone_from(&self.token);
        Ok(daemon)
    }

    /// A ledger that exists already, not started.
    #[must_use]
    pub fn existing(data: &Path, port: u16, settings: Settings) -> Self {
        Self { data: data.to_owned(), port, settings, token: data.join("admin.token"), child: None }
    }

    /// Other lines in the configuration file, from the next start on.
    pub fn configure(&mut self, toml: &str) {
        toml.clone_into(&mut self.settings.toml);
    }

    /// More lines in the configuration file, from the next start on.
    pub fn append(&mut self, toml: &str) {
        self.settings.toml.push_str(toml);
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

    async fn start_until(&mut self, path: &str) -> Result<Duration> {
        let config = self.data.with_extension("toml");
        let listen = format!("[listen]\napi = \"127.0.0.1:{}\"\n{}", self.port, self.settings.toml);
        fs::File::create(&config).and_then(|mut f| std::io::Write::write_all(&mut f, listen.as_bytes()))?;
        let log = fs::File::create(self.data.with_extension("log"))?;
        let mut words = self.settings.wrapper.clone();
        words.push(binary()?.to_string_lossy().into_owned());
        let started = Instant::now();
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
        while started.elapsed() < READY_DEADLINE {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().transpose()).transpose()? {
                self.child = None;
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
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.context("the daemon has no id")?, rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("the daemon ended with {status}: {}", self.log());
        }
        Ok(())
    }

    /// A new connection with the admin's token.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn client(&self) -> Result<Client> {
        let token = fs::read_to_string(&self.token)?;
        Client::connect(self.port, &self.data.join("ca.pem"), Some(token.trim())).await
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
