#!/usr/bin/env python3
"""Which versions a box installs after which, by its own code. Run alone: tests/image/versions.py"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(REPOSITORY / "ansible/roles/bake/files/root/usr/lib/samovar"))
import updates  # noqa: E402

# What runs, what is to be installed, the oldest version it goes over, and what the refusal must say; "" if it is taken.
FOLLOW = [
    ("0.1.0", "0.1.1", "0.1.0", ""),
    ("0.1.9", "0.2.0", "0.0.0", ""),
    ("0.9.3", "1.0.0", "0.0.0", ""),
    ("0.2.3", "0.2.1", "0.0.0", ""),
    ("0.2.3", "0.2.3", "0.0.0", "runs already"),
    ("0.2.3", "0.2.3-rc1", "0.0.0", ""),
    ("0.2.0", "0.1.9", "0.0.0", "rollback"),
    ("1.0.0", "0.9.9", "0.0.0", "rollback"),
    ("0.1.0", "0.3.0", "0.0.0", "install 0.2 first"),
    ("0.1.0", "1.1.0", "0.0.0", "leaves a minor version out"),
    ("0.1.0", "2.0.0", "0.0.0", "leaves a minor version out"),
    ("0.1.0", "0.2.0", "0.1.5", "install 0.1.5 first"),
    ("0.1.0", "next", "0.0.0", "is no version"),
]
# Data format of the ledger here, that of the version, what the refusal must say.
READS = [(1, 1, ""), (1, 2, ""), (2, 1, "the ledger here is of data format 2")]


def refusal(function, *arguments: object) -> str:
    try:
        function(*arguments)
    except updates.Refused as refused:
        return str(refused)
    return ""


def main() -> int:
    cases = [(case, refusal(updates.follow, *case[:3])) for case in FOLLOW]
    cases += [(case, refusal(updates.reads, {"version": "1.2.3", "data_format": case[1]}, {"data_format": case[0]})) for case in READS]
    wrong = [(case, said) for case, said in cases if (case[-1] not in said if case[-1] else said)]
    for case, said in wrong:
        print(f"{case[:-1]}: expected {case[-1] or 'to be taken'!r}, got {said!r}")
    print(f"versions: {len(cases) - len(wrong)} of {len(cases)} as they should be")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
