#!/bin/busybox sh
# Process 1 of the emulated host: loads modules, moves to a root that can be pivoted, says that it is warm, and waits for
# the word to go on. What comes after that word is on the disk, which is not looked at before: the saved state is the
# same for every run.
export PATH=/payload/tools:/bin
if [ "$1" != moved ]; then
    /bin/busybox mkdir -p /proc /sys /dev /bin /root
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    for module in $(cat /modules/order); do
        insmod "/modules/$module" || echo "nested: no module $module"
    done
    mount -t tmpfs tmpfs /root
    mkdir -p /root/bin /root/proc /root/sys /root/dev /root/tmp /root/run /root/payload
    cp /bin/busybox /init /root
    mv /root/busybox /root/bin
    /bin/busybox --install -s /root/bin
    for place in lib lib64 usr; do
        ln -s "payload/root/$place" "/root/$place"
    done
    for place in proc sys dev; do
        mount --move "/$place" "/root/$place"
    done
    exec switch_root /root /init moved
fi
# Only what ends the kernel is said between the lines of tests.
dmesg -n 1
tries=0
until [ -b /dev/vda ] || [ $tries -gt 100 ]; do
    tries=$((tries + 1))
    usleep 50000
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# The kernel has read the beginning of an empty disk; what will be there is another one.
blockdev --flushbufs /dev/vda
echo 3 >/proc/sys/vm/drop_caches
echo "nested: warm"
# The first bytes on a port that was just restored may be lost.
while read -r word seconds; do
    [ "$word" = go ] && break
done </dev/ttyS1
date -s "@$seconds" >/dev/null
mount -t ext4 /dev/vda /payload && sh /payload/run.sh
echo "nested: end"
sync
poweroff -f
