"""Accuracy, step time and memory over depth: modules around one extractor, and blocks that a network is cut into.

Shared form: simplecnn with L belief modules, beside its backprop with one head and the belief cascade of as many
modules by backprop.  Trunk form: a residual MLP of 16 equal units in K blocks, beside greedy local heads and backprop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table, fixed, prefixed, shown, whole
from sidestep.studies import against, benches
from sidestep.studies.benches import CHECKPOINTED, PLAIN, STEP, entry
from sidestep.studies.depths import Depths, accuracies, by_depth, lessened, over_depth
from sidestep.studies.rows import pick, spread
from sidestep.studies.study import Grid, Machine, Part, Row, Study

SID, ONE, CASCADE = "SID", "backprop, one head", "belief cascade by backprop"
LOCAL, BACKPROP = "local CE", "backprop"
STREAMING = "sid (streaming)"
CANDIDATES = {STREAMING: SID, "local_ce (streaming)": LOCAL, CHECKPOINTED: "checkpointing"}
SHARE = fixed(1, 100)


def parts(rows: Sequence[Row]) -> list[Part]:
    return [*shared(rows), *trunk(rows)]


def shared(rows: Sequence[Row]) -> list[Part]:
    """What the answer says of this form, and its section; nothing before it has run."""
    sid, cascade, one = by_depth(rows, "modules", SID), by_depth(rows, "modules", CASCADE), pick(rows, arm=ONE)
    arms = {SID: sid, CASCADE: cascade, ONE: dict.fromkeys([*sid, *cascade], one)}
    timed, cascaded = by_depth(rows, "modules", SID, bench=True), by_depth(rows, "modules", CASCADE, bench=True)
    series = {"SID": (timed, STREAMING), "cascade": (cascaded, PLAIN), "one head": (timed, PLAIN)}
    told: list[str] = []
    if reached := ends({depth: shown(spread(its), PERCENT) for depth, its in sid.items()}, "modules"):
        told.append(f"Around one extractor SID reaches {reached}.")
    for arm in (CASCADE, ONE):
        gaps = {f"{depth} modules": gap for depth, gap in lessened(arms, SID, arm).items()}
        told.append(against.said(f"SID less {arm}", dict(list(gaps.items())[-1:])))
    shares = {
        "training FLOPs": {depth: of_training(its, one) for depth, its in sid.items()},
        "step time": {depth: of_time(its, quartiles=False) for depth, its in timed.items()},
        "parameters": {depth: SHARE(of_parameters(its[0])) for depth, its in sid.items()},
    }
    if known := [f"of the {what} {share}" for what, found in shares.items() if (share := ends(found, "modules"))]:
        told.append(f"The extractor, which ordinary end-to-end backprop trains, has {'; '.join(known)}.")
    text = (
        "The extractor is trained by ordinary end-to-end backprop through its layers, from the sum of all modules’ "
        "gradients: only the modules are local, and only their part of a step could be spread over depth. Its share of "
        "training FLOPs and of step time is that of plain backprop on the network with one head, whose linear "
        "classifier counts as its own. " + taken([timed, cascaded])
    )
    tables = [
        ("Test accuracy", accuracies(arms, [(SID, CASCADE), (SID, ONE)], "modules")),
        ("How much of SID is the extractor", extractor(sid, timed, one)),
        *benches.tables(timed, {STREAMING: SID}, "modules"),
    ]
    drawn = {"SID": sid, "cascade": cascade, "one head": arms[ONE]}
    figures = [
        *over_depth("Test error over modules.", drawn, "modules"),
        *benches.over_depth("shared form", series, "modules", ratios=False),
    ]
    return joined("Shared form: modules around one extractor", told, text, tables, figures)


def trunk(rows: Sequence[Row]) -> list[Part]:
    """As `shared`."""
    sid, local = by_depth(rows, "blocks", SID), by_depth(rows, "blocks", LOCAL)
    arms = {SID: sid, LOCAL: local, BACKPROP: dict.fromkeys([*sid, *local], pick(rows, arm=BACKPROP))}
    benched = [by_depth(rows, "blocks", arm, bench=True) for arm in (SID, LOCAL)]
    depths = sorted({depth for its in benched for depth in its}, key=int)
    timed = {depth: [row for its in benched for row in its.get(depth, [])] for depth in depths}
    series = {called: (timed, candidate) for candidate, called in CANDIDATES.items()}
    told: list[str] = []
    for arm in (SID, LOCAL):
        gaps = {f"{depth} blocks": gap for depth, gap in lessened(arms, arm, BACKPROP).items()}
        told.append(against.said(f"Trunk {arm} less backprop", gaps))
    told += [f"A step in {depth} blocks: {benches.costs(its, CANDIDATES)}." for depth, its in timed.items()][-1:]
    where = taken([timed])
    text = (
        f"One network of 16 equal units, cut ever finer; backprop is the same at every cut. {benches.SEGMENTS} {where}"
    )
    tables = [
        ("Test accuracy", accuracies(arms, [(SID, BACKPROP), (LOCAL, BACKPROP)], "blocks")),
        *benches.tables(timed, CANDIDATES, "blocks"),
    ]
    figures = [
        *over_depth("Test error over blocks.", arms, "blocks"),
        *benches.over_depth("trunk form", series, "blocks"),
    ]
    return joined("Trunk form: one network in ever more blocks", told, text, tables, figures)


def taken(benched: Sequence[Depths]) -> str:
    return benches.taken([row for found in benched for its in found.values() for row in its])


# ------------------------------------------------------------------------------------------------------------ the parts


def joined(
    heading: str,
    told: Sequence[str],
    text: str,
    tables: Sequence[tuple[str, Table | None]],
    figures: Sequence[tuple[str, str, str]],
) -> list[Part]:
    """What there is to show; nothing where no table is left."""
    kept = [(caption, table) for caption, table in tables if table]
    return [(" ".join(filter(None, told)), Section(heading, text.strip(), kept, figures))] if kept else []


def extractor(sid: Depths, timed: Depths, one: Sequence[Row]) -> Table | None:
    """How much of SID in the shared form is the extractor, at every L."""
    columns: list[Column] = [
        ("training FLOPs a sample", [prefixed(its[0]["flops_per_sample"]) for its in sid.values()]),
        ("its share of them, %", [of_training(its, one) for its in sid.values()]),
        ("FLOPs deployed", [prefixed(its[0]["inference_flops_per_sample"]) for its in sid.values()]),
        ("its share deployed, %", [SHARE(of_deployed(its[0])) for its in sid.values()]),
        ("parameters", [whole(its[0]["params"]) for its in sid.values()]),
        ("its share of parameters, %", [SHARE(of_parameters(its[0])) for its in sid.values()]),
        ("its share of step time, %", [of_time(timed.get(depth, [])) for depth in sid]),
    ]
    return Table.of(list(sid), columns, "modules")


def of_training(sid: Sequence[Row], one: Sequence[Row]) -> str | None:
    """A training step of the network without modules, over SID's."""
    return SHARE(one[0]["flops_per_sample"] / sid[0]["flops_per_sample"]) if one else None


def of_deployed(row: Row) -> float:
    return row["network_flops_per_sample"] / row["inference_flops_per_sample"]


def of_parameters(row: Row) -> float:
    return (row["params"] - row["aux_params"]) / row["params"]


def of_time(benched: Sequence[Row], *, quartiles: bool = True) -> str | None:
    """A step of plain backprop on the network without modules, over SID's."""
    found = entry(benched, STREAMING, STEP)
    if found is None:
        return None
    return benches.ratio(found, of=lambda r: 1 / r, form=SHARE) if quartiles else SHARE(1 / found["ratio"])


def ends(found: Mapping[str, str | None], what: str) -> str | None:
    """The first and the last: "99.9 % with 2 modules and 96.4 % with 64"."""
    known = [(depth, value) for depth, value in found.items() if value is not None]
    if not known:
        return None
    (first, value), (last, final) = known[0], known[-1]
    return f"{value} % with {first} {what}" + (f" and {final} % with {last}" if last != first else "")


MODULES = (2, 4, 8, 16, 32, 64)
AS_BLOCKS = {"modules": {str(n): f"--blocks {n}" for n in MODULES}}  # SID's: what it cuts are its modules
AS_OPTION = {"modules": {str(n): f"--set model.modules={n}" for n in MODULES}}  # the cascade's: part of its network
BLOCKS = {"blocks": {str(n): f"--blocks {n}" for n in (2, 4, 8, 16)}}
EXTRACTOR = "--data mnist --model simplecnn"
CHAIN = "--data mnist --model belief_cascade --blocks 1"
UNITS = "--data mnist --model resmlp --set model.depth=16 --set model.width=256"
TRUNK = {SID: "sid --form trunk", LOCAL: "local_ce"}
TRAINED = {arm: f"train {words}" for arm, words in TRUNK.items()}
SMALL = "--set model.width=16"
ON: Mapping[Machine, int] = {"cpu": 1}
CHEAP: Mapping[Machine, int] = {"cpu": 3}

STUDY = Study(
    "What does depth give, and what does it cost?",
    [
        Grid({ONE: "train backprop --blocks 1"}, f"{EXTRACTOR} --epochs 3", seeds=ON),
        Grid({SID: "train sid --form shared"}, f"{EXTRACTOR} --epochs 3", AS_BLOCKS, ON),
        Grid({CASCADE: "train backprop"}, f"{CHAIN} --epochs 3", AS_OPTION, ON),
        Grid({BACKPROP: "train backprop --blocks 1"}, f"{UNITS} --epochs 5", seeds=CHEAP, smoke=SMALL),
        Grid(TRAINED, f"{UNITS} --epochs 5", BLOCKS, CHEAP, smoke=SMALL),
        *benches.grids({SID: "sid --form shared"}, EXTRACTOR, AS_BLOCKS, ON),
        *benches.grids({CASCADE: "backprop"}, CHAIN, AS_OPTION, ON),
        *benches.grids(TRUNK, UNITS, BLOCKS, ON, SMALL),
    ],
    parts,
)
