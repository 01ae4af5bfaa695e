"""Rehearses pages of docs/operate. `tests/runbooks/run` calls this in network and mount namespaces of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import guest
import hosts
import rehearsals
from nspawn import fabric
from page import NotRun, Page, Wrong

ROOT = Path(__file__).resolve().parents[2]


def base_system(work: Path) -> Path:
    """The base system with the package installed, which every host has below its own files."""
    tree = work / "base"
    tree.mkdir()
    subprocess.run(["tar", "-C", tree, "-xf", os.environ["SAMOVAR_BASE"]], check=True)
    words = [ROOT / "packaging/deb", os.environ["SAMOVAR_BIN"], work]
    made = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | {"COMPRESSION": "none"})
    shutil.copy(made.stdout.strip(), tree / "samovar.deb")
    subprocess.run(["mount", "-t", "proc", "proc", tree / "proc"], check=True)
    subprocess.run(["chroot", tree, "dpkg", "-i", "/samovar.deb"], check=True, capture_output=True)
    subprocess.run(["umount", tree / "proc"], check=True)
    (tree / "etc/machine-id").write_text("")
    (tree / "var/log/journal").mkdir(exist_ok=True)
    wanted = tree / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "systemd-networkd.service").symlink_to("/usr/lib/systemd/system/systemd-networkd.service")
    return tree


def rehearse(name: str, lane: hosts.Cluster) -> str:
    """One page, from a cluster that is well to one that is well: `held`, `failed` or `not run`."""
    print(f"\n== {name}", flush=True)
    page = Page(rehearsals.path(name), dict(rehearsals.NAMES.get(name, {})))
    try:
        rehearsals.ALL[name](page, lane)
        said = page.end()
        lane.level()
        lane.hold()
    except NotRun as why:
        print(f"NOT RUN: runbooks {name}: {why}", flush=True)
        return "not run"
    except (Wrong, subprocess.SubprocessError, OSError, LookupError, TypeError, ValueError) as wrong:
        if not isinstance(wrong, Wrong):
            traceback.print_exc()
        took = time.monotonic() - page.began
        print(f"RESULT runbooks {name}: FAILED after {took:.0f} s: {wrong}\nonce more: tests/runbooks/run {name}", flush=True)
        return "failed"
    typed = ", typed on a cluster that is well" if name in rehearsals.TYPED else ""
    print(f"RESULT runbooks {name}: {said}{typed}; {len(lane.values)} values on each node afterwards", flush=True)
    return "held"


def begun(work: Path, base: Path) -> hosts.Cluster:
    """Three nodes that are well."""
    lane = hosts.Cluster(work, base)
    try:
        lane.init()
        rehearsals.form(lane)
    except BaseException:
        lane.off()
        raise
    return lane


def main() -> int:
    names = sys.argv[1:] or list(rehearsals.ALL)
    if unknown := [name for name in names if name not in rehearsals.ALL]:
        print(f"no rehearsal of {', '.join(unknown)}; there are {', '.join(rehearsals.ALL)}", file=sys.stderr)
        return 2
    if missing := rehearsals.missing():
        print(f"pages with neither a rehearsal nor a reason why there is none: {', '.join(missing)}", file=sys.stderr)
        return 1
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    fabric(hosts.OUTSIDE)
    work = Path(tempfile.mkdtemp(prefix="samovar-runbooks-", dir="/var/tmp"))
    ended, lane, machine, source, reason = {}, None, None, None, ""
    try:
        base = base_system(work)
        if "clock" in names:
            # It needs its time to start, while the others are at work.
            if kernel := os.environ.get("SAMOVAR_KERNEL_TREE"):
                machine, source = guest.Guest(work, base, Path(kernel)), guest.TimeServer()
                machine.start()
            else:
                reason = os.environ["SAMOVAR_NO_KERNEL"]
        for name in names:
            # After a failure, with a new one.
            lane = lane or begun(work, base)
            lane.guest, lane.time, lane.no_guest = machine, source, reason
            ended[name] = rehearse(name, lane)
            if ended[name] == "failed":
                lane.off()
                lane = None
        for name, why in rehearsals.ELSEWHERE.items():
            print(f"not rehearsed here: {name}: {why}")
    finally:
        for running in filter(None, (lane, machine)):
            running.off()
        if os.environ.get("SAMOVAR_KEEP"):
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    failed = [name for name, how in ended.items() if how == "failed"]
    left = [name for name, how in ended.items() if how == "not run"]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "each leads to its end"
    if left:
        verdict += f"; NOT RUN: {', '.join(left)}"
    print(f"\nRESULT runbooks: {len(ended)} pages, {time.monotonic() - began:.0f} s: {verdict}")
    return int(bool(failed) or bool(left) and not os.environ.get("SAMOVAR_MAY_SKIP"))


if __name__ == "__main__":
    sys.exit(main())
