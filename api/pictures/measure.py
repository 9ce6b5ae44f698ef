"""How wide text is, and how it is broken into lines, without a font at hand: wider than in common fonts, never less."""

from __future__ import annotations

_NARROW = frozenset("ijlI.,:;|'!()[]{}ft -·/")
_WIDE = frozenset("mwMW@%—→×")


def width(text: str, size: float, bold: bool = False) -> float:
    """Pixels that a line takes at most in a sans-serif font of `size` pixels."""
    total = 0.0
    for c in text:
        if c in _NARROW:
            total += 0.42
        elif c in _WIDE or ord(c) > 0x2E80:
            total += 1.0
        else:
            total += 0.74 if c.isupper() else 0.64
    return total * size * (1.1 if bold else 1.0)


def wrapped(text: str, size: float, limit: float) -> list[str]:
    """Lines no wider than `limit`, broken at spaces; a single word that is wider is cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and width(joined, size) <= limit:
            lines[-1] = joined
        else:
            lines.append(cut(word, size, limit))
    return lines


def cut(text: str, size: float, limit: float) -> str:
    """Text that is no wider than `limit`: the middle of a longer one is left out."""
    if width(text, size) <= limit:
        return text
    keep = len(text)
    while keep > 2 and width(text[: keep // 2] + "…" + text[-(keep - keep // 2) :], size) > limit:
        keep -= 1
    return text[: keep // 2] + "…" + text[-(keep - keep // 2) :]


def number(n: int) -> str:
    """1234567 -> 1.23 M."""
    for unit, size in (("", 1), (" K", 10**3), (" M", 10**6), (" B", 10**9)):
        if float(f"{n / size:.3g}") < 1000:
            return f"{n / size:.3g}{unit}"
    return f"{n / 10**12:.3g} T"
