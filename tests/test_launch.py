"""The scripts in launch/, with fakes of python, gcloud, kubectl and the commands of SLURM."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
AWKWARD = ["--config.run=('pretrain', \"it's\")", "--config.data.path=$HOME/`a b`\\ & $(c)\nd"]
LOCAL = ["--", "--config=c", "--workdir=w"]
MAIN = ["--", "--config=c.py", "--workdir=gs://bucket/a"]
SLICE = ["--name=a", "--zone=z", "--project=p"]
RUN = ["run", *SLICE, "--accelerator-type=t-16", "--runtime-version=v"]
PODS = ["apply", "--name=a", "--image=registry/image:1", "--hosts=2"]
JOB = ["--nodes=2", "--gpus-per-node=4", "--time=1:00:00"]

FAKE = """#!{python} -IS
import json, os, pathlib, signal, sys, time
home = pathlib.Path({home!r})
arguments = sys.argv[1:]
with open(home / "calls", "a") as calls:
    calls.write(json.dumps([{name!r}, *arguments]) + "\\n")
{body}
"""
TRAINER = """
index = next((int(w.split("=")[1]) for w in arguments if w.startswith("--process=")), 0)
start = len(list(home.glob(f"start_{index}_*")))
(home / f"start_{index}_{start}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
def stop(number, frame):
    (home / f"signal_{index}").write_text(str(number))
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(home / f"ready_{index}").write_text("")
print("process", index, "is running", flush=True)
"""
CLOUD = """
def get(what):
    file = home / what
    return file.read_text() if file.exists() else "NONE"
def put(what, state):
    (home / what).write_text(state)
def does(*names):
    return all(name in arguments for name in names)
if arguments[0] == "config":
    print({"project": "configured"}.get(arguments[2], ""))
elif does("queued-resources", "describe"):
    state = get("queue")
    if state == "NONE":
        sys.exit("ERROR: NOT_FOUND: Resource was not found")
    print(state)
    after = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"}
    if state in after:
        put("queue", after[state])
    if state == "PROVISIONING":
        put("node", "READY")
elif does("tpu-vm", "describe"):
    if get("node") == "NONE":
        sys.exit("ERROR: NOT_FOUND: Resource was not found")
    print(get("node"))
elif does("create"):
    put("queue", "WAITING_FOR_RESOURCES")
    for file in home.glob("host*/diffseg/run.*"):
        file.unlink()
elif does("delete"):
    put("queue", "NONE")
    put("node", "NONE")
elif does("ssh"):
    if get("node") != "READY":
        sys.exit("ERROR: no such slice")
    import subprocess
    command = next(w.partition("=")[2] for w in arguments if w.startswith("--command="))
    for host in ("host0", "host1"):
        if "uv venv" not in command:  # which would install
            where = {**os.environ, "HOME": str(home / host), "HOST": host}
            subprocess.run(["sh", "-c", command], env=where, check=True)
"""


class Machine:
    """A folder of fake commands that come first on PATH, and a record of their calls."""

    def __init__(self, home):
        self.home = home
        (home / "bin").mkdir()
        for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "nvidia-smi"):
            self.fake(name, "")
        self.fake("python", TRAINER)
        outer = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        self.environment = {**outer, "PATH": f"{home / 'bin'}:{outer['PATH']}", "TMPDIR": str(home)}

    def fake(self, name, body, at=None):
        """Makes a command of that name, a Python program that records its arguments."""
        file = (at or self.home / "bin") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        home = str(self.home)
        file.write_text(FAKE.format(python=sys.executable, home=home, name=name, body=body))
        file.chmod(0o755)

    def start(self, script, *arguments, **more):
        command = [LAUNCH / script, *arguments]
        return subprocess.Popen(
            command, env={**self.environment, **more}, cwd=self.home, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, script, *arguments, **more):
        """The exit code and the output of a script, as (code, out, err)."""
        process = self.start(script, *arguments, **more)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self, *names):
        """Name and arguments of every call of these commands, in order."""
        file = self.home / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if call[0] in names]

    def trainings(self):
        return [call[1:] for call in self.calls("python")]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def await_files(machine, *names):
    """Waits until all processes have made these files."""
    for _ in range(500):
        if all((machine.home / name).exists() for name in names):
            return
        time.sleep(0.02)
    raise AssertionError(f"{names} were not made")


# ---- all scripts ---------------------------------------------------------------------------------


def test_shellcheck_reports_no_problem():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert shellcheck, 'shellcheck is missing; pip install -e ".[test]" installs it'
    done = subprocess.run([shellcheck, *SCRIPTS], cwd=LAUNCH, capture_output=True, text=True)
    assert len(SCRIPTS) == 4 and done.stdout == "" and done.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag(machine, script):
    code, out, err = machine.run(script, "--help")
    assert code == 0 and err == ""
    text = (LAUNCH / script).read_text()
    table = re.search(r"declare -A flag=\((.*?)\)\n", text, re.DOTALL)[1]
    loop = text[text.index("while ((") : text.index("\ndone\n")]
    cases = " ".join(re.findall(r"^    (--[a-z=*| -]+)\)", loop, re.MULTILINE))
    flags = {*re.findall(r"\[([a-z-]+)\]=", table), *re.findall(r"--([a-z-]+)", cases)}
    missing = [name for name in flags if not re.search(rf"--{name}\b", out)]
    assert len(flags) > 7 and not missing
    assert "set -e" not in out


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--nodez=2"], "there is no flag --nodez."),
        (["--retries"], "--retries needs a value, as in --retries=..."),
        (["--retries=many", *MAIN], '--retries is "many", but it must be a whole number'),
        (["--lost-after=1", *MAIN], '--lost-after is "1", but it must be a whole number'),
        (["runs"], '"runs" is not a flag'),
        (["--", "--config=c.py"], "orkdir"),
        ([*MAIN, "--coordinator=h:1"], "--coordinator is "),
    ],
)
def test_an_invalid_argument_is_refused_with_one_sentence(machine, script, arguments, sentence):
    needed = {"kubernetes.sh": [*PODS, "--gpus-per-host=8"], "slurm.sh": [*JOB, "--logs=logs"]}
    code, out, err = machine.run(
        script, *needed.get(script, RUN if "tpu" in script else []), *arguments
    )
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and sentence in err
    assert machine.calls("python", "kubectl", "sbatch") == []


@pytest.mark.parametrize(
    "script, arguments, sentence",
    [
        (
            "local.sh",
            ["--processes=3", "--gpus=4", *LOCAL],
            "4 GPUs cannot be shared evenly by 3",
        ),
        ("local.sh", ["--processes=2", *MAIN], "Name one for the logs"),
        ("slurm.sh", ["--nodes=2", "--time=1", *MAIN], "--gpus-per-node is missing"),
        ("slurm.sh", [*JOB, *MAIN], "Name one for the logs"),
        ("tpu_pod.sh", ["begin"], 'not "begin"'),
        ("tpu_pod.sh", ["create", *SLICE], "--accelerator-type is missing"),
        ("tpu_pod.sh", ["status", "--name=A_b"], 'name is "A_b"'),
        ("tpu_pod.sh", ["status", "--name=a"], "no zone was given, and gcloud has none set"),
        ("tpu_pod.sh", [*RUN, "--spot", "--reserved"], "exclude each other"),
        ("tpu_pod.sh", [*RUN, "--", "--workdir=runs/a"], 'workdir "runs/a" is not shared by all'),
        ("kubernetes.sh", [], "the action must be apply, logs"),
        ("kubernetes.sh", ["status"], "--name is missing"),
        ("kubernetes.sh", [*PODS, *MAIN], "no devices were given"),
        ("kubernetes.sh", [*PODS, "--", "--config=c", "--workdir=/tmp"], "does not outlive a pod"),
        (
            "kubernetes.sh",
            [*PODS, "--tpu-type=t", "--tpu-topology=3x3", *MAIN],
            "has 9 chips, which --hosts=2 cannot share evenly",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_one_sentence(
    machine, script, arguments, sentence
):
    code, out, err = machine.run(script, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and sentence in err
    assert err.count("\n") == 1


# ---- one machine ---------------------------------------------------------------------------------


def test_local_dry_run_divides_the_gpus_evenly(machine):
    arguments = ["--processes=2", "--dry-run", "--", "--config=c", "--workdir=a b", *AWKWARD]
    code, out, _ = machine.run("local.sh", *arguments, CUDA_VISIBLE_DEVICES="2,3,5,7")
    assert code == 0 and machine.trainings() == [] and not (machine.home / "a b").exists()
    script = out.replace("env CUDA", "CUDA")  # the shell can run what was shown
    shown = [line for line in script.splitlines() if "diffseg_jax.main" in line]
    assert [line.split()[0] for line in shown] == [
        r"CUDA_VISIBLE_DEVICES=2\,3", r"CUDA_VISIBLE_DEVICES=5\,7",
    ]  # fmt: skip
    assert r">>a\ b/logs/process_1.log 2>&1" in shown[1] and ">>" not in shown[0]
    (machine.home / "a b" / "logs").mkdir(parents=True)
    subprocess.run(["bash", "-c", out], env=machine.environment, cwd=machine.home, check=True)
    first, second = machine.trainings()
    assert first[-2:] == AWKWARD and first[:2] == ["-m", "diffseg_jax.main"]
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d+", first[2])
    assert first[3:6] == ["--processes=2", "--process=0", "--lost_after=30"]
    assert second == [*first[:4], "--process=1", *first[5:]]


def test_local_uses_the_gpus_that_nvidia_smi_lists(machine):
    machine.fake("nvidia-smi", 'print("0\\n1\\n2\\n3")')
    seen = {}
    for arguments in (["--processes=2"], ["--processes=2", "--gpus=0"], ["--processes=1"]):
        machine.run("local.sh", *arguments, "--", "--config=c", "--workdir=w")
        files = sorted(machine.home.glob("start_*"))
        seen["".join(arguments)] = [file.read_text() for file in files]
        for file in files:
            file.unlink()
    assert seen == {
        "--processes=2": ["0,1", "2,3"], "--processes=2--gpus=0": ["", ""],
        "--processes=1": ["unset"],
    }  # fmt: skip


def test_local_passes_the_arguments_to_every_process(machine):
    arguments = ["--processes=2", "--", "--config=c", "--workdir=w", *AWKWARD]
    code, out, err = machine.run("local.sh", *arguments)
    assert code == 0 and out == "process 0 is running\n"
    assert err == "local.sh: process 0 finished; process 1 finished.\n"
    assert (machine.home / "w/logs/process_1.log").read_text().endswith("process 1 is running\n")
    assert [call[-2:] for call in machine.trainings()] == [AWKWARD, AWKWARD]
    ports = {call[2] for call in machine.trainings()}
    assert len(ports) == 1


def test_local_gives_a_single_process_no_coordinator(machine):
    assert machine.run("local.sh", "--", "--config=c", "--workdir", "w")[0] == 0
    assert machine.trainings() == [
        ["-m", "diffseg_jax.main", "--coordinator=none", "--config=c", "--workdir", "w"]
    ]


def test_local_reports_which_process_was_killed_and_how_to_resume(machine):
    lost = "time.sleep(0.5); os.kill(os.getpid(), signal.SIGABRT)"
    killed = "os.kill(os.getpid(), signal.SIGKILL)"
    machine.fake("python", f"{TRAINER}\nif index == 1: {killed}\n{lost}")
    code, _, err = machine.run("local.sh", "--processes=3", "--", "--config=c", "--workdir=w")
    assert code == 137
    assert "process 1 was killed (signal 9); process 2 aborted, as a process does when" in err
    assert "process 1 is running" in err and "process 2 is running" not in err  # the relevant log
    assert "the same command resumes from the last checkpoint in w/checkpoints" in err
    assert len(machine.trainings()) == 3


def test_local_returns_code_2_of_any_process_and_kills_those_that_hang(machine):
    ends = "time.sleep(0.5); sys.exit(2)"
    body = f"if index == 0: sys.exit(1)\nif index == 1: {ends}\ntime.sleep(60)"
    machine.fake("python", f"{TRAINER}\n{body}")
    arguments = ["--processes=3", "--retries=5", "--kill-after=2", *LOCAL]
    code, _, err = machine.run("local.sh", *arguments)
    assert code == 2 and len(machine.trainings()) == 3  # no retry
    assert "process 2 was killed by this script" in err and "fix the error above" in err


@pytest.mark.parametrize("retries, code, starts", [(0, 75, 1), (1, 0, 2)])
def test_local_restarts_after_a_preemption(machine, retries, code, starts):
    machine.fake("python", f"{TRAINER}\nsys.exit(0 if start else 75)")
    arguments = [f"--retries={retries}", "--pause=0", *LOCAL]
    done = machine.run("local.sh", *arguments)
    assert done[0] == code and len(machine.trainings()) == starts
    assert "process 0 saved and stopped on SIGTERM (exit code 75)" in done[2]
    assert ("start 2 of 2 in 0 s" in done[2]) == (retries == 1)


@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_local_forwards_signals_as_sigterm(machine, sent, code):
    machine.fake("python", f"{TRAINER}\ntime.sleep(60)")
    arguments = ["--processes=2", "--retries=3", *LOCAL]
    process = machine.start("local.sh", *arguments)
    await_files(machine, "ready_0", "ready_1")
    os.killpg(process.pid, sent)  # as a terminal does with Ctrl-C
    _, err = process.communicate(timeout=30)
    assert process.returncode == code and len(machine.trainings()) == 2
    got = {(machine.home / f"signal_{index}").read_text() for index in (0, 1)}
    assert got == {str(int(signal.SIGTERM))}
    assert "the same command resumes from the last checkpoint" in err


def test_local_kills_the_processes_after_a_second_ctrl_c(machine):
    machine.fake("python", "signal.signal(signal.SIGTERM, lambda *_: (home / 'told').touch())\n"
                 "(home / 'ready').touch()\nwhile True: time.sleep(60)")  # fmt: skip
    process = machine.start("local.sh", "--", "--config=c", "--workdir=w")
    for file in ("ready", "told"):
        await_files(machine, file)
        os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "process 0 was killed by this script" in err


# ---- SLURM ---------------------------------------------------------------------------------------

WORK = ["--", "--config=c", "--workdir=run dir", *AWKWARD]
SBATCH = """
import subprocess
command = ["bash", arguments[0]]
sys.exit(subprocess.run(command, env={**os.environ, "SLURM_JOB_ID": "7"}).returncode)
"""
SRUN = "import subprocess\nsys.exit(subprocess.run(arguments[arguments.index('bash'):]).returncode)"


def test_slurm_dry_run_shows_the_batch_file(machine):
    setup = "module load cuda\n. .venv/bin/activate"
    more = ["--partition=gpu", "--account=lab", "--cpus-per-task=8", "--sbatch=--mem=0"]
    arguments = [*JOB, *more, f"--setup={setup}", "--dry-run", *WORK]
    code, out, _ = machine.run("slurm.sh", *arguments)
    assert code == 0 and machine.calls("sbatch") == [] and not (machine.home / "run dir").exists()
    lines = out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines if line.startswith("#SBATCH")] == [
        "--job-name=diffseg", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4",
        "--time=1:00:00", "--signal=TERM@120", "--requeue", "--open-mode=append",
        '--output="run dir/logs/%j.log"', "--partition=gpu", "--account=lab", "--cpus-per-task=8",
        "--mem=0",
    ]  # fmt: skip
    assert setup in out and "--kill-on-bad-exit=0" in out and "--cpus-per-task=8 bash" in out
    assert out.endswith("sbatch run\\ dir/logs/diffseg.sbatch\n")


@pytest.mark.parametrize(
    "code, ended, restarts, queued",
    [(0, 0, 0, False), (2, 2, 0, False), (75, 75, 0, True), (134, 134, 9, True),
     (134, 134, 10, False), (75, 75, 10, False)],
)  # fmt: skip
def test_slurm_requeues_after_a_code_that_allows_a_restart(machine, code, ended, restarts, queued):
    machine.fake("sbatch", SBATCH)
    machine.fake("srun", SRUN)
    machine.fake("python", f"(home / 'seen').write_text(os.environ['SEEN'])\nsys.exit({code})")
    arguments = [*JOB, "--setup=export SEEN=me", *WORK]
    done = machine.run("slurm.sh", *arguments, SLURM_RESTART_COUNT=str(restarts))
    assert done[0] == ended
    assert machine.calls("scontrol") == ([["scontrol", "requeue", "7"]] if queued else [])
    assert ("checkpoints" in done[1]) == (code not in (0, 2))
    [training] = machine.trainings()
    assert training[2:] == ["--coordinator=auto", "--lost_after=30", *WORK[1:]]
    [srun] = machine.calls("srun")
    assert srun[1:4] == ["--kill-on-bad-exit=0", "--wait=330", "--label"]
    assert (machine.home / "seen").read_text() == "me"


def test_slurm_returns_code_2_rather_than_that_of_lost_processes(machine):
    """srun returns the highest code of its tasks."""
    machine.fake("sbatch", SBATCH)
    machine.fake(
        "srun",
        """
import subprocess
command = arguments[arguments.index("bash"):]
tasks = [{**os.environ, "TASK": task} for task in "01"]
sys.exit(max(subprocess.run(command, env=task).returncode for task in tasks))""",
    )
    machine.fake("python", "sys.exit({'0': 2, '1': 134}[os.environ['TASK']])")
    assert machine.run("slurm.sh", *JOB, *WORK)[0] == 2
    assert len(machine.trainings()) == 2 and machine.calls("scontrol") == []


def test_slurm_tasks_save_when_the_job_step_gets_sigterm(machine):
    machine.fake("sbatch", SBATCH)
    machine.fake(
        "srun",
        """
import subprocess
task = subprocess.Popen(arguments[arguments.index("bash"):], start_new_session=True)
while not (home / "ready_0").exists():
    time.sleep(0.02)
os.killpg(task.pid, signal.SIGTERM)
code = task.wait()
sys.exit(code if code >= 0 else 128 - code)""",
    )
    machine.fake("python", f"{TRAINER}\ntime.sleep(60)")
    assert machine.run("slurm.sh", *JOB, *WORK)[0] == 75
    assert (machine.home / "signal_0").read_text() == str(int(signal.SIGTERM))
    assert machine.calls("scontrol") == [["scontrol", "requeue", "7"]]


# ---- Kubernetes ----------------------------------------------------------------------------------


def manifest_of(machine, *arguments):
    """The commands and the manifest of a dry run."""
    code, out, err = machine.run("kubernetes.sh", arguments[0], "--dry-run", *arguments[1:])
    assert code == 0 and err == "" and machine.calls("kubectl") == []
    start = out.index("{\n")
    return out[:start], json.loads(out[start:])


def job_of(manifest):
    [job] = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def expanded(argument, index):
    """The argument after the substitutions of Kubernetes."""
    known = {"$$": "$", "$(JOB_COMPLETION_INDEX)": str(index)}
    return re.sub(r"\$\$|\$\(JOB_COMPLETION_INDEX\)", lambda found: known[found[0]], argument)


def test_kubernetes_manifest_requests_gpus(machine):
    flags = ["--gpus-per-host=8", "--volume-claim=claim", "--service-account=me", "--retries=4",
             "--node-selector=cloud.google.com/gke-spot=true", "--save-seconds=300",
             "--namespace=team"]  # fmt: skip
    arguments = ["--", "--config=c", "--workdir=/workdir/a", *AWKWARD, "$(JOB_COMPLETION_INDEX)"]
    shown, manifest = manifest_of(machine, *PODS, *flags, *arguments)
    assert shlex.split(shown) == ["kubectl", "--namespace=team", "apply", "--filename=-"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"] == {"name": "a"}
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 4
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    job, pod = job_of(manifest)
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    assert job["backoffLimit"] == 0
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 300
    assert pod["serviceAccountName"] == "me"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    [main] = pod["containers"]
    assert rule["onExitCodes"]["containerName"] == main["name"]
    assert main["image"] == "registry/image:1"
    assert main["resources"]["limits"] == main["resources"]["requests"] == {"nvidia.com/gpu": 8}
    assert {"name": "workdir", "mountPath": "/workdir"} in main["volumeMounts"]
    claim = {"name": "workdir", "persistentVolumeClaim": {"claimName": "claim"}}
    assert claim in pod["volumes"]
    assert main["command"] == ["python", "-m", "diffseg_jax.main"]
    assert [expanded(argument, 1) for argument in main["args"]] == [
        "--coordinator=a-train-0-0.a:8476", "--processes=2", "--process=1", "--lost_after=30",
        *arguments[1:],
    ]  # fmt: skip


def test_kubernetes_manifest_requests_a_tpu_slice(machine):
    flags = ["--hosts=4", "--tpu-type=tpu-v5-lite-podslice", "--tpu-topology=4x4"]
    _, manifest = manifest_of(machine, *PODS, *flags, *MAIN)
    [placement] = manifest["metadata"]["annotations"].values()
    assert placement == "cloud.google.com/gke-nodepool"
    job, pod = job_of(manifest)
    assert job["completions"] == job["parallelism"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    [main] = pod["containers"]
    assert main["resources"]["limits"] == {"google.com/tpu": 4}
    assert main["args"] == ["--coordinator=auto", "--lost_after=30", *MAIN[1:]]


def test_kubernetes_actions_call_kubectl(machine):
    machine.fake("kubectl", "(home / 'stdin').write_text(sys.stdin.read())")
    arguments = [*PODS, "--hosts=1", "--gpus-per-host=1", "--replace", "--context=c"]
    assert machine.run("kubernetes.sh", *arguments, *MAIN)[0] == 0
    _, pod = job_of(json.loads((machine.home / "stdin").read_text()))
    assert pod["containers"][0]["args"] == ["--coordinator=none", *MAIN[1:]]
    for action in ("logs", "status", "delete"):
        assert machine.run("kubernetes.sh", action, "--name=a", "--context=c")[0] == 0
    calls = machine.calls("kubectl")
    assert all(call[1] == "--context=c" for call in calls)
    assert [call[2:5] for call in calls] == [
        ["delete", "jobset", "a"], ["apply", "--filename=-"],
        ["logs", "--follow", "--tail=100"], ["get", "jobset", "a"],
        ["get", "pods", "--selector=jobset.sigs.k8s.io/jobset-name=a"], ["delete", "jobset", "a"],
    ]  # fmt: skip


# ---- TPU pods ------------------------------------------------------------------------------------


@pytest.fixture
def cloud(machine):
    """A machine whose fake gcloud has a slice of two hosts that run the given trainer."""
    machine.fake("gcloud", CLOUD)
    sleep = machine.home / "bin/sleep"
    sleep.write_text("#!/bin/sh\nexec /bin/sleep 0.02\n")
    sleep.chmod(0o755)

    def trains(body):
        for host in ("host0", "host1"):
            at = machine.home / host / "diffseg/.venv/bin"
            machine.fake("python", f"index = int(os.environ['HOST'][-1])\n{body}", at)
        return machine

    return trains


def verbs(machine):
    """The actions that gcloud was called for, in order."""
    names = {"create", "delete", "scp", "ssh"}
    calls = [next((w for w in call[1:6] if w in names), "") for call in machine.calls("gcloud")]
    return [verb for verb in calls if verb]


def changes(machine):
    return [verb for verb in verbs(machine) if verb in ("create", "delete", "scp")]


def test_tpu_dry_run_calls_nothing(machine):
    arguments = [*RUN, "--spot", "--gcloud=--internal-ips", "--dry-run", *MAIN]
    code, out, err = machine.run("tpu_pod.sh", *arguments)
    assert code == 0 and err == "" and machine.calls("gcloud") == []
    lines = out.splitlines()
    beginning = "gcloud compute tpus queued-resources create a --node-id=a"
    create = f"{beginning} --accelerator-type=t-16 --runtime-version=v --spot --internal-ips"
    assert f"{create} --zone=z --project=p" in lines
    arguments = [line.split()[3:6] for line in lines if line.startswith("gcloud")]
    assert arguments[:3] == [
        ["queued-resources", "describe", "a"], ["tpu-vm", "describe", "a"],
        ["queued-resources", "create", "a"],
    ]  # fmt: skip
    assert [verb for _, verb, _ in arguments[3:]] == ["scp", "ssh", "ssh", "ssh"]
    for action in ("create", "setup", "train", "logs", "status", "stop", "delete"):
        more = MAIN if action == "train" else []
        assert machine.run("tpu_pod.sh", action, *RUN[1:], "--dry-run", *more)[0] == 0
    assert machine.calls("gcloud") == []


def test_tpu_run_creates_installs_trains_and_waits(cloud):
    machine = cloud("time.sleep(1)")
    arguments = [*RUN, "--reserved", "--delete-when-done", *MAIN, *AWKWARD]
    code, out, err = machine.run("tpu_pod.sh", *arguments)
    assert code == 0, out + err
    assert changes(machine) == ["create", "scp", "delete"]
    assert "queued resource WAITING_FOR_RESOURCES, slice NONE" in out
    assert "hosts: 2 running" in out and out.endswith("finished.\n")
    expected = ["-m", "diffseg_jax.main", "--coordinator=auto", "--lost_after=30"]
    assert machine.trainings() == [[*expected, *MAIN[1:], *AWKWARD]] * 2
    where = ["--zone=z", "--project=p"]
    assert all(call[-2:] == where for call in machine.calls("gcloud"))


@pytest.mark.parametrize("queue, node", [("SUSPENDED", "NONE"), ("ACTIVE", "PREEMPTED")])
def test_tpu_run_recreates_a_preempted_slice(cloud, queue, node):
    machine = cloud(f"""
if len(list(home.glob("was*"))) < 2:
    (home / f"was{{index}}").write_text("")
    time.sleep(0.3)
    (home / "queue").write_text({queue!r})
    (home / "node").write_text({node!r})
    time.sleep(5)""")
    code, out, err = machine.run("tpu_pod.sh", *RUN, "--spot", "--retries=1", *MAIN)
    assert code == 0, out + err
    assert changes(machine) == ["create", "scp", "delete", "create", "scp"]
    assert "ended with code 75; start 2 of 2, which resumes from the last checkpoint" in out
    assert len(machine.trainings()) == 4


@pytest.mark.parametrize(
    "codes, retries, ended, changed",
    [
        ((134, 2), 3, 2, ["create", "scp"]),
        ((134, 137), 1, 134, ["create", "scp", "scp"]),  # it can be reused
        ((75, 134), 1, 75, ["create", "scp", "delete", "create", "scp"]),  # it is being preempted
    ],
)
def test_tpu_run_chooses_among_the_codes_of_all_hosts(cloud, codes, retries, ended, changed):
    machine = cloud(f"sys.exit({codes}[index])")
    code, out, _ = machine.run("tpu_pod.sh", *RUN, f"--retries={retries}", *MAIN)
    assert code == ended and changes(machine) == changed
    assert ("resumes from the last checkpoint in gs://bucket/a/checkpoints" in out) == (ended != 2)


def test_tpu_run_monitors_a_run_in_progress_and_stop_saves(cloud):
    machine = cloud(TRAINER.partition("\n")[2].partition("\n")[2] + "time.sleep(60)")
    (machine.home / "node").write_text("READY")
    (machine.home / "queue").write_text("ACTIVE")
    assert machine.run("tpu_pod.sh", "train", *SLICE, *MAIN)[0] == 0
    await_files(machine, "ready_0", "ready_1")
    again = machine.run("tpu_pod.sh", "train", *SLICE, *MAIN)
    assert again[0] != 0 and "a run is in progress here" in again[2]
    monitor = machine.start("tpu_pod.sh", *RUN, "--retries=0", *MAIN)
    while "a run is in progress; monitoring it." not in monitor.stdout.readline():
        assert monitor.poll() is None
    assert "running" in machine.run("tpu_pod.sh", "status", *SLICE)[1]
    code, out, _ = machine.run("tpu_pod.sh", "stop", *SLICE)
    assert code == 0 and out.count("ended 75") == 2
    out, _ = monitor.communicate(timeout=15)
    assert "hosts: 2 ended 75\n" in out
    assert monitor.returncode == 75 and changes(machine) == [] and len(machine.trainings()) == 2


def test_tpu_run_does_not_repeat_an_error_of_the_first_try(cloud):
    machine = cloud("")
    refuse = 'if "create" in arguments: sys.exit("ERROR: INVALID_ARGUMENT: no such type")\n'
    machine.fake("gcloud", refuse + CLOUD)
    code, _, err = machine.run("tpu_pod.sh", *RUN, *MAIN)
    assert code == 2 and "INVALID_ARGUMENT" in err and changes(machine) == ["create"]
    machine.fake("gcloud", 'sys.exit("ERROR: PERMISSION_DENIED")')
    code, _, err = machine.run("tpu_pod.sh", *RUN, *MAIN)
    assert code == 2 and "PERMISSION_DENIED" in err and changes(machine) == ["create"]


def test_tpu_project_defaults_to_the_configured_one(cloud):
    machine = cloud("")
    machine.fake("tail", "")
    (machine.home / "node").write_text("READY")
    assert machine.run("tpu_pod.sh", "logs", "--name=a", "--zone=z", "--worker=1")[0] == 0
    call = machine.calls("gcloud")[-1]
    assert "--project=configured" in call and "--worker=1" in call
