"""Where an operator was called: module path and source line, from the Python stack and autograd's own numbering.

In forward the stack has it. In backward there is no stack: the node that autograd is running carries the sequence
number that its forward operator had, and so the place of that operator.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn

from medyate_planner.memory.moments import Place

_TORCH = str(Path(torch.__file__).parent) + os.sep
_MODULE_CALL: CodeType = nn.Module._call_impl.__code__
_NOWHERE = Place()


class Places:
    """Places of operators in a module that is run as it is (`modules`) or as an FX graph (`nodes`).

    Args:
        root: The module whose submodules' paths are wanted.
        nodes: Places by FX node name, for a graph module that is run.
    """

    def __init__(self, root: nn.Module, nodes: Mapping[str, Place] | None = None) -> None:
        self._paths = {id(module): name for name, module in root.named_modules()}
        self._nodes = nodes
        self._generated: dict[tuple[CodeType, int], Place] = {}
        self._by_sequence: dict[int, Place] = {}
        self._following = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self._lines: dict[tuple[CodeType, int], str | None] = {}
        self.latest = _NOWHERE

    def find(self, frame: FrameType | None, phase: str) -> Place:
        """The place of the operator that is being dispatched."""
        if phase == "backward":
            node = torch._C._current_autograd_node()
            found = self._by_sequence.get(node._sequence_nr(), _NOWHERE) if node is not None else _NOWHERE
        elif phase == "forward":
            found = self._from_stack(frame)
            following = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
            for number in range(self._following, following):  # nodes made since the operator before (one, or two)
                self._by_sequence[number] = found
            self._following = following
        else:
            found = _NOWHERE
        self.latest = found
        return found

    def owner(self) -> str:
        """Path of the module whose operator ran or is running."""
        return self._from_stack(sys._getframe(1)).module

    def _from_stack(self, frame: FrameType | None) -> Place:
        return self._from_modules(frame) if self._nodes is None else self._from_graph(frame, self._nodes)

    def _from_modules(self, frame: FrameType | None) -> Place:
        """The innermost module that is being called, and the innermost line outside torch."""
        source = ""
        while frame is not None:
            code = frame.f_code
            if code is _MODULE_CALL:
                path = self._paths.get(id(frame.f_locals["self"]))
                if path is not None:
                    return Place(module=path, source=source or self._outer_source(frame))
            elif not source:
                source = self._line(code, frame.f_lineno) or ""
            frame = frame.f_back
        return _NOWHERE  # outside the model

    def _from_graph(self, frame: FrameType | None, nodes: Mapping[str, Place]) -> Place:
        """The node whose line of generated code is running: the line begins with the node's name."""
        while frame is not None and not frame.f_code.co_filename.startswith("<eval_with_key>"):
            frame = frame.f_back
        if frame is None:
            return _NOWHERE
        key = (frame.f_code, frame.f_lineno)
        if key not in self._generated:
            name = linecache.getline(frame.f_code.co_filename, frame.f_lineno).partition("=")[0].strip()
            self._generated[key] = nodes.get(name.removeprefix("lean_"), _NOWHERE)
        return self._generated[key]

    def _outer_source(self, frame: FrameType | None) -> str:
        """A line of torch's own layers says little: the first line of the user's outside of it, still in the model."""
        while frame is not None:
            if frame.f_code is _MODULE_CALL and self._paths.get(id(frame.f_locals["self"])) == "":
                break
            line = self._line(frame.f_code, frame.f_lineno)
            if line:
                return line
            frame = frame.f_back
        return ""

    def _line(self, code: CodeType, number: int) -> str | None:
        key = (code, number)
        if key not in self._lines:
            file = code.co_filename
            foreign = not file.startswith((_TORCH, "<"))
            self._lines[key] = f"{Path(file).name}:{number}" if foreign else None
        return self._lines[key]
