"""A page of docs/operate as somebody types it: the commands of its `sh` blocks, in order."""

import re
import time
from pathlib import Path

OPERATE = Path(__file__).resolve().parents[2] / "docs/operate"


class Wrong(Exception):
    """The page, the product or the rehearsal: something went otherwise than the page says."""


class NotRun(Exception):
    """What a rehearsal needs is not here."""


def commands(text: str) -> list[tuple[int, str]]:
    """Line number and text of each command; a backslash at the end of a line goes on with the next."""
    found, inside, begun = [], False, None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.startswith("```"):
            inside = not inside and line == "```sh"
        elif inside and begun:
            number, before = begun
            line, begun = f"{before} {line}", None
            found.append((number, line))
        elif inside and line and not line.startswith("#"):
            found.append((number, line))
        if inside and found and found[-1][1].endswith("\\"):
            number, before = found.pop()
            begun = number, before.removesuffix("\\").strip()
    return found


class Page:
    """Goes through a page once. `names`: what the page uses as an example, and what stands for it here."""

    def __init__(self, name: str, names: dict[str, str]):
        self.path = OPERATE / name
        self.left = commands(self.path.read_text())
        self.names, self.used = names, set()
        self.ran, self.left_out = 0, []
        self.began = time.monotonic()

    def take(self, begins: str) -> tuple[str, str]:
        """The page's next command, which must begin so, with where it stands; names are put in."""
        if not self.left:
            raise Wrong(f"{self.path.name}: the rehearsal goes on with `{begins}`, the page has ended")
        line, text = self.left.pop(0)
        where = f"{self.path.name}:{line}"
        if not text.startswith(begins):
            raise Wrong(f"{where}: the page goes on with `{text}`, the rehearsal with `{begins}`")
        for example, here in self.names.items():
            if example in text:
                self.used.add(example)
                text = text.replace(example, here)
        return where, text

    def run(self, hosts, begins: str, *, status: tuple[int, ...] = (0,), says: str = "", never: str | None = None) -> str:
        """Runs the next command on one host, or on each of several; answers what it said, on the last of them.

        `says` and `never` are patterns of what must and must not be in it.
        """
        where, text = self.take(begins)
        self.ran += 1
        for host in hosts if isinstance(hosts, (list, tuple)) else [hosts]:
            ended, said = host.sh(text)
            wrong = None
            if ended not in status:
                wrong = f"ended with {ended}, not {' or '.join(map(str, status))}"
            elif not re.search(says, said, re.MULTILINE):
                wrong = f"does not say {says!r}"
            elif never and re.search(never, said, re.MULTILINE):
                wrong = f"says {never!r}"
            if wrong:
                raise Wrong(f"{where}: `{text}` on {host.name} {wrong}:\n{said[-2500:]}")
        return said

    def leave(self, begins: str, why: str) -> None:
        """The next command is not run here, for this reason."""
        where, text = self.take(begins)
        self.left_out.append(f"`{text}` {why}")
        print(f"  not run: {where}: `{text}`: {why}", flush=True)

    def end(self) -> str:
        """Everything in the page was run or left out for a reason; the line that says so."""
        if self.left:
            rest = ", ".join(f"`{text}` (line {line})" for line, text in self.left)
            raise Wrong(f"{self.path.name}: neither run nor left out for a reason: {rest}")
        if unused := set(self.names) - self.used:
            raise Wrong(f"{self.path.name}: names that the page does not use (any more): {', '.join(sorted(unused))}")
        out = f", {len(self.left_out)} not run here" if self.left_out else ""
        return f"{self.ran} commands run{out}, {time.monotonic() - self.began:.0f} s"
