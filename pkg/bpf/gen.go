// SPDX-License-Identifier: Apache-2.0

package bpf

// One object per hook file, and one with types only: each C struct and enum has exactly one Go type. Users need no clang: the
// generated Go and the objects are committed, `make generate` makes them again with the pinned clang and CI compares.
// One of them alone: go generate -run Pod ./pkg/bpf

//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include" -type drop_reason -type counter -type endpoint_flag -type peer_flag -type frontend_class -type service_verdict -type service_flag -type backend_flag -type node_address_flag -type target_kind -type flow_dir -type flow_state -type flow_bit -type flow_flag -type flow_phase -type flow_timeout -type flow_tcp -type table_size -type table_magic -type tuple -type target -type stale_socket Layout ../../bpf/layout.c
//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include" -no-global-types Pod ../../bpf/pod.c
//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include" -no-global-types Net ../../bpf/net.c
//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include" -no-global-types Overlay ../../bpf/overlay.c
//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include" -no-global-types Sock ../../bpf/sock.c
//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include" -no-global-types Sweep ../../bpf/sweep.c

// Only tests use this one.

//go:generate go tool bpf2go -cc clang-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -nostdinc -I../../bpf/include -I../../bpf" -output-suffix _test -type job -type result -type form -type shape Table testdata/table.c
