#!/usr/bin/env python3
"""What image/site, and with the same code a box, takes and refuses. Run alone: tests/image/site.py

The sample in docs/operate/image.md must be a good one.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
KEY = "ssh-ed25519 " + "A" * 68 + " ops@example"
GOOD = f'hostname = "box-1"\nssh_keys = ["{KEY}"]\n'
# A site file, and what the refusal must say; "" if it is good.
CASES = [
    (GOOD, ""),
    (GOOD + 'encryption = "none"\n[network]\naddress = "192.0.2.10/24"\ngateway = "192.0.2.1"\ndns = ["2001:db8::53"]\nntp = ["time.example"]\n', ""),
    (GOOD + '[firewall]\nout = ["192.0.2.0/24:443", "[2001:db8::1]:9000"]\n', ""),
    ("", "`hostname` is missing"),
    ('hostname = "box-1"\n', "`ssh_keys` is missing"),
    ('hostname = "box-1"\nssh_keys = []\n', "line 2: `ssh_keys` names no key"),
    (GOOD.replace("hostname", "hostnam"), "line 1: `hostnam` is no key of a site file; did you mean `hostname`?"),
    (GOOD.replace("box-1", "Box_1"), "line 1: `hostname` is 1 to 63 of a-z, 0-9 and -"),
    ("hostname = 7\n" + GOOD.split("\n")[1], "line 1: `hostname` is text"),
    (GOOD.replace("ssh-ed25519", "ssh-dss"), "line 2: `ssh_keys` holds something that is no public ssh key"),
    (GOOD.replace('["', '"').replace('"]', '"'), "line 2: `ssh_keys` is a list"),
    (GOOD.replace(KEY, KEY + '\\ncommand=\\"x\\"'), "line 2: `ssh_keys` holds something that is no public ssh key"),
    (GOOD + 'encryption = "luks"\n', "line 3: `encryption` is one of tpm2, stick, none"),
    (GOOD + "network = 1\n", "line 3: `network` is a section: write [network]"),
    (GOOD + '[network]\naddres = "192.0.2.10/24"\n', "line 4: `addres` is no key of a site file in [network]; did you mean `address`?"),
    (GOOD + '[network]\naddress = "192.0.2.10"\n', "line 4: `address` needs its prefix length: 192.0.2.10/24"),
    (GOOD + '[network]\naddress = "192.0.2.300/24"\n', "line 4: `address`"),
    (GOOD + '[network]\ngateway = "192.0.2.1"\n', "line 4: `gateway` is for an `address`"),
    (GOOD + '[network]\naddress = "192.0.2.10/24"\ngateway = "198.51.100.1"\n', "line 5: `gateway` 198.51.100.1 is not in the network"),
    (GOOD + '[network]\ninterface = "en*; reboot"\n', "line 4: `interface` is the name of an interface"),
    (GOOD + '[network]\nntp = ["a b"]\n', "line 4: `ntp` holds something that is neither"),
    (GOOD + '[firewall]\nout = ["192.0.2.1"]\n', "line 4: `out` takes ADDRESS:PORT"),
    (GOOD + '[firewall]\nout = ["192.0.2.1/24:443"]\n', "line 4: `out`"),
    (GOOD + '[firewall]\nout = ["192.0.2.1:70000"]\n', "line 4: `out` takes ADDRESS:PORT"),
    (GOOD + '[cluster]\npeers = ["192.0.2.11", "2001:db8::/64"]\n', ""),
    (GOOD + '[cluster]\npeers = ["192.0.2.11"]\njoin = "https://192.0.2.11:8443"\n', ""),
    (GOOD + '[cluster]\npeers = ["192.0.2.11"]\njoin = "https://box-01.example"\n', ""),
    (GOOD + '[cluster]\npeers = ["box-01"]\n', "line 4: `peers`"),
    (GOOD + '[cluster]\npeers = ["192.0.2.1/24"]\n', "line 4: `peers`"),
    (GOOD + '[cluster]\npeer = []\n', "line 4: `peer` is no key of a site file in [cluster]; did you mean `peers`?"),
    (GOOD + '[cluster]\njoin = "https://192.0.2.11"\n', "line 4: `join` https://192.0.2.11 is none of the `peers`"),
    (GOOD + '[cluster]\npeers = ["192.0.2.12"]\njoin = "https://192.0.2.11"\n', "line 5: `join` https://192.0.2.11 is none of the `peers`"),
    (GOOD + '[cluster]\npeers = ["192.0.2.11"]\njoin = "192.0.2.11"\n', "line 5: `join` is the URL of a node"),
    (GOOD + '[cluster]\npeers = ["192.0.2.11"]\njoin = "https://192.0.2.11:443"\n', "line 5: `join` goes to port 8443"),
    ('hostname = "box-1\n', "not TOML"),
    (GOOD + "# " + "x" * 70000, "larger than 65536 bytes"),
]


JOINING = GOOD + '[cluster]\npeers = ["192.0.2.11"]\njoin = "https://192.0.2.11:8443"\n'
TOKEN = "samovar_join_" + "a" * 8 + "_" + "S" * 43 + "." + "P" * 43
# A site file, the join token that is given with it, and what the refusal must say.
TOKENS = [
    (JOINING, TOKEN + "\n", ""),
    (JOINING, None, "--join-token and `join` of the site file go together"),
    (GOOD, TOKEN, "--join-token and `join` of the site file go together"),
    (JOINING, "samovar_join_x", "holds no join token"),
    (JOINING, "", "holds no join token"),
]


def main() -> int:
    failed = site_files()
    if shutil.which("mcopy", path=PATH) and shutil.which("mkfs.vfat", path=PATH):
        failed += join_tokens()
    else:
        print("NOT RUN: join tokens on a stick need mtools and dosfstools", file=sys.stderr)
    return int(bool(failed))


def join_tokens() -> int:
    """Sticks with a join token, and those that are refused."""
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        file, token, stick = (Path(directory) / name for name in ("site.toml", "token", "stick.img"))
        for number, (text, given, expected) in enumerate(TOKENS):
            file.write_text(text)
            token.write_text(given or "")
            stick.unlink(missing_ok=True)
            with_token = ["--join-token", token] if given is not None else []
            result = subprocess.run([REPOSITORY / "image/site", "stick", file, stick, *with_token], capture_output=True, text=True, check=False)
            good = result.returncode == 0 and TOKEN in on(stick) if not expected else result.returncode == 1 and expected in result.stderr
            if not good:
                failed += 1
                print(f"join token {number}: expected {expected or 'a stick with it'!r}, got {result.returncode} {result.stderr!r}")
    print(f"join tokens: {len(TOKENS) - failed} of {len(TOKENS)} as they should be")
    return failed


def on(stick: Path) -> str:
    return subprocess.run(["mtype", "-i", stick, "::/samovar/join.token"], capture_output=True, text=True, check=False).stdout


def site_files() -> int:
    page = (REPOSITORY / "docs/operate/image.md").read_text()
    cases = [*CASES, (re.search(r"```toml site\n(.*?)```", page, re.DOTALL)[1], "")]
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "site.toml"
        for number, (text, expected) in enumerate(cases):
            file.write_text(text)
            result = subprocess.run([REPOSITORY / "image/site", "check", file], capture_output=True, text=True, check=False)
            good = result.returncode == 0 if not expected else result.returncode == 1 and expected in result.stderr
            if not good:
                failed += 1
                print(f"case {number}: expected {expected or 'a good file'!r}, got {result.returncode} {result.stderr!r}\n{text[:400]}")
    print(f"site files: {len(cases) - failed} of {len(cases)} as they should be")
    return failed


if __name__ == "__main__":
    sys.exit(main())
