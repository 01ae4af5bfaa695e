"""Points of tests/image/run: first boot from the ESP and from a stick, what is seen from outside and inside, second boot.

usage: lane.py DISK.raw [esp|stick]                         in a network namespace of its own; by default both parts
       lane.py DISK.raw update GOOD.raucb CRASHING.raucb    updates alone
       lane.py DISK.raw smbios                              a box that is set up by its hypervisor
       lane.py DISK.raw bad KIND/samovar-V.raucb …          bad bundles, one after the other
       lane.py DISK.raw lynis LYNIS.deb                     what lynis says of a booted box
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lynis
from checks import fetched, point, result, step, tool, until
from machine import GUEST, HOST, Machine, network
from updating import Updates

SAMOVAR = os.environ["SAMOVAR_BIN"]
# What the disk is grown to before its first boot, as one does with a virtual machine.
DISK_GIB = 3
# Three times what docs/design/image.md aims at: the host may be busy.
READY_S_MAX, RAM_MIB_MAX = 3 * 60, 3 * 130
# What begins secrets that must not be found on the raw disk.
PLANTED = "planted-4f1d77a0c2"

def main() -> int:
    image, part = Path(sys.argv[1]).resolve(), "".join(sys.argv[2:3])
    print(f"{image.name}: SHA-256 {hashlib.file_digest(image.open('rb'), 'sha256').hexdigest()}")
    work = Path(tempfile.mkdtemp(prefix="samovar-image-test.", dir="/var/tmp"))
    network()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", work / "ops"], check=True)
    lane = Lane(image, work)
    try:
        if part in ("", "esp"):
            lane.esp_and_tpm()
        if part in ("", "stick"):
            lane.stick_and_bios()
        if part == "smbios":
            lane.smbios()
        if part == "lynis":
            lynis.audit(lane, Path(sys.argv[3]).resolve())
        if part == "bad":
            Updates(lane).run_bad([Path(bundle).resolve() for bundle in sys.argv[3:]])
        if part == "update":
            Updates(lane, *(Path(bundle).resolve() for bundle in sys.argv[3:5])).run()
    except (RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
        point("the lane ran to its end", False, error)
    finally:
        for machine in lane.machines:
            machine.cut()
        if os.environ.get("SAMOVAR_KEEP"):
            print(f"kept: {work}")
        else:
            shutil.rmtree(work)
    return result()


class Lane:
    """The machines of a run, one after the other on the same wire."""

    def __init__(self, image: Path, work: Path):
        self.image, self.work = image, work
        self.machines: list[Machine] = []

    def machine(self, name: str, **options: bool) -> Machine:
        disk = self.work / f"{name}.raw"
        subprocess.run(["cp", "--sparse=always", self.image, disk], check=True)
        with disk.open("r+b") as file:
            file.truncate(DISK_GIB * 2**30)
        self.machines.append(Machine(self.work, name, disk, **options))
        return self.machines[-1]

    def site(self, name: str, **keys: str) -> Path:
        """A site file; `keys` replace or add lines."""
        lines = {
            "hostname": f'"{name}"',
            "ssh_keys": f'["{(self.work / "ops.pub").read_text().strip()}"]',
        } | keys
        file = self.work / f"{name}.toml"
        file.write_text("".join(f"{key} = {value}\n" for key, value in lines.items())
                        + f'[network]\naddress = "{GUEST}/24"\ngateway = "{HOST}"\n')  # fmt: skip
        return file

    def esp_and_tpm(self) -> None:
        """UEFI, site file on the ESP, data partition under a TPM."""
        step("first boot: UEFI, site file on the ESP, TPM")
        box = self.machine("box-esp")
        site = self.site("box-esp")
        refused = tool("image/site", "write", site, box.disk)
        point("image/site refuses an image with a development key", refused.returncode == 1 and "development key" in refused.stderr, refused.stderr)
        # A wrong file first: the box tells it, waits, and goes on when it is mended.
        wrong = self.site("box-esp", hostnam='"x"')
        point("image/site refuses a wrong file, by line", "line 3: `hostnam`" in tool("image/site", "write", wrong, box.disk, "--allow-dev").stderr)
        written = tool("image/site", "write", self.site("box-esp"), box.disk, "--allow-dev")
        point("image/site writes a good one", written.returncode == 0, written.stderr)
        box.start()
        box.console("samovar: slot A, try 1")
        box.reachable()
        self.ready(box)
        self.inside(box, encrypted=True)
        self.outside(box)
        self.settings(box)
        identity = self.identity(box)
        receipt = self.write_and_verify(box)
        secrets = self.plant(box)

        step("power cut, second boot")
        box.cut()
        box.start()
        box.console("samovar: slot A, try 1")
        box.reachable()
        self.ready(box)
        after = self.identity(box)
        for name, value in identity.items():
            point(f"{name} is what it was", after[name] == value, f"{value} / {after[name]}")
        point("the value is there", box.ssh("samovar get greeting --data /var/lib/samovar") == "hello")
        point("the receipt of before holds", self.verify(receipt))
        self.console_says(box)

        self.bundles(box, identity)

        step("a second stick at a provisioned box")
        box.stop()
        raw = box.disk.read_bytes()
        # Something that does lie there in clear, or the search would be none.
        point("the raw disk is searched", identity["the machine id"].encode() in raw)
        for name, secret in secrets.items():
            point(f"it holds no plaintext of {name}", secret not in raw)
        del raw
        strange = self.site("stranger")
        stick = self.work / "stranger.img"
        tool("image/site", "stick", strange, stick)
        box.sticks = [stick]
        box.start()
        box.reachable()
        point("it keeps its name", box.ssh("hostname") == "box-esp")
        said = "journalctl -b -u samovar-stick -o cat"
        point("the journal says that the stick was ignored", until(lambda: "ignored" in box.ssh(said)), box.ssh(said))
        point("the console says so", until(lambda: re.search(r"a\s+stick\s+with\s+another", box.text()) is not None), box.text()[-1500:])
        # What the rule SamovarStrangeStick goes by (tests/monitoring).
        shown = fetched(f"http://{GUEST}:9100/metrics")
        point("and node-exporter", "samovar_box_strange_stick 1" in shown, "no such figure" if "node_" in shown else "no figures")
        box.sticks = []
        box.stop()

        step("the disk in another machine")
        other = Machine(self.work, "other-machine", box.disk)
        self.machines.append(other)
        other.start()
        other.console("samovar: slot A")
        point("with another TPM the console says that the data stays locked", bool(other.console(r"data\s+partition\s+stays\s+locked")))
        point("and nobody is let in", not self.answers(other), "ssh answered")
        other.cut()

    def stick_and_bios(self) -> None:
        """BIOS, site file on a stick that also unlocks the data partition; a wrong file first."""
        step("first boot: BIOS, a stick with a wrong site file, key of the data partition on it")
        box = self.machine("box-stick", bios=True, tpm=False)
        good = self.site("box-stick", encryption='"stick"')
        stick = self.work / "stick.img"
        made = tool("image/site", "stick", good, stick, "--data-key")
        point("image/site makes a stick with a key", made.returncode == 0, made.stderr)
        wrong = self.work / "wrong.toml"
        wrong.write_text(good.read_text().replace("hostname", "hostnam"))
        on_stick(stick, wrong)
        box.sticks = [stick]
        box.start()
        box.console("samovar: slot A, try 1")
        said = box.console(r"line 1: `hostnam` is no key of a site\s+file")
        point("the console says what is wrong, with line and key", bool(said))
        on_stick(stick, good)
        box.reachable()
        self.ready(box, waited=True)
        self.inside(box, encrypted=True)
        point("it booted by BIOS", box.ssh("test -e /sys/firmware/efi || echo bios") == "bios")
        before = self.identity(box)
        step("reset")
        box.restart("systemctl stop samovar && cryptsetup erase --batch-mode /dev/samovar/data && rm /efi/samovar/{provisioned,machine-id}"
                " && sfdisk --delete --no-reread --no-tell-kernel $(lsblk -npo PKNAME /dev/samovar/esp) 5 && systemctl reboot --force --force")  # fmt: skip
        box.console("samovar: slot A, try")
        box.reachable()
        self.ready(box)
        after = self.identity(box)
        point("after a reset everything of the box is new", not set(before.values()) & set(after.values()), after)
        box.stop()
        step("without its stick")
        box.sticks = []
        box.start()
        point("the console asks for the stick", bool(box.console(r"put\s+it\s+in")))
        box.cut()

    def smbios(self) -> None:
        """BIOS, site file and the daemon's configuration in the machine's SMBIOS strings, data partition under a TPM, a generation id."""
        step("first boot: BIOS, site file by SMBIOS, TPM")
        box = self.machine("box-smbios", bios=True)
        config = self.work / "samovar.toml"
        config.write_text(f'[tls]\nnames = ["ledger.example", "{GUEST}"]\n')
        box.credentials = {"samovar.site": self.site("box-smbios"), "samovar.config": config}
        box.generation = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"
        box.start()
        box.reachable()
        self.ready(box)
        point("a site file of the machine's SMBIOS is taken", box.ssh("hostname") == "box-smbios"
              and "credential" in box.ssh("journalctl -b -u samovar-early -o cat"), box.ssh("journalctl -b -u samovar-early -o cat"))  # fmt: skip
        held = box.ssh("openssl s_client -connect localhost:8443 -CAfile /var/lib/samovar/ca.pem -verify_hostname ledger.example -verify_return_error"
                       " < /dev/null > /dev/null 2>&1 && echo held", check=False)  # fmt: skip
        point("its first certificate names what its configuration does", held == "held", held)
        failed = box.ssh("systemctl --failed --plain --no-legend")
        point("no unit has failed", failed == "", failed)
        kept = "cat /var/lib/samovar/vm-generation"
        before = box.ssh(kept, check=False)
        point("the daemon knows the machine's generation id", bool(re.fullmatch("[0-9a-f]{64}", before)), before)
        box.stop()
        step("put back from a snapshot, as the hypervisor tells by another generation id")
        box.generation = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb88"
        box.start()
        box.reachable()
        self.ready(box)
        said = box.ssh("journalctl -b -u samovar -o cat | grep 'generation id has changed'; true")
        point("a node alone says so, and goes on", bool(said) and box.ssh(kept) != before, said or box.ssh(kept))
        box.stop()

    def bundles(self, box: Machine, identity: dict[str, str]) -> None:
        """A bundle with any part changed is refused; a good one comes into the other slot, and back goes the way."""
        step("update bundles: changed in each part, then a good one")
        bundle = self.image.with_suffix(".raucb")
        box.send(bundle, "/var/tmp/bundle")
        size = bundle.stat().st_size
        for part, offset in (("content", size // 2), ("hash tree", size - 600_000), ("signature", size - 400), ("length of the signature", size - 8)):
            # The same change twice is none.
            change = (f"python3 -c \"f = open('/var/tmp/bundle', 'r+b'); f.seek({offset}); b = f.read(1)[0] ^ 255;"
                      f" f.seek({offset}); f.write(bytes([b]))\"")  # fmt: skip
            refusal = box.ssh(f"{change}; rauc install /var/tmp/bundle 2>&1 && echo INSTALLED; {change}", check=False, patience_s=300)
            point(f"changed {part}: refused", "INSTALLED" not in refusal and "failed" in refusal.lower(), refusal[-300:])
            env = box.ssh("grub-editenv /efi/EFI/samovar/grubenv list").splitlines()
            point("and the other slot is not to be tried", "B_OK=0" in env and "ORDER=A B" in env, env)
        box.ssh("openssl req -x509 -newkey ed25519 -nodes -subj /CN=stranger -keyout /var/tmp/k -out /var/tmp/c 2>/dev/null;"
                " sed s,/etc/rauc/keyring.pem,/var/tmp/c, /etc/rauc/system.conf > /var/tmp/conf")  # fmt: skip
        strange = box.ssh("rauc --conf=/var/tmp/conf info /var/tmp/bundle 2>&1 && echo ACCEPTED", check=False)
        point("under another keyring it is refused", "ACCEPTED" not in strange, strange[-300:])
        box.ssh("rauc install /var/tmp/bundle && rm /var/tmp/bundle", patience_s=400)
        for slot, how in (("B", "the good one is started"), ("A", "the way back: rauc status mark-active other")):
            step(how)
            if slot == "A":
                box.ssh("rauc status mark-active other")
            box.restart()
            box.console(f"samovar: slot {slot}, try 1")
            box.reachable()
            self.ready(box)
            after = self.identity(box)
            point("identity and ledger are kept, and the TPM opened the data", after == identity, after)
            until(lambda: box.ssh("systemctl is-active samovar-confirm", check=False) == "active")
            env = box.ssh("grub-editenv /efi/EFI/samovar/grubenv list")
            point(f"slot {slot} is confirmed", f"CONFIRMED={slot}" in env and f"{slot}_TRY=0" in env, env)

    def ready(self, box: Machine, *, waited: bool = False) -> None:
        """Until the ledger serves; `waited`: the box had to wait for somebody, its time says nothing."""
        end = time.monotonic() + 300
        while "serving" not in (said := box.ssh("systemctl show samovar.service -p StatusText --value; true")).lower():
            if time.monotonic() > end:
                raise TimeoutError(f"the ledger does not serve: {said}; {box.ssh('journalctl -u samovar -u samovar-init -u samovar-site -o cat | tail -20')}")
            time.sleep(1)
        seconds = float(box.ssh("systemctl show samovar.service -p ActiveEnterTimestampMonotonic --value")) / 1e6
        memory = {line.split(":")[0]: int(line.split()[1]) for line in box.ssh("cat /proc/meminfo").splitlines()}
        used = (memory["MemTotal"] - sum(memory[name] for name in ("MemFree", "Buffers", "Cached", "SReclaimable"))) // 1024
        print(f"the guest's own clock: ready {seconds:.0f} s after the kernel began; {used} MiB of memory in use")
        if not waited:
            point(f"ready within {READY_S_MAX} s", seconds <= READY_S_MAX, seconds)
        point(f"at most {RAM_MIB_MAX} MiB in use", used <= RAM_MIB_MAX, used)

    def inside(self, box: Machine, *, encrypted: bool) -> None:
        """What the booted system says of itself."""
        until(lambda: box.ssh("systemctl is-system-running", check=False) in ("running", "degraded"))
        point("no unit has failed", box.ssh("systemctl --failed --plain --no-legend") == "", box.ssh("systemctl --failed --plain --no-legend"))
        point("the root is a read-only squashfs", bool(re.search(r"squashfs.*\bro\b", box.ssh("findmnt -no FSTYPE,OPTIONS /"))))
        kind = box.ssh("blkid -p -o value -s TYPE /dev/samovar/data")
        point("the data partition is LUKS2" if encrypted else "the data partition is plain", kind == ("crypto_LUKS" if encrypted else "ext4"), kind)
        size = int(box.ssh("findmnt -bno SIZE /var"))
        point("it has the room of the whole disk", size > (DISK_GIB - 1.4) * 2**30, size)
        point("the machine id is that of the ESP", box.ssh("cat /etc/machine-id") == box.ssh("cat /efi/samovar/machine-id"))
        point("nobody has a password", box.ssh(r"awk -F: '$2 !~ /^[!*]/' /etc/shadow") == "")
        # The disk's ids are its own.
        point("the disk has ids of its own", "5A303A10" not in box.ssh("sfdisk -d $(lsblk -npo PKNAME /dev/samovar/esp)").upper())
        until(lambda: box.ssh("systemctl is-active samovar-confirm", check=False) == "active")
        env = box.ssh("grub-editenv /efi/EFI/samovar/grubenv list")
        point("the boot counter is reset", "A_TRY=0" in env and "A_OK=1" in env and "CONFIRMED=A" in env, env)
        exposure = box.ssh("systemd-analyze security --no-pager samovar.service | sed -n 's/.*exposure level for samovar.service: \\([0-9.]*\\).*/\\1/p'")
        point("systemd-analyze security of the daemon is 1.1 at most", bool(exposure) and float(exposure) <= 1.1, exposure)
        point("a user who is not root cannot make RAUC do anything",
              "holds" == box.ssh("runuser -u prometheus -- rauc status mark-bad other >/dev/null 2>&1 || echo holds"))  # fmt: skip
        before = refused(box)
        box.ssh(f"timeout 3 bash -c 'echo > /dev/tcp/{HOST}/80'; true")
        point("root cannot connect to anybody outside", refused(box) > before, f"refused_out {before} -> {refused(box)}")
        watchdog = box.ssh("systemctl show -p RuntimeWatchdogUSec --value; ls /dev/watchdog0")
        point("the hardware watchdog is used", "30s" in watchdog and "/dev/watchdog0" in watchdog, watchdog)

    def outside(self, box: Machine) -> None:
        """What others on the network see."""
        ports = subprocess.run(["nmap", "-n", "-Pn", "-p-", "--min-rate", "2000", "-oG", "-", GUEST], capture_output=True, text=True, check=True).stdout
        found = sorted(int(port) for port in re.findall(r"(\d+)/open/", ports))
        point("nmap over all ports finds 22 and 8443", found == [22, 8443], found)
        login = subprocess.run(
            ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes", f"root@{GUEST}"],
            capture_output=True, text=True, check=False)  # fmt: skip
        point("ssh takes keys only", login.returncode == 255 and "Permission denied (publickey)" in login.stderr, login.stderr)

    def settings(self, box: Machine) -> None:
        """Settings changed on the running box, a wrong one first."""
        step("settings later")
        file = "/etc/samovar/site.toml"
        said = box.ssh(f"cp {file} /tmp/good; sed -i s/^hostname/hostnam/ {file}; systemctl restart samovar-site || systemctl status samovar-site --no-pager -n 5", check=False)
        point("a wrong site file is told, by line", "line 1: `hostnam`" in said and "last good one is in force" in said, said)
        point("and the box is reached as before", self.answers(box))
        box.ssh(f"cp /tmp/good {file}; systemctl restart samovar-site")
        point("mended, it is taken", box.ssh("systemctl is-active samovar-site") == "active")
        exporter = f"http://{GUEST}:9100/metrics"
        point("nobody outside may scrape", fetched(exporter) == "")
        box.ssh(f"printf '[metrics]\\nallow = [\"{HOST}/32\"]\\n' >> /etc/samovar/samovar.toml; samovar config check /etc/samovar/samovar.toml && systemctl restart samovar-site && systemctl reload samovar")
        shown = fetched(exporter)
        point("whom metrics.allow names may: node-exporter", "node_timex_sync_status" in shown, shown[:300])
        shown = fetched(f"https://{GUEST}:8443/metrics")
        point("and the ledger's own", "http_requests_total" in shown, shown[:300])
        point("nothing was ended by its own hardening", box.ssh("journalctl -b -o cat | grep -c status=31/SYS; true") == "0")

    def identity(self, box: Machine) -> dict[str, str]:
        return {
            "the machine id": box.ssh("cat /etc/machine-id"),
            "the ssh host key": box.ssh("cat /var/lib/samovar-site/ssh/ssh_host_ed25519_key.pub"),
            "the ledger's key": box.ssh("cat /var/lib/samovar/log.vkey"),
            "the ledger's CA": box.ssh("sha256sum < /var/lib/samovar/ca.pem"),
        }

    def client(self, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [SAMOVAR, *map(str, arguments), "--url", f"https://{GUEST}:8443", "--ca", self.work / "ca.pem", "--token-file", self.work / "token"],
            capture_output=True, text=True, check=False)  # fmt: skip

    def write_and_verify(self, box: Machine) -> Path:
        """A put over TLS, and its receipt verified here."""
        for name in ("ca.pem", "admin.token", "log.vkey"):
            file = self.work / name.replace("admin.", "")
            file.write_text(box.ssh(f"cat /var/lib/samovar/{name}") + "\n")
            file.chmod(0o600)
        value = self.work / "value"
        value.write_text("hello")
        put = self.client("put", "greeting", value, "--type", "text/plain", "--output", "json")
        point("a put over TLS, by the fixed address", put.returncode == 0, put.stderr)
        if put.returncode:
            raise RuntimeError(put.stderr)
        number = json.loads(put.stdout)["transaction"]
        said = self.client("receipt", number)
        receipt = self.work / "receipt"
        receipt.write_text(said.stdout)
        point("its receipt holds on this machine, offline", said.returncode == 0 and self.verify(receipt), said.stderr)
        return receipt

    def plant(self, box: Machine) -> dict[str, bytes]:
        """Ten values and secrets of the box, as bytes that must not be found on its raw disk."""
        words = [f"{PLANTED}{number:02}" for number in range(5)]
        box.ssh(f"printf {words[0]} | samovar put secret --type text/plain --data /var/lib/samovar"
                f" && printf x | samovar put {words[1]} --type text/plain --data /var/lib/samovar"
                f" && printf {words[2]} > /var/tmp/blob && samovar blob put /var/tmp/blob --data /var/lib/samovar && rm /var/tmp/blob"
                f" && printf {words[3]} > /var/tmp/left-behind && echo {words[4]} | systemd-cat && journalctl --sync"
                " && samovar api-key create --name planted --role reader --save /var/tmp/planted.token --data /var/lib/samovar && sync")  # fmt: skip
        read = lambda file, what="cat": bytes.fromhex(box.ssh(f"{what} {file} | od -An -v -tx1 | tr -d ' \\n'"))  # noqa: E731
        return {
            "a value": words[0].encode(),
            "the name of a key": words[1].encode(),
            "a blob": words[2].encode(),
            "a file": words[3].encode(),
            "a line of the journal": words[4].encode(),
            "an API key": read("/var/tmp/planted.token").strip(),
            "the admin token": read("/var/lib/samovar/admin.token").strip(),
            "the key that signs the log": read("/var/lib/samovar/keys/log"),
            "the salts of the log": read("/var/lib/samovar/salts")[:32],
            "the private ssh host key": read("/var/lib/samovar-site/ssh/ssh_host_ed25519_key", "sed -n 4p").strip(),
        }

    def verify(self, receipt: Path) -> bool:
        return subprocess.run([SAMOVAR, "verify", receipt, "--key", self.work / "log.vkey", "--expect-key", "greeting"], capture_output=True, check=False).returncode == 0

    def console_says(self, box: Machine) -> None:
        until(lambda: "[OK] ledger serving" in box.text())
        text = box.text()
        point("the console says that the ledger serves, and where", f"https://{GUEST}:8443/" in text)
        point("and that the image has a development key", "DEVELOPMENT KEY" in text)
        digest = box.ssh("openssl x509 -in /var/lib/samovar/ca.pem -noout -fingerprint -sha256").partition("=")[2].replace(":", "")
        shown = " ".join(digest[i : i + 4] for i in range(0, 40, 4))[:39]
        point("it shows the CA's fingerprint", shown in text, shown)

    def ready_now(self) -> int:
        """Status of `/ready`, as a balancer gets it."""
        said = subprocess.run(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://{GUEST}:8443/ready"], capture_output=True, text=True, check=False)
        return int(said.stdout or 0)

    def answers(self, box: Machine) -> bool:
        try:
            return box.ssh("echo here", check=False, patience_s=30) == "here"
        except subprocess.TimeoutExpired:
            return False


def refused(box: Machine) -> int:
    """Packets that were not let out."""
    return json.loads(box.ssh("nft -j list counter inet samovar refused_out"))["nftables"][1]["counter"]["packets"]


def on_stick(stick: Path, site: Path) -> None:
    """Replaces the site file on the image of a stick, as somebody would at another machine."""
    subprocess.run(["mcopy", "-D", "o", "-i", stick, site, "::/samovar/site.toml"], check=True, env=os.environ | {"MTOOLS_SKIP_CHECK": "1"})


if __name__ == "__main__":
    sys.exit(main())
