"""Print the published Sparse Update schemes in their own accounting, on our networks at 128 px. No data files needed.

Usage: python reports/accountings.py > reports/accountings.txt
"""

from __future__ import annotations

import json
from pathlib import Path

from medyate_planner.graph import ModelGraph
from medyate_planner.memory.accounting import SparseUpdateScheme, full_scheme, read_scheme, sparse_update_bytes
from medyate_planner.models import example_input
from medyate_planner.models.zoo import ZOO_PREPROCESSING, build_zoo_model
from medyate_planner.trace import trace

SCHEMES = Path(__file__).parent / "sparse_update_schemes.json"
BATCH_SIZE = 2  # the accounting is per sample; one sample can not be traced


def main() -> None:
    print("accounting sparse-update: 8-bit weights and activations, 32-bit biases, 1-bit masks, one sample of 128 px")
    print(f"{'network':<16}{'label':<8}{'n_bias':>8}{'weights':>9}{'bytes':>11}{'KiB':>10}")
    for network, schemes in json.loads(SCHEMES.read_text(encoding="utf-8")).items():
        graph = graph_of(network)
        for label, data in schemes.items():
            print(row(network, label, graph, read_scheme(data, graph)))
        print(row(network, "full", graph, full_scheme(graph)))


def graph_of(network: str) -> ModelGraph:
    """The network as traced; its weights do not matter here, nor its number of classes."""
    model = build_zoo_model(network).eval()
    return trace(model, example_input(model, ZOO_PREPROCESSING.shape, batch_size=BATCH_SIZE)).graph(BATCH_SIZE)


def row(network: str, label: str, graph: ModelGraph, scheme: SparseUpdateScheme) -> str:
    amount_bytes = sparse_update_bytes(graph, scheme)
    trained = sum(ratio > 0 for ratio in scheme.ratios.values())
    return f"{network:<16}{label:<8}{scheme.n_bias:>8}{trained:>9}{amount_bytes:>11,}{amount_bytes / 1024:>10.2f}"


if __name__ == "__main__":
    main()
