"""What is handed to others: the file of weights, and the card that says how to feed it and read its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from sidestep.assemble import Assembly, Data, assemble
from sidestep.config import resolve
from sidestep.data.samples import Samples
from sidestep.export import CARD, WEIGHTS, card, write_model

SUMMARY: dict[str, Any] = {
    "test_nll": 0.25,
    "test_accuracy": 0.9,
    "selected": "last epoch, 3",
    "commit": "0123abc",
    "torch": "2.13.0",
}


def assembled(method: str, **keys: object) -> Assembly:
    flags = {"model": "simplecnn_bn", "blocks": 2, "epochs": 3, "precision": "fp32", "device": "cpu"}
    return assemble(resolve(method, flags | keys))


def test_a_card_says_what_goes_in_and_what_comes_out() -> None:
    made = assembled("local_ce", at="conv3", **{"local_ce.head": "linear"})
    train = made.data.train
    assert isinstance(train, Samples) and train.x.dtype == torch.uint8
    x = train.x.double() / 255
    expected = f"""---
library_name: sidestep
tags: [local_ce]
metrics: [accuracy]
---
# simplecnn_bn trained by local_ce on digits

Test accuracy 90.00 % (last epoch, 3), seed 0, 3 epochs.
Trained without a global backward pass where the method allows it; see `audit.json` beside this folder.

- input: (1, 8, 8), normalised by mean ({x.mean():.4f}) and standard deviation ({x.std(correction=0):.4f})
- output: (10,), logits
- method: arXiv:1901.08164, {made.method!r}
- blocks: 2, cut before conv3
- sidestep commit 0123abc, torch 2.13.0
"""
    assert card(made, SUMMARY) == expected


def test_an_autoencoders_card_speaks_of_its_loss_and_of_no_accuracy() -> None:
    """The answer to an image of 8 x 8 has a channel of means and one of log-precisions."""
    made = assembled("backprop", model="autoencoder", blocks=1)
    said = card(made, {k: v for k, v in SUMMARY.items() if k != "test_accuracy"} | {"test_loss": 0.25})
    assert said.startswith("---\nlibrary_name: sidestep\ntags: [backprop]\n---\n# autoencoder trained by backprop")
    assert "\n\nTest loss 0.2500 nats (last epoch, 3), seed 0, 3 epochs.\n" in said
    assert "\n- output: (2, 8, 8), means of pixels from 0 to 1, then log-precisions\n" in said
    assert "\n- blocks: 1, cut before nothing\n" in said


def test_a_card_of_numbers_that_are_no_pixels_does_not_call_them_so() -> None:
    samples = Samples(torch.randn(64, 6), torch.randn(64, 3), ())
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    config = resolve("backprop", {"blocks": 1, "batch_size": 32, "precision": "fp32", "device": "cpu"}, custom=True)
    made = assemble(config, data=Data(samples, samples, None, (), ()), model=net)
    said = card(made, {k: v for k, v in SUMMARY.items() if not k.startswith("test")})
    assert "\n- output: (6,), means, then log-precisions\n" in said


def test_a_card_of_what_was_not_tested_says_so() -> None:
    said = card(assembled("backprop"), {k: v for k, v in SUMMARY.items() if not k.startswith("test")})
    assert "\n\nNot judged on test data (last epoch, 3), seed 0, 3 epochs.\n" in said


def test_weights_are_written_with_equal_values_and_the_same_bytes_whatever_their_memory_format(tmp_path: Path) -> None:
    made = assembled("local_ce", ema=0.5)
    for step in range(2):
        made.engine.step(made.batches(step))
    network = made.method.export(made.engine.inference_chain)
    expected = network.state_dict()
    assert any(not value.is_contiguous() for value in expected.values())
    write_model(made, SUMMARY, tmp_path)
    found = load_file(tmp_path / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    trained = [*made.model.parameters()]
    assert not torch.equal(trained[0], found[next(iter(found))])  # the averages, which inference uses
    assert (tmp_path / CARD).read_text() == card(made, SUMMARY)
    for p in network.parameters():
        p.data = p.data.contiguous()
    before = (tmp_path / WEIGHTS).read_bytes()
    write_model(made, SUMMARY, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before
