"""The King James Bible from Debian's bible-kjv: king_james.py FOLDER writes kjv.txt, 4.1 MB, and kjv-parts.tsv.

kjv-parts.tsv has `part<TAB>verse` lines, each verse with one of six parts of the Bible, in an order that is always the
same but has nothing to do with theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from debian import PackageError, unpacked
from monograph import MonographError
from monograph.ir.files import staged

VERSES = 31_102
PARTS = {"law": "Ge", "history": "Josh", "poetry": "Job", "prophets": "Isa", "gospels": "Mat", "letters": "Rom"}
"""Each part and its first book."""


def verses() -> list[tuple[str, str]]:
    """(chapter, text) of every verse, in order."""
    program, data = unpacked("bible-kjv") / "usr/bin/bible", unpacked("bible-kjv-text") / "usr/lib"
    command = [str(program), "-f", "-p", str(data), "Gen1:1-Rev22:21"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=data)
    found = re.findall(r"^(\S+ ?\d+):\d+ +(.*)$", done.stdout, re.MULTILINE)
    if len(found) != VERSES:
        details = done.stderr.splitlines()[-2:] or done.stdout.splitlines()[:2]
        raise PackageError(f"bible gave {len(found)} verses, expected {VERSES}", details=details)
    return found


def text() -> str:
    """A line a verse, a blank line between chapters."""
    lines: list[str] = []
    last = ""
    for chapter, verse in verses():
        if lines and chapter != last:
            lines.append("")
        lines.append(verse)
        last = chapter
    return "\n".join(lines) + "\n"


def parts() -> str:
    """A line a verse: its part and its text."""
    begins, part, lines = {book: part for part, book in PARTS.items()}, "", list[str]()
    for chapter, verse in verses():
        part = begins.get(chapter.rstrip("0123456789").strip(), part)
        lines.append(f"{part}\t{verse}")
    return "\n".join(sorted(lines, key=lambda line: hashlib.sha256(line.encode()).digest())) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args().folder
    try:
        contents = {"kjv.txt": text().encode(), "kjv-parts.tsv": parts().encode()}
        with staged(folder) as stage:
            for name, content in contents.items():
                with stage.open(name) as f:
                    f.write(content)
    except MonographError as e:
        print(e, file=sys.stderr)
        return 1
    for name, content in contents.items():
        print(f"{folder / name}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
