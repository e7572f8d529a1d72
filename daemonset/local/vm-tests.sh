# SPDX-License-Identifier: Apache-2.0
# Runs inside the emulated machine of vm.sh: all tests, or the agent's own words about what this kernel lacks.
mkdir -p /sys/fs/bpf /var/lib /run/netns
case $1 in
  all)
    status=0
    for t in /*.test; do
      name=$(basename "$t" .test); mkdir -p "/src/pkg/$name"; cd "/src/pkg/$name"
      echo "-- $name"; "$t" -test.short -test.timeout 20m || status=1
    done
    exit $status ;;
  refuse)
    /fairleadd probe ;;
esac
