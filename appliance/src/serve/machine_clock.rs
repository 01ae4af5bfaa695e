//! Whether the machine says that its clock is synchronised with a time source.
//!
//! The kernel knows it (adjtimex(2)), but our unit may not ask: `ProtectClock=` shuts that call, reading or not. So systemd
//! is asked: the file that systemd-timesyncd touches, else the property `NTPSynchronized` of systemd-timedated, which is
//! the kernel's answer and holds for chrony and ntpd too. Where systemd does not run (a container, a developer's shell)
//! nobody answers, and the clock is the host's business: it is taken as it is.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Exists when systemd is the init system (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// Touched at each synchronisation (systemd-timesyncd(8)).
const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// How long the bus may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest message that is read from the bus, in bytes; those expected have some hundred.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most messages read before the answer must have come.
const MESSAGES_MAX: usize = 16;

/// Whether there is somebody to ask.
pub(crate) fn somebody_knows() -> bool {
    Path::new(SYSTEMD).is_dir()
}

/// Asks. When systemd runs and gives no answer, the answer is no.
pub(crate) async fn is_synchronised() -> bool {
    if !somebody_knows() || Path::new(TIMESYNCD).exists() {
        return true;
    }
    match tokio::time::timeout(PATIENCE, ask(Path::new(SYSTEM_BUS))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd-timedated does not say whether the clock is synchronised");
            false
        }
        Err(_) => {
            tracing::debug!("systemd-timedated did not answer in {PATIENCE:?}");
            false
        }
    }
}

/// Reads the property over D-Bus: the authentication of a local user, Hello, one call of `Get` (D-Bus specification,
/// "Authentication Protocol" and "Message Format").
async fn ask(bus: &Path) -> io::Result<bool> {
    let mut stream = UnixStream::connect(bus).await?;
    let user: String = rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).await?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() > 512 {
            return Err(io::Error::other("the bus answers the authentication without an end"));
        }
        line.push(stream.read_u8().await?);
    }
    if !line.starts_with(b"OK ") {
        return Err(io::Error::other("the bus does not accept this user"));
    }
    let mut calls = b"BEGIN\r\n".to_vec();
    let bus_name = "org.freedesktop.DBus";
    calls.extend(call(1, bus_name, "/org/freedesktop/DBus", bus_name, "Hello", &[]));
    let (timedated, properties) = ("org.freedesktop.timedate1", "org.freedesktop.DBus.Properties");
    let arguments = [timedated, "NTPSynchronized"];
    calls.extend(call(2, timedated, "/org/freedesktop/timedate1", properties, "Get", &arguments));
    stream.write_all(&calls).await?;
    for _ in 0..MESSAGES_MAX {
        let message = Message::read(&mut stream).await?;
        match (message.kind, message.answers) {
            (2, Some(2)) => return message.boolean(),
            (3, Some(1 | 2)) => return Err(io::Error::other("systemd-timedated cannot be asked")),
            _ => {}
        }
    }
    Err(io::Error::other("the bus has much to say, but no answer"))
}

/// A method call with arguments that are strings.
fn call(serial: u32, destination: &str, path: &str, interface: &str, member: &str, arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|argument| string(&mut body, argument));
    let mut fields = Vec::new();
    for (code, kind, value) in [(1, b'o', path), (2, b's', interface), (3, b's', member), (6, b's', destination)] {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        string(&mut fields, value);
    }
    if !arguments.is_empty() {
        pad(&mut fields, 8);
        let count = u8::try_from(arguments.len()).unwrap_or(u8::MAX);
        fields.extend([8, 1, b'g', 0, count]);
        fields.extend(arguments.iter().map(|_| b's'));
        fields.push(0);
    }
    let mut message = vec![b'l', 1, 0, 1];
    message.extend(length(body.len()));
    message.extend(serial.to_le_bytes());
    message.extend(length(fields.len()));
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

fn pad(message: &mut Vec<u8>, boundary: usize) {
    message.resize(message.len().next_multiple_of(boundary), 0);
}

fn string(message: &mut Vec<u8>, text: &str) {
    pad(message, 4);
    message.extend(length(text.len()));
    message.extend(text.as_bytes());
    message.push(0);
}

/// What is needed of a message from the bus.
struct Message {
    /// 2: an answer, 3: an error, others are not for us.
    kind: u8,
    /// Serial of the call that it answers.
    answers: Option<u32>,
    body: Vec<u8>,
}

impl Message {
    async fn read(stream: &mut UnixStream) -> io::Result<Self> {
        let mut head = [0; 16];
        stream.read_exact(&mut head).await?;
        if head[0] != b'l' {
            return Err(io::Error::other("the bus writes its numbers another way round"));
        }
        let number = |at: usize| head[at..at + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
        let (body_bytes, field_bytes) = (number(4), number(12));
        if body_bytes.saturating_add(field_bytes) > MESSAGE_BYTES_MAX {
            return Err(io::Error::other("a message from the bus is too large"));
        }
        let mut fields = vec![0; field_bytes.next_multiple_of(8)];
        stream.read_exact(&mut fields).await?;
        let mut body = vec![0; body_bytes];
        stream.read_exact(&mut body).await?;
        Ok(Self { kind: head[1], answers: reply_serial(&fields), body })
    }

    /// The value of a variant that holds a boolean.
    fn boolean(&self) -> io::Result<bool> {
        match self.body[..] {
            [1, b'b', 0, _, a, b, c, d] => Ok(u32::from_le_bytes([a, b, c, d]) == 1),
            _ => Err(io::Error::other("systemd-timedated's answer is no boolean")),
        }
    }
}

/// Field 5 of a header, wherever it stands: its eight bytes begin on a boundary of eight like those of every field.
fn reply_serial(fields: &[u8]) -> Option<u32> {
    fields.chunks_exact(8).find_map(|field| match *field {
        [5, 1, b'u', 0, a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d])),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bus that lets everybody in, greets, chatters, and then answers `Get` as told.
    async fn bus(listener: tokio::net::UnixListener, kind: u8, body: &[u8]) -> Vec<u8> {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut heard = vec![0; 512];
        let n = stream.read(&mut heard).await.expect("the client authenticates");
        assert!(heard[..n].starts_with(b"\0AUTH EXTERNAL "), "got {:?}", &heard[..n]);
        stream.write_all(b"OK 1234deadbeef\r\n").await.expect("sent");
        let n = stream.read(&mut heard).await.expect("the client calls");
        let signal = message(4, None, b"");
        let hello = message(2, Some(1), b"\x05\0\0\0:1.42\0");
        let answer = message(kind, Some(2), body);
        stream.write_all(&[hello, signal, answer].concat()).await.expect("sent");
        heard.truncate(n);
        heard
    }

    fn message(kind: u8, answers: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut fields = Vec::new();
        // A destination before it, so that the serial is looked for and not taken from a fixed place.
        fields.extend([6, 1, b's', 0]);
        string(&mut fields, ":1.42");
        if let Some(serial) = answers {
            pad(&mut fields, 8);
            fields.extend([5, 1, b'u', 0]);
            fields.extend(serial.to_le_bytes());
        }
        let mut all = vec![b'l', kind, 1, 1];
        all.extend(length(body.len()));
        all.extend(9u32.to_le_bytes());
        all.extend(length(fields.len()));
        all.extend(fields);
        pad(&mut all, 8);
        all.extend(body);
        all
    }

    #[tokio::test]
    async fn timedated_is_asked_and_understood() {
        let yes: &[u8] = &[1, b'b', 0, 0, 1, 0, 0, 0];
        let no: &[u8] = &[1, b'b', 0, 0, 0, 0, 0, 0];
        for (kind, body, want) in [(2, yes, Some(true)), (2, no, Some(false)), (2, b"\x01s\0\0", None), (3, b"", None)]
        {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("bus");
            let listener = tokio::net::UnixListener::bind(&path).expect("bound");
            let (answer, heard) = tokio::join!(ask(&path), bus(listener, kind, body));
            assert_eq!(answer.ok(), want, "an answer of kind {kind} with {body:?}");
            let heard = String::from_utf8_lossy(&heard).into_owned();
            for word in ["Hello", "org.freedesktop.timedate1", "org.freedesktop.DBus.Properties", "NTPSynchronized"] {
                assert!(heard.contains(word), "{word} was expected in {heard:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_bus_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(ask(&directory.path().join("none")).await.is_err());
    }
}
