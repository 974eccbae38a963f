"""`medyate report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from medyate_planner.cli.options import (
    ModelOptions,
    OutputOptions,
    check_output,
    judging_shape,
    load,
    make_example,
    tell_model,
)
from medyate_planner.cli.output import console, emit_json, say, show
from medyate_planner.cli.progress import stages


def report(
    model: str,
    /,
    *,
    optimizer: str = "sgd",
    norm: str = "frozen",
    autocast: str | None = None,
    accumulation: int = 1,
    train: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    plan: Path | None = None,
    budget: str | None = None,
    measure: Annotated[bool, Parameter(negative="")] = False,
    sort: str | None = None,
    depth: int | None = None,
    whole: Annotated[bool, Parameter(name=["--all"], negative="")] = False,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    options: ModelOptions = ModelOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Where training memory goes: byte for byte, moment by moment, layer by layer.

    Example: medyate report mcunet-5fps --batch-size 8

    Parameters
    ----------
    model
        mcunet-5fps, torchvision:NAME, timm:NAME (or the NAME alone), hf:DIR, module:factory or file.py:factory.
    optimizer
        Of full fine-tuning: sgd, momentum, adam or adamw.
    norm
        How BatchNorm runs in full fine-tuning: frozen or train.
    autocast
        bfloat16 or float16: run under automatic mixed precision.
    accumulation
        Passes whose gradients are summed before the optimizer's step.
    train
        Patterns of the parameters that full fine-tuning trains, one or more.
    plan
        Report this plan.json of the model beside the others.
    budget
        Find the largest batch whose live peak fits, such as 2GB.
    measure
        Run real steps too; exit 1 if a byte differs.
    sort
        Modules and layers, by order, name, parameters, weights, gradients, optimizer, saved or total.
    depth
        Modules and layers, to this level of modules (2).
    whole
        Every table: modules, layers and accountings too.
    output
        Write report.json, .csv, .html, .png or .svg here.
    """
    from medyate_planner.errors import InputError
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.export import check_ending
    from medyate_planner.reporting.report_text import render_report
    from medyate_planner.reporting.tree import check_sort
    from medyate_planner.survey import report as make_report
    from medyate_planner.training.ordinary import Regime
    from medyate_planner.training.real import check_real

    check_sort(sort or "order")
    if depth is not None and depth < 0:
        raise InputError(f"--depth {depth}: expected 0 or more levels of modules")
    Regime(optimizer=optimizer, norm=norm, autocast=autocast, accumulation=accumulation)
    if output is not None:
        check_output(output, force=out.force)
        check_ending(output)
    loaded = load(model, options, allocate=measure)
    tell_model(loaded, options, with_input=True)
    if measure:
        check_real(loaded.model)
    loaded.model.train(options.dropout == "keep")
    with stages() as on_stage, judging_shape(loaded, options):
        made = make_report(
            loaded.model.to(options.device) if measure else loaded.model,
            make_example(loaded, options),
            optimizer=optimizer,
            norm=norm,
            autocast=autocast,
            accumulation=accumulation,
            train=train,
            plan=None if plan is None else Plan.load(plan),
            budget=budget,
            measure=measure,
            spec=loaded.spec,
            on_stage=on_stage,
            loss=options.loss,
            head=options.head,
            dropout=options.dropout,
            device=options.device,
        )
    if output is not None:
        made.save(output, force=out.force)
        say(f"wrote {output}")
    if out.json:
        emit_json(made.to_dict())
    elif output is None:
        whole = whole or sort is not None or depth is not None
        levels = 2 if depth is None else depth
        show(render_report(made, sort=sort or "order", depth=levels, width=console().width, whole=whole))
        if not whole:
            say("modules and layers: --all; as a page: -o report.html")
    return 0 if made.agrees else 1
