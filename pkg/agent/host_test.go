// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRunDirHasOneAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	release, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockRunDir(dir)
	if want := fmt.Sprintf("another fairleadd (pid %d) uses --run-dir %s", os.Getpid(), dir); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("second agent: error %v does not say %q", err, want)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	release, err = lockRunDir(dir)
	if err != nil {
		t.Fatalf("after the first agent's end: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

func TestBPFFS(t *testing.T) {
	if err := checkBPFFS("/sys/fs/bpf/fairlead/not/there/yet"); err != nil {
		t.Errorf("a folder to be made on a bpffs: %v", err)
	}
	other := t.TempDir()
	if err := checkBPFFS(filepath.Join(other, "x")); err == nil || !strings.Contains(err.Error(), other+" is not on a bpffs") {
		t.Errorf("elsewhere: error %v", err)
	}
}

func TestCgroupRoot(t *testing.T) {
	const hybrid = `22 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro
30 22 0:26 /system.slice/x /somewhere/bind rw - cgroup2 cgroup2 rw
31 22 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw
32 22 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
33 22 0:26 / /mnt/a\040longer\040path/cgroup/unified rw - cgroup2 cgroup2 rw
`
	const escaped = `31 22 0:26 / /mnt/c\040g rw - cgroup2 cgroup2 rw`
	const container = `40 39 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup rw
41 39 0:26 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw`
	const hidden = `31 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
32 22 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
33 32 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw`
	const none = `32 22 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu`
	for _, test := range []struct {
		name, table, configured, want, wantErr string
	}{
		{"found, not the bind mount", hybrid, "", "/sys/fs/cgroup/unified", ""},
		{"path with a blank", escaped, "", "/mnt/c g", ""},
		{"the host's, in a container", container, "", "/host/cgroup", ""},
		{"not the one that is hidden", hidden, "", "/sys/fs/cgroup/unified", ""},
		{"none", none, "", "", "no cgroup2 mount"},
		{"configured elsewhere", hybrid, "/tmp", "", "--cgroup-root /tmp: not on a cgroup v2"},
		{"configured and missing", hybrid, "/no/such", "", "--cgroup-root /no/such"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mountinfo")
			if err := os.WriteFile(path, []byte(test.table), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := cgroupRoot(test.configured, path)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("error %v does not say %q", err, test.wantErr)
				}
				return
			}
			if err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestCgroupRootOfThisMachine(t *testing.T) {
	found, err := cgroupRoot("", "/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := cgroupRoot(found, ""); err != nil || again != found {
		t.Errorf("the detected folder %s is refused when named: %v", found, err)
	}
}
