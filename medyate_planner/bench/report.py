"""The report of a benchmark, complete or not: what came out, in the order in which a person asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medyate_planner.bench.agreement import agreements, stability
from medyate_planner.bench.analysis import Standing, compare, standings
from medyate_planner.bench.charts import frontier_chart, layers_chart, stability_chart, time_chart
from medyate_planner.bench.claims import Finding, findings
from medyate_planner.bench.headlines import HeadlineFigure, headline_figures
from medyate_planner.bench.jobs import jobs_of
from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record, Records
from medyate_planner.bench.tables import (
    agreement_table,
    claims_table,
    comparisons_table,
    headline_table,
    overview_table,
    pair_tables,
    stability_table,
    standings_table,
    verdicts_table,
)
from medyate_planner.reporting.document import Document, Section
from medyate_planner.summary import counted


def document_of(matrix: Matrix, records: Records, *, command: str) -> Document:
    """Everything that the results tell so far.

    Raises:
        InputError: scipy is not installed.
    """
    every = records.runs(matrix)
    followed = {contender.name for contender in matrix.contenders if contender.follow}
    runs = [run for run in every if run["contender"] not in followed]  # they train as those that they are copies of
    ranks = [found for job in jobs_of(matrix, "rank") if (found := records.of(matrix, job)) is not None]
    total = len(list(jobs_of(matrix, "run")))
    headlines, standing = headline_figures(matrix, runs), standings(matrix, runs)
    sections = [
        *_answer(headlines, standing),
        *_memory(standing),
        *_claims(findings(matrix, runs)),
        *_details(matrix, runs, standing),
        *_layers(matrix, runs),
        *_stability(every),
        *_agreement(ranks),
        *_pairs(matrix, runs),
    ]
    done = f"{len(every):,} of {total:,} trainings are done" + ("" if len(every) == total else ": figures will change")
    asked = ", ".join(
        counted(len(entries), what)
        for entries, what in ((matrix.networks, "network"), (matrix.tasks, "task"), (matrix.budgets, "budget"))
    )
    return Document(
        kicker="Ways to train at the same measured memory",
        title=matrix.name,
        lead=(
            f"{counted(len(matrix.contenders), 'way')} to train side by side: {asked}, "
            f"{counted(len(matrix.seeds), 'seed')}. {done}.",
            *(_headline(figure) for figure in headlines),
        ),
        facts=(
            ("networks", ", ".join(network.name for network in matrix.networks)),
            ("tasks", ", ".join(f"{task.name} ({task.epochs} epochs)" for task in matrix.tasks)),
            ("budgets", ", ".join(budget.name for budget in matrix.budgets)),
            ("seeds", ", ".join(map(str, matrix.seeds))),
            ("batch", str(matrix.batch_size)),
        ),
        command=command,
        sections=tuple(sections),
    )


def _answer(headlines: Sequence[HeadlineFigure], found: Sequence[Standing]) -> list[Section]:
    if not any(entry.share_of_full for entry in found):
        return []
    return [
        Section(
            id="headline",
            title="How near to full fine-tuning",
            sentences=tuple(_beside(figure) for figure in headlines),
            table=overview_table(found),
            more=tuple(headline_table(figure) for figure in headlines),
            more_title="Headlines network by network, task by task",
        )
    ]


def _headline(figure: HeadlineFigure) -> str:
    asked = figure.headline
    return (
        f"{asked.contender} with budget {asked.budget} reaches {figure.share:.1%} of full fine-tuning's accuracy in "
        f"{figure.memory_ratio:.2%} of its training memory (means over {len(figure.pairs)} networks and tasks; aim "
        f"{asked.aim:.0%}: {'reached' if figure.reached else 'not reached'})."
    )


def _beside(figure: HeadlineFigure) -> str:
    asked = figure.headline
    others = ", ".join(f"{name} {share:.1%}" for name, share in figure.others)
    beside = others or "nothing else was run on all of its networks and tasks"
    return f"In no more than {asked.contender} with budget {asked.budget} ({figure.share:.1%}): {beside}."


def _memory(found: Sequence[Standing]) -> list[Section]:
    chart = frontier_chart(found)
    return [] if chart is None else [Section(id="frontier-section", title="Accuracy against memory", chart=chart)]


def _details(matrix: Matrix, runs: Sequence[Record], found: Sequence[Standing]) -> list[Section]:
    if not found:
        return []
    first = matrix.contenders[0].name
    return [
        Section(
            id="against",
            title=f"{first} against the others",
            table=comparisons_table(compare(matrix, runs), first),
        ),
        Section(
            id="standings-section",
            title="Accuracy, memory and time",
            sentences=(
                "Learning rates are chosen once for each family of contenders, network and task, on a part of the "
                "training data; test data are used for these figures alone.",
                *_repeated(runs),
            ),
            chart=time_chart(found),
            table=standings_table(found),
        ),
    ]


def _repeated(runs: Sequence[Record]) -> list[str]:
    """Which contenders needed a lower rate than their family's, and how often."""
    counts = Counter(str(run["contender"]) for run in runs if run.get("diverged_rates"))
    if not counts:
        return []
    named = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return [
        f"{counted(sum(counts.values()), 'training')} ended no better than a guess and so had to be done again at the "
        f"next lower rate of the family, as the training loss alone tells: {named}."
    ]


def _claims(found: Sequence[Finding]) -> list[Section]:
    if not found:
        return []
    return [
        Section(
            id="claims-section",
            title="What others found",
            sentences=(
                "“Better” holds where the mean difference is above 0 and its corrected p is below 0.05. “The same” "
                "holds where the 90 % interval lies within the margin of the claim. “Not shown” is neither.",
            ),
            table=verdicts_table(found),
            more=(claims_table(found),),
            more_title="Pair by pair",
        )
    ]


def _layers(matrix: Matrix, runs: Sequence[Record]) -> list[Section]:
    chart = layers_chart(matrix, runs)
    return [] if chart is None else [Section(id="layers-section", title="How many layers to draw from", chart=chart)]


def _stability(runs: Sequence[Record]) -> list[Section]:
    found = stability(runs)
    if not found:
        return []
    return [
        Section(
            id="stability-section",
            title="Does importance stay what it was",
            sentences=(
                "Layers are compared by LaRa, channels by gradient energy within each layer. How alike two "
                "measurements on different batches are, with nothing trained between them, is the most to be expected.",
            ),
            chart=stability_chart(found),
            table=stability_table(found),
        )
    ]


def _agreement(ranks: Sequence[Record]) -> list[Section]:
    found = agreements(ranks)
    if not found:
        return []
    return [
        Section(
            id="agreement-section", title="Do data sets agree on the layers that matter", table=agreement_table(found)
        )
    ]


def _pairs(matrix: Matrix, runs: Sequence[Record]) -> list[Section]:
    tables = pair_tables(matrix, runs)
    if not tables:
        return []
    return [
        Section(
            id="pairs",
            title="Network by network, task by task",
            table=tables[0],
            more=tables[1:],
            more_title=f"The other {counted(len(tables) - 1, 'table')}",
        )
    ]
