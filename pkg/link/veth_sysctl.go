// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hasIPv6 says whether the kernel has IPv6 at all.
func hasIPv6() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/sys/net/ipv6", &st) == nil
}

// podSysctls is called in the pod's namespace, while the link is down. Router advertisements have no business on a point-to-point link,
// and the addresses stay when somebody takes the link down and up. IPv6 may have been turned off for new links by the runtime.
func podSysctls(spec Veth) error {
	var v6 bool
	for _, a := range spec.Addrs {
		v6 = v6 || a.Is6()
	}
	if !v6 {
		return nil
	}
	return errors.Join(
		clearSysctl(sysctlRoot()+"/ipv6/conf/lo/disable_ipv6"),
		clearSysctl(sysctlRoot()+"/ipv6/conf/"+spec.Pod+"/disable_ipv6"),
		writeSysctl(sysctlRoot()+"/ipv6/conf/"+spec.Pod+"/accept_ra", "0"),
		writeSysctl(sysctlRoot()+"/ipv6/conf/"+spec.Pod+"/keep_addr_on_down", "1"))
}

// hostSysctls is called in the host side's namespace: a pod's router advertisements are never believed.
func hostSysctls(name string) error {
	err := writeSysctl(sysctlRoot()+"/ipv6/conf/"+name+"/accept_ra", "0")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// clearSysctl writes 0 only where something else stands: a write of disable_ipv6 takes the lock that all link changes wait for.
func clearSysctl(path string) error {
	var p [4]byte
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	n, err := unix.Read(fd, p[:])
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if n > 0 && p[0] == '0' {
		return nil
	}
	return writeSysctl(path, "0")
}

func writeSysctl(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	_, err = unix.Write(fd, []byte(value))
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("write %s to %s: %w", value, path, err)
	}
	return nil
}
