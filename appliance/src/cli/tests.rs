use clap::{CommandFactory, FromArgMatches};

use super::*;
use crate::client::fake::{Fake, Reply, start};

mod documents;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let matches =
        elsewhere(Cli::command()).try_get_matches_from(std::iter::once("samovar").chain(line.split_whitespace()))?;
    Cli::from_arg_matches(&matches)
}

/// The command where nothing is set in the environment: whoever follows the README has exported `SAMOVAR_DATA`.
fn elsewhere(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| if arg.get_env().is_some() { arg.env("SAMOVAR_SET_NOWHERE") } else { arg });
    command.mut_subcommands(elsewhere)
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn command_lines_of_the_interface_parse() {
    for line in [
        "init --data d",
        "init --data d --name box-01 --listen 127.0.0.1:8443",
        "serve",
        "serve --config f --data d",
        "dev",
        "dev --nodes 3 --data d",
        "config check f",
        "status --data d",
        "doctor",
        "doctor --data d --config f --root r --output json",
        "support-bundle",
        "support-bundle f --data d",
        "status --url https://h --ca c --token-file t --output json",
        "put k",
        "put k - --type text/plain --if-match 3",
        "put k f --if-absent --idempotency-key x",
        "get k --at 3",
        "get k --stale --force",
        "delete k --if-match 3",
        "history k",
        "keys",
        "keys a/b --limit 10",
        "erase k --revision 3 --yes",
        "watch",
        "watch p --after 0",
        "receipt 3 --wait",
        "prove k",
        "verify f --key k --policy p --expect-key k --chain d",
        "import f.csv --prefix p/ --key a --key b --skip-bad --typed",
        "import - --format csv --key a --skip-bad --rejected r",
        "export --tiles d",
        "api-key create --name n --role writer --prefix a --prefix b --days 3 --save f",
        "api-key list",
        "api-key create --name n --role writer --erase --save f",
        "api-key create --name n --user bot --save f",
        "api-key disable id",
        "api-key enable id",
        "api-key revoke id",
        "user create alice --role writer --prefix a/ --erase",
        "user create bot --role reader --service",
        "user create alice --role admin --password-file f",
        "user list",
        "user change alice --role reader",
        "user disable alice",
        "user enable alice",
        "user delete alice",
        "user set-password alice --password-file f",
        "user end-sessions alice",
        "user login alice --save f",
        "user logout --token-file f",
        "user password --old-password-file f --new-password-file g",
        "user whoami",
        "user add-certificate alice c.pem --label laptop --days 90",
        "user list-certificates",
        "user remove-certificate ab",
        "rotate sessions",
        "rotate sessions --end-all",
        "clock accept",
        "log-level",
        "log-level debug --for 90s",
        "log-level info,samovar_node::raft=trace",
        "log-level --reset",
        "update install b.raucb",
        "update install https://h/b.raucb --restart",
        "update status",
        "update rollback --restart",
        "update restart",
        "console /dev/tty1 /dev/ttyS0",
        "confirm --json",
        "confirm --expect f",
        "confirm --record f",
        "completions bash",
        "man d",
        "--output json keys",
    ] {
        parse(line).unwrap_or_else(|e| panic!("samovar {line}: {e}"));
    }
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    let long = format!("get {}", "k".repeat(513));
    for (line, said) in [
        ("", "Usage"),
        ("bogus", "bogus"),
        ("put", "<KEY>"),
        ("put ~k", "system state"),
        (long.as_str(), "at most 512 bytes"),
        ("put k f --if-match 3 --if-absent", "cannot be used with"),
        ("put k --if-match x", "invalid"),
        ("erase k", "--revision"),
        ("receipt x", "invalid"),
        ("verify f", "--key"),
        ("import f.csv", "--key"),
        ("import f.csv --key a --rejected r", "--skip-bad"),
        ("import f.csv --key a --parallel 33", "33"),
        ("dev --nodes 0", "0"),
        ("history k --limit 0", "0"),
        ("init", "--data"),
        ("init --data d --listen localhost", "localhost"),
        ("api-key create --name n --role king --save f", "king"),
        ("api-key create --name n --save f", "--role"),
        ("api-key create --name n --user u --role admin --save f", "cannot be used with"),
        ("user create alice --role writer --password secret", "--password"),
        ("user create alice --role writer --service --password-file f", "cannot be used with"),
        ("user password --old-password-file f", "--new-password-file"),
        ("keys --output yaml", "yaml"),
        ("export", "--tiles"),
        ("config", "Usage"),
        ("log-level degub", "no level"),
        ("log-level debug --for soon", "duration"),
        ("log-level --reset debug", "cannot be used with"),
        ("update install", "<BUNDLE>"),
        ("confirm --record f --expect g", "cannot be used with"),
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("samovar {line} should be refused"));
        assert_eq!(error.exit_code(), 2, "samovar {line}");
        assert!(error.to_string().contains(said), "samovar {line}: expected {said:?}, said {error}");
    }
}

#[test]
fn exit_codes() {
    let url = || "https://h:1".to_owned();
    let unreachable = || client::Error::Unreachable { url: url(), reason: "refused".into() };
    let codes: [(anyhow::Error, u8); 7] = [
        (anyhow::anyhow!("any"), 1),
        (Usage("u".into()).into(), 2),
        (client::Error::Usage("u".into()).into(), 2),
        (client::Error::Setup("s".into()).into(), 1),
        (anyhow::Error::new(unreachable()).context("told in context"), 3),
        (client::Error::Unknown { url: url(), reason: "lost".into() }.into(), 3),
        (anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing"), 0),
    ];
    for (error, code) in codes {
        assert_eq!(exit_code(&error), code, "{error:#}");
    }
}

async fn node() -> Fake {
    start(|request| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let has = |name: &str| request.headers().contains_key(name);
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/v1/keys") if query.contains("after=b") => {
                Reply::new(200, r#"{"keys":[{"key":"c","revision":3,"size":1,"type":"t"}],"next":null}"#)
            }
            ("GET", "/v1/keys") => Reply::new(
                200,
                r#"{"keys":[{"key":"a","revision":1,"size":1,"type":"t"},
                            {"key":"b","revision":2,"size":1,"type":"t"}],"next":"b"}"#,
            ),
            ("PUT", "/v1/keys/a") if has("idempotency-key") && has("if-none-match") => {
                Reply::new(412, r#"{"type":"urn:samovar:problem:requirement-failed","detail":"a has revision 1"}"#)
            }
            ("PUT", "/v1/keys/a/b") if has("idempotency-key") && request.body() == "value" => {
                Reply::new(201, r#"{"key":"a/b","revision":9,"transaction":9,"block":4}"#)
            }
            ("POST", "/v1/api-keys") if request.body().starts_with(b"{\"name\":\"ci\"") => {
                Reply::new(201, r#"{"id":"k1","token":"samovar_k1_secret"}"#)
            }
            _ => Reply::new(404, r#"{"detail":"no such thing"}"#),
        }
    })
    .await
}

/// Runs a command against the node as `main` would; its exit code and what it said of an error.
async fn against(fake: &Fake, line: &str) -> (u8, String) {
    let mut cli = parse(line).unwrap_or_else(|e| panic!("samovar {line}: {e}"));
    let target = match &mut cli.command {
        Command::Keys(c) => &mut c.target,
        Command::Put(c) => &mut c.target,
        Command::Get(c) => &mut c.target,
        Command::ApiKey(api_key::ApiKey::Create { target, .. }) => target,
        other => panic!("{other:?} is not used here"),
    };
    *target = fake.target.clone();
    let ended = client_command(cli.command, cli.output).await;
    ended.map_or_else(|e| (exit_code(&e), format!("{e:#}")), |()| (0, String::new()))
}

#[tokio::test]
async fn commands_go_over_the_wire() {
    let fake = node().await;
    let dir = tempfile::tempdir().expect("temporary directory");
    let value = dir.path().join("value");
    std::io::Write::write_all(&mut std::fs::File::create(&value).expect("create"), b"value").expect("write");
    let value = value.display();
    assert_eq!(against(&fake, "keys").await, (0, String::new()), "pages are followed to the end");
    assert_eq!(against(&fake, &format!("put a/b {value}")).await, (0, String::new()));
    let (code, said) = against(&fake, &format!("put a {value} --if-absent")).await;
    assert_eq!(code, 1);
    assert!(said.contains("a has revision 1") && said.contains("read the key again"), "{said}");
    let (code, said) = against(&fake, "get a").await;
    assert!(code == 1 && said.contains("no such thing"), "{said}");
    let save = dir.path().join("key");
    let line = format!("api-key create --name ci --role writer --save {}", save.display());
    assert_eq!(against(&fake, &line).await, (0, String::new()));
    assert_eq!(std::fs::read_to_string(&save).expect("key"), "samovar_k1_secret\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&save.metadata().expect("metadata").permissions());
    assert_eq!(mode & 0o777, 0o600, "the key is its owner's alone");
    let (code, said) = against(&fake, &line).await;
    assert!(code == 1 && said.contains("cannot make"), "an existing file is not overwritten: {said}");
    let refused = format!("api-key create --name other --role writer --save {}2", save.display());
    assert_eq!(against(&fake, &refused).await.0, 1);
    assert!(!dir.path().join("key2").exists(), "no empty file stays behind");
}
