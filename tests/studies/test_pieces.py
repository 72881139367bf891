"""Every command line of every study is one that sidestep takes."""

from __future__ import annotations

import pytest

from sidestep.commands import COMMANDS
from sidestep.methods import METHODS
from sidestep.parser import parse
from sidestep.studies import STUDIES, study_named


@pytest.mark.parametrize("name", STUDIES)
def test_every_piece_of_a_study_resolves_to_a_valid_configuration(name: str) -> None:
    study = study_named(name)
    for piece in [*study.pieces("cpu", 1), *study.pieces("gpu", 1), *study.pieces(smoke=True)]:
        args = parse(piece.words[0], COMMANDS[piece.words[0]], list(piece.words[1:]))
        assert args is not None, piece.command
        methods = [word for word in args.words if word in METHODS]
        assert methods or piece.words[0] != "train", piece.command
        for method in methods:
            assert args.resolve(method).method == method
