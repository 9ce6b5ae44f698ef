"""The pictures of these pages, made by the tool: python docs/pictures.py [folder].

Structure only, with the sizes of published models: no weights are needed. A test holds the drawings against the code.
`gpt` is the model of the tutorial, as it stands there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from monograph.frontends.dsl import Model, load_family
from monograph.pictures import draw, write_page

FOLDER = Path(__file__).parent / "pictures"
SMOLLM2: dict[str, Any] = {
    "vocab": 49152, "dim": 576, "layers": 30, "heads": 9, "kv_heads": 3, "ffn": 1536, "eps": 1e-5, "tied": True,
    "max_positions": 8192, "theta": 1e5,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "transformer2017": ("Transformer (2017)", "transformer2017", {"vocab": 37000}),
    "bert": ("BERT base", "bert", {"vocab": 30522}),
    "llama": ("SmolLM2 135M (llama)", "llama", SMOLLM2),
    "mixtral": (
        "Mixtral 8x7B",
        "mixtral",
        {"vocab": 32000, "dim": 4096, "ffn": 14336, "layers": 32, "heads": 32, "kv_heads": 8},
    ),
    "t5": ("T5 base", "t5", {"vocab": 32128, "dim": 768, "width": 64, "ffn": 3072, "layers": 12, "heads": 12}),
    "whisper": (
        "Whisper base",
        "whisper",
        {
            "vocab": 51865, "dim": 512, "layers": 6, "decoder_layers": 6, "heads": 8, "decoder_heads": 8, "ffn": 2048,
            "decoder_ffn": 2048, "mels": 80, "source_positions": 1500, "max_positions": 448,
        },
    ),
    "lfm2": (
        "LFM2 350M",
        "lfm2",
        {
            "vocab": 65536, "dim": 1024, "block_ff_dim": 6656, "layers": 16, "heads": 16, "kv_heads": 8,
            "attending": [2, 5, 8, 10, 12, 14],
        },
    ),
    "gpt": ("The model of the tutorial", "", {}),
}  # fmt: skip
"""File name => title, family, and fields of its config."""


def made(name: str) -> tuple[str, Model]:
    """Title and model of a picture."""
    title, family, fields = MODELS[name]
    return title, load_family(family)(**fields) if family else tutorial()


def tutorial() -> Model:
    """The model in the file gpt.py of the tutorial."""
    page = FOLDER.parent / "tutorial.md"
    found = re.search(r'^```python title="gpt.py"\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{page} has no gpt.py")
    module = ModuleType("gpt")
    sys.modules["gpt"] = module
    exec(compile(found[1], "gpt.py", "exec"), module.__dict__)
    return module.gpt()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        title, model = made(name)
        print(draw(model, title=title).save(folder / f"{name}.svg"))
    title, model = made("llama")
    print(write_page(model, folder / "smollm2.html", title=title))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
