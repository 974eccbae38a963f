"""Two accountings of other papers, to compare with their figures: `elements` and `sparse-update` (DESIGN section 3).

Neither is what a step really keeps; that is `timeline.footprint`. Whoever shows such a number names its accounting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from medyate_planner.errors import InputError
from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.memory.model import MemoryModel, Updates

BIAS_BITS = 32
MASK_BITS = 1
QUANTIZED_BITS = 8  # of a weight, and of an activation
_CONVOLUTIONS = ("conv", "depthwise", "grouped", "transposed")
SCHEME_KEYS = ("n_bias", "weights")


def elements(memory: MemoryModel, updates: Updates) -> int:
    """Sum C_out*kh*kw + H*W over the selected channels: weight and activation elements of one sample, nothing else.

    Raises:
        InputError: an unknown layer or a quota out of range.

    Source: TraDy (arXiv 2510.19675), the space of a channel.
    Limits: a weight used at several places counts the activation of the first.
    """
    memory.check(updates)
    return sum(n * memory.costs[name].elements for name, n in memory.channels(updates).items())


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseUpdateScheme:
    """The biases of the last `n_bias` convolutions, and of each convolution in `ratios` that part of its channels.

    A convolution trains int(C_in * ratio) input channels; one with ratio 0, or not named, trains none.
    """

    n_bias: int
    ratios: Mapping[str, Fraction]

    def __post_init__(self) -> None:
        if isinstance(self.n_bias, bool) or not isinstance(self.n_bias, int) or self.n_bias < 0:
            raise InputError(f"scheme: n_bias: expected a whole number of 0 or more, got {self.n_bias!r}")
        for name, ratio in self.ratios.items():
            _read_ratio(name, ratio)

    def check(self, graph: ModelGraph) -> None:
        """Raise `InputError` unless the model has these convolutions, and at least `n_bias` of them."""
        known = convolutions(graph)
        if self.n_bias > len(known):
            raise InputError(f"scheme: n_bias {self.n_bias} is more than the {len(known)} convolutions of the model")
        names = {layer.name for layer in known}
        for name in self.ratios:
            if name not in names:
                raise _no_convolution(graph, name)


def convolutions(graph: ModelGraph) -> tuple[Layer, ...]:
    """Convolutions in forward order, without the classifier (the head): what the indices of a scheme count."""
    return tuple(layer for layer in graph.layers if layer.kind in _CONVOLUTIONS and layer.name not in graph.head)


def full_scheme(graph: ModelGraph) -> SparseUpdateScheme:
    """Every bias and every weight of every convolution: full fine-tuning, as this accounting can state it."""
    known = convolutions(graph)
    return SparseUpdateScheme(n_bias=len(known), ratios={layer.name: Fraction(1) for layer in known})


def read_scheme(data: Any, graph: ModelGraph) -> SparseUpdateScheme:
    """Read `{"n_bias": 16, "weights": {"36": 1, "41": 0.25}}`, the form in which schemes are published.

    A key of `weights` made of digits is an index among `convolutions(graph)` (the stem is 0), any other the name of
    a layer. A decimal ratio is taken as it is written: 0.29 of 100 channels are 29.

    Raises:
        InputError: another form, an unknown key, a convolution the model lacks or named twice, a number out of range.
    """
    _check_form(data)
    keys: dict[str, str] = {}
    ratios: dict[str, Fraction] = {}
    for key, ratio in data["weights"].items():
        name = _resolve(graph, str(key))
        if name in keys:
            raise InputError(f"scheme: weights name the convolution {name} twice, as {keys[name]!r} and {str(key)!r}")
        keys[name] = str(key)
        ratios[name] = _read_ratio(key, ratio)
    scheme = SparseUpdateScheme(n_bias=data["n_bias"], ratios=ratios)
    scheme.check(graph)
    return scheme


def sparse_update_bits(graph: ModelGraph, scheme: SparseUpdateScheme) -> int:
    """Bits of one sample's update: 8-bit weights and activations, 32-bit biases, 1-bit masks; all else costs nothing.

    A convolution among the last n_bias: 32*C_out + C_out*H_out*W_out. One that trains c = int(C_in*ratio) > 0
    channels: 8*c*H_in*W_in + 8*(c*C_out*k*k if normal, c*m*k*k if depthwise with multiplier m, all of its weight
    if grouped). The head: 8*C_in, whatever its number of classes.

    Raises:
        InputError: the scheme is not for this model.

    Source: Sparse Update (arXiv 2206.15472); gives the 15 labels of reports/sparse_update_schemes.json.
    Limits: the paper's networks are convolutions with a bias, used once, normal or depthwise; elsewhere this extends
        it. A bias is charged also where a norm stands in its place (the paper folds norms into convolutions). A
        weight used at several places adds its masks and activations over them; the first gives its place in the
        order. The authors' code charges a grouped convolution for all its input channels, and refuses a trained
        weight before the last n_bias; here the one pays for c channels, the other for its weight alone.
    """
    scheme.check(graph)
    known = convolutions(graph)
    with_bias = known[len(known) - scheme.n_bias :]
    return (
        sum(_bias_bits(graph, layer) for layer in with_bias)
        + sum(_weight_bits(graph, layer, scheme.ratios.get(layer.name, Fraction(0))) for layer in known)
        + sum(QUANTIZED_BITS * graph.layer_by_name[name].channels for name in graph.head)
    )


def sparse_update_bytes(graph: ModelGraph, scheme: SparseUpdateScheme) -> int:
    """`sparse_update_bits` in bytes, rounded up once, at the end. Published labels are whole KiB, rounded down."""
    return -(-sparse_update_bits(graph, scheme) // 8)


def _bias_bits(graph: ModelGraph, layer: Layer) -> int:
    outputs = sum(graph.op_by_name[site].output.numel for site in layer.sites)
    return BIAS_BITS * layer.out_channels + MASK_BITS * (outputs // graph.batch_size)


def _weight_bits(graph: ModelGraph, layer: Layer, ratio: Fraction) -> int:
    channels = int(layer.channels * ratio)
    if channels == 0:
        return 0
    inputs = sum(graph.values[graph.op_by_name[site].operands[0]].numel for site in layer.sites)
    saved = channels * (inputs // graph.batch_size // layer.channels)
    kept = layer.weight_elements if layer.kind == "grouped" else channels * layer.elements_per_channel
    return QUANTIZED_BITS * (saved + kept)


def _check_form(data: Any) -> None:
    form = 'expected {"n_bias": N, "weights": {"INDEX or NAME": RATIO, …}}'
    if not isinstance(data, Mapping):
        raise InputError(f"scheme: {form}, got a {type(data).__name__}")
    for key in data:
        if key not in SCHEME_KEYS:
            raise InputError(f"scheme: unknown key {key!r}; {form}")
    for key in SCHEME_KEYS:
        if key not in data:
            raise InputError(f"scheme: the key {key!r} is missing; {form}")
    if not isinstance(data["weights"], Mapping):
        raise InputError(f"scheme: weights: {form}, got a {type(data['weights']).__name__}")


def _resolve(graph: ModelGraph, key: str) -> str:
    """Name of the convolution that a key of `weights` means."""
    known = convolutions(graph)
    if not re.fullmatch("-?[0-9]+", key):
        if key not in {layer.name for layer in known}:
            raise _no_convolution(graph, key)
        return key
    if not 0 <= int(key) < len(known):
        raise InputError(f"scheme: weights: the index {key} is out of range; {_extent(known)}")
    return known[int(key)].name


def _read_ratio(key: Any, ratio: Any) -> Fraction:
    is_number = isinstance(ratio, (int, float, Fraction)) and not isinstance(ratio, bool)
    if not is_number or not 0 <= ratio <= 1:
        raise InputError(f"scheme: weights: {key}: expected a ratio from 0 to 1, got {ratio!r}")
    return Fraction(str(ratio))


def _no_convolution(graph: ModelGraph, name: str) -> InputError:
    if name in graph.head:
        reason = "is the head: it is always trained, at a fixed cost; leave it out"
    elif name in graph.layer_by_name:
        reason = f"is a {graph.layer_by_name[name].kind} layer: this accounting covers convolutions alone; leave it out"
    else:
        reason = f"the model does not have; {_extent(convolutions(graph))}"
    return InputError(f"scheme: weights name {name!r}, which {reason}")


def _extent(known: tuple[Layer, ...]) -> str:
    """Which convolutions there are, for error messages."""
    if not known:
        return "it has no convolution (the head is not counted)"
    return f"its convolutions are 0 ({known[0].name}) to {len(known) - 1} ({known[-1].name}), the head not counted"
