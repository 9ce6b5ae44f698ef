"""One measurement of onnxruntime-genai, run by its own environment: genai_decode.py FOLDER PROMPT NEW THREADS.

The last line of stdout is JSON. Token ids are the prompt `(7 * i) % 1000`, as in decode_vs_genai.py.
"""

from __future__ import annotations

import json
import sys
import time

import onnxruntime_genai as og  # pyright: ignore[reportMissingImports]  # in an environment of its own


def main() -> None:
    folder, prompt, new, threads = sys.argv[1], *map(int, sys.argv[2:])
    config = og.Config(folder)
    options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    measure(model, prompt, new)
    print(json.dumps({"version": og.__version__, **measure(model, prompt, new)}))


def measure(model: og.Model, prompt: int, new: int) -> dict[str, float]:
    """Seconds of the prompt with its first token, and of `new` more tokens."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, min_length=prompt + new + 1, max_length=prompt + new + 1)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens([(7 * i) % 1000 for i in range(prompt)])
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new):
        generator.generate_next_token()
    return {"prefill": first - start, "decode": time.perf_counter() - first}


if __name__ == "__main__":
    main()
