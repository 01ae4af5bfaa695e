//! Query parameters, strictly: unknown, repeated or malformed ones are refused by name.

use super::problem::Problem;
use super::{Parameter, Takes, decode};

/// Rows of a page when no limit is given.
pub(crate) const ROWS_DEFAULT: usize = 100;
/// The parameters of one request, checked against what the route takes.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<(&'static str, String)>);

impl Values {
    /// Parses the query of a request target.
    pub(crate) fn parse(query: Option<&str>, takes: &'static [Parameter]) -> Result<Self, Problem> {
        let mut values = Vec::new();
        for pair in query.into_iter().flat_map(|q| q.split('&')).filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            let Some(parameter) = takes.iter().find(|p| p.name == name) else {
                return Err(unknown(&name, takes));
            };
            if values.iter().any(|(n, _)| *n == parameter.name) {
                return Err(Problem::parameter(parameter.name, "given more than once"));
            }
            let value = decode(value)?.into_owned();
            parameter.takes.check(parameter.name, &value)?;
            values.push((parameter.name, value));
        }
        Ok(Self(values))
    }

    /// A parameter as text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// A parameter that takes a [`Takes::Number`].
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(whole_number)
    }

    /// `limit`, or what it is when not given.
    pub(crate) fn limit(&self) -> usize {
        self.number("limit").and_then(|limit| usize::try_from(limit).ok()).unwrap_or(ROWS_DEFAULT)
    }
}

fn unknown(name: &str, takes: &[Parameter]) -> Problem {
    let known: Vec<_> = takes.iter().map(|p| p.name).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let shown: String = name.chars().take(64).collect();
    Problem::parameter(&shown, format!("unknown; this route takes: {known}"))
}

impl Takes {
    fn check(self, name: &str, value: &str) -> Result<(), Problem> {
        match self {
            Self::Text if value.chars().any(char::is_control) => {
                Err(Problem::parameter(name, "holds a control character"))
            }
            Self::Number(least, most) => match whole_number(value) {
                Some(number) if (least..=most).contains(&number) => Ok(()),
                _ => Err(Problem::parameter(name, format!("must be a whole number between {least} and {most}"))),
            },
            Self::OneOf(choices) if !choices.contains(&value) => {
                Err(Problem::parameter(name, format!("must be one of: {}", choices.join(", "))))
            }
            _ => Ok(()),
        }
    }
}

/// Digits only, no sign, no leading zero: one spelling per number.
pub(crate) fn whole_number(text: &str) -> Option<u64> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TAKES: &[Parameter] = &[
        Parameter { name: "n", takes: Takes::Number(0, u64::MAX), doc: "" },
        Parameter { name: "t", takes: Takes::Text, doc: "" },
        Parameter { name: "o", takes: Takes::OneOf(&["a", "b"]), doc: "" },
        Parameter { name: "some", takes: Takes::Number(1, 9), doc: "" },
    ];

    #[test]
    fn well_formed_queries_are_taken() {
        let values = Values::parse(Some("n=18446744073709551615&t=a%2Fb+c&o=b&some=9"), TAKES).expect("well-formed");
        assert_eq!(values.number("some"), Some(9));
        assert_eq!(values.number("n"), Some(u64::MAX));
        assert_eq!(values.text("t"), Some("a/b+c"), "a plus is a plus");
        assert_eq!(values.text("o"), Some("b"));
        assert!(Values::parse(None, TAKES).expect("none").text("n").is_none());
    }

    #[test]
    fn others_are_refused_by_name() {
        for bad in [
            "x=1",
            "n=1&n=1",
            "n=1&%6e=1",
            "n=",
            "n",
            "n=-1",
            "n=+1",
            "n=01",
            "n=1.0",
            "n=1e3",
            "n=18446744073709551616",
            "n=%31%",
            "t=%ff",
            "t=%0a",
            "t=%zz",
            "o=c",
            "o=A",
            "=1",
            "N=1",
            "some=0",
            "some=10",
        ] {
            let problem = Values::parse(Some(bad), TAKES).expect_err(bad);
            assert_eq!(problem.status().as_u16(), 400, "{bad:?}");
        }
    }
}
