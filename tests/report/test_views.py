"""The audit's words and matrices, and the beliefs that are shown."""

from __future__ import annotations

from typing import Any

from sidestep.report.views import audit, examples, named, spaced
from tests.report.make import audit as found
from tests.report.make import examples as recorded


def blocks(reaches: list[list[int]], later: list[list[int]], shared: bool = False) -> list[dict[str, Any]]:
    return [
        {"block": n, "has_loss": bool(r), "reaches": r, "reaches_shared": shared, "depends_on_later": d}
        for n, (r, d) in enumerate(zip(reaches, later, strict=True))
    ]


def test_isolated_blocks_make_a_diagonal_and_an_empty_triangle() -> None:
    seen = audit(found(3))
    assert seen.verdict == "Isolated"
    assert seen.columns == ["1", "2", "3"] and seen.later_columns == ["2", "3"]
    assert seen.reach == [
        ("1", ["own", "none", "none"]),
        ("2", ["none", "own", "none"]),
        ("3", ["none", "none", "own"]),
    ]
    assert seen.later == [("1", ["none", "none"]), ("2", ["", "none"])]
    assert seen.words == [
        "Of the blocks’ parameters, each block’s loss reaches its own and no others.",
        "No block’s update changes when a later block is perturbed.",
        "The measurement agrees with what follows from the method’s program.",
    ]


def test_backprop_has_one_loss_that_reaches_everything() -> None:
    rows = blocks([[], [], [0, 1, 2]], [[1, 2], [2], []])
    seen = audit(found(isolated=False, blocks=3) | {"blocks": rows, "down": ["Down(backward)"]})
    assert seen.verdict == "Not isolated"
    assert seen.reach[2] == ("3", ["other", "other", "own"]) and seen.reach[0] == ("1", ["none"] * 3)
    assert seen.later == [("1", ["other", "other"]), ("2", ["", "other"])]
    assert seen.words[:3] == [
        "The loss of block 3 reaches the parameters of other blocks.",
        "The loss of each of blocks 1 and 2 reaches no parameter, or there is none.",
        "The update of each of blocks 1 and 2 changes when a later block is perturbed. Later blocks send: "
        "Down(backward).",
    ]


def test_a_shared_part_is_named_and_has_a_column_of_its_own() -> None:
    rows = blocks([[0], [1]], [[1], []], shared=True)
    shared = ["hub.0.weight", "hub.0.bias", "hub.1.weight", "hub.1.bias"]
    seen = audit(found(isolated=False) | {"blocks": rows, "shared": shared, "agrees": False})
    assert seen.verdict == "Not isolated, as the blocks share a part"
    assert seen.columns == ["1", "2", "shared"]
    assert seen.reach == [("1", ["own", "none", "other"]), ("2", ["none", "own", "other"])]
    assert (
        "The loss of every block also reaches what the blocks share: hub.0.weight, hub.0.bias, hub.1.weight"
        in (seen.words[1])
    )
    assert "and 1 more" in seen.words[1]
    assert seen.words[-1] == "The measurement contradicts what follows from the method’s program."


def test_blocks_are_counted_from_one_and_joined_where_they_follow_each_other() -> None:
    assert [named([3]), named([0, 1]), named([0, 1, 2, 3]), named([0, 2, 3])] == [
        "block 4",
        "blocks 1 and 2",
        "blocks 1 to 4",
        "blocks 1, 3 and 4",
    ]


def test_of_few_classes_all_are_shown_with_the_belief_of_every_block() -> None:
    (one,) = examples(recorded(["cat", "dog", "emu"], 3, {0, 1, 2}))
    assert (one.label, one.verdict) == ("emu", "answer emu")
    assert one.heads == [("block 1", 0.5), ("block 2", 0.75), ("block 3", 1 - 0.5 / 3)]
    assert one.bars[0] == ("cat", False, [0.25, 0.125, 0.5 / 3 / 2])
    assert [(name, label) for name, label, _ in one.bars] == [("cat", False), ("dog", False), ("emu", True)]


def test_of_many_classes_the_label_and_the_most_believed_are_shown_and_the_rest_summed() -> None:
    # Class c has belief proportional to c in both blocks; the label is class 0, the least believed.
    belief = [c / 4950 for c in range(100)]
    item = {"label": 0, "beliefs": [belief, None, belief]}
    (one,) = examples({"classes": [str(c) for c in range(100)], "items": [item]})
    assert [name for name, _, _ in one.bars] == ["0", *map(str, range(91, 100)), "90 others"]
    assert abs(one.bars[-1][2][0] - sum(range(91)) / 4950) < 1e-12  # the order of the sum is another
    assert one.verdict == "answer 99: wrong"
    assert [name for name, _ in one.heads] == ["block 1", "block 3"]


def test_a_single_belief_is_no_refinement() -> None:
    assert examples(recorded(["cat", "dog"], 3, {2})) == [] == examples(None)


def test_of_many_blocks_the_first_the_last_and_some_between_are_shown() -> None:
    assert spaced([0, 1, 2], 5) == [0, 1, 2]
    assert spaced(list(range(16)), 5) == [0, 4, 8, 11, 15]
