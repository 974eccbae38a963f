"""`medyate report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from medyate_planner.cli.options import ModelOptions, OutputOptions, check_output, load, make_subject
from medyate_planner.cli.output import emit_json, say, show


def report(
    model: str,
    /,
    *,
    optimizer: str = "sgd",
    norm: str = "frozen",
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    options: ModelOptions = ModelOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Where training memory goes, byte for byte and layer by layer.

    Example: medyate report mcunet-5fps --batch-size 8

    Parameters
    ----------
    model
        mcunet-5fps, torchvision:NAME, timm:NAME, hf:DIR, module:factory or file.py:factory.
    optimizer
        sgd, momentum, adam or adamw: whose state full fine-tuning would need.
    norm
        How BatchNorm runs in full fine-tuning: frozen or train.
    output
        Write report.json here.
    """
    from medyate_planner.api import report as make_report
    from medyate_planner.reporting.text import render_report

    check_output(output, force=out.force)
    loaded = load(model, options)
    say(f"model: {loaded.spec}, input {'x'.join(map(str, loaded.input_shape))}, weights: {loaded.weights_source}")
    made = make_report(make_subject(loaded, options), optimizer=optimizer, norm=norm, spec=loaded.spec)
    if output is not None:
        made.save(output, force=out.force)
        say(f"wrote {output}")
    if out.json:
        emit_json(made.to_dict())
    elif output is None:
        show(render_report(made))
    return 0
