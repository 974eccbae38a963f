"""The ledger of live storages: every row sums to what is live, and no category is ever below zero."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medyate_planner.memory.moments import CATEGORIES, Category, LiveMoment, Place, Timeline
from medyate_planner.training.ledger import Ledger

FRESH = (Category.ACTIVATIONS, Category.WEIGHTS, Category.ACTIVATION_GRADIENTS)
KEPT = (Category.KEPT, Category.KEPT_LOSS, Category.KEPT_SELECTED)
KEYS = st.sampled_from((1, 2))
ACTIONS = st.one_of(
    st.tuples(st.just("add"), KEYS, st.integers(1, 100), st.sampled_from(FRESH)),
    st.tuples(st.just("drop"), KEYS),
)
CHANGES = st.one_of(
    st.tuples(st.just("keep"), KEYS, st.sampled_from(KEPT)),
    st.tuples(st.just("release"), KEYS),
    st.tuples(st.just("recategorise"), KEYS, st.just(Category.WEIGHT_GRADIENTS)),
    st.tuples(st.just("write"), st.just("forward"), st.just("operator")),
)


def _rows(ledger: Ledger) -> list[dict[str, int]]:
    return [{c.value: m.of(c) for c in CATEGORIES if m.of(c)} for m in ledger.timeline().moments]


def _started(category: Category = Category.ACTIVATIONS, nbytes: int = 100) -> Ledger:
    ledger = Ledger(record=True)
    ledger.add(1, nbytes, category)
    ledger.write("forward", "first")
    return ledger


def test_add_counts_and_drop_forgets() -> None:
    ledger = _started()
    ledger.add(2, 50, Category.WEIGHTS)
    assert (ledger.total_bytes, ledger.peak_bytes, ledger.entries()) == (150, 150, {1: 100, 2: 50})
    ledger.drop(1)
    ledger.drop(1)
    assert (ledger.total_bytes, ledger.peak_bytes, 1 in ledger, 2 in ledger) == (50, 150, False, True)


def test_keep_moves_the_latest_row_that_held_the_storage() -> None:
    ledger = _started()
    ledger.keep(1, Category.KEPT)
    ledger.write("forward", "second")
    assert _rows(ledger) == [{"kept": 100}, {"kept": 100}]


def test_keep_leaves_a_row_written_before_the_storage_alone() -> None:
    ledger = _started()
    ledger.add(2, 7, Category.ACTIVATIONS)
    ledger.keep(2, Category.KEPT)
    ledger.write("forward", "second")
    assert _rows(ledger) == [{"activations": 100}, {"activations": 100, "kept": 7}]


def test_release_gives_a_storage_its_own_category_back_from_the_next_row_on() -> None:
    ledger = _started()
    ledger.keep(1, Category.KEPT)
    ledger.release(1)
    ledger.write("backward", "second")
    assert _rows(ledger) == [{"kept": 100}, {"activations": 100}]


def test_a_kept_storage_stays_kept_when_its_own_category_becomes_clear() -> None:
    ledger = _started()
    ledger.keep(1, Category.KEPT)
    ledger.recategorise(1, Category.WEIGHT_GRADIENTS)
    ledger.write("backward", "second")
    ledger.release(1)
    ledger.write("backward", "third")
    assert _rows(ledger) == [{"kept": 100}, {"kept": 100}, {"weight_gradients": 100}]


def test_recategorise_reaches_back_to_the_latest_row() -> None:
    ledger = _started(Category.ACTIVATION_GRADIENTS)
    ledger.recategorise(1, Category.WEIGHT_GRADIENTS)
    assert _rows(ledger) == [{"weight_gradients": 100}]


def test_kept_released_and_kept_again_within_one_row_is_counted_once() -> None:
    ledger = _started()
    ledger.keep(1, Category.KEPT)
    ledger.release(1)
    ledger.keep(1, Category.KEPT)
    ledger.write("forward", "second")
    assert _rows(ledger) == [{"kept": 100}, {"kept": 100}]


def test_released_and_then_recategorised_within_one_row_is_counted_once() -> None:
    ledger = _started(Category.ACTIVATION_GRADIENTS)
    ledger.keep(1, Category.KEPT)
    ledger.write("backward", "second")
    ledger.release(1)
    ledger.recategorise(1, Category.WEIGHT_GRADIENTS)
    for moment in ledger.timeline().moments:
        assert min(moment.live_bytes) >= 0
        assert moment.total_bytes == 100


def test_unknown_storages_are_ignored() -> None:
    ledger = _started()
    for change in (ledger.drop, ledger.release):
        change(9)
    ledger.keep(9, Category.KEPT)
    ledger.recategorise(9, Category.WEIGHTS)
    assert (ledger.total_bytes, _rows(ledger)) == (100, [{"activations": 100}])


def test_without_record_only_the_totals_are_kept() -> None:
    ledger = Ledger(record=False)
    ledger.add(1, 5, Category.INPUTS)
    ledger.write("forward", "first")
    assert ledger.timeline().moments == ()
    assert ledger.peak_bytes == 5


def test_grown_is_true_from_an_addition_to_the_next_row() -> None:
    ledger = _started()
    assert not ledger.grown
    ledger.keep(1, Category.KEPT)
    assert not ledger.grown
    ledger.add(2, 1, Category.WEIGHTS)
    assert ledger.grown


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(CHANGES, CHANGES, ACTIONS), max_size=25))
def test_every_row_sums_to_what_was_live_and_no_category_is_negative(actions: list[tuple[object, ...]]) -> None:
    ledger, live, totals = Ledger(record=True), {}, []
    for name, *arguments in [("add", 1, 100, FRESH[0]), ("add", 2, 7, FRESH[1]), *actions]:
        if name == "add" and arguments[0] in live:
            continue
        getattr(ledger, str(name))(*arguments)
        if name == "add":
            live[arguments[0]] = arguments[1]
        elif name == "drop":
            live.pop(arguments[0], None)
        elif name == "write":
            totals.append(sum(live.values()))
    assert [moment.total_bytes for moment in ledger.timeline().moments] == totals
    assert ledger.entries() == live
    assert all(nbytes >= 0 for moment in ledger.timeline().moments for nbytes in moment.live_bytes)


def test_timeline_finds_the_first_of_equal_peaks() -> None:
    def moment(nbytes: int) -> LiveMoment:
        return LiveMoment(phase="forward", operator="o", place=Place(), live_bytes=(nbytes, *[0] * 11))

    timeline = Timeline(moments=(moment(1), moment(3), moment(3), moment(2)))
    assert (timeline.peak_index, timeline.peak.of(Category.WEIGHTS)) == (1, 3)


@pytest.mark.parametrize("category", Category)
def test_every_category_has_a_meaning(category: Category) -> None:
    assert category.meaning
    assert [c.meaning for c in Category].count(category.meaning) == 1
