"""The site file of one box: what it is called, how it is reached, who may log in. TOML; unknown keys are refused.

Used by the box at its first boot and by `image/site` before a medium is written, so that both refuse the same files.
Run with a file it says what is wrong: python3 -IB /usr/lib/samovar/sitefile.py FILE
"""

import difflib
import ipaddress
import re
import sys
import tomllib
from dataclasses import dataclass, field

# Bytes of a site file at most.
SIZE_MAX = 65536
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SSH_KEY = re.compile(
    r"(ssh-ed25519|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com|ssh-rsa)"
    r" [A-Za-z0-9+/]{60,}={0,2}( [\x20-\x7e]*)?"
)
INTERFACE = re.compile(r"[a-zA-Z0-9*?\[\]-]{1,15}|([0-9a-f]{2}:){5}[0-9a-f]{2}")
ENCRYPTIONS = ("tpm2", "stick", "none")
# Joins a cluster: host and port of a node of it.
JOIN = re.compile(r"https://(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9.-]{1,253})(:[0-9]{1,5})?/?")
# samovar_join_ID_SECRET.PIN, as `samovar node token` makes it.
JOIN_TOKEN = re.compile(r"samovar_join_[a-zA-Z0-9]+_[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}")


class SiteError(Exception):
    """A site file that is wrong; the text names the file, the line and what to do."""


@dataclass(frozen=True)
class Site:
    """A checked site file."""

    hostname: str
    # Lines of an authorized_keys file; whoever holds one of the keys is root.
    ssh_keys: tuple[str, ...]
    # How the data partition is unlocked at boot.
    encryption: str = "tpm2"
    # Name, pattern or MAC address of the interfaces that `address` is for; empty: every wired one.
    interface: str = ""
    # Address with prefix length; empty: DHCP and router advertisements.
    address: str = ""
    gateway: str = ""
    dns: tuple[str, ...] = ()
    ntp: tuple[str, ...] = ()
    # (address or network, port) that any process of the box may connect to.
    out: tuple[tuple[str, int], ...] = field(default=())
    # Addresses or networks of the other nodes of the cluster: they may connect to the port for peers, and the daemon to them.
    peers: tuple[str, ...] = ()
    # URL of the node through which this one joins; empty: the box makes a ledger of its own.
    join: str = ""


def join_token(text: str, name: str) -> str:
    """Checks the text of a join token, without its newline."""
    token = text.strip()
    if not JOIN_TOKEN.fullmatch(token):
        raise SiteError(f"{name} holds no join token: samovar node token --save FILE makes one on a node of the cluster")
    return token


def parse(text: str, name: str) -> Site:
    """Checks the text of a site file; `name` stands in errors."""
    if len(text.encode()) > SIZE_MAX:
        raise SiteError(f"{name}: larger than {SIZE_MAX} bytes")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SiteError(f"{name}: not TOML: {error}") from error
    return _Reader(text, name).site(table)


class _Reader:
    """Takes keys out of a table; what is left over is unknown."""

    KEYS = {
        "": ("hostname", "ssh_keys", "encryption", "network", "firewall", "cluster"),
        "network": ("interface", "address", "gateway", "dns", "ntp"),
        "firewall": ("out",),
        "cluster": ("peers", "join"),
    }

    def __init__(self, text: str, name: str):
        self.lines = text.splitlines()
        self.name = name

    def site(self, table: dict) -> Site:
        self.known("", table)
        network, firewall = self.section(table, "network"), self.section(table, "firewall")
        cluster = self.section(table, "cluster")
        site = Site(
            hostname=self.one(table, "hostname", self.hostname),
            ssh_keys=self.several(table, "ssh_keys", self.ssh_key),
            encryption=self.one(table, "encryption", self.encryption, "tpm2"),
            interface=self.one(network, "interface", self.interface, ""),
            address=self.one(network, "address", self.address, ""),
            gateway=self.one(network, "gateway", self.ip, ""),
            dns=self.several(network, "dns", self.ip, ()),
            ntp=self.several(network, "ntp", self.source, ()),
            out=self.several(firewall, "out", self.target, ()),
            peers=self.several(cluster, "peers", self.net, ()),
            join=self.one(cluster, "join", self.node_url, ""),
        )
        if not site.ssh_keys:
            raise self.wrong("ssh_keys", "names no key: nobody could log in to this box")
        if site.gateway and not site.address:
            raise self.wrong("gateway", "is for an `address`; without one both come from DHCP")
        if site.address and site.gateway and self.outside(site):
            raise self.wrong("gateway", f"{site.gateway} is not in the network of {site.address}")
        if site.join and not self.among_peers(site):
            raise self.wrong("join", f"{site.join} is none of the `peers`: only those can be reached")
        return site

    def known(self, section: str, table: dict) -> None:
        for key in table:
            if key in self.KEYS[section]:
                continue
            near = difflib.get_close_matches(key, self.KEYS[section], 1, 0.5)
            hint = f"did you mean `{near[0]}`?" if near else "known are: " + ", ".join(self.KEYS[section])
            where = f" in [{section}]" if section else ""
            raise self.wrong(key, f"is no key of a site file{where}; {hint}")

    def section(self, table: dict, key: str) -> dict:
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"is a section: write [{key}]")
        self.known(key, value)
        return value

    def one(self, table: dict, key: str, check, default=None):
        if key not in table:
            if default is None:
                raise SiteError(f"{self.name}: `{key}` is missing")
            return default
        return self.checked(key, table[key], check)

    def several(self, table: dict, key: str, check, default=None) -> tuple:
        value = self.one(table, key, lambda v: v, default)
        if not isinstance(value, (list, tuple)):
            raise self.wrong(key, 'is a list: write ["…", "…"]')
        return tuple(self.checked(key, item, check) for item in value)

    def checked(self, key: str, value, check):
        try:
            return check(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise self.wrong(key, str(error)) from error

    def wrong(self, key: str, what: str) -> SiteError:
        pattern = re.compile(rf"\s*\[?\s*\"?{re.escape(key)}\"?\s*[=\].]")
        line = next((n for n, text in enumerate(self.lines, 1) if pattern.match(text)), None)
        where = f", line {line}" if line else ""
        return SiteError(f"{self.name}{where}: `{key}` {what}")

    @staticmethod
    def outside(site: Site) -> bool:
        return ipaddress.ip_address(site.gateway) not in ipaddress.ip_interface(site.address).network

    @staticmethod
    def among_peers(site: Site) -> bool:
        """Whether the node to join through may be one of the peers; a host name is taken for one."""
        host = JOIN.fullmatch(site.join)[1].strip("[]")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return bool(site.peers)
        return any(address in ipaddress.ip_network(peer) for peer in site.peers)

    @staticmethod
    def word(value) -> str:
        if not isinstance(value, str):
            raise TypeError(f'is text: write it between quotes, not as {type(value).__name__}')
        return value

    def hostname(self, value) -> str:
        if not HOSTNAME.fullmatch(self.word(value)):
            raise ValueError("is 1 to 63 of a-z, 0-9 and -, without a domain")
        return value

    def ssh_key(self, value) -> str:
        if not SSH_KEY.fullmatch(self.word(value)):
            raise ValueError('holds something that is no public ssh key; write the line of a .pub file, "ssh-ed25519 AAAA…"')
        return value

    def encryption(self, value) -> str:
        if self.word(value) not in ENCRYPTIONS:
            raise ValueError("is one of " + ", ".join(ENCRYPTIONS))
        return value

    def interface(self, value) -> str:
        if not INTERFACE.fullmatch(self.word(value)):
            raise ValueError("is the name of an interface, a pattern such as en*, or a MAC address in lower case")
        return value

    def address(self, value) -> str:
        if "/" not in self.word(value):
            raise ValueError(f"needs its prefix length: {value}/24")
        return str(ipaddress.ip_interface(value))

    def ip(self, value) -> str:
        return str(ipaddress.ip_address(self.word(value)))

    def net(self, value) -> str:
        return str(ipaddress.ip_network(self.word(value)))

    def node_url(self, value) -> str:
        found = JOIN.fullmatch(self.word(value))
        port = (found[2] or ":8443")[1:] if found else ""
        if not found or not 0 < int(port) < 65536:
            raise ValueError("is the URL of a node of the cluster, https://192.0.2.11:8443")
        if port != "8443":
            raise ValueError("goes to port 8443: the box may reach its peers at 8443 and 8444 only")
        return value

    def source(self, value) -> str:
        if not re.fullmatch(r"[a-zA-Z0-9.:-]{1,253}", self.word(value)):
            raise ValueError("holds something that is neither an address nor a host name")
        return value

    def target(self, value) -> tuple[str, int]:
        address, _, port = self.word(value).rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("takes ADDRESS:PORT, NETWORK/BITS:PORT, [IPv6]:PORT")
        return str(ipaddress.ip_network(address.strip("[]"))), int(port)


if __name__ == "__main__":
    try:
        with open(sys.argv[1], encoding="utf-8") as given:
            parse(given.read(), sys.argv[1])
    except (SiteError, OSError, UnicodeDecodeError) as said:
        sys.exit(str(said))
