#!/bin/sh
# A software RDMA device (soft-RoCE: the kernel's rdma_rxe) on an ordinary network interface.
#
#   sudo examples/soft_roce_up.sh               on a veth pair of its own: the ranks of this machine
#   sudo examples/soft_roce_up.sh INTERFACE     on a network card: the ranks of several machines
#
# The device is named rxe0. It is gone after a reboot, or after: sudo rdma link delete rxe0
# docs/soft_roce.md says what it is good for, and what for not.
set -eu
device=rxe0

stop() {
    echo "[soft-roce] $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || stop "this needs root. Run: sudo $0 $*"
command -v rdma >/dev/null || stop "the program rdma is missing. Run: apt-get install iproute2 rdma-core ibverbs-providers"
modprobe -a ib_uverbs rdma_rxe || stop "this kernel ($(uname -r)) has no rdma_rxe. \
Debian: install linux-image-amd64 (the cloud kernel lacks it) and boot it. \
Ubuntu: apt-get install linux-modules-extra-$(uname -r). \
Without a kernel of your own: python tests/guest/guest.py run -- COMMAND"

if [ $# -gt 0 ]; then
    interface=$1
    [ -e "/sys/class/net/$interface" ] || stop "there is no interface $interface. Run: ip -brief link"
else
    interface=rxe-veth0
    if [ ! -e /sys/class/net/$interface ]; then
        modprobe veth
        ip link add $interface mtu 9000 type veth peer name rxe-veth1 mtu 9000
        ip address add 10.9.0.1/24 dev $interface
        ip link set rxe-veth1 up
    fi
fi
ip link set "$interface" up

if [ ! -e /sys/class/infiniband/$device ]; then
    rdma link add $device type rxe netdev "$interface" || stop "rdma link add failed on $interface; see: dmesg | tail"
fi
port=/sys/class/infiniband/$device/ports/1
for _ in 1 2 3 4 5 6 7 8 9 10; do
    if grep -q ACTIVE $port/state; then break; fi
    sleep 0.5
done
grep -q ACTIVE $port/state || stop "port 1 of $device is $(cat $port/state). Run: ip link set $interface up"

# A packet of 4096 bytes and its headers need 4176; with an interface MTU of 1500 rxe sends 1024 at a time.
mtu=$(cat "/sys/class/net/$interface/mtu")
[ "$mtu" -ge 4176 ] || echo "[soft-roce] $interface has MTU $mtu: where the network allows it, ip link set $interface mtu 9000"
ip -brief -4 address show dev "$interface" | grep -q / ||
    echo "[soft-roce] $interface has no IPv4 address: give it one, for a GID that other machines can reach"
echo "[soft-roce] $device on $interface is active"
