"""I8: the closed-form bound of the live peak is never below it, on the zoo and on networks that none of us wrote."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import pytest
from architectures import build, example, loss_name
from networks import all_networks, subject

from medyate_planner.memory.model import Updates
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.dryrun import dry_run

THIRD_PARTY = (
    "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224",
    "timm:mobilevit_xxs", "timm:convnext_atto", "timm:levit_128s", "transformers:bert", "transformers:llama",
)  # fmt: skip


@lru_cache(maxsize=1)
def third_party(spec: str) -> Subject:
    model = build(spec, "meta")
    return subject_of(model, example(spec, model, 2), loss=loss_name(spec))


def random_updates(made: Subject, seed: int) -> Updates:
    """Some layers from a random depth on, each with a random share of its channels."""
    random, graph = Random(seed), made.graph
    body = [layer for layer in graph.layers if layer.name not in graph.head]
    chosen = [layer for layer in body[random.randrange(len(body)) :] if random.random() < 0.7] or body[-1:]
    return Updates(
        quotas={layer.name: random.randint(1, layer.channels) for layer in chosen},
        biases=frozenset(layer.name for layer in chosen if layer.bias and random.random() < 0.5),
        full=frozenset(graph.head),
    )


def check(made: Subject, updates: Updates) -> None:
    dry = dry_run(made.traced, made.graph, updates, made.loss.function, made.loss.make_target)
    assert dry.live_peak_bytes is not None
    bound = made.peak_bound_bytes(updates)
    assert dry.live_peak_bytes <= bound
    assert bound <= 2 * dry.live_peak_bytes, "so loose that it says nothing"


@all_networks
def test_the_bound_holds_on_our_networks(network: str) -> None:
    made = subject(network, 8)
    for seed in range(3):
        check(made, random_updates(made, seed))


@pytest.mark.parametrize("spec", THIRD_PARTY)
def test_the_bound_holds_on_other_peoples_networks(spec: str) -> None:
    made = third_party(spec)
    for seed in range(3):
        check(made, random_updates(made, seed))
    check(made, Updates(quotas={}, full=frozenset(layer.name for layer in made.graph.layers)))
