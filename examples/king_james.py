"""The King James Bible as plain text, 4.3 MB, from Debian's bible-kjv: king_james.py FILE."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from debian import PackageError, unpacked
from monograph import MonographError
from monograph.ir.files import staged

VERSES = 31_102


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


def main() -> int:
    target = Path(sys.argv[1])
    try:
        content = text().encode()
        with staged(target.parent) as stage, stage.open(target.name) as f:
            f.write(content)
    except MonographError as e:
        print(e, file=sys.stderr)
        return 1
    print(f"{target}: {len(content):,} bytes, {VERSES:,} verses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
