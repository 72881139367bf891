"""The page of `backbones`, on rows by hand."""

from __future__ import annotations

from pathlib import Path

from sidestep.studies.backbones import BACKBONES, BACKPROP, LOCAL, SID, STUDY
from sidestep.studies.study import Row
from tests.studies.made import timed, trained, weighed
from tests.studies.pages import columns, written_of_every_part


def rows_of(backbone: str) -> list[Row]:
    """Backprop 93 %; SID a point less in 2 blocks and two in 4, local CE three less in 2 and four in 4, every seed."""
    rows = [trained({"arm": BACKPROP, "backbone": backbone}, 0.93 + 0.01 * seed, seed) for seed in range(2)]
    for k, less in ((4, 0.02), (2, 0.01)):  # rows need not be in order
        labels = {"backbone": backbone, "blocks": str(k)}
        for arm, more in ((SID, 0.0), (LOCAL, 0.02)):
            rows += [trained(labels | {"arm": arm}, 0.93 + 0.01 * seed - less - more, seed) for seed in range(2)]
        rows.append(
            timed(labels | {"arm": SID}, {"sid (streaming)": 12, "plain backprop": 10, "plain checkpointed/2": 13})
        )
        memory = {"sid (streaming)": 80 / k, "plain backprop": 80, "plain checkpointed/2": 20}
        rows.append(weighed(labels | {"arm": SID}, memory))
    return rows


ROWS = [row for backbone in BACKBONES["backbone"] for row in rows_of(backbone)]


def test_every_backbone_has_its_accuracies_and_their_differences_to_its_own_backprop() -> None:
    assert [section.heading for section in STUDY.page(ROWS).sections] == ["VGG-11", "ResNet-18", "ViT-Tiny"]
    found = columns(STUDY.page(ROWS), "ViT-Tiny", "After training")
    assert found["method"] == ["backprop", "SID, K = 2", "SID, K = 4", "local CE, K = 2", "local CE, K = 4"]
    assert found["test accuracy, %"] == [f"{mean:.2f} ± 0.71" for mean in (93.5, 92.5, 91.5, 90.5, 89.5)]
    assert found["less backprop, points"] == [
        "",
        *(f"−{points}.00 [−{points}.00, −{points}.00], below" for points in (1, 2, 3, 4)),
    ]
    assert (
        "ViT-Tiny, less backprop, in points (below): SID, K = 2 −1.00 [−1.00, −1.00]; SID, K = 4"
        in STUDY.page(ROWS).answer
    )


def test_the_costs_of_the_finest_cut_are_said_and_of_every_cut_shown() -> None:
    found = columns(STUDY.page(ROWS), "ResNet-18", "Peak memory of a step")
    assert (found["blocks"], found["SID ÷ that"]) == (["2", "4"], ["0.50", "0.25"])
    assert found["checkpointing ÷ that"] == ["0.25", "0.25"]
    assert (
        "ResNet-18 in 4 blocks: SID takes 0.25 of the memory and 1.20 (1.08–1.32) of the step time of plain backprop; "
        "checkpointing takes 0.25 of the memory and 1.30 (1.17–1.43) of the step time of plain backprop."
    ) in STUDY.page(ROWS).answer


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, rows_of("VGG-11"), tmp_path)


def test_it_is_for_a_gpu_where_checkpointed_backprop_is_timed_and_not_trained() -> None:
    assert not STUDY.pieces("cpu")
    found = STUDY.pieces("gpu", seeds=1)
    assert not [p for p in found if p.words[:2] == ("train", "backprop_checkpointed")]
    assert len([p for p in found if p.words[0] == "train"]) == 3 * (1 + 2 * 3)
    assert len([p for p in found if p.words[0] == "bench"]) == 3 * 3 * 2
    assert len(STUDY.pieces("gpu")) == 3 * 21 + 18, "a bench is no function of the seed"
