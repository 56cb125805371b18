#!/usr/bin/env bash
# Trains on all hosts of a TPU pod slice in Google Cloud, through gcloud.
#
#   launch/tpu_pod.sh run --name=a --accelerator-type=v5litepod-16 \
#     --runtime-version=v2-alpha-tpuv5-lite --zone=ZONE --project=PROJECT --spot \
#     -- --config=configs/ddp_ade20k.py --workdir=gs://BUCKET/a
#
#   create   requests the slice as a queued resource and waits; reuses one that is ready
#   setup    installs the package on all hosts, and copies the configs
#   train    starts `python -m diffseg_jax.main` on all hosts; it continues when ssh disconnects
#   run      create, setup, train, then monitors; repeats all of it after a preemption or a lost
#            host. After Ctrl-C the same command monitors the run again
#   logs     follows the log of a host       status   shows the state of the slice and its hosts
#   stop     sends SIGTERM on all hosts and waits until they have saved
#   delete   removes the slice
#
# Arguments after -- (train, run) are passed to diffseg_jax.main. For ssh to several hosts, load the
# key first: ssh-add ~/.ssh/google_compute_engine.
#
#   --name=NAME                  name of the slice and of its queued resource
#   --zone=Z --project=P         (those that gcloud is configured with)
#   --accelerator-type=T --runtime-version=V   (create, run)
#   --spot, --reserved           tier of the slice (on demand)
#   --gcloud=FLAG                another flag of `queued-resources create`, such as
#                                --gcloud=--internal-ips; may be repeated
#   --source=DIR                 a clone to install (the one of this script), or
#   --package=SPEC               a requirement for pip, such as 'diffseg_jax[tpu,gcs]==1.0'; the
#                                configs then come from the clone of this script
#   --python=VERSION             Python on the hosts, downloaded if it is missing (3.12)
#   --worker=W                   number of a host, or all, for logs (0)
#   --retries=N                  restarts of run after an exit code that allows it (10)
#   --poll=S                     seconds between two checks of the slice (60)
#   --save-seconds=S             maximum seconds that stop waits (120)
#   --lost-after=S               seconds without a heartbeat after which a process counts as
#                                lost (30)
#   --delete-when-done           run removes the slice after the training has finished
#   --dry-run                    only shows the commands
#   --help
#
# Exit codes of run: 0 finished; 2 an error that a restart would meet again; 75 (preempted), 134,
# 137 and others when no retry was left.
set -euo pipefail

fail() { echo "error: $1" >&2 && exit 2; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }
say() { echo "tpu_pod.sh: $1"; }

root=$(cd "$(dirname "$0")/.." && pwd)
declare -A flag=([name]='' [zone]='' [project]='' [accelerator-type]='' [runtime-version]=''
  [source]='' [package]='' [python]=3.12 [worker]=0 [retries]=10 [poll]=60 [save-seconds]=120
  [lost-after]=30)
dry='' tier='' finally='' more=()
action=${1-}
case $action in
  --help) usage && exit 0 ;;
  create | setup | train | run | logs | status | stop | delete) shift ;;
  *) fail "the action must be create, setup, train, run, logs, status, stop or delete, not\
 \"$action\". See $0 --help." ;;
esac
while (($#)) && [[ $1 != -- ]]; do
  name=${1#--} && name=${name%%=*}
  case $1 in
    --help) usage && exit 0 ;;
    --dry-run) dry=yes ;;
    --delete-when-done) finally=delete ;;
    --spot | --reserved)
      [[ -z $tier || $tier == "$1" ]] || fail "--spot and --reserved exclude each other. Give one."
      tier=$1 ;;
    --gcloud=*) more+=("${1#*=}") ;;
    --*)
      [[ -n $name && -n ${flag[$name]+known} ]] || fail "there is no flag --$name. See $0 --help."
      [[ $1 == *=* ]] || fail "$1 needs a value, as in $1=..."
      flag[$name]=${1#*=} ;;
    *) fail "\"$1\" is not a flag of this script. Put arguments of diffseg_jax.main after --." ;;
  esac
  shift
done
if (($#)); then shift; fi

number() { # flag, minimum
  if ! [[ ${flag[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${flag[$1]} < $2)); then
    fail "--$1 is \"${flag[$1]}\", but it must be a whole number of at least $2."
  fi
  flag[$1]=$((10#${flag[$1]}))
}
number retries 0 && number poll 1 && number save-seconds 1 && number lost-after 5
[[ ${flag[worker]} =~ ^([0-9]+|all)$ ]] ||
  fail "--worker is \"${flag[worker]}\", but it must be all or the number of a host, from 0."
[[ ${flag[name]} =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  fail "--name is \"${flag[name]}\", but it must be a letter and more of a-z, 0-9 and -."
[[ ${flag[python]} =~ ^[0-9]+(\.[0-9]+)*$ ]] ||
  fail "--python is \"${flag[python]}\", but it must be a version, such as 3.12."
[[ -z ${flag[source]} || -z ${flag[package]} ]] ||
  fail "--source and --package exclude each other. Give one."
source=${flag[source]:-$root}
[[ -f $source/pyproject.toml ]] ||
  fail "there is no pyproject.toml in $source. Give a clone of this repository with --source=..."
if [[ $action == create || $action == run ]]; then
  for needed in accelerator-type runtime-version; do
    [[ ${flag[$needed]} ]] || fail "--$needed is missing. See $0 --help."
  done
fi
if [[ $action == train || $action == run ]]; then
  workdir=
  for ((i = 1; i <= $#; i++)); do
    case ${!i} in
      --workdir=* | -workdir=*) workdir=${!i#*=} ;;
      --workdir | -workdir) next=$((i + 1)) && workdir=${!next-} ;;
      --coordinator* | --process | --process=* | --processes*)
        fail "${!i%%=*} is detected by every process. Remove it after --." ;;
    esac
  done
  [[ $workdir == gs://* || $workdir == /* ]] || fail "the workdir \"$workdir\" is not shared by all\
 hosts. Add -- --config=... --workdir=gs://..., or an absolute path on a network file system."
elif (($#)); then
  fail "$action takes no arguments after --. Remove them."
fi

command -v gcloud >/dev/null || fail "there is no gcloud on PATH. Install the Google Cloud CLI."
for name in zone project; do
  [[ $name == zone ]] && property=compute/zone || property=project
  [[ ${flag[$name]} ]] || flag[$name]=$(gcloud config get-value "$property" 2>/dev/null) || true
  [[ ${flag[$name]} ]] || fail "no $name was given, and gcloud has none set. Add --$name=..."
done
name=${flag[name]}
where=("--zone=${flag[zone]}" "--project=${flag[project]}")

exec {shown}>&1 # the output of --dry-run, also from inside $(...)
call() { # gcloud compute tpus ...
  if [[ $dry ]]; then
    { printf 'gcloud compute tpus' && printf ' %q' "$@" "${where[@]}" && echo; } >&"$shown"
  else
    gcloud compute tpus "$@" "${where[@]}"
  fi
}
on() { call tpu-vm ssh "$name" --worker="$1" --quiet --command="$2"; } # host or all, command

# ---- slice ---------------------------------------------------------------------------------------

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT

state_of() { # kind, field -> its state; NONE if it does not exist; UNKNOWN if gcloud fails
  if call "$1" describe "$name" --format="value($2)" 2>"$messages"; then return; fi
  if grep -qiE 'not[_ ]found' "$messages"; then echo NONE && return; fi
  echo UNKNOWN && cat "$messages" >&2
}

look() { # -> queue, node: states of gcloud; slice: ready, none, lost, waiting or unknown
  queue=$(state_of queued-resources state.state)
  node=$(state_of tpu-vm state)
  case $queue/$node in
    *UNKNOWN*) slice=unknown ;;
    ACTIVE/READY | NONE/READY) slice=ready ;;
    NONE/NONE | /) slice=none ;; # / is a dry run
    FAILED/* | SUSPEND*/* | ACTIVE/NONE | */PREEMPTED | */TERMINATED) slice=lost ;;
    *) slice=waiting ;;
  esac
  [[ $dry ]] || say "$(date +%T) queued resource $queue, slice $node"
}

refused() { # an error at the first try; a later refusal may be temporary
  ((${try:-1} > 1)) || code=2
  return 1
}

create() { # returns 1 if the slice could not be created
  local asked=
  while :; do
    look
    case $slice in
      ready) say "$name is ready." && return ;;
      lost)
        [[ -z $asked || $queue == SUSPEND* ]] || return 1
        remove || return 1
        continue ;;
      none)
        call queued-resources create "$name" --node-id="$name" \
          --accelerator-type="${flag[accelerator-type]}" \
          --runtime-version="${flag[runtime-version]}" ${tier:+"$tier"} "${more[@]}" ||
          refused || return 1
        asked=yes
        [[ -z $dry ]] || return 0 ;;
      unknown) [[ $asked ]] || refused || return 1 ;;
    esac
    sleep "${flag[poll]}"
  done
}

remove() {
  local try
  for try in 1 2 3; do # a slice that is being preempted can refuse
    if [[ ${queue-} == NONE ]]; then
      call tpu-vm delete "$name" --quiet && return
    else
      call queued-resources delete "$name" --force --quiet && return
    fi
    ((try == 3)) || sleep "${flag[poll]}"
    look
    [[ $slice != none ]] || return 0
  done
  return 1
}

# ---- commands for the hosts; in ~/diffseg: run.pid, run.code (after the end), run.log ------------

quoted() { # arguments, quoted for any shell
  local item
  for item; do printf " '%s'" "${item//\'/\'\\\'\'}"; done
}

# shellcheck disable=SC2016 # expanded on the hosts
alive='grep -qs diffseg_jax "/proc/$(cat run.pid 2>/dev/null)/cmdline"'
# shellcheck disable=SC2016
state='mkdir -p ~/diffseg && cd ~/diffseg && echo "host $(hostname)" "$(
  if '$alive'; then echo running; exit; fi
  [ -s run.pid ] || { echo idle; exit; }
  [ -s run.code ] || sleep 1
  echo "ended $(cat run.code 2>/dev/null || echo 137)")"'

setup() {
  local file=${TMPDIR:-/tmp}/diffseg_$name.tgz package='.[tpu,gcs]' what=.
  if [[ ${flag[package]} ]]; then package=${flag[package]} what=./configs; fi
  local pack=(tar -C "$source" '--exclude=./.?*' --exclude=./runs --exclude=__pycache__
    -czf "$file" "$what")
  if [[ $dry ]]; then printf '%q ' "${pack[@]}" && echo; else "${pack[@]}" || return 1; fi
  call tpu-vm scp "$file" "$name:diffseg.tgz" --worker=all --quiet || return 1
  # The Python of the hosts can be older than 3.11; uv downloads the requested version.
  on all "set -e; mkdir -p ~/diffseg; cd ~/diffseg; tar -xzf ../diffseg.tgz
export PIP_BREAK_SYSTEM_PACKAGES=1
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python=${flag[python]} .venv
python3 -m uv pip install --quiet --python=.venv/bin/python$(quoted "$package")"
}

train() { # arguments of main
  # shellcheck disable=SC2016
  on all 'cd ~/diffseg || exit 1
if '"$alive"'; then
  echo "error: a run is in progress here. Check it with status, end it with stop." >&2
  exit 1
fi
rm -f run.code run.pid
nohup setsid bash -c '\''
  .venv/bin/python -m diffseg_jax.main "$@" & echo $! >run.pid
  wait $!; echo $? >run.code'\'' diffseg'"$(
    quoted --coordinator=auto "--lost_after=${flag[lost-after]}" "$@"
  )"' >>run.log 2>&1 </dev/null &
while [ ! -s run.pid ]; do sleep 0.1; done'
}

hosts() { # -> lines: host NAME running|idle|ended CODE; fails if a host does not respond
  on all "$state" | grep '^host '
}

monitor() { # -> code, when all processes have ended or the slice is lost
  local lines all deadline='' wanted
  while :; do
    sleep "${flag[poll]}"
    look
    if [[ $slice == lost || $slice == none ]]; then code=75 && return; fi
    [[ $slice == ready ]] || continue
    all=yes lines=$(hosts) || all=
    [[ $lines ]] || continue
    say "hosts: $(cut -d' ' -f3- <<<"$lines" | sort | uniq -c | tr -s '\n ' ' ' | sed 's/^ //; s/ $//')"
    if grep -q ' running$' <<<"$lines"; then
      if grep -q ' ended [1-9]' <<<"$lines"; then
        deadline=${deadline:-$((SECONDS + flag[lost-after] + 60))}
        # shellcheck disable=SC2016
        ((SECONDS < deadline)) ||
          on all 'cd ~/diffseg && if '"$alive"'; then kill -KILL "$(cat run.pid)"; fi' || true
      fi
      continue
    fi
    code=$(awk '$3 == "idle" {$4 = 137} $4 {print $4; exit}' <<<"$lines") # idle: a replaced host
    for wanted in 75 130 2; do
      ! grep -q " ended $wanted\$" <<<"$lines" || code=$wanted
    done
    [[ $code || ! $all ]] || code=0
    [[ -z $code ]] || return 0
  done
}

run() { # arguments of main
  local try again="resumes from the last checkpoint in $workdir/checkpoints"
  trap 'say "the run continues; the same command monitors it, stop ends it."; exit 130' INT
  for ((try = 1; ; try++)); do
    code=75
    if create; then
      if [[ -z $dry ]] && grep -q ' running$' <<<"$(hosts || true)"; then
        say "a run is in progress; monitoring it."
        monitor
      else
        code=1
        if setup && train "$@"; then
          if [[ $dry ]]; then on all "$state" && return; fi
          monitor
        fi
      fi
    fi
    case $code in
      0) say "finished." && { [[ -z $finally ]] || remove; } && return ;;
      2)
        say "fix the error (shown above, or in: $0 logs --name=$name), then give the same\
 command again."
        exit 2 ;;
    esac
    if ((code == 130 || try > flag[retries])); then
      say "ended with code $code; the same command $again." && exit "$code"
    fi
    say "ended with code $code; start $((try + 1)) of $((flag[retries] + 1)), which $again."
    # A slice whose processes were told to stop (75) is being preempted; others can be reused.
    if ((code == 75)) && [[ $slice == ready ]]; then remove || true; fi
    sleep $((try < 5 ? flag[poll] * try : flag[poll] * 5))
  done
}

# shellcheck disable=SC2016
case $action in
  create) create || { echo "error: $name could not be created." >&2 && exit 1; } ;;
  setup) setup ;;
  train) train "$@" ;;
  run) run "$@" ;;
  logs) on "${flag[worker]}" 'tail -n 100 -F ~/diffseg/run.log' ;;
  status) look && if [[ $dry || $slice == ready ]]; then on all "$state"; fi ;;
  stop) on all 'cd ~/diffseg && if '"$alive"'; then
  kill -TERM "$(cat run.pid)"
  for _ in $(seq '"${flag[save-seconds]}"'); do '"$alive"' || break; sleep 1; done
fi; '"$state" ;;
  delete)
    look
    if [[ $slice == none && ! $dry ]]; then say "there is no slice $name."; else remove; fi ;;
esac
