# What the emulated host does in one run: each test of the drivers that has to do with Firecracker, in a process of its own.
# FILTER is set above.
mkdir -p /payload/tmp
export TMPDIR=/payload/tmp LIGHTBYTE_IMAGE=/payload/image LIGHTBYTE_SKIPPED=/tmp/skipped
export LIGHTBYTE_FIRECRACKER=/payload/bin/firecracker
[ -f /payload/bin/jailer ] && export LIGHTBYTE_JAILER=/payload/bin/jailer
hundredths() { sed 's/ .*//; s/\.//' /proc/uptime; }
for test in $(/payload/drivers --list 2>/dev/null | sed -n 's/: test$//p' | grep -E "$FILTER"); do
    echo "nested: begin $test"
    : >/tmp/skipped
    begin=$(hundredths)
    /payload/drivers --exact "$test" --nocapture </dev/null
    code=$?
    [ -s /tmp/skipped ] && code=skipped
    echo "nested: $code $(($(hundredths) - begin)) $test"
done
left=$(ls /payload/tmp; ls /sys/fs/cgroup/lightbyte 2>/dev/null | grep -- -)
echo "nested: left ${left:-nothing}"
