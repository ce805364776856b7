# For the scripts beside it, which source it from the root of the checkout: what they check before
# they start, and how they go on after a signal.

# Memory in pages of 2 MiB: on a CPU a training step takes an eighth less (docs/performance.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}

fail() {
    echo "error: $*" >&2
    exit 2
}

# A signal is noted from here on, and handed on as soon as there is a child to take it.
signalled="" interrupted="" child="" repeats=""
note() {
    signalled=$1 interrupted=yes
    hand_on
}
hand_on() {
    [ -n "$child" ] || return 0
    local name=${as/same/$signalled}
    kill -s "$name" "$child" 2>/dev/null
    # srun loses what comes before its tasks have started; to the training a second one is nothing.
    [ -n "$repeats" ] || (while sleep 5 && kill -s "$name" "$child"; do :; done) 2>/dev/null &
    repeats=yes
}
trap 'note TERM' TERM
trap 'note USR1' USR1

# Sets `python`, and `arguments` from those of the script: refuses what could not work, and adds the
# workdir that a requeued job needs to find again.
prepare() {
    python=${PYTHON:-.venv/bin/python}
    command -v "$python" >/dev/null ||
        fail "$python is no command: make it (see README.md), or export PYTHON=INTERPRETER, one" \
            "that has yogo_jax"
    "$python" -c 'import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, sys.argv[1:])))' \
        jax grain ml_collections || [ -n "$signalled" ] ||
        fail "$python lacks jax, grain or ml_collections: pip install -c constraints.txt -e ."
    arguments=("$@")
    local config="" workdir="" index
    for ((index = 1; index <= $#; index++)); do
        local next=$((index + 1))
        case "${!index}" in
        --config=*) config=${!index#*=} ;;
        --config) config=${!next:-} ;;
        --workdir=* | --workdir) workdir=given ;;
        esac
    done
    [ -n "$config" ] || fail "no config given: sbatch $script --config configs/base.py"
    # A name without a suffix is one of the configs that come with the package.
    [[ $config != *.py* || -f ${config%%:*} ]] || fail "--config $config: no such file in $PWD"
    [ -n "${SLURM_JOB_ID:-}" ] || fail "this is no job: sbatch $script, not bash"
    [ -n "$workdir" ] || arguments+=(--workdir "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID")
    echo "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, start $((${SLURM_RESTART_COUNT:-0} + 1))"
}

# Runs a command, hands SIGTERM and SIGUSR1 on to it as $1, and puts the job back into the queue if
# the command asks to be continued (status 75), or was ended by such a signal before it could.
until_done() {
    local code=0 again
    as=$1
    shift
    "$@" &
    child=$!
    [ -z "$signalled" ] || hand_on
    while :; do
        interrupted=""
        again=0
        wait "$child" || again=$?
        # What `wait` says is the child's status, unless a signal cut it short.
        [ "$again" = 127 ] || code=$again
        [ -n "$interrupted" ] || break
    done
    trap "" TERM USR1
    if [ "$code" = 75 ] || { [ -n "$signalled" ] && [ "$code" -gt 2 ]; }; then
        # A job that its owner cancelled is no longer running, and must not come back.
        if [ "$(squeue --noheader --format=%T --job="$SLURM_JOB_ID")" = RUNNING ]; then
            echo "status $code${signalled:+ after SIG$signalled}: back into the queue"
            scontrol requeue "$SLURM_JOB_ID"
        fi
    fi
    exit "$code"
}
