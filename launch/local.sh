#!/usr/bin/env bash
# Trains on one machine: one process that uses all GPUs, or several that share them.
#
#   launch/local.sh [flags] -- --config=configs/ddep_scenes.py --workdir=runs/scenes
#
# Arguments after -- are passed to `python -m diffseg_jax.main`; python is the first one on PATH.
#
#   --processes=N    processes (1, which is enough to use all GPUs of a machine)
#   --gpus=N         GPUs to share evenly (all that nvidia-smi or CUDA_VISIBLE_DEVICES list);
#                    0 trains on CPUs
#   --retries=N      restarts up to N times after an exit code that allows it (0)
#   --pause=S        seconds before the first restart; doubles up to 300 (5)
#   --lost-after=S   seconds without a heartbeat after which a process counts as lost (30)
#   --kill-after=S   seconds after the first failure until the remaining processes are killed
#                    (--lost-after plus 30)
#   --logs=DIR       folder for the output of all processes except 0 (<workdir>/logs)
#   --dry-run        only shows the commands
#   --help
#
# Ctrl-C and SIGTERM reach every process as SIGTERM, so that it saves; a second Ctrl-C kills them.
#
# Exit codes: 0 finished; 2 an error that a restart would meet again; 75 stopped by SIGTERM after
# saving; 130 Ctrl-C; otherwise that of the process that failed first (137: killed, 134: aborted).
# After any code except 0, 2 and 130 a restart can help: it resumes from the last checkpoint.
set -euo pipefail

fail() { echo "error: $1" >&2 && exit 2; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }
exec {terminal}>&2
say() { echo "local.sh: $1" >&"$terminal"; }

declare -A flag=([processes]=1 [gpus]=auto [retries]=0 [pause]=5 [lost-after]=30 [kill-after]=auto
  [logs]=auto)
dry=
while (($#)) && [[ $1 != -- ]]; do
  name=${1#--} && name=${name%%=*}
  case $1 in
    --help) usage && exit 0 ;;
    --dry-run) dry=yes ;;
    --*)
      [[ -n $name && -n ${flag[$name]+known} ]] || fail "there is no flag --$name. See $0 --help."
      [[ $1 == *=* ]] || fail "$1 needs a value, as in $1=..."
      flag[$name]=${1#*=} ;;
    *) fail "\"$1\" is not a flag of this script. Put arguments of diffseg_jax.main after --." ;;
  esac
  shift
done
(($# > 1)) || fail "nothing to run. Add -- --config=configs/ddep_scenes.py --workdir=runs/scenes."
shift

number() { # flag, minimum
  if ! [[ ${flag[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${flag[$1]} < $2)); then
    fail "--$1 is \"${flag[$1]}\", but it must be a whole number of at least $2."
  fi
  flag[$1]=$((10#${flag[$1]}))
}
[[ ${flag[gpus]} == auto ]] || number gpus 0
[[ ${flag[kill-after]} != auto ]] || flag[kill-after]=$((${flag[lost-after]//[!0-9]/} + 30))
number processes 1 && number retries 0 && number pause 0 && number lost-after 5
number kill-after 0
processes=${flag[processes]}

# ---- arguments of main ---------------------------------------------------------------------------

workdir=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=* | -workdir=*) workdir=${!i#*=} ;;
    --workdir | -workdir) next=$((i + 1)) && workdir=${!next-} ;;
    --coordinator* | --process | --process=* | --processes*)
      fail "${!i%%=*} is set by this script. Remove it after --." ;;
  esac
done
[[ -n $workdir ]] || fail "no workdir was given. Add --workdir=runs/a after --."
logs=${flag[logs]}
if [[ $logs == auto ]]; then
  logs=$workdir/logs
  [[ $processes == 1 || $workdir != *://* ]] ||
    fail "the workdir $workdir is not a local folder. Name one for the logs, as in --logs=logs."
fi

# ---- GPUs ----------------------------------------------------------------------------------------

devices=()
if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
elif [[ ${flag[gpus]} == auto ]] && command -v nvidia-smi >/dev/null; then
  mapfile -t devices < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
elif [[ ${flag[gpus]} != auto ]]; then
  mapfile -t devices < <(seq 0 $((flag[gpus] - 1)))
fi
if [[ ${flag[gpus]} != auto ]]; then
  ((${#devices[@]} >= flag[gpus])) || fail "--gpus is ${flag[gpus]}, but CUDA_VISIBLE_DEVICES is\
 \"$CUDA_VISIBLE_DEVICES\"."
  devices=("${devices[@]:0:flag[gpus]}")
fi
((${#devices[@]} % processes == 0)) || fail "${#devices[@]} GPUs cannot be shared evenly by\
 $processes processes. Choose another --processes, or fewer with --gpus=$((processes *
    (${#devices[@]} / processes)))."
share=$((${#devices[@]} / processes))

# ---- processes -----------------------------------------------------------------------------------

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000)) # below the range that the system assigns
    if [[ $dry ]] || ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
  done
  echo "$port"
}

command_of() { # process, port, arguments of main -> command
  local mine visible=()
  if ((share)) && { ((processes > 1)) || [[ ${flag[gpus]} != auto ]]; }; then
    mine=$(IFS=, && echo "${devices[*]:$1*share:share}")
    visible=(env "CUDA_VISIBLE_DEVICES=$mine")
  elif [[ ${flag[gpus]} == 0 ]]; then
    visible=(env "CUDA_VISIBLE_DEVICES=")
  fi
  local joined=(--coordinator=none)
  ((processes == 1)) || joined=("--coordinator=127.0.0.1:$2" "--processes=$processes"
    "--process=$1" "--lost_after=${flag[lost-after]}")
  command=("${visible[@]}" python -m diffseg_jax.main "${joined[@]}" "${@:3}")
}

start() { # arguments of main -> pids
  local i port
  port=$(free_port)
  pids=() codes=() told=() first=
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$port" "$@"
    # A separate session shields the process from the terminal's Ctrl-C; it gets our SIGTERM alone.
    if ((i == 0)); then
      setsid "${command[@]}" &
    else
      echo "---- started $(date)" >>"$logs/process_$i.log"
      setsid "${command[@]}" >>"$logs/process_$i.log" 2>&1 {terminal}>&- &
    fi
    pids+=($!)
  done
}

await() { # -> codes, first (the process that failed first)
  local i left deadline=
  while :; do
    left=()
    for ((i = 0; i < processes; i++)); do
      [[ -z ${codes[i]-} ]] || continue
      if kill -0 "${pids[i]}" 2>/dev/null; then left+=("$i") && continue; fi
      codes[i]=0
      wait "${pids[i]}" || codes[i]=$?
      if ((codes[i])) && [[ -z $first ]]; then
        first=$i deadline=$((SECONDS + flag[kill-after]))
        ((processes == 1)) || say "process $i $(how "${codes[i]}"); the others will end too."
      fi
    done
    ((${#left[@]})) || return 0
    for i in "${left[@]}"; do
      if [[ $stopped && -z ${told[i]-} ]]; then
        kill -TERM "${pids[i]}" 2>/dev/null || true
        told[i]=TERM
      fi
      if [[ $hurry ]] || { [[ $deadline ]] && ((SECONDS >= deadline)); }; then
        kill -KILL "${pids[i]}" 2>/dev/null || true
        told[i]=KILL
      fi
    done
    sleep 0.2 || true # Ctrl-C interrupts it
  done
}

how() { # exit code -> description
  case $1 in
    0) echo "finished" ;;
    2) echo "met an error that a restart would meet again (exit code 2)" ;;
    75) echo "saved and stopped on SIGTERM (exit code 75)" ;;
    130) echo "was stopped by Ctrl-C (exit code 130)" ;;
    134) echo "aborted, as a process does when it has lost another one (signal 6)" ;;
    *) if (($1 > 128)); then echo "was killed (signal $(($1 - 128)))"; else
      echo "failed (exit code $1)"; fi ;;
  esac
}

report() { # how each process ended, and the last lines of the logs that show why
  local i text line=
  for ((i = 0; i < processes; i++)); do
    text=$(how "${codes[i]}")
    [[ ${told[i]-} != KILL ]] || text="was killed by this script, because it did not end by itself"
    line+="${line:+; }process $i $text"
    if ((i > 0 && codes[i] != 0 && codes[i] != 75)) &&
      [[ $first == "$i" || ${codes[i]} != 134 ]]; then
      say "the last lines of $logs/process_$i.log:"
      tail -n 20 "$logs/process_$i.log" >&2
    fi
  done
  say "$line."
}

verdict() { # the exit code of this script
  local wanted code
  for wanted in 2 130 75; do
    for code in "${codes[@]}"; do
      if ((code == wanted)); then echo "$wanted" && return; fi
    done
  done
  if [[ $first ]]; then echo "${codes[first]}"; else echo 0; fi
}

if [[ $dry ]]; then
  port=$(free_port)
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$port" "$@"
    printf '%q ' "${command[@]}"
    if ((i)); then printf '>>%q 2>&1\n' "$logs/process_$i.log"; else echo; fi
  done
  exit 0
fi

command -v python >/dev/null || fail "there is no python on PATH. Activate the environment first."
((processes == 1)) || mkdir -p "$logs"
unset SLURM_PROCID # inside a SLURM step, JAX would otherwise give every process a single GPU
stopped='' hurry=''
heard() { say "asking every process to save and stop; Ctrl-C $1 kills them."; }
trap 'if [[ $stopped == INT ]]; then hurry=yes; else stopped=INT && heard again; fi' INT
trap 'stopped=${stopped:-TERM} && heard twice' TERM HUP

for ((try = 1; ; try++)); do
  start "$@"
  await 2>/dev/null # hides bash's own messages about killed processes
  report
  code=$(verdict)
  [[ $stopped != INT || $code == 0 || $code == 2 ]] || code=130
  case $code in
    0) exit 0 ;;
    2) say "fix the error above, then give the same command again." && exit 2 ;;
  esac
  again="resumes from the last checkpoint in $workdir/checkpoints, if one was saved"
  if [[ $stopped || $code == 130 ]] || ((try > flag[retries])); then
    say "the same command $again." && exit "$code"
  fi
  pause=$((flag[pause] << (try < 9 ? try - 1 : 8)))
  pause=$((pause < 300 ? pause : 300))
  say "start $((try + 1)) of $((flag[retries] + 1)) in $pause s; it $again."
  for ((i = 0; i < 5 * pause; i++)); do [[ $stopped ]] || sleep 0.2 || true; done
  [[ $stopped != INT ]] || exit 130
  [[ -z $stopped ]] || exit "$code"
done
