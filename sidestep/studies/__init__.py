"""Every study by name; importing this loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sidestep.errors import unknown

if TYPE_CHECKING:
    from sidestep.studies.study import Study

# A study is `STUDY` in the module of its name.
STUDIES: dict[str, str] = {
    "reproduction": "SID's published numbers again, and what strong controls leave of the gain",
    "attribution": "whether SID refines beliefs, or has only several heads and smoothed targets",
    "gap": "isolated blocks beside backprop on one network, over epochs",
    "gap-trials": "what was tried to bring isolated blocks to backprop, on validation only",
    "label-noise": "whether SID is robust to label noise, or only smooths its targets",
    "alpha": "SID's weights and directions, and whether every block descends",
    "depth": "accuracy, step time and memory over modules and blocks, and the extractor's share",
    "cifar100": "what strong controls leave of SID's largest published gain",
    "backbones": "SID's trunk form inside of VGG-11, ResNet-18 and ViT-Tiny",
    "bll": "whether BLL's Kullback-Leibler term and messages earn anything over greedy cross-entropy",
    "bll-choices": "which of BLL's choices matter: one of them changed at a time, and how tight its bounds are",
    "bll-blocks": "how BLL stands depth, how many blocks there are and where they are cut",
    "bll-images": "how near BLL comes to backprop on images, and what it costs",
    "bll-autoencoder": "how far the deviations of an autoencoder can be trusted that learns block by block",
    "bll-sequences": "whether credit passes between blocks that learn by themselves, on pointers and characters",
    "engines": "what it is worth that blocks wait for nobody, or are equal: ranks and stacks beside their rivals",
    "scale": "whether a simulation predicts real processes, and what it says of many machines",
    "gpu-core": "ResNet-18 near its best, and cost over depth, eager and compiled",
}


def study_named(name: str) -> Study:
    """Raises UsageError for a name that is not in STUDIES."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return import_module(f"{__name__}.{name.replace('-', '_')}").STUDY
