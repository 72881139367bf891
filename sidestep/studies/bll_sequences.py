"""Whether any credit passes between blocks that learn by themselves, on tasks that one layer cannot solve.

Reversal is a sanity check: one layer of attention by position solves it.  Following k pointers takes log2(k + 1)
layers, so that a block with fewer must send on what a later one needs, which backprop alone is sure to teach it.  A
method counts as passing credit across blocks only where its first block fails and its last one reaches 99 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table, fixed
from sidestep.studies.rows import ACCURACY, by_label, mean, names, pick, sizes, table
from sidestep.studies.study import Grid, Machine, Part, Row, Study

BLL, GREEDY, BACKPROP = "BLL", "local_ce", "backprop"
LOCAL = {BLL: "train bll --family gaussian --read-out linear", GREEDY: "train local_ce --last head"}
WHOLE = {BACKPROP: "train backprop"}
FURTHER = {"BLL, Bernoulli, bootstrapped": "train bll --family bernoulli --bootstrap"}
"""With the noise of a Gaussian's default messages change next to nothing."""
ARMS = {**LOCAL, **WHOLE, **FURTHER}
SOLVED = 0.99
DEEP = {"2 hops": "pointers-2", "4 hops": "pointers-4"}
TASKS = {"reversal": "reversal", "1 hop": "pointers-1", **DEEP}
CHARACTERS = "characters"
LAYERS = 20


def parts(rows: Sequence[Row]) -> list[Part]:
    found = by_label(rows, "task")
    said = {task: " ".join(credit(task, its)) for task, its in found.items() if task != CHARACTERS}
    return [
        *((said.get(task, ""), section(task, its)) for task, its in found.items()),
        (characters(found.get(CHARACTERS, [])), None),
    ]


def by_cut(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """The rows of every arm for every way to cut; backprop is the same at each."""
    found = {
        cut: {arm: pick(rows, arm=arm) if arm in WHOLE else pick(rows, arm=arm, cut=cut) for arm in ARMS}
        for cut in names(rows, "cut") or ["no cut"]
    }
    return {cut: {arm: its for arm, its in arms.items() if its} for cut, arms in found.items()}


def credit(task: str, rows: Sequence[Row]) -> list[str]:
    """Who solves it, and where credit passed: a sentence for every way to cut."""
    found: list[str] = []
    for cut, arms in by_cut(rows).items():
        ends = {arm: (of_block(its, 0), of_block(its, -1)) for arm, its in arms.items()}
        solved = [arm for arm, (_, last) in ends.items() if last is not None and last >= SOLVED]
        passed = [arm for arm in solved if (first := ends[arm][0]) is not None and first < SOLVED]
        late = f"; after a first block that does not: {', '.join(passed)}" if passed else ""
        words = f"{', '.join(solved)} reach 99 %{late}" if solved else "nobody reaches 99 %"
        found.append(f"On {task} in {cut}, {words}.")
    return found


def of_block(rows: Sequence[Row], k: int) -> float | None:
    """The mean test accuracy of one block, None where it has no read-out."""
    return mean(rows, lambda row: row["block_test_accuracy"][k])


def characters(rows: Sequence[Row]) -> str:
    losses = {arm: loss for arm in ARMS if (loss := mean(pick(rows, arm=arm), "val_loss")) is not None}
    if not losses:
        return ""
    told = "; ".join(f"{arm} {loss:.4f}" for arm, loss in losses.items())
    return f"Validation loss of characters at equal steps, in nats: {told}."


def section(task: str, rows: Sequence[Row]) -> Section:
    tables: list[tuple[str, Table]] = []
    for cut, arms in by_cut(rows).items():
        columns = [ACCURACY]
        if task == CHARACTERS:
            columns += [("validation loss, nats", "val_loss", fixed(4)), ("test loss, nats", "test_loss", fixed(4))]
        tables.append((cut, table(arms, columns, further=[*by_block(arms), *sizes(arms)])))
    return Section(task, "Accuracies are shares of tokens. An empty cell is a block without a read-out.", tables)


def by_block(arms: Mapping[str, Sequence[Row]]) -> list[Column]:
    """The accuracy of the first blocks and of the last, a column each; of backprop, cut as it comes, the last's."""
    count = max((len(its[0]["block_test_accuracy"]) for arm, its in arms.items() if arm not in WHOLE), default=1)
    shown = sorted({*range(min(count, 4)), count // 2, count - 1})

    def cell(arm: str, k: int) -> str:
        last = k == count - 1
        found = None if arm in WHOLE and not last else of_block(arms[arm], -1 if last else k)
        return "" if found is None else PERCENT(found)

    return [(f"block {k + 1}, %", [cell(arm, k) for arm in arms]) for k in shown]


NETWORK = f"--model encoder --set model.depth={LAYERS} --set model.width=64 --batch-size 128 --epochs 5"
GPT = "--model gpt --data tinyshakespeare --blocks 6 --epochs 10 --select last"  # equal steps: no epoch is chosen
RATES = {f"rate {lr}": f"--lr {lr}" for lr in ("0.001", "0.003")}
SMALL = "--model mlp --set model.depth=4 --set model.width=16 --blocks 2"  # digits are no sequence

SEEDS: Mapping[Machine, int] = {"cpu": 1, "gpu": 3}
CUTS = {"cut": {f"{k} blocks": f"--blocks {k}" for k in (LAYERS, 2)}}


def generated(
    arms: Mapping[str, str], cuts: Mapping[str, Mapping[str, str]] = CUTS, tasks: Mapping[str, str] = TASKS
) -> Grid:
    return Grid(
        arms,
        NETWORK,
        {"task": {name: f"--data {data}" for name, data in tasks.items()}, **cuts},
        SEEDS,
        candidates=RATES,
        trial=f"--data {DEEP['2 hops']} --blocks {LAYERS}",
        smoke=SMALL,
    )


STUDY = Study(
    "Does credit pass between blocks that learn by themselves?",
    [
        generated(LOCAL),
        generated(WHOLE, {}),
        Grid(
            {**LOCAL, **WHOLE},
            GPT,
            {"task": {CHARACTERS: ""}, "cut": {"6 blocks": ""}},
            SEEDS,
            candidates=RATES,
            smoke=SMALL,
        ),
        generated(FURTHER, tasks=DEEP),
    ],
    parts,
)
