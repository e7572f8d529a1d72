// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// snapshotVersion is raised when a reader of the old form would misread the new one; new fields alone do not raise it.
const snapshotVersion = 1

// Snapshot is what an agent keeps on disk so that a restart without an API server can serve what it knows. It is a hint, never the truth:
// the first complete list replaces it.
type Snapshot struct {
	Node       *Node             `json:"node,omitempty"`       // the own node, nil when never seen
	APIServers []string          `json:"apiServers,omitempty"` // HOST:PORT, the API servers seen last
	Versions   map[string]string `json:"versions,omitempty"`   // name of a Kind -> resourceVersion that it was last complete at
}

// snapshotFile is the form on disk.
type snapshotFile struct {
	Version int `json:"version"`
	Snapshot
}

// ReadSnapshot reads a file that Write wrote. A missing file is fs.ErrNotExist; a file of a newer agent that changed the form is an error.
func ReadSnapshot(path string) (Snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Snapshot{}, fmt.Errorf("read snapshot: %w", err)
	}
	var f snapshotFile
	if err := json.Unmarshal(data, &f); err != nil {
		return Snapshot{}, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	if f.Version != snapshotVersion {
		return Snapshot{}, fmt.Errorf("read snapshot %s: version %d, this agent knows %d; remove the file to start without it", path, f.Version, snapshotVersion)
	}
	return f.Snapshot, nil
}

// Write replaces the file: a reader, and the disk after a power cut, have the old one or the new one.
func (s Snapshot) Write(path string) (err error) {
	data, err := json.Marshal(snapshotFile{Version: snapshotVersion, Snapshot: s})
	if err != nil {
		return fmt.Errorf("write snapshot %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write snapshot %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write snapshot %s: %w", path, err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("write snapshot %s: %w", path, err)
	}
	return nil
}
