"""Launching: commands as they would be run, restarts, preemption; with a stand-in TPU.

The stand-in is a program named gcloud: workers are folders, ssh is bash in one of them,
and the Python there is a script that does what the test says. All else is the real one.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from easylm.errors import parse

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "scripts" / "launch"
SETTINGS = dict(
    NAME="my-run", ZONE="us-east5-b", PROJECT="my-project", ACCELERATOR="v5litepod-16"
)
TRAIN = ["--config", "configs/sft.py", "--workdir", "gs://bucket/run"]
HARD = ["--config.a=two words", "it's", '"quoted"', "$HOME `date` \\", "", "a\nb", "*"]


def script(name, *args, **kwargs):
    """A script of ours, to its end."""
    env = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    env |= {"EVERY": "0"} | kwargs.pop("env", SETTINGS)
    command = ["bash", str(ROOT / "scripts" / name), *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, **kwargs)


def program(path, text):
    """A file that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


ECHO = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv))
"""


@pytest.fixture
def printed(tmp_path):
    """(arguments of tpu.sh) -> the argv that each printed command has in a shell."""
    program(tmp_path / "bin" / "gcloud", ECHO)
    program(tmp_path / "bin" / "xpk", ECHO)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    def run(*args, name="tpu.sh", **env):
        done = script(name, *args, env=SETTINGS | env)
        assert done.returncode == 0, done.stderr
        shell = ["bash", "-c", done.stdout]
        lines = subprocess.check_output(shell, env={"PATH": path}, text=True)
        argvs = [json.loads(line)[1:] for line in lines.splitlines()]
        assert all("--project=my-project" in argv for argv in argvs)
        assert all("--zone=us-east5-b" in argv for argv in argvs)
        return argvs

    return run


def test_every_script_is_bash():
    for path in [*ROOT.glob("scripts/*.sh"), *LAUNCH.glob("*.s*")]:
        subprocess.run(["bash", "-n", str(path)], check=True)


# What would be run


def test_create_asks_for_the_type_its_image_and_as_many_slices(printed):
    [one] = printed("create", "--dry-run")
    assert one[:4] == ["compute", "tpus", "queued-resources", "create"]
    assert one[4] == "my-run" and "--node-id=my-run" in one
    assert "--accelerator-type=v5litepod-16" in one
    assert "--runtime-version=v2-alpha-tpuv5-lite" in one and "--spot" not in one
    more = ["--slices=2", "--spot", "--create-flag", "--network=tpu"]
    [two] = printed("create", *more, "--dry-run", "--accelerator", "v6e-256")
    assert {"--node-count=2", "--node-prefix=my-run", "--spot"} < set(two)
    assert {"--network=tpu", "--runtime-version=v2-alpha-tpuv6e"} < set(two)
    assert "--node-id=my-run" not in two
    [same] = printed("create", "--dry-run", SLICES="2", SPOT="1", RUNTIME="mine")
    assert {"--node-count=2", "--spot", "--runtime-version=mine"} < set(same)


def test_other_commands_name_the_request_and_all_workers(printed):
    def said(*args):
        return [" ".join(argv[2:]) for argv in printed(*args, "--dry-run")]

    everyone = "queued-resources ssh my-run --node=all --worker=all"
    first = "queued-resources ssh my-run --node=0 --worker=0"
    described, asked = said("status")
    assert described.startswith("queued-resources describe my-run --format=value(state")
    assert asked.startswith(f"{everyone} --command=bash EasyLM/scripts/worker.sh state")
    copied, unpacked, installed = said("setup")
    assert re.search(r"scp \S+/my-run.tar.gz my-run:easylm.tar.gz --node=all", copied)
    assert "tar -xzf easylm.tar.gz -C EasyLM" in unpacked
    assert installed.startswith(f"{everyone} --command=bash EasyLM/scripts/worker.sh i")
    cloned, _ = said("setup", "--repo", "https://host/it.git")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    assert f"git checkout --quiet --force {commit.strip()}" in cloned
    assert f"{first} --command=bash EasyLM/scripts/worker.sh log" in said("logs")[0]
    assert "worker.sh log -f" in said("logs", "-f")[0]
    assert "--node=all --worker=all" in said("logs", "--worker=all")[0]
    assert "--node=1 --worker=3" in said("logs", "--worker=3", "--slice=1")[0]
    assert everyone in said("stop")[0]
    assert said("delete")[0].startswith("queued-resources delete my-run --force --qui")
    via = ["--connect-flag", "--tunnel-through-iap"]
    assert said("ssh", *via)[0].startswith(f"{first} --tunnel-through-iap --zone")


def test_arguments_reach_the_run_as_they_were_given(printed):
    """Through the shell that reads the printed line, and the shell of the worker."""
    env = ["--env", "XLA_FLAGS=--a=1 --b='2'"]
    [argv] = printed("run", "--dry-run", *env, "--", *TRAIN, *HARD)
    [line] = [w.removeprefix("--command=") for w in argv if w.startswith("--command=")]
    words = ["bash", "EasyLM/scripts/worker.sh", "start", "env", env[1]]
    words += ["python", "-m", "easylm.train", "--coordinator=auto", *TRAIN, *HARD]
    assert shlex.split(line) == words
    command = printed("ssh", "--dry-run", "--", "df -h | tail")[0]
    assert "--command=df -h | tail" in command


def test_dry_run_needs_no_gcloud_and_touches_nothing(tmp_path):
    for name in ("bash", "sed", "git", "dirname"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        found = subprocess.check_output(["which", name], text=True).strip()
        (tmp_path / "bin" / name).symlink_to(found)
    env = SETTINGS | {"PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path / "tmp")}
    for command in ("create", "status", "setup", "logs", "stop", "ssh", "delete"):
        assert "gcloud" in script("tpu.sh", command, "--dry-run", env=env).stdout
    watched = script("tpu.sh", "watch", "--dry-run", "--", *TRAIN, env=env)
    assert watched.returncode == 0, watched.stderr
    for part in ("create my-run", "delete my-run", "worker.sh start python -m easylm"):
        assert part in watched.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    without = script("tpu.sh", "status", env=env)
    assert without.returncode == 2 and "gcloud is not installed" in without.stderr


@pytest.mark.parametrize(
    "args, message",
    [
        ("frobnicate", "unknown command 'frobnicate'; there are create status"),
        ("create --frob 1", "unknown flag '--frob'; those of easylm.train come after"),
        ("create --accelerator v5e-16", "Cloud TPU calls v5e-16 v5litepod-16"),
        ("create --accelerator tpu7x-8", "through GKE only"),
        ("create --accelerator h100-8", "unknown accelerator type 'h100-8'; known are"),
        ("create --accelerator v4-x", "'v4-x' has no size; write v4-16, say"),
        ("create --accelerator=", "--accelerator has no value"),
        ("create --slices 0", "--slices wants a number from 1, not '0'"),
        ("status --name My_Run", "small letters, digits and - only"),
        ("status --name", "--name has no value"),
        ("run", "give easylm.train its --config after --"),
        ("run -- --config a.py", "give easylm.train its --workdir after --"),
        ("run --env X", "--env wants KEY=VALUE, not 'X'"),
        ("watch -- --config=a --workdir=runs/x", "give gs://BUCKET/runs/x"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(args, message):
    command, *rest = args.split()
    done = script("tpu.sh", command, "--dry-run", *rest)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("name", ["NAME", "ZONE", "PROJECT", "ACCELERATOR"])
def test_what_is_missing_is_said(name):
    env = {k: v for k, v in SETTINGS.items() if k != name}
    done = script("tpu.sh", "create", "--dry-run", env=env)
    assert done.returncode == 2 and f"no {name}; give --{name.lower()}" in done.stderr


def test_help_says_every_command_and_flag():
    text = (ROOT / "scripts" / "tpu.sh").read_text()
    shown = script("tpu.sh", "--help").stdout
    for word in {*re.findall(r"^do_(\w+)\(", text, re.M)}:
        assert f"\n  {word} " in shown
    for flag in re.findall(r"^      (--[a-z-]+)(?: \||\))", text, re.M):
        assert flag in shown


# A TPU that is preempted

GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")/.." && here=$PWD kind=$3 verb=$4 && shift 4
echo "$verb" >>asked
[[ $verb == create || -e state ]] || { echo "ERROR: NOT_FOUND" >&2; exit 1; }
case "$kind $verb" in
  *create)
    [[ ! -e state ]] || { echo "ERROR: ALREADY_EXISTS" >&2; exit 1; }
    for home in homes/0 homes/1; do
      mkdir -p $home/EasyLM && cp -r venv $home/EasyLM/.venv
    done
    echo ACTIVE >state
    ;;
  tpu-vm*) cat node 2>/dev/null || echo READY ;;
  *describe) cat state ;;
  *delete)
    for pid in $(cat homes/*/easylm-run/pid 2>/dev/null); do  # its machine is gone
      session=$(ps -o sid= -p $pid) && pkill -KILL -s $session
    done
    rm -rf homes state node
    ;;
  *scp) for home in homes/*; do cp "$1" "$home/${2#*:}"; done ;;
  *ssh)
    for word; do
      case $word in
        --worker=all) chosen=(homes/*) ;;
        --worker=*) chosen=(homes/${word#*=}) ;;
        --command=*) line=${word#*=} ;;
      esac
    done
    export TPU=$here
    for home in "${chosen[@]}"; do
      (cd $home && HOME=$PWD bash -c "$line") || code=$?
    done
    exit ${code-0}
    ;;
esac
"""

# The Python of a worker: counts its runs, and ends each as the plan says.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -m ]] || exit 1  # looks for checkpoints in the bucket
echo "$PWD $*" >>"$TPU/ran"
runs=$(grep -c "^$PWD " "$TPU/ran")
plan=$(sed -n "${runs}p" "$TPU/plan")
echo "run $runs: $plan"
eval "$plan"
"""


class Cloud:
    """A project in which one TPU of two workers can be had."""

    def __init__(self, folder, plan):
        self.folder = folder
        program(folder / "bin" / "gcloud", GCLOUD)
        program(folder / "venv" / "bin" / "python", PYTHON)
        program(folder / "venv" / "bin" / "pip", "#!/bin/sh\necho $* >>$TPU/pip\n")
        (folder / "plan").write_text("\n".join(plan) + "\n")
        self.env = SETTINGS | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(folder),
        }

    def tpu(self, *args, **kwargs):
        return script("tpu.sh", *args, env=self.env, timeout=20, **kwargs)

    def asked(self):
        """The verbs, without those that only look."""
        verbs = (self.folder / "asked").read_text().split()
        return [v for v in verbs if v in ("create", "delete", "scp")]

    def runs(self):
        return (self.folder / "ran").read_text().splitlines()


@pytest.fixture
def cloud(tmp_path):
    """(a line of bash for the first run of each worker, the second, ...) -> Cloud."""
    made = []
    yield lambda *plan: made.append(Cloud(tmp_path, plan)) or made[-1]
    made[-1].tpu("delete")


PREEMPT = 'echo SUSPENDED >"$TPU/state"; sleep 60'


def test_a_preempted_run_is_brought_back_until_it_is_done(cloud, tmp_path):
    cloud = cloud(PREEMPT, "exit 0")
    done = cloud.tpu("watch", "--spot", "--", *TRAIN, *HARD[:4])
    assert done.returncode == 0, done.stdout + done.stderr
    once = ["create", "scp"]
    assert cloud.asked() == [*once, "delete", *once]
    assert "the request is SUSPENDED" in done.stdout
    assert "the run is done; the TPU is still yours" in done.stdout
    flags = " ".join(["-m easylm.train --coordinator=auto", *TRAIN, *HARD[:4]])
    assert [line.split(" ", 1)[1] for line in cloud.runs()] == [flags] * 4
    assert (tmp_path / "pip").read_text().count("-c constraints.txt -e .[tpu,gcs]") == 4


def test_a_preempted_slice_is_seen_where_the_request_says_active(cloud):
    cloud = cloud('echo PREEMPTED >"$TPU/node"; sleep 60', "exit 0")
    done = cloud.tpu("watch", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "TPU my-run is PREEMPTED" in done.stdout
    assert cloud.asked() == ["create", "scp", "delete", "create", "scp"]


def test_what_the_user_must_fix_ends_the_watch_with_the_log(cloud):
    cloud = cloud("echo 'error: no such data set'; exit 2")
    done = cloud.tpu("watch", "--", *TRAIN)
    assert done.returncode == 2
    assert "error: no such data set" in done.stdout
    assert cloud.asked() == ["create", "scp"] and len(cloud.runs()) == 2


def test_a_run_survives_the_connection_and_stops_when_asked(cloud):
    trap = "trap 'exit 75' INT; while :; do sleep 0.05; done"
    cloud = cloud(trap, "exit 0")
    assert cloud.tpu("create").returncode == 0
    assert cloud.tpu("setup").returncode == 0
    before = cloud.tpu("status").stdout
    assert before.startswith("my-run: ACTIVE\n") and before.count(" none\n") == 2
    started = cloud.tpu("run", "--", *TRAIN)
    assert started.stdout.count("started") == 2, started.stderr
    again, other = cloud.tpu("run", "--", *TRAIN), cloud.tpu("run", "--", *TRAIN, "-x")
    assert again.returncode == 0 and again.stdout.count("is running already") == 2
    assert other.returncode == 2 and "stop it first: tpu.sh stop" in other.stderr
    assert cloud.tpu("status").stdout.count(" running\n") == 2
    wait_for(lambda: "run 1: trap" in cloud.tpu("logs").stdout)
    assert cloud.tpu("stop").stdout.count(" stopped\n") == 2
    watched = cloud.tpu("watch", "--", *TRAIN)
    assert watched.returncode == 75 and "the same command goes on" in watched.stderr
    assert cloud.tpu("run", "--", *TRAIN).returncode == 0
    wait_for(lambda: cloud.tpu("status").stdout.count(" 0\n") == 2)
    assert cloud.tpu("delete").returncode == 0
    assert "NOT_FOUND" in cloud.tpu("status").stderr


def test_workers_get_this_folder_with_what_is_not_committed(cloud, tmp_path):
    cloud = cloud()
    cloud.tpu("create")
    status = ["git", "status", "--porcelain"]
    before = subprocess.check_output(status, cwd=ROOT)
    assert cloud.tpu("setup").returncode == 0
    assert subprocess.check_output(status, cwd=ROOT) == before
    for name in ("easylm/train.py", "tests/test_launch.py", "constraints.txt"):
        copy = tmp_path / "homes" / "1" / "EasyLM" / name
        assert copy.read_bytes() == (ROOT / name).read_bytes()


# Restarts


def wait_for(true, seconds=10):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def keep(tmp_path, code, *flags):
    """keep_running.sh with a shell that counts its runs as $n, in tmp_path."""
    count = f"cd {tmp_path}; echo >>n; n=$(wc -l <n); {code}"
    command = ["bash", "-c", count, "run", "--workdir", tmp_path / "work"]
    return script("keep_running.sh", "--pause", 0, *flags, *command)


def runs_of(tmp_path):
    return (tmp_path / "n").read_text().count("\n")


@pytest.mark.parametrize("code, runs", [(0, 1), (2, 1)])
def test_done_and_user_errors_are_not_tried_again(code, runs, tmp_path):
    assert keep(tmp_path, f"exit {code}").returncode == code
    assert runs_of(tmp_path) == runs


def test_stops_and_crashes_are_until_it_is_done(tmp_path):
    codes = "set -- 75 1 137 0; shift $((n - 1)); exit $1"
    done = keep(tmp_path, codes)
    assert done.returncode == 0 and runs_of(tmp_path) == 4
    assert "exit code 137; starting again in 0 s (3 of 5)" in done.stderr


def test_tries_are_counted_from_the_last_new_checkpoint(tmp_path):
    """A crash at the same place gives up; a crash after each checkpoint goes on."""
    for crash, code in (("exit 3", 3), ("kill -9 $$", 137), ("exit 75", 1)):
        (tmp_path / "n").unlink(missing_ok=True)
        done = keep(tmp_path, crash, "--tries", 2)
        assert done.returncode == code and runs_of(tmp_path) == 3
        assert "3 times without a new checkpoint; giving up" in done.stderr
    (tmp_path / "n").unlink()
    saves = "[ $n = 7 ] || mkdir -p work/checkpoints/$n; [ $n -lt 7 ]"
    done = keep(tmp_path, f"{saves} && exit 1; exit 0", "--tries", 1)
    assert done.returncode == 0 and runs_of(tmp_path) == 7
    tmp = "mkdir -p work/checkpoints/$n.orbax-checkpoint-tmp; exit 1"
    assert keep(tmp_path, tmp, "--tries", 1).returncode == 1


def signalled(tmp_path, command, both, number):
    """The exit code of keep_running.sh, told to stop when its run is ready."""
    line = ["scripts/keep_running.sh", *command]
    keeping = subprocess.Popen(line, cwd=ROOT, preexec_fn=_listening)
    ready = tmp_path / "ready"
    wait_for(lambda: ready.exists() and ready.read_text().strip())
    if both:
        os.kill(int(ready.read_text()), number)
    keeping.send_signal(number)
    return keeping.wait(10)


def _listening():
    """Also where who runs the tests does not, as after `nohup` or `&`."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def test_a_signal_to_all_lets_the_run_save(tmp_path):
    """Who sends it may send it to the run, too, and the second one must not kill."""
    saves = f"""if True:
        import os, pathlib, time
        from easylm.training.guard import Stop
        with Stop() as stop:
            pathlib.Path({str(tmp_path / "ready")!r}).write_text(str(os.getpid()))
            while not stop.requested():
                time.sleep(0.01)
            time.sleep(0.2)  # until the other signal is there
        pathlib.Path({str(tmp_path / "saved")!r}).touch()
        raise SystemExit(75)"""
    command = [sys.executable, "-c", saves]
    assert signalled(tmp_path, command, True, signal.SIGTERM) == 75
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGINT, 75),
        (signal.SIGHUP, 75),
        *[(signal.SIGTERM, c) for c in (75, 0, 3)],
    ],
)
def test_a_signal_is_passed_on_and_waited_for(number, code, tmp_path):
    came, other = f">{tmp_path}/came", {signal.SIGINT: "TERM"}.get(number, "INT")
    traps = f"trap 'sleep 0.1; echo {other} {came}; exit {code}' {other}"
    waits = f"{traps}; echo $$ >{tmp_path}/ready; while :; do sleep 0.1 & wait; done"
    assert signalled(tmp_path, ["bash", "-c", waits], False, number) == code
    assert (tmp_path / "came").read_text() == f"{other}\n"


@pytest.mark.parametrize("command", [["sleep", "60"], ["false"]])
def test_a_signal_before_there_is_anything_to_save_is_75(command):
    """While it starts, or between two tries; also for a script started with &."""
    line = shlex.join(["scripts/keep_running.sh", *command]) + " & echo $!; wait $!"
    shell = subprocess.Popen(["bash", "-c", line], cwd=ROOT, stdout=subprocess.PIPE)
    number = int(shell.stdout.readline())
    time.sleep(0.3)
    os.kill(number, signal.SIGTERM)
    assert shell.wait(10) == 75


def test_the_flags_of_keep_running_are_checked():
    for args, message in [
        ([], "give the command to run"),
        (["--tries", "x", "true"], "--tries wants a whole number"),
        (["--workdir", "x"], "unknown flag --workdir"),
    ]:
        done = script("keep_running.sh", *args)
        assert done.returncode == 2 and message in done.stderr
    assert "--tries 5" in script("keep_running.sh", "--help").stdout


# Templates


def check_train_flags(words):
    """Whether easylm.train would take them; its config is read."""
    train = (ROOT / "easylm" / "train.py").read_text()
    known = {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', train)}
    assert known >= {"config", "workdir", "coordinator"}
    given = [w for w in words if re.match(r"--(config|config\..+)=", w)]
    names = {re.match(r"--(\w+)", w)[1] for w in words if w.startswith("--")}
    assert names <= known
    values, argv = flags.FlagValues(), ["train", *given]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    parse(argv, values)


def test_gke_runs_easylm_with_flags_that_exist():
    jobset = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert jobset["kind"] == "JobSet"
    [slices] = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    [rule] = job["podFailurePolicy"]["rules"]
    [container] = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [2]
    assert (ROOT / container["command"][1]).exists()
    assert container["args"][:3] == ["python", "-m", "easylm.train"]
    check_train_flags(container["args"][3:])


def test_slurm_runs_easylm_with_flags_that_exist_and_queues_again(tmp_path):
    """The template in a job of two processes, with Slurm's commands standing in."""
    text = (LAUNCH / "slurm.sbatch").read_text()
    for line in ("--requeue", "--signal=TERM@120", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in text
    bash, ran = "#!/usr/bin/env bash\n", tmp_path / "ran"
    program(
        tmp_path / "scontrol", f"{bash}echo $* >>{tmp_path}/queue; seq -f node%g 7 999"
    )
    program(
        tmp_path / "python",
        f'{bash}echo "$*" >>{ran}; sleep 0.3; kill -TERM $PPID; exit 75',
    )
    program(
        tmp_path / "srun",
        f"""{bash}while [[ $1 == --* ]]; do shift; done; export SLURM_NTASKS=2
        SLURM_PROCID=0 "$@" & first=$!
        SLURM_PROCID=1 "$@" & wait $!; code=$?; wait $first; exit $code""",
    )
    folder = tmp_path / "folder"  # without the .venv that would come first in PATH
    folder.mkdir()
    (folder / "scripts").symlink_to(ROOT / "scripts")
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "node[7-999]",
    }
    command = ["bash", str(LAUNCH / "slurm.sbatch"), *TRAIN]
    assert subprocess.run(command, env=env).returncode == 75
    assert "requeue 12" in (tmp_path / "queue").read_text()
    for i, line in enumerate(sorted(ran.read_text().splitlines())):
        head = "-m easylm.train --coordinator=node7:20012 --processes=2 --process="
        assert line == f"{head}{i} {shlex.join(TRAIN)}"
        check_train_flags(line.split()[2:])


def test_xpk_is_asked_for_the_slices_and_the_run(printed):
    more = dict(CLUSTER="pods", SLICES="2", IMAGE="here/easylm")
    made = printed("cluster", "--dry-run", name="launch/xpk.sh", SPOT="1", **more)[0]
    both = {"--cluster=pods", "--tpu-type=v5litepod-16", "--num-slices=2"}
    assert made[:2] == ["cluster", "create"] and both | {"--spot"} < set(made)
    args = ["run", "--dry-run", "--", *TRAIN, *HARD[:4]]
    ran = printed(*args, name="launch/xpk.sh", **more)[0]
    assert ran[:2] == ["workload", "create"] and both < set(ran)
    assert {"--workload=my-run", "--restart-on-exit-codes=1,75"} < set(ran)
    line = ran[-1].removeprefix("--command=")
    words = shlex.split(line)
    assert words[:3] == ["exec", "bash", "scripts/keep_running.sh"]
    assert words[words.index("--coordinator=auto") + 1 :] == [*TRAIN, *HARD[:4]]
    done = script("launch/xpk.sh", "run", "--dry-run", "--", *TRAIN, env=more)
    assert done.returncode == 2 and "error: no ZONE; give ZONE=" in done.stderr
