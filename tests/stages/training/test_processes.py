"""One process or two, killed or not: the same training."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import toy
from accelerate.state import AcceleratorState

from cascade.stages.training import checkpoint, train
from cascade.stages.training.processes import accelerator_at

ROOT = Path(__file__).parents[3]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cascade.stages.training"])
SECONDS = 120
"""Longest that a training of these tests may take on a busy machine."""


def start(folder, processes=1, **settings):
    """A training in so many processes of its own."""
    folder.mkdir(exist_ok=True)
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in range(processes):
        environment = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        started.append(CONTEXT.Process(target=toy.process, args=(environment, folder, settings)))
        started[-1].start()
    return started


def end(started):
    """The exit codes, once all have ended."""
    for process in started:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            pytest.fail("a process hangs")
    return [process.exitcode for process in started]


def kill_at(folder, started, steps, rank=0, how=signal.SIGKILL):
    """Signal one of the processes once the log tells of so many steps; the others end too, as torchrun sees to."""
    wait_for_step(folder, steps, started)
    os.kill(started[rank].pid, how)
    if how == signal.SIGKILL:
        for process in started:
            process.kill()
    return end(started)


def wait_for_step(folder, steps, started):
    """Until the log tells of so many steps, or the training is over."""
    until = time.monotonic() + SECONDS
    while len(log(folder)) < steps and any(map(runs, started)) and time.monotonic() < until:
        time.sleep(0.002)


def runs(process):
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def log(folder):
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def result(folder):
    """The last checkpoint: its checksums, all its tensors, and with how many processes it was written."""
    tensors, state, problems = checkpoint.load_newest(folder)
    assert not problems and state["images_seen"] == 240
    return state["sha256"], torch.cat([value.double().flatten() for value in tensors["network"].values()]), state["processes"]


def losses(folder):
    return torch.tensor([json.loads(line)["loss"] for line in log(folder)], dtype=torch.float64)


def check_log(folder):
    """Every step is there once."""
    assert [json.loads(line)["images_seen"] for line in log(folder)] == list(range(8, 241, 8))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing interrupts, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert end(start(folder)) == [0]
    check_log(folder)
    return folder


def test_the_same_batches_give_the_same_curve_in_one_and_in_two_processes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert end(start(one, dropout=0.0)) == [0] and end(start(two, 2, dropout=0.0)) == [0, 0]
    (_, weights, _), (_, others, processes) = result(one), result(two)
    assert processes == 2
    check_log(two)
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=0)
    # Adam makes whole steps of the rounding errors of weights without effect, such as biases before a normalisation
    assert ((others - weights).abs() < 1e-4).double().mean() > 0.98


def test_two_processes_drop_what_two_parts_of_one_drop_and_not_the_same_twice(tmp_path, whole):
    parts, two = tmp_path / "parts", tmp_path / "two"
    assert end(start(parts, accumulate=2)) == [0] and end(start(two, 2)) == [0, 0]
    torch.testing.assert_close(losses(two), losses(parts), rtol=1e-5, atol=0)
    difference = (losses(two) - losses(whole)).abs() / losses(whole)
    assert difference[1:].max() > 1e-3, "one process draws its masks for the whole batch, so these differ"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_is_killed_ends_with_the_weights_of_one_that_was_not(tmp_path, whole, workers):
    for steps in (3, 12, 25):
        assert kill_at(tmp_path, start(tmp_path, workers=workers), steps) == [-signal.SIGKILL]
    assert end(start(tmp_path, workers=workers)) == [0]
    assert result(tmp_path)[0] == result(whole)[0]
    assert log(tmp_path)[-1].split('"images_per_second"')[0] == log(whole)[-1].split('"images_per_second"')[0]
    check_log(tmp_path)
    assert not [path for path in tmp_path.glob(".*") if path.name != ".lock"]


def test_a_run_goes_on_in_another_number_of_processes_and_says_so(tmp_path, whole):
    kill_at(tmp_path, start(tmp_path, 2, dropout=0.0), 16)
    assert end(start(tmp_path, dropout=0.0)) == [0]
    messages = (tmp_path / "messages").read_text().splitlines()
    assert messages[-1] == "1: continued from 112 images; now 1 process, before 2"
    check_log(tmp_path)


def test_sigterm_to_one_process_ends_both_after_the_same_step_with_a_checkpoint(tmp_path):
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    assert end(start(unbroken, 2)) == [0, 0]
    codes = kill_at(stopped, start(stopped, 2, workers=1), 10, rank=1, how=signal.SIGTERM)
    assert codes == [1, 1]
    seen = json.loads(log(stopped)[-1])["images_seen"]
    assert 80 <= seen < 240 and checkpoint.load_newest(stopped)[1]["images_seen"] == seen
    assert end(start(stopped, 2, workers=1)) == [0, 0]
    assert result(stopped)[0] == result(unbroken)[0]
    check_log(stopped)


def test_a_second_training_in_the_same_folder_is_refused_while_the_first_lives(tmp_path):
    first = start(tmp_path)
    while not log(tmp_path):
        time.sleep(0.002)
    os.kill(first[0].pid, signal.SIGSTOP)  # alive, but it can't reach its end meanwhile
    with pytest.raises(ValueError, match="another process is training in"):
        train(toy.recipe(), toy.pictures(), tmp_path)
    first[0].kill()
    end(first)
    train(toy.recipe(), toy.pictures(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("resident, optimizer", [(False, "adam"), (True, "muon")])
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_at_any_moment_change_no_bit(tmp_path, processes, resident, optimizer):
    """Of starting, training, writing a checkpoint or ending; with a data worker each, at whose death no one waits.

    Runs with resident pictures end as the whole one does whose pictures are read by data workers.
    """
    chance, whole = random.Random(processes), tmp_path / "whole"
    settings = {"workers": 1, "optimizer": optimizer}
    assert end(start(whole, processes, **settings)) == [0] * processes
    settings["resident"] = resident
    finished, kills = 0, 0
    while kills < 20:
        folder = tmp_path / f"run{finished}"
        steps, started = len(log(folder)), start(folder, processes, **settings)
        if chance.random() < 0.8:  # else while it starts
            wait_for_step(folder, steps + 1 + chance.randrange(9), started)
        time.sleep(chance.uniform(0, 0.1))
        alive = any(map(runs, started))
        for process in started:
            process.kill()
        end(started)
        kills += alive
        if not alive:
            assert result(folder)[0] == result(whole)[0]
            finished += 1
    assert end(start(folder, processes, **settings)) == [0] * processes
    assert result(folder)[0] == result(whole)[0] and result(folder)[2] == processes
    check_log(folder)
    print(f"{kills} kills in {processes} processes, {finished} runs ended between them, all with the same bits")


def torchrun(folder, **settings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([*command, toy.__file__, folder, json.dumps(settings)], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_torchrun_is_stopped_killed_and_goes_on_as_if_nothing_had_been(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert end(start(whole, 2)) == [0, 0]

    launched = torchrun(broken)
    wait_for_step(broken, 5, [launched])
    launched.terminate()  # as a cluster ends a job
    assert launched.wait(SECONDS) != 0
    seen = json.loads(log(broken)[-1])["images_seen"]
    assert 40 <= seen < 240 and checkpoint.load_newest(broken)[1]["images_seen"] == seen

    launched = torchrun(broken)
    wait_for_step(broken, seen // 8 + 5, [launched])
    family = [*psutil.Process(launched.pid).children(recursive=True), launched]
    for process in family:
        process.kill()
    launched.wait(SECONDS)

    assert torchrun(broken).wait(SECONDS) == 0
    assert result(broken)[2] == 2 and result(broken)[0] == result(whole)[0]
    check_log(broken)


def test_a_run_has_its_own_precision_whatever_ran_before():
    for precision, kind in (("bfloat16", "bf16"), ("float32", "no"), ("bfloat16", "bf16")):
        assert accelerator_at(precision).mixed_precision == kind
    AcceleratorState._reset_state()
