"""`sidestep train --ranks`: the folder of one process, by several; and none of them left over, whatever ends them."""

from __future__ import annotations

import multiprocessing as mp
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import HashStore

from sidestep import cli
from sidestep.engines.dist_wire import DistWire
from sidestep.engines.replicas import Replicas
from sidestep.engines.wire import Edge, When
from sidestep.errors import DataError, WireError
from sidestep.launch import free_port, take_place, threads_each
from sidestep.ranks import joined, meeting_point, world
from sidestep.stopping import Stopping, on_signals
from sidestep.watch import EXIT_CODE, LAUNCHER, SILENCE, START, Watch
from tests.test_resume import command, numbers
from tests.test_train import QUICK, contents, rows, trained, weights, words

SLOW = QUICK | {"epochs": "6", "save_every": "7", "batch_size": "64", "report": "false"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that nothing interrupts."""
    out = tmp_path_factory.mktemp("run") / "straight"
    trained("bll", out, **SLOW)
    return out


@pytest.mark.parametrize(("away", "code"), [(0, 0), (1, -signal.SIGKILL)])
def test_a_worker_whose_launcher_ended_before_it_could_be_watched_ends_too(away: int, code: int) -> None:
    asked = "from sidestep.watch import die_with_parent; die_with_parent()"
    done = subprocess.run([sys.executable, "-c", asked], env=os.environ | {LAUNCHER: str(os.getpid() + away)})
    assert done.returncode == code


def same_run(out: Path, straight: Path, epochs: int = 6) -> None:
    assert weights(out) == weights(straight)
    assert rows(out) == rows(straight) and len(rows(out)) == epochs
    assert numbers(out) == numbers(straight)


def ranks(count: int, out: Path, *more: str) -> list[str]:
    return command("bll", "--ranks", str(count), "--out", str(out), *more)


class Launched:
    """A launcher, and the processes it has started."""

    def __init__(self, line: list[str]) -> None:
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.launcher = psutil.Process(self.process.pid)

    def ranks(self) -> list[psutil.Process]:
        """In their order: each knows its own number."""
        return sorted(self.launcher.children(), key=lambda p: int(p.environ()["RANK"]))

    def wait_for(self, path: Path) -> None:
        while self.process.poll() is None and not path.exists():
            time.sleep(0.005)

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Exit code, and the last lines of stdout and stderr."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, (out.splitlines() or [""])[-1], (err.splitlines() or [""])[-1]


@pytest.fixture
def started() -> Generator[list[Launched]]:
    """Those that a test starts, none of which outlives it."""
    found: list[Launched] = []
    yield found
    for launched in found:
        for process in (*launched.launcher.children(), launched.launcher) if launched.launcher.is_running() else ():
            process.kill()


def start(started: list[Launched], line: list[str]) -> Launched:
    started.append(Launched(line))
    return started[-1]


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all have ended; an orphan that has is a zombie until the system's first process takes note of it."""
    return all(ended(process) for process in psutil.wait_procs(processes, timeout=seconds)[1])


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_they_leave_the_folder_of_one_and_another_number_goes_on_after_a_signal(
    straight: Path, tmp_path: Path, started: list[Launched]
) -> None:
    """Two, unequal ones, are stopped, four go on and are stopped, one ends it: parameters and metrics of one alone."""
    out = tmp_path / "run"
    first = start(started, ranks(2, out, "--shares", "3,1", *words(SLOW)))
    first.wait_for(out / "checkpoints" / "step-14")
    first.process.send_signal(signal.SIGTERM)
    code, _, err = first.end()
    assert code == 143 and err == f"sidestep: SIGTERM; saved, go on with --resume last --out {out}"
    second = start(started, ranks(4, out, "--resume", "last"))
    second.wait_for(out / "checkpoints" / "step-49")
    second.process.send_signal(signal.SIGINT)
    code, _, err = second.end()
    assert code == 130 and err == f"sidestep: SIGINT; saved, go on with --resume last --out {out}"
    assert cli.main(["train", "bll", "--resume", "last", "--out", str(out)]) == 0
    same_run(out, straight)


def test_the_last_line_of_json_is_the_first_ones_summary_and_a_finished_run_is_left_as_it_is(
    straight: Path, tmp_path: Path, started: list[Launched]
) -> None:
    out = tmp_path / "run"
    code, printed, _ = start(started, ranks(2, out, "--json", *words(SLOW))).end()
    assert code == 0 and printed.startswith('{"method": "bll"')
    same_run(out, straight)
    before = contents(out)
    code, again, _ = start(started, ranks(2, out, "--resume", "last", "--json")).end()
    assert code == 0 and again == printed
    assert contents(out) == before


def test_bad_input_is_told_once_with_the_code_of_one_process_and_not_tried_again(
    straight: Path, tmp_path: Path, started: list[Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two are found before any process is started; one is no sooner known than by the data, one by the numbers lost."""
    assert cli.main(["train", "bll", "--ranks", "5"]) == 2
    error = "sidestep: error: got --ranks 5 for 4 blocks, expected at most one a block.\n"
    assert capsys.readouterr().err == error
    refused = start(started, ranks(2, straight, "--max-restarts", "1"))
    _, err = refused.process.communicate(timeout=60)
    assert refused.process.returncode == 2
    advice = "give --resume last to continue it, --overwrite, or another --out."
    assert err == f"sidestep: error: {straight} holds a run; {advice}\n"
    starved = start(started, ranks(2, tmp_path / "new", "--max-restarts", "2", "--batch-size", "5000"))
    _, err = starved.process.communicate(timeout=60)
    assert starved.process.returncode == 1
    assert err.startswith("sidestep: error: got 1294 training samples") and len(err.splitlines()) == 1
    lost = start(started, ranks(2, tmp_path / "lost", "--max-restarts", "2", "--lr", "1e9"))
    _, err = lost.process.communicate(timeout=60)
    assert lost.process.returncode == 1
    why = "got a loss or parameters that are infinite or NaN by step 20, expected finite ones"
    told = [line for line in err.splitlines() if "error:" in line]
    first, second = sorted(told, key=len)  # the rank that found it, and the one that heard of it
    assert first.startswith(f"sidestep: error: {why}") and f"rank 0 has ended: {why}" in second
    assert not first.endswith("..") and not second.endswith("..")


def test_whichever_of_three_is_killed_the_others_end(tmp_path: Path, started: list[Launched]) -> None:
    """The one in the middle has neighbours on both sides."""
    launched = start(started, ranks(3, tmp_path / "run", *words(SLOW | {"epochs": "100"})))
    launched.wait_for(tmp_path / "run" / "checkpoints" / "step-7")
    workers = launched.ranks()
    workers[1].kill()
    assert gone(workers, 10)
    code, _, err = launched.end()
    assert code == 1 and err == "sidestep: error: rank 1 was killed by SIGKILL; go on with --resume last."


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("4,2", 4), ("", None), ("0", None)])
def test_threads_are_as_openmp_reads_them(said: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.launch.os.cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_each(2) == (threads or 4)


@pytest.mark.parametrize("asked", ["overwrite", "path"])
def test_a_rank_that_dies_before_the_run_has_begun_leaves_what_was_asked_for_to_be_done(
    asked: str, straight: Path, tmp_path: Path, started: list[Launched]
) -> None:
    """Not a run to go on with: what is in the folder then is of another launch."""
    out = shutil.copytree(straight, tmp_path / "run")
    start_at = min((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    how = {"overwrite": ["--overwrite", *words(SLOW), "--seed", "1"], "path": ["--resume", str(start_at)]}
    launched = start(started, command("bll", "--ranks", "2", "--max-restarts", "1", "--out", str(out), *how[asked]))
    while len(workers := launched.launcher.children()) < 2:
        time.sleep(0.005)
    workers[1].kill()
    _, err = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 0
    if asked == "path":
        number = int(start_at.name[5:])
        assert f"sidestep: resuming at step {number} of " in err
        same_run(out, straight)
    else:
        assert f"sidestep: the run is kept in {out}\n" in err
        assert numbers(out)["seed"] == 1 and weights(out) != weights(straight)


def test_a_rank_that_is_killed_ends_all_and_restarts_end_with_the_parameters_of_an_uninterrupted_run(
    straight: Path, tmp_path: Path, started: list[Launched]
) -> None:
    out = tmp_path / "run"
    launched = start(started, ranks(2, out, *words(SLOW)))
    launched.wait_for(out / "checkpoints" / "step-14")
    workers = launched.ranks()
    workers[1].kill()
    code, _, err = launched.end(timeout=10)
    assert code == 1 and err == "sidestep: error: rank 1 was killed by SIGKILL; go on with --resume last."
    assert gone(workers, 0)
    again = start(started, ranks(2, out, "--resume", "last", "--max-restarts", "1"))
    again.wait_for(out / "checkpoints" / "step-49")
    again.ranks()[0].kill()
    code, _, _ = again.end()
    assert code == 0
    same_run(out, straight)


def test_two_replicas_of_two_ranks_are_stopped_and_killed_and_end_with_the_parameters_of_one_process(
    tmp_path: Path, started: list[Launched]
) -> None:
    """One process computes the same micro-batches in turn.  Losses are added up in another order, so not to the bit."""
    alone, out = tmp_path / "alone", tmp_path / "run"
    settings = SLOW | {"accumulate": "2"}
    trained("bll", alone, **settings)
    first = start(started, ranks(2, out, "--replicas", "2", *words(settings)))
    first.wait_for(out / "checkpoints" / "step-14")
    first.process.send_signal(signal.SIGTERM)
    assert first.end()[0] == 143
    again = start(started, ranks(2, out, "--replicas", "2", "--resume", "last", "--max-restarts", "1"))
    again.wait_for(out / "checkpoints" / "step-49")
    again.ranks()[3].kill()
    assert again.end()[0] == 0
    assert weights(out) == weights(alone)
    for row, expected in zip(rows(out), rows(alone), strict=True):
        assert row["val"] == expected["val"]
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)  # a mean of means, in float32


def come_alone(folder: Path, port: int) -> None:
    take_place(1, 2, port)
    with on_signals(lambda *_: sys.exit(1), signal.SIGINT, signal.SIGTERM):
        (folder / "waits").touch()
        with joined():
            raise AssertionError("nobody else comes")


def wait_for_replica(folder: Path, port: int, rank: int = 1) -> None:
    wait_for_the_first(folder, port, rank, lambda: Replicas(world()).broadcast(0))


def wait_for_message(folder: Path, port: int, rank: int = 1) -> None:
    edge = Edge("0 talk", When(True, 0), 0, 1)
    wait_for_the_first(folder, port, rank, lambda: DistWire(world(), [range(1), range(1, 2)], bytes(16)).receive(edge))


def wait_for_the_first(folder: Path, port: int, rank: int, wait: Callable[[], object]) -> None:
    take_place(rank, 2, port)
    with joined():
        if rank == 0:
            time.sleep(60)
        with pytest.MonkeyPatch.context() as patch, Stopping(2).listening():
            patch.setattr("sidestep.stopping.PATIENCE", 1)
            (folder / "waits").touch()
            wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", [come_alone, wait_for_replica, wait_for_message])
def test_a_signal_is_answered_where_a_rank_waits_for_what_does_not_come(
    work: Callable[..., None], how: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In C++, mostly, where no handler of Python's runs; the other rank is not dead, so nothing else ends the wait."""
    port, context = free_port(), mp.get_context("spawn")
    processes = [context.Process(target=work, args=(tmp_path, port))]
    if work != come_alone:
        processes.append(context.Process(target=work, args=(tmp_path, port, 0)))
    try:
        for process in processes:
            process.start()
        while not (tmp_path / "waits").exists():
            assert processes[0].is_alive()
            time.sleep(0.005)
        time.sleep(0.5)
        os.kill(processes[0].pid or 0, how)
        processes[0].join(5)
        assert processes[0].exitcode == (-how if work == come_alone else 128 + how)
    finally:
        for process in processes:
            process.kill()
            process.join()
    if work != come_alone:
        assert capfd.readouterr().err == "sidestep: other ranks do not answer; stopping at the last checkpoint\n"


SLOW_STATE = """
import time
from sidestep.engines import dist_wire

read_head = dist_wire.read_head

def slowly(run, head):
    announced = read_head(run, head)
    time.sleep(2 if announced.body > 1 << 18 else 0)  # no step's messages are as large
    return announced

dist_wire.read_head, dist_wire.CHUNK = slowly, 1 << 16
"""


def test_a_rank_that_is_stopped_does_not_leave_before_its_state_has(
    tmp_path: Path, started: list[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much of it takes its time."""
    out = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(SLOW_STATE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    launched = start(
        started, ranks(2, out, *words(SLOW | {"epochs": "100", "save_every": "100", "model.width": "128"}))
    )
    launched.wait_for(out / "checkpoints" / "step-20")
    time.sleep(0.5)  # else it is the first one that stops, with what it has
    launched.process.send_signal(signal.SIGTERM)
    code, _, err = launched.end()
    assert code == 143 and err == f"sidestep: SIGTERM; saved, go on with --resume last --out {out}"


SLOW_JUDGE = """
import pathlib, sys, time
import sidestep.train as train

def judge(*_, **__):
    pathlib.Path({seen!r}).touch()
    time.sleep(60)

train.evaluate = judge
"""


@pytest.mark.parametrize(("processes", "replicas"), [(2, 1), (4, 2)])
def test_a_signal_while_the_first_rank_judges_saves_the_epoch_which_is_judged_when_the_run_goes_on(
    processes: int,
    replicas: int,
    tmp_path: Path,
    started: list[Launched],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, seen = tmp_path / "run", tmp_path / "judging"
    own, settings = processes // replicas, QUICK | {"accumulate": str(replicas), "report": "false"}
    alone = trained("bll", tmp_path / "alone", **settings)
    (tmp_path / "sitecustomize.py").write_text(SLOW_JUDGE.format(seen=str(seen)))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        first = start(started, ranks(own, out, "--replicas", str(replicas), *words(settings)))
        first.wait_for(seen)
        time.sleep(0.5)  # while which the others go on
        began = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        _, err = first.process.communicate(timeout=60)
    assert first.process.returncode == 143 and time.monotonic() - began < 10
    assert err.splitlines()[1:] == [f"sidestep: SIGTERM; saved, go on with --resume last --out {out}"]
    assert not (out / "metrics.jsonl").exists() and (out / "checkpoints" / "step-10").exists()
    again = start(started, ranks(own, out, "--replicas", str(replicas), "--resume", "last"))
    assert again.end()[0] == 0
    assert weights(out) == weights(tmp_path / "alone")
    assert [row["val"] for row in rows(out)] == [row["val"] for row in rows(tmp_path / "alone")]
    assert numbers(out)["val_accuracy"] == alone["val_accuracy"]


def test_a_second_signal_ends_a_process_unless_it_is_the_first_one_by_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who stops a whole group sends it to the launcher and to the ranks, and the launcher sends it to the ranks too."""
    clock, ended = [100.0], list[int]()
    monkeypatch.setattr("sidestep.stopping.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("sidestep.stopping.os._exit", ended.append)
    one_of_two = Stopping(ranks=2)
    one_of_two.ask(signal.SIGINT, None)
    one_of_two.ask(signal.SIGINT, None)
    assert ended == []
    clock[0] += 1.5
    with suppress(KeyboardInterrupt):  # which follows where the process has not ended
        one_of_two.ask(signal.SIGINT, None)
    assert ended == [130]
    alone = Stopping()
    alone.ask(signal.SIGINT, None)
    clock[0] += 1.5
    with pytest.raises(KeyboardInterrupt):
        alone.ask(signal.SIGINT, None)


@pytest.fixture
def another_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a cluster's environment names."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", names[-1] if names else "none")


@pytest.mark.usefixtures("another_interface")
def test_they_listen_to_this_machine_only_and_none_outlives_its_launcher(
    tmp_path: Path, started: list[Launched]
) -> None:
    out = tmp_path / "run"
    launched = start(started, ranks(2, out, *words(SLOW | {"epochs": "100"})))
    launched.wait_for(out / "checkpoints" / "step-7")
    workers = launched.ranks()
    processes = [launched.launcher, *workers]
    listening = [c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening and all(address.ip == "127.0.0.1" for address in listening)
    launched.process.kill()
    assert gone(workers, 2)


def meet(rank: int, port: int) -> None:
    """Meet another one, and look where this process listens."""
    take_place(rank, 2, port)
    with joined():
        listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening and set(listening) == {"127.0.0.1"}


def pair(work: Callable[..., None], *args: object) -> list[int | None]:
    """The exit codes of two processes that do it, each with its rank and the port to meet at."""
    port, context = free_port(), mp.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, port, *args)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.usefixtures("another_interface")
def test_they_listen_to_this_machine_only_without_a_launcher_too() -> None:
    assert pair(meet) == [0, 0]


def stay(rank: int, port: int) -> None:
    take_place(rank, 2, port)
    with joined():
        time.sleep(3 * rank)


def test_the_first_one_keeps_the_store_until_the_others_have_left() -> None:
    assert pair(stay) == [0, 0]


def test_nobody_waits_for_one_that_is_gone_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.watch.BEAT", 0.1)
    monkeypatch.setattr("sidestep.watch.SILENCE", 1.0)
    watch = Watch(HashStore(), 0, 2)
    watch.stop()
    began = time.monotonic()
    watch.outlast()
    assert time.monotonic() - began < 2


def test_a_rank_ends_though_nobody_reads_what_it_has_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ranks in one store the other one never comes; stderr is a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    ended: list[int] = []
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr("sidestep.watch.sys.stderr", broken)
        monkeypatch.setattr("sidestep.watch.os._exit", ended.append)
        monkeypatch.setattr("sidestep.watch.START", 0.1)
        watch = Watch(HashStore(), 0, 2)
        while not ended:
            time.sleep(0.01)
        watch.stop()
        with suppress(BrokenPipeError):
            broken.close()
    assert set(ended) == {EXIT_CODE}


def test_who_was_stopped_itself_does_not_judge_the_others_by_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all are where a container is paused; whoever then stays silent is found out all the same."""
    ended: list[int] = []
    now, stopped = time.monotonic, [0.0]
    monkeypatch.setattr("sidestep.watch.time.monotonic", lambda: now() + stopped[0])
    monkeypatch.setattr("sidestep.watch.os._exit", ended.append)
    monkeypatch.setattr("sidestep.watch.BEAT", 0.1)
    monkeypatch.setattr("sidestep.watch.SILENCE", 2.0)
    store = HashStore()
    both = [Watch(store, n, 2) for n in range(2)]
    time.sleep(1)
    stopped[0] = 60.0
    time.sleep(1)
    assert ended == []
    both[1].key = lambda rank: "another"  # its signs go astray
    time.sleep(3)
    assert EXIT_CODE in ended
    for watch in both:
        watch.stop()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({}, "got WORLD_SIZE without RANK; unset it"),
        ({"WORLD_SIZE": "abc"}, "got WORLD_SIZE=abc, expected a number; unset it"),
        ({"RANK": "0"}, "got WORLD_SIZE without MASTER_ADDR; unset it"),
        (
            {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "1"},
            "got 2 processes, 1 of them on this machi",
        ),
        ({"RANK": "0", "MASTER_ADDR": "192.0.2.2"}, "that meet at 192.0.2.2, expected all on one and a loopback addr"),
    ],
)
def test_what_is_no_place_on_this_machine_is_one_line(
    place: dict[str, str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable, value in ({"WORLD_SIZE": "2"} | place).items():
        monkeypatch.setenv(variable, value)
    assert cli.main(["train", "bll", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--engine", "stacked"],
            "got --engine stacked and several processes, expected one: a stack is in one process.",
        ),
        (["--cuda-graph"], "got --cuda-graph and several processes, expected one: a recorded step sends nothing."),
    ],
)
def test_what_runs_in_one_process_only_is_refused_under_torchrun_too(
    flags: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "local_ce", *flags]) == 2
    assert capsys.readouterr().err == f"sidestep: error: {says}\n"


@pytest.mark.parametrize("trusted", [False, True])
def test_two_hosts_train_where_their_network_is_trusted(
    trusted: bool, straight: Path, tmp_path: Path, started: list[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun sets it on hosts with a process each; here both are this machine."""
    out = tmp_path / "run"
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(2):
        for variable, value in (shared | {"RANK": str(rank), "TORCHELASTIC_RUN_ID": "none"}).items():
            monkeypatch.setenv(variable, value)
        more = ["--trusted-network"] if trusted else []
        start(started, command("bll", *more, "--out", str(out), *words(SLOW)))
    ends = [process.process.communicate(timeout=60)[1] for process in started]
    if trusted:
        assert "sidestep: torchrun's agent keeps a store" in ends[0] and ends[1] == ""
        same_run(out, straight)
    else:
        assert all("got 2 processes, 1 of them on this machine" in err for err in ends) and not out.exists()


def test_where_rank_0_does_not_come_the_others_say_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr("sidestep.ranks.JOIN_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(WireError, match=f"rank 0 keeps no store at 127.0.0.1:{port} after"):
        meeting_point(2, opens=False)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(DataError) as taken:
        meeting_point(2, opens=True)
    said = str(taken.value)
    assert said.startswith(f"rank 0 cannot listen at 127.0.0.1:{port} (Address already in use")
    assert said.endswith("; set another MASTER_PORT.")


@pytest.mark.faults
def test_all_that_are_stopped_for_longer_than_a_rank_may_be_silent_go_on(
    tmp_path: Path, straight: Path, started: list[Launched]
) -> None:
    out = tmp_path / "run"
    launched = start(started, ranks(2, out, *words(SLOW)))
    launched.wait_for(out / "checkpoints" / "step-14")
    every = [launched.launcher, *launched.ranks()]
    for process in every:
        process.suspend()
    time.sleep(SILENCE + 2)
    for process in every:
        process.resume()
    code, _, err = launched.end()
    assert code == 0, err
    same_run(out, straight)


@pytest.mark.faults
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen_before_it_has_come_ends_all(
    frozen: int, tmp_path: Path, started: list[Launched]
) -> None:
    launched = start(started, ranks(2, tmp_path / "run", *words(SLOW)))
    while len(workers := launched.launcher.children()) < 2:
        time.sleep(0.005)
    workers[frozen].suspend()
    code, _, err = launched.end(timeout=2 * START)  # and what importing takes, and 30 s until it is killed
    assert code == 1 and "Traceback" not in err


@pytest.mark.faults
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen_ends_the_other_in_time(frozen: int, tmp_path: Path, started: list[Launched]) -> None:
    out = tmp_path / "run"
    launched = start(started, ranks(2, out, *words(SLOW | {"epochs": "100"})))
    launched.wait_for(out / "checkpoints" / "step-7")
    workers = launched.ranks()
    workers[frozen].suspend()
    began = time.monotonic()
    assert gone([workers[1 - frozen]], 2 * SILENCE)
    assert time.monotonic() - began <= SILENCE + 1
    code, _, err = launched.end()
    # Of a rank 0 that is frozen it may be the store that is noticed first.
    silent = [rf"rank {frozen} has given no sign of life", "rank 0, which keeps the signs of life, has not answered"]
    ending = rf"for {SILENCE:g} s; rank {1 - frozen} ends, go on with --resume last\."
    assert code == 1 and re.fullmatch(rf"sidestep: error: ({'|'.join(silent)}) {ending}", err)
