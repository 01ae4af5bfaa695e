//! `samovar blob`: what it sends and fetches is what it was, also when the daemon dies in between.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Output, Stdio};

use super::*;

/// More than pipes and sockets between the two hold.
const LARGE_BYTES: usize = 48 << 20;

fn large() -> Vec<u8> {
    (0..LARGE_BYTES).map(|at| u8::try_from(at % 253).unwrap() ^ u8::try_from(at >> 18 & 0xff).unwrap()).collect()
}

fn run(daemon: &Daemon, words: &[&str], input: &[u8]) -> Output {
    let mut command = daemon.command(words).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

fn good(daemon: &Daemon, words: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run(daemon, words, input);
    assert!(output.status.success(), "samovar {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn refused(daemon: &Daemon, words: &[&str], code: i32, why: &str) {
    let output = run(daemon, words, b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "samovar {words:?}: {said}");
    assert!(said.contains(why), "samovar {words:?}: {why:?} expected in {said}");
}

fn write(path: &Path, bytes: &[u8]) {
    fs::File::create(path).and_then(|mut file| file.write_all(bytes)).unwrap();
}

#[tokio::test]
async fn a_file_goes_up_and_comes_back_by_command() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (file, back) = (at("file"), at("back"));
    write(Path::new(&file), &content(7));
    let put = ["blob", "put", &file, "--key", "scan", "--type", "application/pdf"];
    let cid = String::from_utf8(good(&daemon, &put, b"")).unwrap().trim().to_owned();
    good(&daemon, &["blob", "get", &cid, &back], b"");
    assert_eq!(fs::read(&back).unwrap(), content(7), "the file comes back");
    assert_eq!(good(&daemon, &["blob", "get", &cid], b""), content(7), "and to standard output");
    assert_eq!(good(&daemon, &["get", "scan"], b""), cid.as_bytes(), "the key names it");
    let again = good(&daemon, &["blob", "put", "--output", "json"], &content(7));
    let again: Value = serde_json::from_slice(&again).unwrap();
    assert_eq!(
        (&again["cid"], &again["size"]),
        (&json!(cid), &json!(BYTES)),
        "from standard input it is the same blob"
    );
    let empty = String::from_utf8(good(&daemon, &["blob", "put"], b"")).unwrap();
    assert_eq!(good(&daemon, &["blob", "get", empty.trim()], b""), b"", "an empty one");

    refused(&daemon, &["blob", "get", &cid, &back], 1, "exists: name another file");
    refused(&daemon, &["blob", "get", "bafk"], 2, "is not the CID of a blob");
    let other = "bafkreigpve2f6nnwqbtthsnpwohf7br7dk6qpnf6k4qy3zhasl4dbda5ei";
    let nowhere = at("nowhere");
    refused(&daemon, &["blob", "get", other, &nowhere], 1, "no-such-blob");
    assert!(!Path::new(&nowhere).exists() && !Path::new(&format!("{nowhere}.part")).exists(), "nothing is left");
    refused(&daemon, &["blob", "put", &at("missing")], 1, "opening");
}

/// A refusal in the middle of what is sent is told as one.
#[tokio::test]
async fn a_refused_upload_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { toml: "[blobs]\nsize = \"1MiB\"\n".into(), ..Settings::default() };
    let daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let file = directory.path().join("file");
    write(&file, &large());
    for (words, input) in [(vec!["blob", "put", file.to_str().unwrap()], vec![]), (vec!["blob", "put"], large())] {
        let output = run(&daemon, &words, &input);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("too-large") || said.contains("1048576"), "{words:?}: the reason expected in {said}");
    }
}

/// The daemon dies while a blob comes down, and the rest of it comes from the next one.
#[tokio::test]
async fn a_download_goes_on_where_the_daemon_died() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let cid = String::from_utf8(good(&daemon, &["blob", "put"], &large())).unwrap().trim().to_owned();
    let mut command = daemon.command(&["blob", "get", &cid]).unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut came = vec![0; 1 << 20];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut came).unwrap();
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    stdout.read_to_end(&mut came).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "samovar blob get: {}", String::from_utf8_lossy(&output.stderr));
    assert!(came == large(), "{} bytes came, {LARGE_BYTES} others were sent", came.len());
}
