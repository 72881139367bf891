"""The page of `bll-images`, on rows by hand."""

from __future__ import annotations

from pathlib import Path

from sidestep.studies.bll_images import ARMS, BACKPROP, BLL, GREEDY, STUDY
from sidestep.studies.study import Row
from tests.studies.made import timed, trained, weighed
from tests.studies.pages import columns, written_of_every_part

CIFAR, FASHION = "narrow ResNet-18 on CIFAR-10", "narrow ResNet-18 on Fashion-MNIST"
TRAINED: list[Row] = [
    trained({"arm": arm, "place": place, "tuned": "rate 0.016"}, level + 0.01 * seed, seed)
    for arm, place, level in ((BLL, CIFAR, 0.80), (GREEDY, CIFAR, 0.80), (BACKPROP, CIFAR, 0.82), (BLL, FASHION, 0.9))
    for seed in (0, 1)
]
BENCHED: list[Row] = [
    make({"arm": arm, "place": CIFAR}, {candidate: number, "plain backprop": 10.0})
    for make in (timed, weighed)
    for arm, candidate, number in ((BLL, "bll (streaming)", 20.0), (GREEDY, "local_ce (streaming)", 5.0))
]
ROWS = [*TRAINED, *BENCHED]


def test_every_arm_is_held_against_bll_and_costs_against_backprop() -> None:
    made = STUDY.page(ROWS)
    found = columns(made, CIFAR, "After training")
    assert found[f"less {BLL}, points"] == [
        "",
        "+0.00 [+0.00, +0.00], not distinguishable",
        "+2.00 [+2.00, +2.00], above",
    ]
    assert columns(made, CIFAR, "Step time")["BLL, lifted ÷ that"] == ["2.00 (1.80–2.20)"]
    assert columns(made, CIFAR, "Peak memory of a step")["local_ce ÷ that"] == ["0.50"]
    assert f"{CIFAR}: less {BLL}, in points (not distinguishable): local_ce +0.00 [+0.00, +0.00]. " in made.answer
    assert " Above: backprop +2.00 [+2.00, +2.00]. " in made.answer
    assert "BLL, lifted takes 2.00 of the memory and 2.00 (1.80–2.20) of the step time" in made.answer
    assert [section.heading for section in made.sections] == [CIFAR, FASHION]


def test_a_gpu_trains_the_whole_network_and_no_cpu_does() -> None:
    on_cpu, on_gpu = (STUDY.pieces(machine, 1) for machine in ("cpu", "gpu"))  # pyright: ignore[reportArgumentType]  # literals
    assert {piece.labels.get("place") for piece in on_gpu} == {"ResNet-18 on CIFAR-10"}
    assert [piece.labels["arm"] for piece in on_gpu if "measured" not in piece.labels] == list(ARMS)
    assert all(piece.labels.get("place") != "ResNet-18 on CIFAR-10" for piece in on_cpu)


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, ROWS, tmp_path)
