# Sourced in a guest: a soft-RoCE device rxe0, and in joined guests addresses on the wire between them.
# A guest on its own gets 10.9.0.1 on a veth pair; of two, A gets 10.8.0.1 and B gets 10.8.0.2, and
# GUEST_WIRE names the interface, for tc and netem.
set -e
if [ -n "${GUEST_ROLE:-}" ]; then
    modprobe -a virtio_net sch_netem
    export GUEST_WIRE=eth0
    for _ in $(seq 50); do
        if [ -e /sys/class/net/$GUEST_WIRE ]; then break; fi
        sleep 0.1
    done
    ip link set $GUEST_WIRE mtu 9000 up
    ip address add "10.8.0.$([ "$GUEST_ROLE" = A ] && echo 1 || echo 2)/24" dev $GUEST_WIRE
    examples/soft_roce_up.sh $GUEST_WIRE
else
    examples/soft_roce_up.sh
fi
set +e
