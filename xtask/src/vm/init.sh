#!/bin/sh
# Process 1 of a virtual machine: runs what /tests/order lists, says on the second serial port how
# each ended, and restarts the machine, at which the emulator ends.
export PATH=/bin ORB8_BIN_DIR=/tests RUST_TEST_THREADS=1 RUST_BACKTRACE=0

mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/ttyS1 2>&1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module"
done </modules/order

while read -r name arguments; do
    # shellcheck disable=SC2086  # several arguments
    "/tests/$name" $arguments </dev/null
    echo "orb8-vm: $name ended $?"
done </tests/order

sleep 1 # the port sends what is left
echo b >/proc/sysrq-trigger
