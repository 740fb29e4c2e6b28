#!/bin/busybox sh
# First process of the guest, from its initramfs: make the host's root directory the guest's own, then run
# /run/guest/start.sh in it. The host's files are mounted read-only (9p) under a tmpfs, so that the guest may
# write everywhere and nothing of it reaches the host. From the kernel's command line:
#   guest.kernel=DIR     where the kernel's package was unpacked on the host (for its modules)
#   guest.share=DIR      a directory that the guest may write on the host, at the same path (optional)
#   guest.probe          only show that a guest boots: power off at once
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

argument() { sed -n "s/.*guest\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

if grep -qw guest.probe /proc/cmdline; then
    echo 'guest: booted' >/dev/ttyS0
    poweroff -f
fi

while read -r module; do insmod "/modules/$module"; done </modules/list

plain=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o "ro,cache=loose,$plain" root /below || poweroff -f
mount -t tmpfs above /above
mkdir /above/files /above/work
mount -t overlay -o lowerdir=/below,upperdir=/above/files,workdir=/above/work overlay /new
for name in proc sys dev; do
    mkdir -p "/new/$name"
    mount --move "/$name" "/new/$name"
done
mkdir -p /new/dev/pts /new/dev/shm /new/run
mount -t devpts devpts /new/dev/pts
for name in dev/shm run; do mount -t tmpfs tmpfs "/new/$name"; done
chmod 1777 /new/dev/shm
ln -sf /proc/self/fd /new/dev/fd

mount --bind /new/proc /proc
mkdir /new/run/guest
mount -t 9p -o "$plain" run /new/run/guest
share=$(argument share)
if [ -n "$share" ]; then
    mkdir -p "/new$share"
    mount -t 9p -o "$plain" share "/new$share"
fi
release=$(uname -r)
mkdir -p /new/lib/modules
ln -sfn "$(argument kernel)/lib/modules/$release" "/new/lib/modules/$release"
ip link set lo up
umount /proc
exec switch_root -c /dev/ttyS0 /new /bin/bash /run/guest/start.sh
