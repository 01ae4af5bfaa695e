//! Values with units as the file writes them: durations (`"5s"`), sizes (`"64MiB"`), networks (`"127.0.0.0/8"`), quotas
//! (`"100/1s"`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bucket::Quota;

/// A duration: a whole number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A size in bytes: a whole number and `B`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// An IP network, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    bits: u8,
}

/// Longest window of a quota, in seconds: a day.
const QUOTA_SECONDS_MAX: u64 = 86_400;
const SPAN_UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const SIZE_UNITS: &[(&str, u64)] = &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Span {
    /// A duration of whole seconds.
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        with_unit(text, SPAN_UNITS).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(|| {
            format!("`{text}` is not a duration: write a whole number with ms, s, m, h or d, such as \"5s\"")
        })
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        with_unit(text, SIZE_UNITS).map(Self).ok_or_else(|| {
            format!("`{text}` is not a size: write a whole number with B, KiB, MiB or GiB, such as \"64MiB\"")
        })
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn write_unit(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let fits = units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    let (name, factor) = fits.or(units.last()).copied().unwrap_or(("", 1));
    write!(f, "{}{name}", value / factor)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_unit(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), SPAN_UNITS)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_unit(f, self.0, SIZE_UNITS)
    }
}

impl FromStr for Quota {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || {
            format!("`{text}` is not a quota: write REQUESTS/TIME with whole seconds, such as \"100/1s\" or \"60/1m\"")
        };
        let (requests, window) = text.split_once('/').ok_or_else(fail)?;
        let digits = requests.bytes().all(|b| b.is_ascii_digit());
        let requests = requests.parse().ok().filter(|n: &u32| digits && *n > 0).ok_or_else(fail)?;
        let window = window.parse::<Span>().map_err(|_| fail())?.0;
        let whole = window.subsec_nanos() == 0 && (1..=QUOTA_SECONDS_MAX).contains(&window.as_secs());
        if whole { Ok(Self { requests, window }) } else { Err(fail()) }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.requests, Span(self.window))
    }
}

impl Network {
    /// The loopback networks.
    pub(crate) fn loopback() -> Vec<Self> {
        vec![
            Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), bits: 8 },
            Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), bits: 128 },
        ]
    }

    /// Whether the address lies in the network.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(a)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                network.to_bits() & mask == a.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(a)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                network.to_bits() & mask == a.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is not a network: write an address or ADDRESS/BITS, such as \"10.0.0.0/8\"");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| fail())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |b| b.parse::<u8>().map_err(|_| fail()))?;
        if bits > most { Err(fail()) } else { Ok(Self { address, bits }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// A type that is written in the configuration as its text, and checked when it is read.
macro_rules! as_text {
    ($($name:ty),*) => { $(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )* };
}
pub(super) use as_text;
as_text!(Span, Size, Network, Quota);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_written_back() {
        for text in ["5s", "250ms", "2m", "1h", "3d", "0ms"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
        }
        for text in ["64MiB", "1B", "3KiB", "2GiB", "0B"] {
            assert_eq!(text.parse::<Size>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn malformed_units_are_refused() {
        for text in ["", "5", "s", "-1s", "1.5s", "5 sec", "99999999999999999999s", "18446744073709551615d", "5S"] {
            assert!(text.parse::<Span>().is_err(), "duration {text:?} should be refused");
        }
        for text in ["", "64", "64MB", "MiB", "1e3B", "99999999999999999999GiB", "18446744073709551615KiB"] {
            assert!(text.parse::<Size>().is_err(), "size {text:?} should be refused");
        }
        for text in ["", "1", "0/1s", "-1/1s", "+1/1s", "1/0s", "1/500ms", "1/2d", "4294967296/1s", "1/1s/1s"] {
            assert!(text.parse::<Quota>().is_err(), "quota {text:?} should be refused");
        }
        for text in ["1/1s", "600/1m", "4294967295/1d"] {
            assert_eq!(text.parse::<Quota>().expect(text).to_string(), text);
        }
        for text in ["", "10.0.0.0/33", "::/129", "localhost", "10.0.0.0/", "10.0.0/8"] {
            assert!(text.parse::<Network>().is_err(), "network {text:?} should be refused");
        }
    }

    #[test]
    fn networks_contain_what_they_should() {
        let table = [
            ("127.0.0.0/8", "127.9.9.9", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("::1", "::1", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
            ("::/0", "1.2.3.4", false),
        ];
        for (network, address, want) in table {
            let n: Network = network.parse().expect(network);
            assert_eq!(n.contains(address.parse().expect(address)), want, "{address} in {network}");
        }
    }
}
