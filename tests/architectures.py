"""Architectures that none of us wrote, and how to build them: torchvision, timm, transformers (small random ones)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from third_party import import_timm, import_torchvision
from torch import Tensor, nn


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TORCHVISION = _names(
    "alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 squeezenet1_1 densenet121 googlenet "
    "inception_v3 mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5 regnet_y_400mf efficientnet_b0 "
    "efficientnet_v2_s convnext_tiny vit_b_16 swin_t swin_v2_t maxvit_t r3d_18 mc3_18"
)
TIMM = _names(
    "vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 swin_tiny_patch4_window7_224 mixer_s32_224 "
    "gmlp_ti16_224 resmlp_12_224 mobilevit_xxs mobilevitv2_050 convnext_atto convnextv2_atto levit_128s pit_ti_224 "
    "poolformer_s12 xcit_nano_12_p16_224 cait_xxs24_224 coat_lite_tiny convit_tiny crossvit_tiny_240 "
    "edgenext_xx_small efficientformer_l1 efficientnet_lite0 fastvit_t8 ghostnet_050 hardcorenas_a hrnet_w18_small "
    "inception_next_tiny lcnet_050 mnasnet_small mobilenetv4_conv_small mobileone_s0 nest_tiny nf_regnet_b0 "
    "repvgg_a0 res2net50_14w_8s resnest14d rexnet_100 selecsls42 sequencer2d_s skresnet18 tinynet_e "
    "tnt_s_patch16_224 twins_pcpvt_small visformer_tiny volo_d1_224 davit_tiny focalnet_tiny_srf gcvit_xxtiny "
    "hiera_tiny_224 repvit_m1 starnet_s1 tiny_vit_5m_224 beit_base_patch16_224 eva02_tiny_patch14_224 "
    "mambaout_femto halonet26t lambda_resnet26t botnet26t_256 eca_nfnet_l0 dla34 dpn48b csatv2"
)
_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 211,
}
_GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 211, "n_positions": 64}
TRANSFORMERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", _TEXT),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", _TEXT),
    "electra": ("ElectraConfig", "ElectraForSequenceClassification", _TEXT),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**_TEXT, "embedding_size": 32}),
    "distilbert": (
        "DistilBertConfig", "DistilBertForSequenceClassification",
        {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "vocab_size": 211},
    ),
    "deberta-v2": ("DebertaV2Config", "DebertaV2ForSequenceClassification", _TEXT),
    "mpnet": ("MPNetConfig", "MPNetForSequenceClassification", _TEXT),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _TEXT),
    "opt": (
        "OPTConfig", "OPTForCausalLM",
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 211,
         "word_embed_proj_dim": 64},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _TEXT),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_TEXT, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**_TEXT, "num_key_value_heads": 2}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**_TEXT, "num_key_value_heads": 2, "head_dim": 16}),
}  # fmt: skip
TOKENS = 32
# PyTorch's own backward (2.13, oneDNN) corrupts the heap: the weight gradient of a 1x1 convolution of the 3 input
# channels with stride 2. Measured in PyTorch's default memory format instead.
CRASHES_IN_CHANNELS_LAST = frozenset({"timm:fastvit_t8", "timm:mobileone_s0", "timm:repvgg_a0"})
PLANNED = (
    *_names(
        "torchvision:alexnet torchvision:vgg11_bn torchvision:resnet18 torchvision:squeezenet1_1 "
        "torchvision:densenet121 torchvision:mobilenet_v2 torchvision:mnasnet0_5 torchvision:mobilenet_v3_small "
        "torchvision:shufflenet_v2_x0_5 "
        "torchvision:regnet_y_400mf torchvision:efficientnet_b0 torchvision:googlenet timm:vit_tiny_patch16_224 "
        "timm:mixer_s32_224 timm:mobilevit_xxs timm:convnext_atto timm:levit_128s timm:pit_ti_224 timm:poolformer_s12 "
        "timm:efficientnet_lite0 timm:lcnet_050 timm:tinynet_e timm:rexnet_100 timm:repvit_m1 timm:starnet_s1 "
        "timm:edgenext_xx_small transformers:bert transformers:distilbert transformers:electra transformers:opt "
        "transformers:llama transformers:qwen2"
    ),
)


def all_specs() -> tuple[str, ...]:
    """Every architecture as `library:name`."""
    return (
        *(f"torchvision:{name}" for name in TORCHVISION),
        *(f"timm:{name}" for name in TIMM),
        *(f"transformers:{name}" for name in TRANSFORMERS),
    )


def build(spec: str, device: str) -> nn.Module:
    """The network in evaluation mode on `device`; for "meta" without ever having memory, if its code allows that."""
    library, _, name = spec.partition(":")
    maker = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]
    try:
        with torch.device(device):
            model = maker(name)
    except NotImplementedError:  # its constructor computes with tensors that have no values on the meta device
        model = maker(name).to(device)
    model.eval()
    if (
        library != "transformers"
        and spec not in CRASHES_IN_CHANNELS_LAST
        and all(p.dim() < 5 for p in model.parameters())
    ):
        model.to(memory_format=torch.channels_last)
    return model


def example(spec: str, model: nn.Module, batch_size: int) -> Tensor | dict[str, Tensor]:
    """One batch of zeros."""
    library, _, name = spec.partition(":")
    if library == "transformers":
        return {"input_ids": torch.zeros(batch_size, TOKENS, dtype=torch.int64)}
    if name in ("r3d_18", "mc3_18"):
        return torch.zeros(batch_size, 3, 8, 64, 64)
    side = 299 if name == "inception_v3" else 224
    if library == "timm":
        side = model.default_cfg["input_size"][-1]
    batch = torch.zeros(batch_size, 3, side, side)
    return batch if spec in CRASHES_IN_CHANNELS_LAST else batch.contiguous(memory_format=torch.channels_last)


def loss_name(spec: str) -> str:
    """The loss such a network is trained with."""
    library, _, name = spec.partition(":")
    causal = library == "transformers" and TRANSFORMERS[name][1].endswith(("ForCausalLM", "LMHeadModel"))
    return "next-token" if causal else "cross-entropy"


def _torchvision(name: str) -> nn.Module:
    models = import_torchvision().models
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    return builder(**options)


def _timm(name: str) -> nn.Module:
    model: nn.Module = import_timm().create_model(name, pretrained=False)
    return model


def _transformers(name: str) -> nn.Module:
    import_torchvision()
    import transformers

    config, kind, options = TRANSFORMERS[name]
    made: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options))
    return made
