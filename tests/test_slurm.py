import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swiftformer.train.slurm import slurm_script

SRUN = f"""#!{sys.executable} -SE
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
count, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
places = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % per_node)}} for i in range(count)]
tasks = [subprocess.Popen(words, env={{**os.environ, **place}}) for place in places]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
os.symlink(str(os.getpid()), os.path.join(os.environ["FAKES"], "pid-of-srun"))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/bash
echo "$*" >>"$FAKES/scontrol-calls"
if [ "$1 $2" = "show hostnames" ]; then printf 'node-a\\nnode-b\\n'; fi
if [ "$1" = requeue ]; then exit "${REQUEUE_CODE:-0}"; fi
"""
SWIFTFORMER = """#!/bin/bash
printf '%s\\0' "$@" >"$FAKES/arguments-$RANK"
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT" >"$FAKES/ranks-$RANK"
trap 'echo term >"$FAKES/term-$RANK"; exit 143' TERM
if [ -n "$UNTIL_TERM" ]; then
    echo $$ >"$FAKES/new-$RANK"
    mv "$FAKES/new-$RANK" "$FAKES/pid-$RANK"
    for ((i = 0; i < 1000; i++)); do sleep 0.02; done
fi
codes=(${CODES:-0})
exit "${codes[RANK % ${#codes[@]}]}"
"""


class Cluster:
    """A folder with executables that stand in for Slurm's, and for the training."""

    def __init__(self, root):
        self.root, self.fakes = root, root / "fakes"
        self.fakes.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("swiftformer", SWIFTFORMER)):
            (self.fakes / name).write_text(text)
            (self.fakes / name).chmod(0o755)

    def start(self, script, **environment):
        for old in self.fakes.glob("*-*"):
            old.unlink()
        (self.root / "job.sh").write_text(script, encoding="utf-8")
        nodes, tasks = (int(directives(script)[name]) for name in ("nodes", "ntasks-per-node"))
        environment |= {"SLURM_NTASKS": str(nodes * tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
        environment |= {"SLURM_JOB_ID": "70000123", "SLURM_JOB_NODELIST": "node-[a-b]", "FAKES": str(self.fakes)}
        environment |= {"PATH": f"{self.fakes}:{os.environ['PATH']}"}
        log = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", "job.sh"], cwd=self.root, env=os.environ | environment, **log)

    def run(self, script, **environment):
        job = self.start(script, **environment)
        log, _ = job.communicate(timeout=30)
        return job.returncode, log

    def arguments(self, rank=0):
        return (self.fakes / f"arguments-{rank}").read_bytes().decode().split("\0")[:-1]

    def requeued(self):
        return (self.fakes / "scontrol-calls").read_text().splitlines().count("requeue 70000123")

    def wait_for(self, pattern, count):
        limit = time.monotonic() + 20
        while len(found := list(self.fakes.glob(pattern))) < count:
            assert time.monotonic() < limit
            time.sleep(0.02)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return Cluster(tmp_path_factory.mktemp("cluster"))


def directives(script):
    """sbatch's options: the comments before the first command."""
    found = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#SBATCH --"):
            break
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        found[name] = value
    return found


def test_what_slurm_is_told():
    options = {"nodes": 2, "gpus": 4, "cpus": 12, "time": "2-12:00:00", "job_name": "l1", "partition": "gpu,long"}
    options |= {"account": "vision", "constraint": "a100&nvlink", "memory": "64G", "output": "logs/%x-%j.log"}
    script = slurm_script(["--data", "imagenet"], signal_seconds=300, **options)
    expected = """job-name=l1 partition=gpu,long account=vision constraint=a100&nvlink nodes=2 ntasks-per-node=4
        gpus-per-node=4 cpus-per-task=12 mem=64G time=2-12:00:00 output=logs/%x-%j.log open-mode=append
        signal=TERM@300 requeue="""
    assert directives(script) == dict((word + "=").split("=")[:2] for word in expected.split())
    assert "exec swiftformer train" in script and "--cpus-per-task=12" in script
    few = directives(slurm_script([], requeue=False))
    assert "no-requeue" in few and few.keys().isdisjoint({"requeue", "partition", "account", "constraint", "mem"})
    for time_ in ("10", "0:30:00", "01:00:00", "48:00:00", "1-00:00:00", "30-23:59:59"):
        assert directives(slurm_script([], time=time_))["time"] == time_


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_cluster_without_gpus(tasks):
    script = slurm_script([], gpus=0, nodes=2, tasks=tasks)
    assert "gpu" not in script and directives(script)["ntasks-per-node"] == str(tasks)


@pytest.mark.parametrize("options", [{}, {"requeue": False, "gpus": 0, "setup": ["source 'my env/bin/activate'"]}])
def test_the_shell_reads_it(options, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(slurm_script(["--data", "it's"], **options))
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--exclude=SC1090,SC1091", path], check=True)


def test_every_process_knows_its_place(cluster):
    code, log = cluster.run(slurm_script(["--data", "a folder"], nodes=2, gpus=2))
    assert code == 0 and "ends with exit code 0" in log and cluster.requeued() == 0
    for rank in range(4):
        found = (cluster.fakes / f"ranks-{rank}").read_text().split()
        assert found == [str(rank), str(rank % 2), "4", "2", "node-a", str(10000 + 70000123 % 20000)]
        assert cluster.arguments(rank) == ["train", "--data", "a folder"]
    assert "show hostnames node-[a-b]" in (cluster.fakes / "scontrol-calls").read_text()


# What a command line can carry, apart from the options that the script itself reads.
words = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=12)
lists = st.lists(words.filter(lambda word: word != "--resume" and not word.startswith("--output")), max_size=5)


@settings(max_examples=25, deadline=None, database=None)
@given(arguments=lists)
@example(arguments=["--set", 'teacher=it\'s "here"', "$HOME `id` $(id) \\", "*", "", "{a,b} {0} ~", "!x", "#", "-é雪"])
def test_arguments_arrive_unchanged(cluster, arguments):
    code, _ = cluster.run(slurm_script(arguments, gpus=1))
    assert code == 0 and cluster.arguments() == ["train", *arguments]


@pytest.mark.parametrize("folder", ["my runs/it's [1]*", "$HOME", "plain", None])
@pytest.mark.parametrize("joined", [False, True])
def test_it_resumes_where_there_is_a_state(cluster, folder, joined):
    arguments = [] if folder is None else [f"--output={folder}"] if joined else ["--output", folder]
    script = slurm_script(["--data", "d", *arguments], gpus=1)
    run = cluster.root / (folder or "runs/train")
    shutil.rmtree(run, ignore_errors=True)
    given = ["train", "--data", "d", *arguments]
    cluster.run(script)
    assert cluster.arguments() == given
    (run / "states").mkdir(parents=True)
    (run / "states" / "epoch-0001.pt").touch()  # no checksum: not complete
    cluster.run(script)
    assert cluster.arguments() == given
    (run / "states" / "epoch-0001.sha256").touch()
    cluster.run(script)
    assert cluster.arguments() == [*given, "--resume"]


@pytest.mark.parametrize(
    "codes, expected", [("0", 0), ("1", 1), ("0 2", 2), ("137", 137), ("143", 143), ("1 143", 143)]
)
def test_only_an_interrupted_training_goes_back_to_the_queue(cluster, codes, expected):
    code, log = cluster.run(slurm_script([], gpus=2), CODES=codes)
    assert code == expected and cluster.requeued() == (expected == 143)
    assert ("goes back to the queue" in log) == (expected == 143)
    code, _ = cluster.run(slurm_script([], gpus=2, requeue=False), CODES=codes)
    assert code == expected and cluster.requeued() == 0


def test_a_cluster_that_does_not_requeue(cluster):
    code, log = cluster.run(slurm_script([], gpus=1), CODES="143", REQUEUE_CODE="1")
    assert code == 143 and "submit this script again" in log


@pytest.mark.parametrize("receiver", ["processes", "srun"])
def test_sigterm_reaches_every_training(cluster, receiver):
    job = cluster.start(slurm_script([], gpus=2), UNTIL_TERM="1")
    *processes, srun = sorted(cluster.wait_for("pid-*", 3))
    # At the time limit Slurm signals the processes of the step themselves, and a person may signal srun.
    pids = [file.read_text() for file in processes] if receiver == "processes" else [srun.readlink().name]
    for pid in pids:
        os.kill(int(pid), signal.SIGTERM)
    log, _ = job.communicate(timeout=20)
    assert job.returncode == 143 and cluster.requeued() == 1 and "interrupted by SIGTERM" in log
    assert len(list(cluster.fakes.glob("term-*"))) == 2


def test_a_cancelled_job_does_not_come_back(cluster):
    job = cluster.start(slurm_script([], gpus=1), UNTIL_TERM="1")
    [file] = cluster.wait_for("pid-[0-9]", 1)
    job.send_signal(signal.SIGTERM)  # scancel signals the script as well
    assert job.wait(timeout=20) == -signal.SIGTERM
    os.kill(int(file.read_text()), signal.SIGTERM)
    cluster.wait_for("term-*", 1)
    assert cluster.requeued() == 0
    job.communicate(timeout=20)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"time": "1 day"}, "time: expected minutes, HH:MM:SS or D-HH:MM:SS, found '1 day'"),
        ({"time": "30:00"}, "time: expected minutes"),
        ({"time": "1-24:00:00"}, "time: expected minutes"),
        ({"time": "1-0:60:00"}, "time: expected minutes"),
        ({"time": "٣"}, "time: expected minutes"),
        ({"time": "10\n"}, "time: expected minutes"),
        ({"time": "2"}, "time: expected more than the 120 s"),
        ({"nodes": 0}, "nodes: expected at least 1, found 0"),
        ({"gpus": -1}, "gpus: expected at least 0, found -1"),
        ({"cpus": 0}, "cpus: expected at least 1"),
        ({"tasks": 2}, "tasks: expected to be left alone"),
        ({"signal_seconds": 0}, "signal_seconds: expected 1 to 65535"),
        ({"job_name": "a\n#SBATCH --nodes=9"}, "job_name: expected letters"),
        ({"job_name": "a b"}, "job_name: expected letters"),
        ({"job_name": ""}, "job_name: expected letters"),
        ({"partition": "gpu --nodes=9"}, "partition: expected"),
        ({"account": "x'"}, "account: expected"),
        ({"constraint": "a100;rm"}, "constraint: expected"),
        ({"memory": "lots"}, "memory: expected megabytes"),
        ({"output": "my logs/%j"}, "output: expected"),
        ({"setup": ["module load cuda\nreboot"]}, "without control characters"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        slurm_script([], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [["--resume"], ["a\nb"], ["a\0"], ["\udc80"], ["--output"], ["--output="]])
def test_refused_arguments(arguments):
    with pytest.raises(ValueError, match="expected .*, found"):
        slurm_script(arguments)
