# What the emulated host does in one run: each test of the drivers that has to do with Firecracker, in a process of its own,
# and then a whole cluster. FILTER is set above.
mkdir -p /payload/tmp
export TMPDIR=/payload/tmp LIGHTBYTE_IMAGE=/payload/image LIGHTBYTE_SKIPPED=/tmp/skipped
export LIGHTBYTE_FIRECRACKER=/payload/bin/firecracker
export JAILER=--no-jailer
[ -f /payload/bin/jailer ] && export LIGHTBYTE_JAILER=/payload/bin/jailer JAILER=
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
cluster() {
    echo "$1" | grep -qE "$FILTER" && [ -d "/payload/$2" ] || return
    echo "nested: begin $1"
    begin=$(hundredths)
    sh /payload/cluster.sh "$2" </dev/null
    echo "nested: $? $(($(hundredths) - begin)) $1"
}
cluster cluster image
cluster debian debian
left=$(ls /payload/tmp; ls /sys/fs/cgroup/lightbyte 2>/dev/null | grep -- -)
echo "nested: left ${left:-nothing}"
