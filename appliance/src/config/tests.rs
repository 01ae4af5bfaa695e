use super::reference::{reference, sample};
use super::*;

fn error(text: &str) -> String {
    Config::parse("f.toml", text).expect_err(text).to_string()
}

#[test]
fn an_empty_file_is_the_default() {
    let config = Config::parse("f.toml", "").expect("an empty file is valid");
    assert_eq!(config.listen.port(), 8443);
    assert_eq!(config.limits.connections_max, 2048);
}

#[test]
fn the_sample_parses_with_and_without_its_comments() {
    let sample = sample();
    Config::parse("sample", &sample).expect("the sample is valid");
    let live: String = sample
        .lines()
        .map(|l| if l.starts_with("# ") && l.contains(" = ") && !l.contains(';') { &l[2..] } else { l })
        .fold(String::new(), |all, l| all + l + "\n");
    let file: ConfigFile = toml::from_str(&live).unwrap_or_else(|e| panic!("uncommented sample: {e}\n{live}"));
    assert_eq!(file, ConfigFile::default(), "the sample shows the defaults");
    for field in FIELDS {
        assert!(live.contains(&format!("\n{} = ", field.key)), "{} stands in the sample", field.key);
    }
}

#[test]
fn unknown_keys_name_place_and_nearest_key() {
    let table = [
        ("[listen]\napi = \"0.0.0.0:1\"\nprot = 1\n", "f.toml:3:1: unknown key `prot`"),
        ("[limts]\n", "f.toml:1:2: unknown key `limts`; did you mean `limits`?"),
        ("\n[limits]\n  conections = 3\n", "f.toml:3:3: unknown key `conections`; did you mean `connections`?"),
        (
            "[node]\nidle_timeout = \"5s\"\n",
            "f.toml:2:1: `idle_timeout` does not stand here; it belongs to section [limits]",
        ),
    ];
    for (text, want) in table {
        let got = error(text);
        assert!(got.starts_with(want), "{text:?}: expected {want:?}, got {got:?}");
    }
}

#[test]
fn wrong_values_say_what_is_taken() {
    let table = [
        ("[limits]\nidle_timeout = 5\n", "f.toml:2:16:"),
        ("[limits]\nidle_timeout = \"5\"\n", "is not a duration"),
        ("[store]\nreserve = \"64MB\"\n", "is not a size"),
        ("[limits]\nconnections = 0\n", "limits.connections is 0"),
        ("[limits]\nidle_timeout = \"1ms\"\n", "limits.idle_timeout is below 100ms"),
        ("[limits]\nuri_size = \"1B\"\n", "limits.uri_size is 1B, it must lie between"),
        ("[listen]\napi = \"everywhere\"\n", "f.toml:2:7:"),
        ("[metrics]\nallow = [\"loopback\"]\n", "is not a network"),
        ("[store]\nqueue = 0\n", "store.queue is 0"),
        ("[store]\ncache = \"1KiB\"\n", "store.cache is 1KiB"),
        ("[journal]\nlevel = \"loud\"\n", "f.toml:2:9:"),
        ("[tls]\nsource = \"letsencrypt\"\n", "f.toml:2:10: unknown variant `letsencrypt`, expected one of `local`"),
        ("[tls]\nsource = \"files\"\n", "tls.certificate is not set, and tls.source is \"files\""),
        ("[tls]\nsource = \"files\"\ncertificate = \"/a\"\n", "tls.key is not set"),
        ("[tls]\nkey = \"a/b.key\"\n", "tls.key: `a/b.key` is no absolute path"),
        ("[tls]\nsource = \"acme\"\n", "acme.names is not set, and tls.source is \"acme\""),
        ("[tls]\nsource = \"acme\"\n[acme]\nnames = [\"a.example\"]\n", "acme.terms_agreed is false: read the terms"),
        ("[acme]\nnames = [\n\"*.example.org\"]\n", "f.toml:2:9: `*.example.org`: neither http-01 nor tls-alpn-01"),
        ("[acme]\nnames = [\"192.0.2.1\"]\n", "f.toml:2:9: `192.0.2.1` is no host name"),
        ("[acme]\nnames = [\"localhost\"]\n", "`localhost` is no host name that an authority certifies"),
        ("[acme]\ndirectory = \"http://ca.example/\"\n", "f.toml:2:13: `http://ca.example/` is no https URL"),
        ("[acme]\ndirectory = \"https://u:p@ca.example/\"\n", "is no https URL"),
        ("[acme]\ncontacts = [\"mailto:a@b.example\", \"ops\"]\n", "`ops` is no mail address"),
        (
            "[acme]\nchallenges = [\"dns-01\"]\n",
            "f.toml:2:15: unknown variant `dns-01`, expected `http-01` or `tls-alpn-01`",
        ),
        ("[acme]\nlisten = [\"80\"]\n", "f.toml:2:1"),
        ("[acme]\nroots = \"roots.pem\"\n", "acme.roots: `roots.pem` is no absolute path"),
        ("[node\n", "f.toml:1:"),
        ("[node]\ndata = \"a\"\ndata = \"b\"\n", "f.toml:3:1:"),
    ];
    for (text, want) in table {
        let got = error(text);
        assert!(got.contains(want), "{text:?}: expected {want:?} in {got:?}");
    }
}

#[test]
fn an_acme_section_is_kept_while_another_source_is_in_use() {
    let acme = "[acme]\nnames = [\"B.example\", \"a.example\", \"b.example\"]\nterms_agreed = true\n";
    let source = |source: &str| {
        Config::parse("f.toml", &format!("[tls]\nsource = \"{source}\"\n{acme}")).map(|config| config.site)
    };
    assert_eq!(source("local").expect("valid"), SiteSource::Local);
    let Ok(SiteSource::Acme(settings)) = source("acme") else { panic!("ACME was expected") };
    assert_eq!(settings.names, ["a.example", "b.example"], "in order, in lower case, each once");
    assert_eq!(settings.challenges, [ChallengeKind::Http01]);
    assert!(settings.directory.contains("letsencrypt.org") && settings.roots.is_none(), "{settings:?}");
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/configuration.md");
    if std::env::var_os("SAMOVAR_BLESS").is_some() {
        #[allow(clippy::disallowed_methods, reason = "writes a page of the documentation, not data")]
        std::fs::write(path, reference()).expect("the page is written");
    }
    let page = std::fs::read_to_string(path).expect("docs/reference/configuration.md exists");
    assert_eq!(page, reference(), "run the tests once with SAMOVAR_BLESS=1 to write the page again");
}

/// Whatever is refused is refused with a place that stands in the file.
#[test]
fn fuzz_configuration() {
    let seeds =
        [sample(), String::new(), "[limits]\nheader_size = \"1MiB\"\n[metrics]\nallow = [\"::1/128\"]\n".into()];
    samovar_fuzz::decoder("configuration", &seeds.map(String::into_bytes), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Err(ConfigError::Syntax { line, message, .. }) = Config::parse("f", text) {
            assert!((1..=text.matches('\n').count() + 1).contains(&line), "line {line} is not in the file");
            assert!(!message.contains('\n'), "an error of more than one line: {message:?}");
        }
    });
}
