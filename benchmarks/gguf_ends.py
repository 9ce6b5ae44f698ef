"""Ends of generation and token ids of GGUF vocabularies, here and in llama.cpp.

The vocabularies: those of real models, one for each rule by which a text is split before merging, and some with many
tokens that look like ends. llama.cpp is run through node-llama-cpp: give the folder it is installed in by --llamacpp or
$MONOGRAPH_LLAMACPP. --record FILE writes what llama.cpp said of the made vocabularies, which the tests read.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gguf_llamacpp import MODELS, peer
from gguf_vocabularies import TEXTS, all_vocabularies, write
from monograph.assets import FetchError, fetch
from monograph.console import working
from monograph.frontends.gguf_file import read_gguf
from monograph.frontends.gguf_tokenizer import gguf_tokenizer
from report import Row, parser, publish


def ask(modules: Path, files: dict[Path, int]) -> list[dict[str, Any]]:
    """What llama.cpp says of each vocabulary, see llamacpp_vocabulary.mjs. files: how many tokens each has."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "request.json"
        asked = [{"file": str(file), "size": size} for file, size in files.items()]
        place.write_text(json.dumps({"files": asked, "texts": TEXTS}))
        script = Path(__file__).parent / "llamacpp_vocabulary.mjs"
        done = subprocess.run(
            ["node", str(script), str(modules), str(place)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"llama.cpp failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, metadata: dict[str, Any], theirs: dict[str, Any]) -> Row:
    """One vocabulary. Leaves the program if llama.cpp cannot read it."""
    if "error" in theirs:
        sys.exit(f"{name}: llama.cpp: {theirs['error']}")
    tokenizer = gguf_tokenizer(metadata)
    mine = sorted(tokenizer.eos_ids)
    special = [tokenizer.encode(t, add_special=False) for t in TEXTS]
    plain = [tokenizer.encode(t, add_special=False, literal=True) for t in TEXTS]
    same = sum(a == b for a, b in zip([*special, *plain], [*theirs["special"], *theirs["plain"]], strict=True))
    return {
        "vocabulary": name,
        "tokens": tokenizer.size,
        "ends": ", ".join(f"{i} {tokenizer.core.id_to_token(i)}" for i in mine),
        "as llama.cpp": mine == theirs["ends"],
        "texts with equal ids": f"{same} of {2 * len(TEXTS)}",
        "marks stay": bool([n for n in tokenizer.notes if n.key == "tokenizer.ggml.pre" and "marks" in n.why]),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--llamacpp", help="the folder that node-llama-cpp is installed in")
    options.add_argument("--model", action="append", metavar="NAME=FILE", help="a file of your own in place of these")
    options.add_argument("--record", type=Path, help="where to write what llama.cpp said of the made vocabularies")
    given = options.parse_args()
    modules = peer(given.llamacpp)
    own = dict(m.split("=", 1) for m in given.model or ())
    made = all_vocabularies()
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = {name: Path(own[name]) if own else fetch(name) for name in own or MODELS}
        except FetchError as e:
            sys.exit(str(e))
        metadata = {name: read_gguf(file).metadata for name, file in files.items()} | made
        for number, name in enumerate(made):
            files[name] = Path(folder) / f"{number}.gguf"
            write(files[name], made[name])
        with working("llama.cpp"):
            sizes = {file: len(metadata[name]["tokenizer.ggml.tokens"]) for name, file in files.items()}
            answers = dict(zip(files, ask(modules, sizes), strict=True))
    if given.record:
        record(given.record, {name: answers[name] for name in made})
    rows = [row(name, metadata[name], answers[name]) for name in files]
    note = (
        "A text counts twice: its special tokens read as such, and letter by letter. Where marks stay, ids differ on "
        "purpose: the models' own tokenizer.json keeps combining marks with their letters."
    )
    publish("gguf_ends", rows, note=note, only_print=given.no_publish)


def record(file: Path, answers: dict[str, Any]) -> None:
    """Equal answers are written once: {"names": {name: number}, "answers": [...]}."""
    kept = {k: {"ends": a["ends"], "special": a["special"]} for k, a in answers.items()}
    distinct = list({json.dumps(a): a for a in kept.values()}.values())
    lines = ",\n".join(json.dumps(a, separators=(",", ":")) for a in distinct)
    names = json.dumps({k: distinct.index(a) for k, a in kept.items()}, indent=1)
    file.write_text(f'{{"names": {names},\n"answers": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
