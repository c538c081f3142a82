# A whole cluster on the emulated host: etcd, a server, and a worker that finds Firecracker by itself. One VM of the image that
# is the first word is asked for as people do it, with a volume; it answers, outlives a worker that is killed, its volume grows
# under it, it is stopped in order, its volume outlives it, and nothing is left.
image=$1
fail() {
    echo "cluster: $*"
    tail -n 30 /tmp/log/*
    exit 1
}
step() { echo "cluster: $(sed 's/ .*//' /proc/uptime) $*"; }
rm -rf /tmp/log
mkdir -p /tmp/log /payload/tmp/cluster/images
export LIGHTBYTE_API=http://127.0.0.1:7700 LIGHTBYTE_LOG=info PATH=/payload/bin:$PATH
lightbyte=/payload/bin/lightbyte
ip link set lo up
ip link add br0 type bridge
ip addr add 10.78.0.1/24 dev br0
ip link set br0 up

# Go looks for names where there are none.
mkdir -p /etc
echo "127.0.0.1 localhost" >/etc/hosts
/payload/bin/etcd --data-dir /tmp/etcd >/tmp/log/etcd 2>&1 &
etcd=$!
$lightbyte server --name s1 --listen $LIGHTBYTE_API --advertise $LIGHTBYTE_API --etcd http://127.0.0.1:2379 \
    --parts /payload/tmp/cluster/images >/tmp/log/server 2>&1 &
server=$!
work() {
    # Firecracker and its jailer are in PATH, and KVM is usable: nothing has to be said.
    $lightbyte worker --name n1 --state /payload/tmp/cluster/state --server $LIGHTBYTE_API --cpus 2 --memory 512MiB \
        --images /payload/tmp/cluster/images --run /run/lightbyte \
        --listen http://127.0.0.1:7701 $JAILER >>/tmp/log/worker 2>&1 &
    worker=$!
}
work
tries=0
until $lightbyte get workers 2>/dev/null | grep -q ready; do
    tries=$((tries + 1))
    [ $tries -gt 20 ] && fail "the worker is not ready"
    sleep 1
done
$lightbyte get workers -o wide
$lightbyte import image "/payload/$image" || fail "no image"
cat >/tmp/network.yaml <<'END'
kind: network
name: default
spec:
  subnet: 10.78.0.0/24
  gateway: 10.78.0.1
  pool_first: 10.78.0.100
END
$lightbyte apply -f /tmp/network.yaml || fail "no network"

inside() { $lightbyte exec hello -- sh -c "$1"; }
answers() {
    case $image in
    image) wget -q -O - http://10.78.0.100/ | grep hello ;;
    *) ping -c 1 -w 20 10.78.0.100 >/dev/null && echo "it answers a ping" ;;
    esac
}
name=$(sed -n 's/.*"name": *"\([^"]*\)".*/\1/p' "/payload/$image/manifest.json" | head -n 1)
step "asks for a VM of $name"
$lightbyte run "$name" --name hello --memory 256MiB --volume data:64MiB --timeout 900s || fail "it does not run"
step "it is ready"
answers || fail "it does not answer"
inside 'grep -q " /mnt/data " /proc/mounts && echo kept >/mnt/data/file && sync' || fail "it has no volume"
vm=$(pidof firecracker)
[ "$(echo "$vm" | wc -w)" = 1 ] || fail "there are the processes: $vm"
echo "cluster: uid $(stat -c %u /proc/"$vm")"

kill -9 $worker
wait $worker
step "the worker was killed"
answers || fail "it ended with its worker"
work
$lightbyte wait vm/hello --timeout 120s || fail "it is not found again"
tries=0
# The server takes a worker whose lease has run out for one that is away, until it hears of it again.
until [ "$(inside 'echo adopted')" = adopted ]; do
    tries=$((tries + 1))
    [ $tries -gt 20 ] && fail "there is no way into it"
    sleep 1
done
[ "$(pidof firecracker)" = "$vm" ] || fail "it is another process"
step "another worker has adopted it"

$lightbyte grow volume/data 128MiB || fail "its volume does not grow"
tries=0
until [ "$(inside 'stat -fc %b\ %S /mnt/data | { read a b; echo $((a * b >> 20)); }')" -gt 100 ]; do
    tries=$((tries + 1))
    [ $tries -gt 20 ] && fail "its file system does not grow"
    sleep 1
done
step "its volume has grown under it"

$lightbyte stop hello --timeout 300s || fail "it does not stop"
[ -z "$(pidof firecracker)" ] || fail "its process is still there"
step "it is stopped"
$lightbyte start hello --timeout 900s || fail "it does not start again"
step "it is ready again"
[ "$(inside 'cat /mnt/data/file')" = kept ] || fail "what it wrote is gone"
$lightbyte delete hello --yes || fail "it is not deleted"
$lightbyte get volume/data || fail "its volume went with it"
$lightbyte delete volume/data --yes || fail "its volume is not deleted"
step "both are deleted"
left=$(pidof firecracker; ls /run/lightbyte /sys/fs/cgroup/lightbyte | grep -- -; ip -o link | grep ': lb')
[ -z "$left" ] || fail "something is left: $left"
kill $worker $server $etcd
wait $worker $server $etcd
rm -rf /payload/tmp/cluster /tmp/etcd
ip link del br0
exit 0
