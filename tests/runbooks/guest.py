"""A virtual machine, which has a clock of its own: QEMU without hardware support, the base system in its memory, no disk. Its
source of time is a server here, which answers or does not."""

import base64
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from hosts import DATA, Shell, until

# Of seconds from 1900, as NTP counts, to 1970.
NTP_EPOCH_S = 2_208_988_800
# Not needed in a machine of memory alone.
WITHOUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache", "var/lib/apt", "samovar.deb")
MODULES = ("kernel/drivers/virtio", "kernel/drivers/net/virtio_net.ko", "kernel/drivers/net/net_failover.ko", "kernel/net/core/failover.ko")
MARK = "the-command-ended"
FILES = {
    "etc/hostname": "box-01\n",
    "etc/hosts": "127.0.0.1 localhost box-01\n",
    "etc/modules-load.d/net.conf": "virtio_pci\nvirtio_net\n",
    # networkd waits for udev, which is not there.
    "etc/systemd/system/systemd-networkd.service": """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ip link set eth0 up
ExecStart=/usr/bin/ip address add 10.0.2.15/24 dev eth0
ExecStart=/usr/bin/ip route add default via 10.0.2.2
""",
    "etc/systemd/timesyncd.conf": "[Time]\nNTP=10.0.2.2\nFallbackNTP=\n",
    "etc/systemd/system/shell.service": """[Unit]
DefaultDependencies=no
[Service]
Environment=HOME=/root PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 TERM=dumb
ExecStart=/bin/bash -c 'exec </dev/ttyS1 >/dev/ttyS1 2>&1; stty raw -echo; exec bash 2>/dev/null'
Restart=always
[Install]
WantedBy=multi-user.target
""",
}


class TimeServer:
    """Answers to NTP on loopback while `answers`; the machine finds it at its gateway."""

    def __init__(self):
        self.answers = True
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 123))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            asked, client = self.socket.recvfrom(512)
            if self.answers and len(asked) >= 48:
                now = time.time() + NTP_EPOCH_S
                stamp = struct.pack(">II", int(now), int(now % 1 * 2**32))
                # No warning, version 4, server; stratum 2; then delays, source, and when it was set, asked and answered.
                head = struct.pack(">BBbb", 0x24, 2, asked[2] % 17, -20) + struct.pack(">II", 0, 64) + b"\x7f\x00\x00\x01"
                self.socket.sendto(head + stamp + asked[40:48] + stamp + stamp, client)


class Guest(Shell):
    """The machine; its shell is at its second serial port."""

    def __init__(self, work: Path, base: Path, kernel: Path):
        self.name, self.place = "box-01 (virtual machine)", work / "guest"
        self.base, self.kernel = base, kernel
        self.log, self.process, self.shell = self.place / "console", None, None

    def start(self) -> None:
        upper, tree = self.place / "upper", self.place / "tree"
        for directory in (upper, tree, self.place / "work"):
            directory.mkdir(parents=True)
        for name, text in FILES.items():
            (upper / name).parent.mkdir(parents=True, exist_ok=True)
            (upper / name).write_text(text)
        release = next((self.kernel / "lib/modules").iterdir()).name
        tools = self.place / "modules"
        modules = tools / "lib/modules" / release
        for name in MODULES:
            source, target = self.kernel / "lib/modules" / release / name, modules / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(self.kernel / "lib/modules" / release / name, modules / name)
        subprocess.run(["depmod", "-b", tools, release], check=True)
        shutil.copytree(tools / "lib", upper / "usr/lib")
        wanted = upper / "etc/systemd/system/multi-user.target.wants"
        wanted.mkdir(parents=True)
        (wanted / "shell.service").symlink_to("../shell.service")
        (upper / "init").symlink_to("/usr/lib/systemd/systemd")
        options = f"lowerdir={self.base},upperdir={upper},workdir={self.place}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tree], check=True)
        out = " -o ".join(f"-path './{name}/*'" for name in WITHOUT)
        subprocess.run(f"find . \\( {out} \\) -prune -o -print | cpio --quiet -o -H newc > ../initrd", shell=True, check=True, cwd=tree)
        subprocess.run(["umount", tree], check=True)
        port = self.place / "shell"
        words = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "1", "-m", "1536", "-nodefaults",
                 "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{self.log}",
                 "-serial", f"unix:{port},server=on,wait=off", "-nic", "user,model=virtio-net-pci",
                 "-kernel", next((self.kernel / "boot").glob("vmlinuz-*")), "-initrd", self.place / "initrd",
                 "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on systemd.show_status=0"]  # fmt: skip
        self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL)
        until("QEMU listens", port.exists)
        self.shell = socket.socket(socket.AF_UNIX)
        self.shell.connect(str(port))

    def up(self) -> None:
        until(f"the virtual machine has started (its console: {self.log})", lambda: self.sh("true", patience_s=5)[0] == 0, 300)
        until("and everything in it", lambda: self.sh("systemctl is-system-running")[1].strip() in ("running", "degraded"), 300)

    def sh(self, command: str, given: str = "", patience_s: float = 120) -> tuple[int, str]:
        text = f"cd; set -o pipefail; {command}"
        stdin = f"<(echo {base64.b64encode(given.encode()).decode()} | base64 -d)" if given else "/dev/null"
        mark = f"{MARK}-{os.urandom(6).hex()}"
        words = f"echo {mark}; bash -c \"$(echo {base64.b64encode(text.encode()).decode()} | base64 -d)\" < {stdin} 2>&1; s=$?; echo; echo {mark} $s\n"
        self.shell.sendall(words.encode())
        said, end = "", time.monotonic() + patience_s
        self.shell.settimeout(1)
        # The line before the last is empty, since what was said need not end with one.
        while not (ended := re.search(rf"\r?\n{mark} (\d+)\r?\n", said)):
            if time.monotonic() > end or self.process.poll() is not None:
                return 124, f"no end within {patience_s} s: {said}"
            try:
                said += self.shell.recv(65536).decode(errors="replace")
            except TimeoutError:
                continue
        said = said[: ended.start()].replace("\r\n", "\n")
        return int(ended[1]), said.partition(f"{mark}\n")[2]

    def init(self) -> None:
        """A ledger of one node (docs/operate/systemd.md)."""
        self.do(f"runuser -u samovar -- samovar init --data {DATA} --name box-01")
        self.do("systemctl start samovar")

    def off(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
