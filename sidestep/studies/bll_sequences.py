"""Whether any credit passes between blocks that learn by themselves, on tasks that take several layers.

Reversal is a sanity check: one layer of attention by position solves it.  To follow k pointers log2(k + 1) layers are
sure to do, so that a block with fewer may have to send on what a later one needs, which backprop alone is sure to teach
it.  What one layer can do is seen in the first block: a method counts as passing credit across blocks only where that
fails and the last one reaches 99 %, and greedy blocks, to which nobody sends any, do not reach it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table, fixed
from sidestep.studies.rows import ACCURACY, by_label, mean, names, pick, sizes, table
from sidestep.studies.study import Grid, Machine, Part, Row, Study, rates

BLL, GREEDY, BACKPROP = "BLL", "local_ce", "backprop"
LOCAL = {BLL: "train bll --family gaussian", GREEDY: "train local_ce --last head"}
WHOLE = {BACKPROP: "train backprop"}
FURTHER = {"BLL, Bernoulli, bootstrapped": "train bll --family bernoulli --bootstrap"}
"""With the noise of a Gaussian's default messages change next to nothing."""
ARMS = {**LOCAL, **WHOLE, **FURTHER}
SOLVED, FAILED = 0.99, 0.5
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
        late = [arm for arm in solved if (first := ends[arm][0]) is not None and first < FAILED]
        said = f"; after a first block that has less than half: {', '.join(late)}" if late else ""
        if late and GREEDY in solved:
            said += f"; as {GREEDY} does, which sends no credit, the task asks for none"
        words = f"{', '.join(solved)} reach 99 %{said}" if solved else "nobody reaches 99 %"
        found.append(f"On {task} in {cut}, {words}.")
    return found


def of_block(rows: Sequence[Row], k: int) -> float | None:
    """The mean test accuracy of one block, None where it has no read-out."""
    return mean(rows, lambda row: row["block_test_accuracy"][k])


def characters(rows: Sequence[Row]) -> str:
    told: list[str] = []
    for cut, arms in by_cut(rows).items():
        losses = {arm: loss for arm, its in arms.items() if (loss := mean(its, "val_loss")) is not None}
        told += [f"in {cut}: " + "; ".join(f"{arm} {loss:.4f}" for arm, loss in losses.items())] if losses else []
    return f"Validation loss of characters at equal steps, in nats, {', '.join(told)}." if told else ""


def section(task: str, rows: Sequence[Row]) -> Section:
    tables: list[tuple[str, Table]] = []
    for cut, arms in by_cut(rows).items():
        columns = [ACCURACY]
        if task == CHARACTERS:
            columns += [("validation loss, nats", "val_loss", fixed(4)), ("test loss, nats", "test_loss", fixed(4))]
        tables.append((cut, table(arms, columns, further=sizes(arms))))
        if local := {arm: its for arm, its in arms.items() if arm not in WHOLE}:
            tables.append((f"{cut}, each", by_block(local)))
    return Section(task, "Accuracies are shares of tokens. An empty cell is a block without a read-out.", tables)


def by_block(arms: Mapping[str, Sequence[Row]]) -> Table:
    """The accuracy of every block, from the first to the last."""
    count = max(len(its[0]["block_test_accuracy"]) for its in arms.values())

    def cell(arm: str, k: int) -> str:
        found = of_block(arms[arm], k)
        return "" if found is None else PERCENT(found)

    columns: list[Column] = [(f"{arm}, %", [cell(arm, k) for k in range(count)]) for arm in arms]
    made = Table.of([str(k + 1) for k in range(count)], columns, "block")
    assert made is not None
    return made


DEEPER = f"--set model.depth={LAYERS} --set model.width=64"
NETWORK = f"--model encoder {DEEPER} --batch-size 128 --epochs 5"
# Equal steps: no epoch is chosen.
GPT = f"--model gpt {DEEPER} --data tinyshakespeare --context 64 --batch-size 64 --epochs 5 --select last"
RATES = rates("0.001", "0.003", "0.01")
HIGHER = rates("0.001", "0.003", "0.01", "0.03")
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


def of_characters(arms: Mapping[str, str], cuts: Mapping[str, Mapping[str, str]]) -> Grid:
    trial = f"--blocks {LAYERS}"
    return Grid(arms, GPT, {"task": {CHARACTERS: ""}, **cuts}, SEEDS, candidates=HIGHER, trial=trial, smoke=SMALL)


STUDY = Study(
    "Does credit pass between blocks that learn by themselves?",
    [
        generated(LOCAL),
        generated(WHOLE, {}),
        generated(FURTHER, tasks=DEEP),
        of_characters(LOCAL, CUTS),
        of_characters(WHOLE, {}),
    ],
    parts,
)
