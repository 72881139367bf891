"""The evidence beside a run: samples chosen by rule, pictures exact, and the run left as it was."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.assemble import Assembly, assemble
from sidestep.config import resolve
from sidestep.data.order import eval_batches
from sidestep.data.sources import Samples
from sidestep.measure.isolation import audit
from sidestep.report.evidence import choose, examples, image, in_turn, write_evidence


@cache
def digits(method: str = "sid") -> Assembly:
    """A network that has seen a few batches: right about most samples, not about all."""
    flags = {"blocks": 2, "epochs": 1, "device": "cpu", "precision": "fp32", "model.depth": 2, "model.width": 32}
    assembly = assemble(resolve(method, flags))
    for step in range(60):
        assembly.engine.step(assembly.batches(step))
    return assembly


def beliefs_of(assembly: Assembly) -> tuple[list[Tensor | None], Samples]:
    source = assembly.data.test
    assert isinstance(source, Samples) and len(source) < 500  # one batch, so equal bits
    data = assembly.data
    (batch,) = eval_batches(source, 500, mean=data.mean, std=data.std, channels_last=assembly.channels_last)
    return [None if z is None else z.softmax(-1) for z in assembly.engine.predict(batch[0])], source


def test_examples_are_the_test_samples_that_moved_most_with_their_pictures_and_beliefs() -> None:
    assembly = digits()
    beliefs, source = beliefs_of(assembly)
    first, last = beliefs
    assert first is not None and last is not None
    found = examples(assembly)
    assert found is not None and found["classes"] == list(source.classes)
    items = found["items"]
    assert isinstance(items, list)
    for item, i in zip(items, choose(torch.stack([first, last]), source.y), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(item["png"])))
        assert torch.equal(torch.from_numpy(np.array(picture)), source.x[i, 0])
        assert item["label"] == source.y[i]
        assert item["beliefs"] == [[round(v, 5) for v in p[i].tolist()] for p in (first, last)]
    answers = [item["beliefs"][1].index(max(item["beliefs"][1])) == item["label"] for item in items]
    assert answers == [True] * 5 + [False]
    labels = [item["label"] for item in items[:5]]
    assert len(set(labels)) == 5


def test_a_block_without_read_out_has_no_belief() -> None:
    found = examples(digits("backprop"))
    assert found is not None and isinstance(found["items"], list)
    assert all(item["beliefs"][0] is None and len(item["beliefs"][1]) == 10 for item in found["items"])


def test_without_a_test_set_examples_are_of_validation_and_without_both_there_are_none() -> None:
    assembly = digits()
    val = assembly.data.val
    assert isinstance(val, Samples)
    found = examples(replace(assembly, data=replace(assembly.data, test=None)))
    assert found is not None and isinstance(found["items"], list)
    pictures = [Image.open(io.BytesIO(base64.b64decode(item["png"]))) for item in found["items"]]
    assert all((val.x[:, 0] == torch.from_numpy(np.array(p))).flatten(1).all(1).any() for p in pictures)
    assert examples(replace(assembly, data=replace(assembly.data, test=None, val=None))) is None


def test_evidence_changes_nothing_of_the_run(tmp_path: Path) -> None:
    assembly = digits()
    before = {name: t.clone() for name, t in assembly.engine.state_dict().items()}
    write_evidence(assembly, tmp_path)
    after = assembly.engine.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items())
    assert json.loads((tmp_path / "audit.json").read_text()) == json.loads(json.dumps(audit(assembly)))
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert [row["method"] for row in costs] == ["sid", "backprop", "backprop_checkpointed"]
    assert json.loads((tmp_path / "examples.json").read_text()) == examples(assembly)


def test_costs_are_not_measured_where_they_are_not_asked_for(tmp_path: Path) -> None:
    write_evidence(digits(), tmp_path, costs=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "examples.json"]


def test_right_samples_come_first_by_how_far_their_belief_moved_then_a_wrong_one() -> None:
    last = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9]])
    y = torch.tensor([0, 0, 1, 0, 0])  # samples 3 and 4 are wrong
    beliefs = torch.stack([torch.full((5, 2), 0.5), last])  # moved by 0.4, 0.1, 0.3, 0.2, 0.4
    assert choose(beliefs, y) == [0, 2, 1, 4]


def test_every_class_has_its_turn_before_any_has_a_second() -> None:
    y = torch.tensor([7, 7, 7, 3, 3, 5])
    assert in_turn([0, 1, 2, 3, 4, 5], y, 5) == [0, 3, 5, 1, 4]
    assert in_turn([], y, 5) == []


def test_only_images_have_a_picture_and_large_ones_a_small_one() -> None:
    colours = torch.arange(2 * 2 * 3, dtype=torch.uint8).reshape(3, 2, 2)
    picture = Image.open(io.BytesIO(base64.b64decode(image(colours)["png"])))
    assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), colours)
    wide = Image.open(io.BytesIO(base64.b64decode(image(torch.zeros(1, 100, 200, dtype=torch.uint8))["png"])))
    assert wide.size == (64, 32)
    assert image(colours.float()) == {} == image(torch.zeros(2, 4, 4, dtype=torch.uint8))
    assert image(torch.zeros(4, dtype=torch.uint8)) == {}
