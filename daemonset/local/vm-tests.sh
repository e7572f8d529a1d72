# SPDX-License-Identifier: Apache-2.0
# Runs inside the emulated machine of vm.sh, on the files that kernels.sh put there.
#   tests    every program loads, the agent gets ready, and the packet and namespace tests pass
#   refuse   the agent ends at once and names what this kernel lacks: WORD... are the features
mkdir -p /sys/fs/bpf /var/lib /run/netns
export PATH=/usr/sbin:$PATH FAIRLEAD_TEST_BINARIES=/cni

# Left out here, run on every real machine by make test. Emulation switches threads so rarely and is so slow that they say nothing:
# two CPUs that must meet 20,000 times (Race), seconds at full speed (Stress, Flood, UnderLoad), measured time (Fast), and for their
# length: a large table filled to the end, a process started and killed at each of many steps, thousands of cycles.
LEFT_OUT='TestFlowRace|TestFlowPortRace|TestFlowStress|TestFlowTableFull|TestSweepFlood|TestSockFlipUnderLoad|TestKilledBetweenSteps|TestAgentKilledUnderLoad|TestThousandCyclesLeakNothing|TestManyNodes'

agent() { # starts it as on a node whose Node object is the only one
  ip link add uplink type dummy; ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up
  /fairleadd --node-name node --manifests /manifests --healthz-bind-address 127.0.0.1:10256 >/tmp/agent.log 2>&1 &
}

case $1 in
  tests)
    status=0
    agent; p=$! n=0
    until said=$(timeout 5 wget -q -O- http://127.0.0.1:10256/readyz 2>&1) || [ $n = 60 ] || ! kill -0 $p 2>/dev/null; do n=$((n + 1)); sleep 1; done
    echo "-- agent: readyz says $said"
    [ "$said" = ok ] || { cat /tmp/agent.log; status=1; }
    kill $p; wait $p || { echo "the agent ended with status $?"; status=1; }
    grep 'another way is taken' /tmp/agent.log
    for t in /*.test; do
      name=$(basename "$t" .test); mkdir -p "/src/pkg/$name"; cd "/src/pkg/$name"
      echo "-- $name"; "$t" -test.short -test.timeout 30m -test.skip "$LEFT_OUT" -test.run "${RUN:-.}" $FLAGS || status=1
    done
    exit $status ;;
  refuse)
    shift; status=0
    agent; p=$!
    (sleep 60; kill $p 2>/dev/null) & # one that is not refused would run for ever, and ends with status 0 then
    if wait $p; then echo "the agent runs on a kernel without $*"; status=1; fi
    cat /tmp/agent.log
    for f in "$@"; do grep -q "kernel feature $f (.*) is missing" /tmp/agent.log || { echo "the agent does not name $f"; status=1; }; done
    exit $status ;;
esac
