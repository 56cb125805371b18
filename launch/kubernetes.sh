#!/usr/bin/env bash
# Trains on GPU or TPU nodes of a Kubernetes cluster that has JobSet (jobset.sigs.k8s.io).
#
#   launch/kubernetes.sh apply --name=a --image=IMAGE --hosts=2 --gpus-per-host=8 \
#     --volume-claim=CLAIM -- --config=configs/ddp_ade20k.py --workdir=/workdir/a
#   launch/kubernetes.sh logs --name=a      (status, delete: the same)
#
#   apply    creates a JobSet of one pod per host; arguments after -- are passed to
#            `python -m diffseg_jax.main` in the image
#   logs     follows the log of process 0       status   shows the JobSet and its pods
#   delete   ends the run (every process saves first) and removes the JobSet
#
#   --name=NAME              name of the JobSet
#   --namespace=N --context=C   (those that kubectl is configured with)
#   --image=IMAGE            container image with Python, diffseg_jax and the configs
#   --hosts=N                number of pods, with one process in each
#   --gpus-per-host=N        NVIDIA GPUs of each pod; or, for a TPU slice on GKE:
#   --tpu-type=T --tpu-topology=XxY   such as tpu-v5-lite-podslice and 4x4
#   --volume-claim=CLAIM     a claim that all pods can write to, mounted at --mount-path; not
#   --mount-path=DIR         needed for a workdir in gs:// (/workdir)
#   --service-account=NAME   (default of the namespace)
#   --node-selector=KEY=VALUE   such as cloud.google.com/gke-spot=true; may be repeated
#   --retries=N              restarts of all pods together after a failure or preemption (10)
#   --save-seconds=S         seconds that a pod has to save after SIGTERM (120)
#   --lost-after=S           seconds without a heartbeat after which a process counts as lost (30)
#   --replace                first deletes a JobSet of this name, such as one that has ended
#   --dry-run                only shows the manifest and the commands
#   --help
#
# A process that exits with code 2 (an error that a restart would meet again) fails the JobSet
# immediately; after any other code except 0 all pods restart and resume from the last checkpoint.
set -euo pipefail

fail() { echo "error: $1" >&2 && exit 2; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }

declare -A flag=([name]='' [namespace]='' [context]='' [image]='' [hosts]='' [gpus-per-host]=''
  [tpu-type]='' [tpu-topology]='' [volume-claim]='' [mount-path]=/workdir [service-account]=''
  [retries]=10 [save-seconds]=120 [lost-after]=30)
dry='' replace='' selectors=()
action=${1-}
case $action in
  --help) usage && exit 0 ;;
  apply | logs | status | delete) shift ;;
  *) fail "the action must be apply, logs, status or delete, not \"$action\". See $0 --help." ;;
esac
while (($#)) && [[ $1 != -- ]]; do
  name=${1#--} && name=${name%%=*}
  case $1 in
    --help) usage && exit 0 ;;
    --dry-run) dry=yes ;;
    --replace) replace=yes ;;
    --node-selector=*=*) selectors+=("${1#*=}") ;;
    --node-selector*) fail "\"$1\" is not a selector. Give --node-selector=KEY=VALUE." ;;
    --*)
      [[ -n $name && -n ${flag[$name]+known} ]] || fail "there is no flag --$name. See $0 --help."
      [[ $1 == *=* ]] || fail "$1 needs a value, as in $1=..."
      flag[$name]=${1#*=} ;;
    *) fail "\"$1\" is not a flag of this script. Put arguments of diffseg_jax.main after --." ;;
  esac
  shift
done

number() { # flag, minimum
  if ! [[ ${flag[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${flag[$1]} < $2)); then
    fail "--$1 is \"${flag[$1]}\", but it must be a whole number of at least $2."
  fi
  flag[$1]=$((10#${flag[$1]}))
}
need() {
  for needed; do [[ ${flag[$needed]} ]] || fail "--$needed is missing. See $0 --help."; done
}
need name
[[ ${flag[name]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name is \"${flag[name]}\", but it must be a letter and up to 39 of a-z, 0-9 and -."

kubectl=(kubectl)
for name in context namespace; do
  [[ -z ${flag[$name]} ]] || kubectl+=("--$name=${flag[$name]}")
done
call() {
  if [[ $dry ]]; then printf '%q ' "${kubectl[@]}" "$@" && echo && return; fi
  command -v kubectl >/dev/null || fail "there is no kubectl on PATH. Install it first."
  "${kubectl[@]}" "$@"
}

pods="jobset.sigs.k8s.io/jobset-name=${flag[name]}"
case $action in
  logs)
    call logs --follow --tail=100 --container=main \
      --selector="$pods,batch.kubernetes.io/job-completion-index=0"
    exit ;;
  status)
    call get jobset "${flag[name]}" --output=wide
    call get pods "--selector=$pods" --output=wide
    exit ;;
  delete)
    call delete jobset "${flag[name]}"
    exit ;;
esac

# ---- arguments of main ---------------------------------------------------------------------------

(($# > 1)) || fail "nothing to run. Add -- --config=configs/ddp_ade20k.py --workdir=/workdir/a."
shift
workdir=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=* | -workdir=*) workdir=${!i#*=} ;;
    --workdir | -workdir) next=$((i + 1)) && workdir=${!next-} ;;
    --coordinator* | --process | --process=* | --processes*)
      fail "${!i%%=*} is set by this script. Remove it after --." ;;
  esac
done
mount=${flag[mount-path]%/}
if [[ ${flag[volume-claim]} ]]; then
  [[ $workdir == gs://* || $workdir/ == "$mount"/* ]] ||
    fail "the workdir \"$workdir\" does not outlive a pod. Give one under $mount, or in gs://."
else
  [[ $workdir == gs://* ]] || fail "the workdir \"$workdir\" does not outlive a pod. Give one in\
 gs://, or --volume-claim=... and a workdir under $mount."
fi

# ---- manifest ------------------------------------------------------------------------------------

need image hosts
number hosts 1 && number retries 0 && number save-seconds 1 && number lost-after 5
hosts=${flag[hosts]}
if [[ ${flag[gpus-per-host]} && ! ${flag[tpu-type]}${flag[tpu-topology]} ]]; then
  number gpus-per-host 1
  resource=nvidia.com/gpu amount=${flag[gpus-per-host]}
  joined=(--coordinator=none)
  ((hosts == 1)) || joined=("--coordinator=${flag[name]}-train-0-0.${flag[name]}:8476"
    "--processes=$hosts" "--process=\$(JOB_COMPLETION_INDEX)" "--lost_after=${flag[lost-after]}")
elif [[ ${flag[tpu-type]} && ${flag[tpu-topology]} && ! ${flag[gpus-per-host]} ]]; then
  [[ ${flag[tpu-topology]} =~ ^[0-9]+(x[0-9]+)+$ ]] ||
    fail "--tpu-topology is \"${flag[tpu-topology]}\", but it must look like 4x4 or 2x2x4."
  chips=$((${flag[tpu-topology]//x/*}))
  ((chips % hosts == 0)) || fail "--tpu-topology=${flag[tpu-topology]} has $chips chips, which\
 --hosts=$hosts cannot share evenly. Give the number of hosts of that slice."
  resource=google.com/tpu amount=$((chips / hosts))
  joined=(--coordinator=auto "--lost_after=${flag[lost-after]}")
  selectors+=("cloud.google.com/gke-tpu-accelerator=${flag[tpu-type]}"
    "cloud.google.com/gke-tpu-topology=${flag[tpu-topology]}")
else
  fail "no devices were given. Add --gpus-per-host=8, or --tpu-type=... and --tpu-topology=..."
fi

json() { # string -> JSON
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t} text=${text//$'\r'/\\r}
  printf '"%s"' "$text"
}
list() { # strings -> JSON, separated by commas
  local comma='' item
  for item; do printf '%s%s' "$comma" "$(json "$item")" && comma=', '; done
}
pairs() { # KEY=VALUE -> JSON
  local comma='' item
  for item; do
    printf '%s%s: %s' "$comma" "$(json "${item%%=*}")" "$(json "${item#*=}")" && comma=', '
  done
}

# The manifest is JSON, which kubectl accepts like YAML, because its quoting has a single rule. The
# process namespace is shared, because process 1 of a separate namespace ignores its own SIGABRT.
manifest() { # arguments of main; Kubernetes reads $$ as $, and $(NAME) as a variable
  local account='' claim='' mounted='' together=''
  [[ -z ${flag[service-account]} ]] ||
    account="\"serviceAccountName\": $(json "${flag[service-account]}"),"
  if [[ ${flag[volume-claim]} ]]; then
    claim=", {\"name\": \"workdir\", \"persistentVolumeClaim\":
              {\"claimName\": $(json "${flag[volume-claim]}")}}"
    mounted=", {\"name\": \"workdir\", \"mountPath\": $(json "$mount")}"
  fi
  [[ $resource != google.com/tpu ]] ||
    together='"annotations":
      {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},'
  cat <<MANIFEST
{
  "apiVersion": "jobset.x-k8s.io/v1alpha2",
  "kind": "JobSet",
  "metadata": {$together
    "name": $(json "${flag[name]}")
  },
  "spec": {
    "network": {"enableDNSHostnames": true, "publishNotReadyAddresses": true},
    "failurePolicy": {
      "maxRestarts": ${flag[retries]},
      "rules": [{
        "name": "mistake",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"]
      }]
    },
    "replicatedJobs": [{
      "name": "train",
      "replicas": 1,
      "template": {"spec": {
        "completionMode": "Indexed",
        "completions": $hosts,
        "parallelism": $hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{
          "action": "FailJob",
          "onExitCodes": {"containerName": "main", "operator": "In", "values": [2]}
        }]},
        "template": {"spec": {
          "restartPolicy": "Never",
          "shareProcessNamespace": true,
          "terminationGracePeriodSeconds": ${flag[save-seconds]},
          $account
          "nodeSelector": {$(pairs "${selectors[@]}")},
          "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}$claim],
          "containers": [{
            "name": "main",
            "image": $(json "${flag[image]}"),
            "command": ["python", "-m", "diffseg_jax.main"],
            "args": [$(list "${joined[@]}" "${@//\$/\$\$}")],
            "resources": {
              "requests": {"$resource": $amount},
              "limits": {"$resource": $amount}
            },
            "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}$mounted]
          }]
        }}
      }}
    }]
  }
}
MANIFEST
}

[[ -z $replace ]] || call delete jobset "${flag[name]}" --ignore-not-found --cascade=foreground
if [[ $dry ]]; then
  call apply --filename=-
  manifest "$@"
else
  manifest "$@" | call apply --filename=-
  echo "Follow it with: $0 logs --name=${flag[name]}. End it with: $0 delete --name=${flag[name]}"
fi
