#!/usr/bin/env bash
# Trains on GPUs of several nodes under SLURM: writes a batch file and submits it.
#
#   launch/slurm.sh --nodes=2 --gpus-per-node=8 --time=24:00:00 --setup='. .venv/bin/activate' \
#     -- --config=configs/ddp_ade20k.py --workdir=/shared/runs/a
#
# Arguments after -- are passed to `python -m diffseg_jax.main`, which runs as one process for each
# GPU. The workdir must be a folder that all nodes can access.
#
#   --nodes=N           nodes
#   --gpus-per-node=N   GPUs, and therefore processes, on each node
#   --time=T            time limit of one start, in the format of sbatch
#   --partition=P --account=A   (default of the cluster)
#   --cpus-per-task=N   CPU cores of each process (default of the cluster)
#   --setup=COMMANDS    shell commands for the first node before training, to load modules and
#                       activate the environment; exported variables reach all processes
#   --sbatch=FLAG       another flag of sbatch, such as --sbatch=--mem=0; may be repeated
#   --job-name=NAME     (diffseg)
#   --retries=N         requeues the job up to N times after an exit code that allows it (10)
#   --save-seconds=S    seconds between SIGTERM and the time limit, in which to save (120)
#   --lost-after=S      seconds without a heartbeat after which a process counts as lost (30)
#   --logs=DIR          folder for <job>.log and the batch file (<workdir>/logs)
#   --dry-run           only shows the batch file and the command that submits it
#   --help
#
# `scancel JOB` ends a run without a restart. Exit codes of the job: 0 finished; 2 an error that a
# restart would meet again; any other code means that no retry was left.
set -euo pipefail

fail() { echo "error: $1" >&2 && exit 2; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }

declare -A flag=([nodes]='' [gpus-per-node]='' [time]='' [partition]='' [account]=''
  [cpus-per-task]='' [setup]='' [job-name]=diffseg [retries]=10 [save-seconds]=120 [lost-after]=30
  [logs]=auto)
dry='' more=()
while (($#)) && [[ $1 != -- ]]; do
  name=${1#--} && name=${name%%=*}
  case $1 in
    --help) usage && exit 0 ;;
    --dry-run) dry=yes ;;
    --sbatch=*) more+=("${1#*=}") ;;
    --*)
      [[ -n $name && -n ${flag[$name]+known} ]] || fail "there is no flag --$name. See $0 --help."
      [[ $1 == *=* ]] || fail "$1 needs a value, as in $1=..."
      flag[$name]=${1#*=} ;;
    *) fail "\"$1\" is not a flag of this script. Put arguments of diffseg_jax.main after --." ;;
  esac
  shift
done
(($# > 1)) || fail "nothing to run. Add -- --config=configs/ddp_ade20k.py\
 --workdir=/shared/runs/a."
shift

number() { # flag, minimum
  if ! [[ ${flag[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${flag[$1]} < $2)); then
    fail "--$1 is \"${flag[$1]}\", but it must be a whole number of at least $2."
  fi
  flag[$1]=$((10#${flag[$1]}))
}
for needed in nodes gpus-per-node time; do
  [[ ${flag[$needed]} ]] || fail "--$needed is missing. See $0 --help."
done
number nodes 1 && number gpus-per-node 1 && number retries 0 && number save-seconds 1
number lost-after 5
[[ -z ${flag[cpus-per-task]} ]] || number cpus-per-task 1
[[ ${flag[job-name]} =~ ^[A-Za-z0-9_.-]+$ ]] ||
  fail "--job-name is \"${flag[job-name]}\", but it names files. Use letters, digits and _ . -"

workdir=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=* | -workdir=*) workdir=${!i#*=} ;;
    --workdir | -workdir) next=$((i + 1)) && workdir=${!next-} ;;
    --coordinator* | --process | --process=* | --processes*)
      fail "${!i%%=*} is detected by every process. Remove it after --." ;;
  esac
done
[[ -n $workdir ]] || fail "no workdir was given. Add --workdir=/shared/runs/a after --."
logs=${flag[logs]}
if [[ $logs == auto ]]; then
  [[ $workdir != *://* ]] ||
    fail "the workdir $workdir is not a local folder. Name one for the logs, as in --logs=logs."
  logs=$workdir/logs
fi
[[ $logs != *[\"$'\n']* ]] || fail "the folder $logs has a quote or line break in its name."

# ---- batch file ----------------------------------------------------------------------------------

batch_file() { # arguments of main
  local line cpus=
  printf '#!/usr/bin/env bash\n'
  for line in "--job-name=${flag[job-name]}" "--nodes=${flag[nodes]}" \
    "--ntasks-per-node=${flag[gpus-per-node]}" "--gpus-per-node=${flag[gpus-per-node]}" \
    "--time=${flag[time]}" "--signal=TERM@${flag[save-seconds]}" --requeue --open-mode=append \
    "--output=\"$logs/%j.log\""; do
    printf '#SBATCH %s\n' "$line"
  done
  for line in partition account cpus-per-task; do
    [[ -z ${flag[$line]} ]] || printf '#SBATCH --%s=%s\n' "$line" "${flag[$line]}"
  done
  for line in "${more[@]}"; do printf '#SBATCH %s\n' "$line"; done
  [[ -z ${flag[cpus-per-task]} ]] || cpus=" --cpus-per-task=${flag[cpus-per-task]}"
  cat <<BATCH

${flag[setup]}
command -v python >/dev/null || {
  echo "error: there is no python on PATH. Activate the environment with --setup." >&2
  exit 2
}

# srun returns the highest exit code of its tasks. Code 2 (an error) becomes 250, because it must
# take precedence over the 134 or 137 of the tasks that lose the failed one. SIGTERM reaches this
# shell as well as python; the shell only waits until python has saved.
task='trap : TERM; "\$@"; code=\$?; ((code != 2)) || code=250; exit "\$code"'

# With kill-on-bad-exit=1, the first process that exits after SIGTERM would get the others killed
# while they save; 0 overrides the default of the site. Processes that lose another one end by
# themselves after ${flag[lost-after]} s; --wait ends those that hang.
code=0
srun --kill-on-bad-exit=0 --wait=$((flag[lost-after] + 300)) --label$cpus bash -c "\$task" task \\
  python -m diffseg_jax.main --coordinator=auto --lost_after=${flag[lost-after]} \\
  $(printf '%q ' "$@")|| code=\$?

start=\$((\${SLURM_RESTART_COUNT:-0} + 1))
again="resumes from the last checkpoint in "$(printf '%q' "$workdir/checkpoints")
case \$code in
  0) echo "finished." ;;
  2 | 250) echo "fix the error above, then give the same command again."; code=2 ;;
  130) echo "stopped; the same command \$again." ;;
  *)
    if ((start <= ${flag[retries]})); then
      echo "start \$start ended with code \$code; the job is queued again and \$again."
      scontrol requeue "\$SLURM_JOB_ID"
    else
      echo "start \$start ended with code \$code, and no retry is left; the same command \$again."
    fi
    ;;
esac
exit "\$code"
BATCH
}

file=$logs/${flag[job-name]}.sbatch
if [[ $dry ]]; then
  echo "# $file"
  batch_file "$@"
  printf '# submitted with: sbatch %q\n' "$file"
  exit 0
fi
command -v sbatch >/dev/null ||
  fail "there is no sbatch on PATH. Run this on a login node of a SLURM cluster."
mkdir -p "$logs"
batch_file "$@" >"$file"
sbatch "$file"
echo "Follow it with: tail -F $(printf '%q' "$logs")/<job>.log. Stop it with: scancel <job>"
