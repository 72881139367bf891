"""The evidence beside a run: samples chosen by rule, pictures exact, and the run left as it was."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sidestep.assemble import EVAL_BATCH, Assembly, assemble
from sidestep.config import resolve
from sidestep.data.order import eval_batches
from sidestep.data.samples import Samples, Source
from sidestep.files import only_writer
from sidestep.measure.evidence import choose, examples, image, in_turn, keep_uncertainty, write_evidence
from sidestep.measure.isolation import audit_assembly
from sidestep.measure.readouts import collect
from sidestep.measure.uncertainty import uncertainty


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def as_json(value: object) -> object:
    return json.loads(json.dumps(value))


@cache
def digits(method: str = "sid") -> Assembly:
    """A network that has seen a few batches: right about most samples, not about all."""
    flags = {"blocks": 2, "epochs": 1, "device": "cpu", "precision": "fp32", "model.depth": 2, "model.width": 32}
    assembly = assemble(resolve(method, flags))
    for step in range(60):
        assembly.engine.step(assembly.batches(step))
    return assembly


def examples_of(assembly: Assembly) -> tuple[list[str], list[dict[str, Any]]]:
    """Classes and items of the test set."""
    assert assembly.test is not None
    found = examples(assembly, assembly.test, *collect(assembly, assembly.test))
    assert isinstance(found["classes"], list) and isinstance(found["items"], list)
    return found["classes"], found["items"]


def beliefs_of(assembly: Assembly) -> tuple[list[Tensor | None], Samples]:
    source = assembly.data.test
    assert isinstance(source, Samples) and len(source) < EVAL_BATCH  # one batch, so equal bits
    data = assembly.data
    (batch,) = eval_batches(source, EVAL_BATCH, mean=data.mean, std=data.std, channels_last=assembly.channels_last)
    return [None if z is None else z.softmax(-1) for z in assembly.engine.predict(batch[0])], source


def test_examples_are_the_test_samples_that_moved_most_with_their_pictures_and_beliefs() -> None:
    assembly = digits()
    beliefs, source = beliefs_of(assembly)
    first, last = beliefs
    assert first is not None and last is not None
    classes, items = examples_of(assembly)
    assert classes == list(source.classes)
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
    _, items = examples_of(digits("backprop"))
    assert all(item["beliefs"][0] is None and len(item["beliefs"][1]) == 10 for item in items)


def test_without_a_test_set_all_is_of_validation_and_without_both_there_is_nothing_held_out(tmp_path: Path) -> None:
    assembly = digits()
    val = assembly.data.val
    assert isinstance(val, Samples)
    write_evidence(replace(assembly, data=replace(assembly.data, test=None)), tmp_path, costs=False)
    items = read(tmp_path / "examples.json")["items"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(item["png"]))) for item in items]
    assert all((val.x[:, 0] == torch.from_numpy(np.array(p))).flatten(1).all(1).any() for p in pictures)
    assert read(tmp_path / "uncertainty.json") == as_json(uncertainty(assembly, val))
    (tmp_path / "none").mkdir()
    write_evidence(replace(assembly, data=replace(assembly.data, test=None, val=None)), tmp_path / "none", costs=False)
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["audit.json"]


def test_evidence_changes_nothing_of_the_run(tmp_path: Path) -> None:
    assembly = digits()
    before = {name: t.clone() for name, t in assembly.engine.state_dict().items()}
    write_evidence(assembly, tmp_path)
    after = assembly.engine.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items())
    assert read(tmp_path / "audit.json") == as_json(audit_assembly(assembly))
    assert [row["method"] for row in read(tmp_path / "costs.json")] == ["sid", "backprop", "backprop_checkpointed"]
    assert read(tmp_path / "examples.json")["items"] == examples_of(assembly)[1]
    assert assembly.test is not None
    assert read(tmp_path / "uncertainty.json") == as_json(uncertainty(assembly, assembly.test))
    assert (tmp_path / "uncertainty.json").stat().st_size < 10_000  # of two blocks


def test_one_pass_over_the_test_set_serves_examples_and_uncertainty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembly, passes = digits(), list[Source]()

    def counted(made: Assembly, source: Source) -> tuple[Tensor, Tensor]:
        passes.append(source)
        return collect(made, source)

    for module in ("measure.evidence", "measure.uncertainty"):
        monkeypatch.setattr(f"sidestep.{module}.collect", counted)
    write_evidence(assembly, tmp_path, costs=False)
    assert [source is assembly.test for source in passes] == [True, False]  # and one over validation, for T


def test_tokens_with_labels_of_their_own_have_no_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(made: Assembly, source: Source) -> tuple[Tensor, Tensor]:
        """Two tokens a sample."""
        logits, y = collect(made, source)
        return logits.repeat_interleave(2, 1), y.repeat_interleave(2)

    monkeypatch.setattr("sidestep.measure.evidence.collect", doubled)
    write_evidence(digits(), tmp_path, costs=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "uncertainty.json"]
    assert read(tmp_path / "uncertainty.json")["samples"] == 2 * 359


def test_where_uncertainty_cannot_be_kept_the_old_file_stays_whole_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep_uncertainty(tmp_path, {"samples": 1})
    assert capsys.readouterr() == ("", "")

    def refused(says: str) -> None:
        assert not keep_uncertainty(tmp_path, {"samples": 2})
        out, err = capsys.readouterr()
        assert out == "" and "uncertainty.json was not written" in err and says in err and err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["uncertainty.json"]
        assert read(tmp_path / "uncertainty.json") == {"samples": 1}

    with only_writer(tmp_path):
        refused("is being written by another process")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the new file is written, and lost
    refused("No space left on device")


def test_costs_are_not_measured_where_they_are_not_asked_for(tmp_path: Path) -> None:
    write_evidence(digits(), tmp_path, costs=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "examples.json", "uncertainty.json"]


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
