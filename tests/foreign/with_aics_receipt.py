"""aics-tlog: a receipt offline, under a published policy of so many out of named cosigners."""

import base64
import json
import pathlib
import sys

from aics_tlog import *

file, vkey, policy_file = sys.argv[1:]
head, checkpoint = pathlib.Path(file).read_text().split("\n\n", 1)
_, extra, index, *path = head.split("\n")
policy = [line.split() for line in pathlib.Path(policy_file).read_text().splitlines()]
witnesses = [words[2] for words in policy if words[0] == "witness"]
(quorum,) = [int(words[2]) for words in policy if words[0] == "group"]
named = WitnessPolicy.from_dict({"quorum": quorum, "witnesses": witnesses})
result = verify_checkpoint(parse_note(checkpoint), parse_vkey(vkey), policy=named)
assert result.ok, result.error
entry = json.loads(base64.b64decode(extra.removeprefix("extra ")))["entry"].encode()
proof = [base64.b64decode(line) for line in path]
assert verify_leaf_inclusion(entry, int(index.split()[1]), result.size, proof, result.root), "inclusion"
print(f"cosignatures: {result.cosignature_count}")
