#!/bin/busybox sh
# Process 1 of a guest: makes a machine of the kernel, runs the check and the tests, tells their exit codes on
# the serial console, and powers off.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/ RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*; do
    insmod "$module" || echo "cannot load $module"
done
ip link set lo up
uname -a
orlop check
echo "guest check: $?"
if [ -s /tests ]; then
    e2e $(cat /tests)
    echo "guest tests: $?"
fi
poweroff -f
