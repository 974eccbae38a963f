"""Some channels of a weight: taken out of it, put back into it; and hashes of what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medyate_planner.trace.fake import dtype_name

ROWS = 0  # instead of a number of groups: channels are the first axis of the weight
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some channels of a weight of this shape; `groups` as of its layer, or `ROWS`."""

    shape: tuple[int, ...]
    groups: int
    channels: Tensor
    values: Tensor

    @classmethod
    def of(cls, weight: Tensor, channels: list[int], groups: int) -> Part:
        """These channels of a weight."""
        index = torch.tensor(sorted(channels), dtype=torch.int32)
        values = channel_rows(weight.detach().cpu(), groups)[index.long()]
        return cls(shape=tuple(weight.shape), groups=groups, channels=index, values=values)

    @property
    def count(self) -> int:
        """Number of channels of the weight."""
        return self.shape[0] if self.groups == ROWS else self.shape[1] * self.groups

    def onto(self, weight: Tensor) -> Tensor:
        """The weight with these channels in place of its own, in storage of its own."""
        return self._replaced(weight, self.values)

    def others_hash(self, weight: Tensor) -> str:
        """Hash of the channels that are not here."""
        return tensor_hash(self._replaced(weight, torch.zeros_like(self.values)))

    def _replaced(self, weight: Tensor, values: Tensor) -> Tensor:
        rows = channel_rows(weight, self.groups).clone()
        rows[self.channels.long()] = values
        return _from_rows(rows, self.groups, self.shape)


def tensor_hash(tensor: Tensor) -> str:
    """A tensor's type, and the beginning of the SHA-256 of its shape and bits, whatever its memory format."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(str(list(tensor.shape)).encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"{dtype_name(tensor)}:{digest.hexdigest()[:_HASH_DIGITS]}"


def channel_rows(weight: Tensor, groups: int) -> Tensor:
    """`(channels, elements per channel)`: what each input channel of a weight owns.

    Channel c of group j owns weight[j * C_out/G : (j+1) * C_out/G, c mod (C_in/G)].
    """
    if groups == ROWS:
        return weight.reshape(weight.shape[0], -1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(1, 2)
    return grouped.reshape(groups * weight.shape[1], -1)


def read_part(tensors: dict[str, Tensor], name: str, layout: Mapping[str, Any]) -> Part:
    """Take a part out of the tensors of a file; a ValueError says what does not fit."""
    shape, groups = tuple(layout["shape"]), int(layout["groups"])
    channels, values = tensors.pop(f"{name}#channels"), tensors.pop(f"{name}#values")
    rows = channel_rows(torch.empty(shape, device="meta"), groups)
    indices = channels.tolist()
    if (
        channels.dtype != torch.int32
        or values.shape != (len(indices), rows.shape[1])
        or indices != sorted(set(indices))
        or (indices and not 0 <= indices[0] <= indices[-1] < rows.shape[0])
    ):
        raise ValueError(f"{name}: {list(values.shape)} values of {len(indices)} channels do not fit {list(shape)}")
    return Part(shape=shape, groups=groups, channels=channels, values=values)


def _from_rows(rows: Tensor, groups: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `channel_rows`."""
    if groups == ROWS:
        return rows.reshape(shape)
    grouped = rows.reshape(groups, shape[1], shape[0] // groups, -1).transpose(1, 2)
    return grouped.reshape(shape)
