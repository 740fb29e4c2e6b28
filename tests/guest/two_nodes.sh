# Run in both joined guests by test_two_nodes.py, whose tests read what is left in the shared folder: A starts jobs over
# both hosts, B is one of the hosts. The folder is to them what a cluster's shared file system is.
#   runs/NAME                   the run's folder
#   NAME.out NAME.status        what the job printed, and its exit status
#   NAME.before NAME.after      packet counters of both hosts' devices
#   NAME.ranks/HOST.RANK        what the kernel says of a rank that trains: status and numa_maps
set -eu
. tests/guest/join.sh
. tests/guest/ssh.sh
set -eu
cd "$GUEST_SHARE"

look_at_ranks() { # of each job, when it has done a step; a second's wait starts no process
    while [ ! -e over ]; do
        for metrics in runs/*/metrics.jsonl; do
            [ -s "$metrics" ] || continue
            name=${metrics#runs/}
            name=${name%/*}
            case $seen in *" $name "*) continue ;; esac
            seen="$seen$name "
            for file in $(grep -lzE "$is_rank" /proc/[0-9]*/environ 2>/dev/null); do
                process=${file%/*}
                folder=$name.ranks/$GUEST_ROLE.$(tr '\0' '\n' <"$file" | sed -nE "s/$is_rank//p")
                mkdir -p "$folder"
                cp "$process/status" "$process/numa_maps" "$folder" || true # it may just end
            done
            touch "$name.seen.$GUEST_ROLE"
        done
        read -rt 1 <>/run/never || true
    done
}
mkfifo /run/never
seen=" "
is_rank="^(OMPI_COMM_WORLD|CKTRAIN)_RANK="
if [ "$GUEST_ROLE" = B ]; then
    look_at_ranks
    exit
fi
look_at_ranks &
trap 'touch over; wait' EXIT

packets() { # HOST COUNTER NUMBER of both hosts
    counters=$(echo /sys/class/infiniband/rxe0/ports/1/hw_counters/{sent,rcvd}_pkts)
    grep . $counters | sed 's/.*\//A /; s/:/ /'
    ssh B "grep . $counters" | sed 's/.*\//B /; s/:/ /'
}

job() { # NAME COMMAND...
    name=$1
    shift
    echo "$name begins at $SECONDS s"
    packets >"$name.before"
    status=0
    "$@" >"$name.out" 2>&1 &
    echo $! >"$name.process"
    wait $! || status=$?
    echo $status >"$name.status"
    packets >"$name.after"
    echo "$name ended with status $status at $SECONDS s"
}

train="train examples/two_nodes_rdma.yaml"
# The job of the example's first lines, and the same in one process.
job two_nodes_rdma mpirun --host A,B cktrain $train
job one cktrain $train --set run.dir=runs/one --set parallel.data=1 --set comm.transport=auto
# Without MPI, and with a rank for each of the four NUMA nodes. It runs until both machines have looked at its ranks,
# however fast they are, and SIGUSR1 stops it with a checkpoint. Seven Pythons start for it: on a host with much other work
# some of its ranks were there two minutes, the default deadline, before the others.
stop_four() {
    until [ -e four.seen.A ] && [ -e four.seen.B ] && [ "$(wc -l <runs/four/metrics.jsonl)" -gt 5 ]; do
        sleep 0.5
        [ ! -e four.status ] || return
    done
    kill -USR1 "$(cat four.process)"
}
stop_four &
job four cktrain launch --hosts A:2,B:2 $train --set run.dir=runs/four --set run.steps=1000000 \
    --set comm.timeout_s=600 --set parallel.data=4 --set batch.micro_batch_size=2 --set checkpoint.every=5 --set checkpoint.keep=1000000
