"""ATen operators by family: the vocabulary shared by tracing, the memory rules and the lean operators.

A family is a set of operators that keep the same things for backward. An operator that is in no family is
`MEASURED`: what PyTorch keeps for it is measured, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

MEASURED = "measured"

CONV = "conv"
CONV_TRANSPOSE = "conv_transpose"
LINEAR = "linear"
ADDMM = "addmm"  # a linear layer whose weight stands the other way round
EMBEDDING = "embedding"
BATCH_NORM = "batch_norm"
BATCH_NORM_TRAIN = "batch_norm_train"  # with the statistics of the batch
RELU = "relu"  # gradient passes where the output is above zero
CLAMP = "clamp"  # relu6, hardtanh: passes strictly between two bounds
LEAKY_RELU = "leaky_relu"
HARD_SIGMOID = "hard_sigmoid"
MAX_POOL = "max_pool"
AVG_POOL = "avg_pool"
ADAPTIVE_AVG_POOL = "adaptive_avg_pool"
DROPOUT = "dropout"
KEEPS_NOTHING = "keeps_nothing"  # linear in its input: add, cat, views, mean, padding
KEEPS_INPUT = "keeps_input"  # the derivative is computed from the input
KEEPS_OUTPUT = "keeps_output"  # the derivative is computed from the output
PRODUCT = "product"  # keeps the other operand
LAYER_NORM = "layer_norm"
GROUP_NORM = "group_norm"

# Norms, by operator: the place of the scale among the arguments. A bias stands behind it.
NORM_SCALES: Mapping[str, int] = {"batch_norm": 1, "layer_norm": 2, "group_norm": 2, "rms_norm": 2}

STATISTICS = "statistics"  # attribute of a norm: their type, where its parameters are of another than its input

# Families whose PyTorch form keeps more than the gradient needs: the executor replaces them.
WEIGHTED = frozenset({CONV, CONV_TRANSPOSE, LINEAR, ADDMM, EMBEDDING})  # the weights of these are layers
# Places of input, weight and bias among the arguments, where they are not the first three.
PLACES: Mapping[str, tuple[int, int, int | None]] = {EMBEDDING: (1, 0, None), ADDMM: (1, 2, 0)}
LEAN = WEIGHTED | {
    BATCH_NORM, RELU, CLAMP, LEAKY_RELU, HARD_SIGMOID, MAX_POOL, AVG_POOL, ADAPTIVE_AVG_POOL, DROPOUT
}  # fmt: skip

_MEMBERS: Mapping[str, str] = {
    CONV: "conv1d conv2d conv3d",
    CONV_TRANSPOSE: "conv_transpose1d conv_transpose2d conv_transpose3d",
    LINEAR: "linear",
    ADDMM: "addmm",
    EMBEDDING: "embedding",
    BATCH_NORM: "batch_norm",
    RELU: "relu",
    CLAMP: "relu6 hardtanh",
    LEAKY_RELU: "leaky_relu",
    HARD_SIGMOID: "hardsigmoid",
    MAX_POOL: "max_pool2d",
    AVG_POOL: "avg_pool2d",
    ADAPTIVE_AVG_POOL: "adaptive_avg_pool2d",
    DROPOUT: "dropout",
    KEEPS_NOTHING: (
        "add sub rsub neg cat stack hstack concat view reshape _unsafe_view flatten unflatten permute transpose t "
        "movedim swapaxes squeeze unsqueeze select slice narrow chunk split split_with_sizes tensor_split unbind "
        "expand expand_as contiguous clone alias mean sum pad constant_pad_nd roll flip pixel_shuffle "
        "pixel_unshuffle zero_pad2d repeat tile identity detach_copy tril triu view_as channel_shuffle numpy_T mT"
    ),
    KEEPS_INPUT: "silu gelu hardswish mish softplus log_sigmoid sin cos log pow square abs",
    KEEPS_OUTPUT: "sigmoid tanh exp sqrt rsqrt softmax log_softmax _softmax",
    PRODUCT: "mul",
    LAYER_NORM: "layer_norm",
    GROUP_NORM: "group_norm",
}
_FAMILY_OF = {name: family for family, names in _MEMBERS.items() for name in names.split()}


DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def family_of(operator: str) -> str:
    """Family of an ATen operator given as `conv2d` or, in its in-place form, `relu_`."""
    return _FAMILY_OF.get(operator, _FAMILY_OF.get(operator.rstrip("_"), MEASURED))
