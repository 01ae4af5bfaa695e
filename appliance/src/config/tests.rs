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
        ("[node\n", "f.toml:1:"),
        ("[node]\ndata = \"a\"\ndata = \"b\"\n", "f.toml:3:1:"),
    ];
    for (text, want) in table {
        let got = error(text);
        assert!(got.contains(want), "{text:?}: expected {want:?} in {got:?}");
    }
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
