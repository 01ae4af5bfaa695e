"""Points of tests/image/run and tests/fleet/run about lynis: what it says of a booted box, held against docs/operate/hardening.md.

Lynis is no part of the slot: Debian's package is laid into /run of a box that has been started for it. No test of it is left out.
"""

import re
import subprocess
from pathlib import Path

from checks import REPOSITORY, point, step, tool, until

INDEX_MIN = 80
PAGE = REPOSITORY / "docs/operate/hardening.md"
PLACE = "/run/lynis"
# Seconds; it is one shell script of many processes, on a machine without hardware support.
PATIENCE_S = 3600
# What its log says of a test that a profile or an option left out; others it leaves out by itself, having found nothing to test.
LEFT_OUT = r"Skipped by|not in list of tests|Test to system intensive|Incorrect category"


def audit(lane, package: Path) -> None:
    """A new box under lynis; `package` is lynis as Debian has it."""
    box = lane.machine("box-lynis")
    # As real machines have; lynis takes points off for it.
    box.usb = True
    step("first boot: UEFI, site file on the ESP, TPM")
    written = tool("image/site", "write", lane.site("box-lynis"), box.disk, "--allow-dev")
    point("image/site writes the site file", written.returncode == 0, written.stderr)
    box.start()
    box.reachable()
    lane.ready(box)
    # A version on trial, or units that are still to come, would be another system.
    until(lambda: box.ssh("systemctl is-active samovar-confirm", check=False) == "active")
    judge(*heard(box, package, lane.work))
    box.stop()


def heard(box, package: Path, work: Path) -> tuple[str, str]:
    """Report and log of lynis on a box that runs."""
    step("lynis")
    box.send(packed(package, work), "/run/lynis.tar")
    box.ssh(f"mkdir {PLACE} && tar -x -f /run/lynis.tar -C {PLACE} && chown -R root:root {PLACE}")
    box.ssh(f"cd {PLACE} && sh ./lynis audit system --no-colors --quick > said 2>&1", check=False, patience_s=PATIENCE_S)
    return box.ssh("cat /var/log/lynis-report.dat"), box.ssh("cat /var/log/lynis.log")


def packed(package: Path, work: Path) -> Path:
    """The package's files as lynis finds them in its working directory, as a tar file."""
    root, tar = work / "lynis", work / "lynis.tar"
    subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    subprocess.run(["tar", "-c", "-f", tar, "-C", root / "usr/share/lynis", "include", "db", "-C", root / "usr/sbin", "lynis",
                    "-C", root / "etc/lynis", "default.prf", "plugins"], check=True)  # fmt: skip
    return tar


def judge(report: str, log: str, *, index_min: int = INDEX_MIN) -> None:
    """Report and log of lynis against the index that is asked for and the page that explains what it says."""
    values = dict(line.split("=", 1) for line in report.splitlines() if re.match(r"[a-z_]+=", line))
    index, done = int(values.get("hardening_index", 0)), int(values.get("lynis_tests_done", 0))
    print(f"lynis {values.get('lynis_version')}: hardening index {index}, {done} tests done")
    point(f"its hardening index is {index_min} at least", index >= index_min, index)
    left_out = re.findall(rf".*(?:{LEFT_OUT}).*", log)
    point("no test was left out by a setting", done > 0 and not left_out, left_out[:5])
    said, explained = remarks(report), rows(PAGE.read_text())
    for remark in sorted(said - explained):
        point("what lynis says is explained", False, remark)
    for remark in sorted(explained - said):
        point("what is explained is still said", False, remark)
    point(f"each of its {len(said)} remarks is explained, and nothing else is", said == explained, f"{len(said ^ explained)} differ")


def remarks(report: str) -> set[tuple[str, str, str]]:
    """Suggestions and warnings: kind, test, text."""
    found = set()
    for kind, test, text, details in re.findall(r"^(suggestion|warning)\[\]=([^|]*)\|([^|]*)\|([^|]*)\|", report, re.MULTILINE):
        found.add((kind, test, text if details in ("", "-") else f"{text}: {details}"))
    return {(kind, test, " ".join(text.split())) for kind, test, text in found}


def rows(page: str) -> set[tuple[str, str, str]]:
    """Rows of the page's table: test, kind, text, and a reason."""
    found = re.findall(r"^\| ([A-Z]+-?\d*) \| (suggestion|warning) \| (.*?) \| (.+?) \|$", page, re.MULTILINE)
    return {(kind, test, text) for test, kind, text, _ in found}
