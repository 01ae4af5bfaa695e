#!/usr/bin/env python3
"""A second verifier of Samovar's proof files, written from docs/reference/formats.md alone; exit 0 only if all holds.
verify.py FILE VKEY [POLICY-FILE or "" [EXPECTED-KEY or "" [RECEIPT-OF-A-CHANGE-OF-KEYS ...]]]
verify.py --vectors DIR    (prints "N passed, N failed")"""
import base64, hashlib, json, pathlib, re, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
DECIMAL, CONTROL = "(0|[1-9][0-9]{0,18})", re.compile(r"[\x00-\x1f\x7f-\x9f]")
NOTE = re.compile(r"((?:[^\x00-\x1f]*\n)+)\n((?:— [^\s+]+ \S+\n){1,64})")
CHECKPOINT = re.compile(rf"(.+)\n{DECIMAL}\n(\S{{44}})\n(?:.+\n)*")
FILE = re.compile(rf"c2sp\.org/tlog-proof@v1\nextra (\S+)\nindex {DECIMAL}\n((?:\S{{44}}\n){{0,63}})\n(.+)", re.DOTALL)
def need(condition, why):
    if condition: return condition
    raise ValueError(why)
def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()
def b64(text): return need(base64.b64encode(d := base64.b64decode(text, validate=True)).decode() == text, "b64") and d
def fits(v, s):  # a schema: tuple = alternatives, [S, n] = at most n of S, dict = exactly these fields
    if type(s) is tuple: return any(fits(v, one) for one in s)
    if type(s) is list: return type(v) is list and len(v) <= s[1] and all(fits(x, s[0]) for x in v)
    if type(s) is dict: return type(v) is dict and list(v) == list(s) and all(fits(v[k], s[k]) for k in s)
    return s(v) if callable(s) else type(v) is type(s) and v == s
NUM, STR = lambda v: type(v) is int and 0 <= v < 2**53, lambda v: type(v) is str
B64, HASH = lambda v: STR(v) and b64(v) is not None, lambda v: STR(v) and len(b64(v)) == 32
TEXT = lambda most: lambda v: STR(v) and 1 <= len(v.encode()) <= most and not CONTROL.search(v)
KEY, AUTHOR, VKEY = TEXT(512), TEXT(128), TEXT(2560)
PUT = {"key": KEY, "previous": (NUM, None), "commitment": HASH, "size": NUM, "media": TEXT(127)}
ERASE = {"key": KEY, "revision": NUM, "previous": (NUM, None)}
OPERATION = ({"put": PUT}, {"put": {**PUT, "blob": True}}, {"delete": {"key": KEY, "previous": NUM}}, {"erase": ERASE})
ENTRY = ({"type": "transaction", "time": NUM, "author": AUTHOR, "operations": [OPERATION, 128]},
         {"type": "block", "height": NUM, "time": NUM, "count": NUM, "previous": (HASH, None), "state": HASH},
         {"type": "membership", "time": NUM, "voters": [NUM, 64], "learners": [NUM, 64]},
         {"type": "cosigners", "time": NUM, "author": AUTHOR, "log": VKEY, "cosigners": [VKEY, 64], "policy": STR},
         {"type": "recovery", "time": NUM, "author": AUTHOR, "log": VKEY, "cosigners": [VKEY, 64], "policy": STR,
          "reason": TEXT(256), "last": STR, "known": (STR, None)})
VALUE, SOURCE = {"salt": HASH, "value": B64}, {"entry": STR, "path": [HASH, 63]}
LEAF = (None, {"key": HASH, "value": HASH}, {"revision": NUM, "commitment": HASH, "erased": (NUM, None)})
MAP, OPENING = {"key": HASH, "siblings": [HASH, 256], "leaf": LEAF}, (VALUE, {"erased": NUM, **SOURCE}, None)
EXTRA = ({"entry": STR, "openings": [OPENING, 128]},
         {"block": STR, "key": STR, "map": MAP, "put": (SOURCE, None), "opening": (VALUE, None)})
def canonical(text, schema):
    same = json.dumps(value := json.loads(text), ensure_ascii=False, separators=(",", ":")) == text
    return need(same and fits(value, schema), "malformed JSON") and value
def vkey(text, kind):
    name, key_id, key = need(re.fullmatch(r"([^\s+]{1,255})\+([0-9a-f]{8})\+(\S+)", text), "not a key").groups()
    key, ident = b64(key), sha(name.encode(), b"\n", b64(key))[:4]
    need(len(key) == 33 and key[0] == kind and ident.hex() == key_id and not CONTROL.search(name), "not a fit key")
    return name, ident, kind, key[1:]
def signed_by(note, key):
    text, lines = need(len(note.encode()) <= 2**19 and NOTE.fullmatch(note), "not a signed note").groups()
    lines = [(name, b64(signature)) for _, name, signature in map(str.split, lines.split("\n")[:-1])]
    found = [s[4:] for name, s in lines if need(len(s) > 4, "too short a signature") and (name, s[:4]) == key[:2]]
    for s in found:  # every one must hold; verify() refuses S >= L
        need(key[2] == 1 or s[0] < 0x80, "too late a time")
        head, at = (b"", 0) if key[2] == 1 else (b"cosignature/v1\ntime %d\n" % int.from_bytes(s[:8], "big"), 8)
        Ed25519PublicKey.from_public_bytes(key[3]).verify(s[at:], head + text.encode())
    return bool(found)
def check_policy(policy, log, note, needs_nodes):
    logs, witnesses, met, members, groups, quorum = [], [], {}, [], [], []
    need(re.fullmatch(rb"([\t\x20-\x7e\x80-\xff]*\n)+", policy) and len(policy) <= 49152, "not a policy")
    lines = (line.split() for line in re.sub(rb"(?m)^[ \t]*#.*$", b"", policy).split(b"\n"))
    for kind, name, *words in filter(None, lines):
        need(kind not in (b"witness", b"group") or name not in (*met, b"none"), "a name twice")
        if kind == b"log" and len(words) <= 1: logs += [vkey(name.decode(), 1)]
        elif kind == b"witness" and len(words) <= 2:
            witnesses, met[name] = witnesses + [vkey(words[0].decode(), 4)], signed_by(note, vkey(words[0].decode(), 4))
        elif kind == b"group":
            k = {b"all": len(words) - 1, b"any": 1}.get(words[0]) or words[0].isdigit() and int(words[0])
            need(1 <= k < len(words), "not a threshold")
            members, groups, met[name] = members + words[1:], groups + [name], sum(met[m] for m in words[1:]) >= k
        else: quorum += [need(kind == b"quorum" and not words, "not a policy line") and (name == b"none" or met[name])]
    for once in [k[3] for k in logs], [k[3] for k in witnesses], members:
        need(len(set(once)) == len(once) and max(map(len, (logs, witnesses, groups))) <= 64, "one twice, or too many")
    need(quorum == [True] and (log in logs or not logs), "no quorum, or not a log of the policy")
    need(not needs_nodes or b"nodes" in groups and met[b"nodes"], "the group nodes is not reached")
def root_of(leaf, index, size, path):  # RFC 6962, section 2.1.1: the last hash is a child of the root
    if size == 1: return need(not path and leaf, "too long a path")
    left = 1 << (size - 1).bit_length() - 1
    if index < left: return sha(b"\1", root_of(leaf, index, left, path[:-1]), b64(path[-1]))
    return sha(b"\1", b64(path[-1]), root_of(leaf, index - left, size - left, path[:-1]))
def included(line, index, path, head):
    need(index < head[0] and len(line.encode()) <= 65535, "beyond the checkpoint, or too long an entry")
    need(root_of(sha(b"\0", line.encode()), index, head[0], path) == head[1], "not in the log")
    entry = canonical(line, ENTRY)
    operations, height = [next(iter(o.items())) for o in entry.get("operations", ())], entry.get("height", 2)
    need(len({o["key"] for _, o in operations}) == len(operations) > 0 or entry["type"] != "transaction", "keys")
    need(height > 0 and (height == 1) == (entry.get("previous", 0) is None), "a block without a block before it")
    return entry, operations
def opens(o, held): return need(sha(b64(o["salt"]), b64(o["value"])) == b64(held), "not the committed value")
def receipt(x, index, path, head, expected):
    operations = included(x["entry"], index, path, head)[1]
    puts, asked = [o for kind, o in operations if kind == "put"], expected in (None, *(o["key"] for _, o in operations))
    need(asked and len(puts) == len(x["openings"]), "the entry is about other keys, or has other puts")
    for put, o in zip(puts, x["openings"]):
        if o and "erased" in o:
            erases = [e for kind, e in included(o["entry"], o["erased"], o["path"], head)[1] if kind == "erase"]
            need((put["key"], index) in [(e["key"], e["revision"]) for e in erases], "that entry does not erase it")
        elif o and opens(o, put["commitment"]):
            need("blob" in put or len(b64(o["value"])) == put["size"], "not a value of that size")
def latest(x, index, path, head, expected):
    block, own, leaf = included(x["block"], index, path, head)[0], sha(x["key"].encode()), x["map"]["leaf"] or {}
    asked = b64(x["map"]["key"]) == own and expected in (None, x["key"])
    need(asked and block["type"] == "block" and index == head[0] - 1, "another key, or not the last block")
    siblings, bits = x["map"]["siblings"], lambda h: f"{int.from_bytes(h, 'big'):0256b}"
    node, held, erased = b"SPARSE_MERKLE_PLACEHOLDER_HASH__", leaf.get("commitment"), leaf.get("erased")
    if held:
        kind, end = (b"\1", b"") if erased is None else (b"\2", erased.to_bytes(8, "big"))
        node = sha(b"JMT::LeafNode", own, sha(kind, leaf["revision"].to_bytes(8, "big"), b64(held), end))
    elif leaf:
        other, n = b64(leaf["key"]), len(siblings)
        need(other != own and bits(other)[:n] == bits(own)[:n], "not a neighbour")
        node = sha(b"JMT::LeafNode", other, b64(leaf["value"]))
    for bit, sibling in list(zip(bits(own), map(b64, siblings)))[::-1]:
        node = sha(b"JMT::IntrnalNode", *((sibling, node) if bit == "1" else (node, sibling)))
    need(node == b64(block["state"]), "not what the state root says")
    need((held or not x["put"]) and (held and erased is None or not x["opening"]), "absent or erased, yet with a value")
    if x["put"]:
        puts = [o for k, o in included(x["put"]["entry"], leaf["revision"], x["put"]["path"], head)[1] if k == "put"]
        need([o["commitment"] for o in puts if o["key"] == x["key"]] == [held], "not the entry of the value")
    return not x["opening"] or opens(x["opening"], held)
def verified(data, most, _, key, policy, expected):
    extra, index, path, note = need(FILE.fullmatch(data.decode()), "not a proof file").groups()
    x, log = canonical(b64(extra).decode(), EXTRA), vkey(key, 1)
    need(signed_by(note, log) and len(data) <= 2**25, "not signed by the log")
    origin, size, root = need(CHECKPOINT.fullmatch(NOTE.fullmatch(note)[1]), "not a checkpoint").groups()
    need(origin == log[0] and int(size) < 2**63, "not a checkpoint of this log")
    policy is None or check_policy(policy, log, note, "block" in x)
    (latest if "block" in x else receipt)(x, int(index), path.split(), (int(size), b64(root)), expected)
    return need(int(size) <= most, "more than its keys lived to sign") and (x, int(index), int(size))
def follow(key, policy, chain):  # newest first: largest size signed, entry that began it, log key, policy
    trusted = [(2**63, -1, key, policy)]
    for file in chain:
        (x, index, size), (_, last, key, policy) = verified(file, *trusted[0], None), trusted[0]
        to = canonical(x["entry"], ENTRY)
        need(to["type"] == "cosigners" and index > last and vkey(to["log"], 1)[0] == vkey(key, 1)[0], "not the next")
        trusted[:1] = [(2**63, index, to["log"], policy and to["policy"].encode()), (size, last, key, policy)]
    return trusted
def attempt(function, *arguments):  # whatever the bytes, there is an answer
    try: return function(*arguments), None
    except Exception as e: return None, f"{type(e).__name__}: {e}"
def refusal(data, key, policy, expected, chain):
    trusted, why = attempt(follow, key, policy, chain)
    whys = [why] if why else [attempt(verified, data, *keys, expected)[1] for keys in trusted]
    return None if None in whys else whys[0]
def main(read, arguments):
    if arguments[0] != "--vectors":
        (file, key, policy, expected), chain = (arguments[:4] + [None, None])[:4], map(read, arguments[4:])
        why = refusal(read(file), key, read(policy) if policy else None, expected or None, chain)
        return f"refused: {why}" if why else print("holds" + "; log signature only" * (not policy))
    rows, get = json.loads(read(arguments[1] + "/index.json")), lambda name: name and read(f"{arguments[1]}/{name}")
    answers = [refusal(get(v["file"]), v["key"], get(v["policy"]), v["expect_key"], map(get, v["chain"])) for v in rows]
    wrong = [f"{v['file']}: {v['why']}: {why}" for v, why in zip(rows, answers) if v["accept"] != (why is None)]
    return print(*wrong, f"{len(rows) - len(wrong)} passed, {len(wrong)} failed", sep="\n") or len(wrong)
if __name__ == "__main__": sys.exit(main(lambda name: pathlib.Path(name).read_bytes(), sys.argv[1:]))
