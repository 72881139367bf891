"""Data sets as tensors: sources, decode cache, seeded order, augmentation on the device, label noise."""

from __future__ import annotations

DATASETS = {
    "digits": "8x8 grey digits, 10 classes, 1,797 images, in scikit-learn, no network (UCI, CC BY 4.0)",
    "mnist": "28x28 grey digits, 10 classes, 60,000 + 10,000 images (no formal licence stated; LeCun et al. 1998)",
    "fashion-mnist": "28x28 grey clothes, 10 classes, 60,000 + 10,000 images (MIT, Zalando SE 2017)",
    "cifar10": "32x32 colour photos, 10 classes, 50,000 + 10,000 images (no formal licence stated; Krizhevsky 2009)",
    "cifar100": "32x32 colour photos, 100 classes, 50,000 + 10,000 images (no formal licence stated; Krizhevsky 2009)",
    "tinyshakespeare": "plays, 65 characters, 1,115,394 of them, each predicted from those before (Karpathy 2015)",
    "reversal": "20 random digits, read backwards; generated, 50,000 + 5,000",
    "pointers-1": "16 tokens that point at each other, each pointer followed once; generated, 50,000 + 5,000",
    "pointers-2": "the same, followed twice",
    "pointers-4": "the same, followed four times",
}
"""The names `load` knows without a folder: what each holds, and its licence or source."""
