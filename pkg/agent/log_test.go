// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLogRemembersWarningsWithTheirAttributes(t *testing.T) {
	var out bytes.Buffer
	log, memory := newLog(&Config{LogLevel: slog.LevelInfo, LogFormat: "json"}, &out)
	log = log.With("component", "node")
	log.Debug("unseen")
	log.Info("seen")
	log.Warn("peer refused", "object", "Node b")
	log.WithGroup("route").Error("add", "dst", "10.0.0.0/24")

	last, counts := memory.read()
	var messages []string
	for _, l := range last {
		messages = append(messages, l.level.String()+" "+l.message)
	}
	want := []string{"WARN peer refused component=node object=Node b", "ERROR add component=node route.dst=10.0.0.0/24"}
	if diff := cmp.Diff(want, messages); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"INFO": 1, "WARN": 1, "ERROR": 1}, counts); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := strings.Count(out.String(), "\n"); got != 3 || strings.Contains(out.String(), "unseen") {
		t.Errorf("output is\n%s", out.String())
	}
}

func TestLogForgetsTheOldest(t *testing.T) {
	log, memory := newLog(&Config{LogFormat: "text"}, &bytes.Buffer{})
	for i := range remembered + 5 {
		log.Warn(fmt.Sprint(i))
	}
	last, _ := memory.read()
	if len(last) != remembered || last[0].message != "5" || last[len(last)-1].message != fmt.Sprint(remembered+4) {
		t.Errorf("%d messages from %v to %v", len(last), last[0], last[len(last)-1])
	}
}
