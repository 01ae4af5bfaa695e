#!/usr/bin/env python3
"""image/advisories on data made up for the purpose: what it calls open, explained, and not run. Run alone: tests/image/advisories.py"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SOURCE = {"name": "debian:source", "value": "rauc"}
SBOM = {"components": [
    {"name": "librauc", "version": "1.13-2+b1", "properties": [SOURCE, {"name": "debian:source-version", "value": "1.13-2"}]},
    {"name": "tokio", "version": "1.0.0"},
]}  # fmt: skip
# What the tracker says of the release, and whether version 1.13-2 is vulnerable.
CASES = {
    "CVE-1": ({"status": "open", "urgency": "low"}, True),
    "CVE-2": ({"status": "resolved", "fixed_version": "1.13-2", "urgency": "low"}, False),
    "CVE-3": ({"status": "resolved", "fixed_version": "1.13-3", "urgency": "high"}, True),
    "CVE-4": ({"status": "resolved", "fixed_version": "0", "urgency": "unimportant"}, False),
    "CVE-5": ({"status": "undetermined", "urgency": "low"}, True),
    "CVE-6": (None, False),
    # By strings 1.9 would be newer than 1.13.
    "CVE-7": ({"status": "resolved", "fixed_version": "1.9-1", "urgency": "low"}, False),
}


def main() -> int:
    wrong = []
    with tempfile.TemporaryDirectory() as work:
        sbom, data, explained = Path(work) / "sbom", Path(work) / "data", Path(work) / "explained"
        sbom.write_text(json.dumps(SBOM))
        tracker = {f"source-{number}": {} for number in range(1000)}
        tracker["rauc"] = {name: {"releases": {"trixie": here} if here else {"sid": {"status": "open"}}} for name, (here, _) in CASES.items()}
        data.write_text(json.dumps(tracker))

        def run(*arguments: object) -> tuple[int, str]:
            result = subprocess.run([REPOSITORY / "image/advisories", *arguments], capture_output=True, text=True, check=False)
            return result.returncode, result.stdout + result.stderr

        expected = sorted(name for name, (_, vulnerable) in CASES.items() if vulnerable)
        for text, code, says in (
            ("", 1, "3 of them not explained"),
            ("".join(f'"{name}" = "not reached"\n' for name in expected), 0, "0 of them not explained"),
            ("".join(f'"{name}" = "not reached"\n' for name in [*expected, "CVE-2"]), 1, "CVE-2 is explained"),
        ):
            explained.write_text(text)
            ended, said = run(sbom, data, explained)
            named = sorted(line.split()[0] for line in said.splitlines() if line.startswith("CVE-") and "is explained in" not in line)
            if (ended, named) != (code, expected) or says not in said:
                wrong.append(f"with {text!r}: expected {code}, {expected} and {says!r}, got {ended} and {said}")
        data.write_text("{}")
        for file in (data, Path(work) / "missing"):
            ended, said = run(sbom, file, explained)
            if ended != 77 or "NOT RUN" not in said:
                wrong.append(f"without data: expected 77 and NOT RUN, got {ended} and {said}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"advisories: {5 - len(wrong)} of 5 as they should be")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
