"""Every benchmark, one after the other; `make bench` runs this. One that fails does not stop the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    "code_size",
    "build_time",
    "build_memory",
    "passes_speed",
    "loss_memory",
    "recompute",
    "data_pipeline",
    "kill_resume",
    "distributed",
    "encoders",
    "serving",
    "quantization",
    "tune",
    "strategies",
    "clients",
    "server",
    "batching",
    "parity_smollm2",
    "families",
    "cuda_cases",
    "optimize_files",
    "fusion_coverage",
    "onnx_node_tests",
    "torch_programs",
    "miscompilations",
    "mutated_files",
    "twin_check",
    "certify",
    "own_models",
    "new_user",
    "state_memory",
    "training_speed",
    "recipes",
    "translations",
)


def main() -> int:
    chosen = [n for n in sys.argv[1:] if not n.startswith("-")] or NAMES
    options = [n for n in sys.argv[1:] if n.startswith("-")]
    failed: list[str] = []
    for name in chosen:
        script = Path(__file__).parent / f"{name}.py"
        if subprocess.run([sys.executable, str(script), *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
