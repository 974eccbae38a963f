"""A transformer of 7 billion parameters, batch 1, 512 tokens, from its configuration alone, without allocating it.

    python reports/llama_7b.py > reports/llama_7b.txt

Ends with the seconds and the resident memory of the whole process, imports included.
"""

from __future__ import annotations

import time

START = time.perf_counter()

import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
OPTIONS = ["--batch-size", "1", "--input-shape", "512", "--loss", "next-token", "--depth", "2"]


def main() -> int:
    """Run `medyate report hf:llama-7b …` on a folder that holds nothing but the configuration."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from third_party import import_torchvision

    import_torchvision()  # transformers imports it where it is installed
    import torch

    from medyate_planner.cli import main as medyate

    torch.set_num_threads(1)
    gc.disable()  # as the console script does for brief commands
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("llama-7b").mkdir()
        Path("llama-7b/config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        code = medyate(["report", "hf:llama-7b", *OPTIONS])
        os.chdir("/")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - START
    print(f"\n{seconds:.1f} s in all, imports included; resident memory {resident:,} B ({resident / 2**30:.2f} GiB)")
    return code


if __name__ == "__main__":
    sys.exit(main())
