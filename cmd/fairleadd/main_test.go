// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/pkg/cni"
)

func TestInstall(t *testing.T) {
	to := filepath.Join(t.TempDir(), "bin")
	install := func(from string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"install", "--from=" + from, "--cni-bin-dir=" + to}, &out)
		return out.String(), err
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"installed", "is up to date"} {
		if said, err := install(self); err != nil || !strings.Contains(said, want) {
			t.Errorf("says %q, %v, want %q", said, err, want)
		}
	}
	info, err := os.Stat(filepath.Join(to, cni.BinaryName))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("installed %v, %v", info, err)
	}
	before, err := os.ReadFile(filepath.Join(to, cni.BinaryName))
	if err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := install(text); err == nil || !strings.Contains(err.Error(), "not an ELF file") {
		t.Errorf("a text as binary: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(to, cni.BinaryName)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a refused install changed what was there (%v)", err)
	}
}

func TestInstallFindsNothing(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{"install", "--cni-bin-dir=" + t.TempDir()}, &out)
	if _, there := os.Stat("/opt/fairlead/cni/" + cni.BinaryName); there == nil {
		t.Skip("this machine has the image's CNI binary at /opt/fairlead")
	}
	if err == nil || !strings.Contains(err.Error(), "name it with --from") {
		t.Errorf("error is %v", err)
	}
}

func TestWrongUse(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("node-nam: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--no-such"}, "unknown flag: --no-such"},
		{[]string{"unistall"}, `unknown command "unistall"`},
		{[]string{"--config=" + config}, `unknown key "node-nam"`},
		{[]string{"--config=" + config + ".not"}, "read config"},
		{[]string{"--mtu=12"}, "--mtu 12: not between"},
		{[]string{"uninstall", "--mtu=12"}, "--mtu 12: not between"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), test.args, &out); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("fairleadd %v: error %v does not say %q", test.args, err, test.want)
		}
	}
}

func TestVersion(t *testing.T) {
	if versionName() == "" {
		t.Error("no version")
	}
}
