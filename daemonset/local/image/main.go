// SPDX-License-Identifier: Apache-2.0

// Image writes a container image as a docker archive, without an engine: one layer made of a folder or of single files.
//
//	image -o OUT.tar -tag NAME[,NAME] [-entrypoint JSON] [-cmd JSON] [-root FOLDER] [SOURCE=/PATH/IN/IMAGE ...]
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("image", flag.ContinueOnError)
	out := fs.String("o", "", "archive to write")
	tags := fs.String("tag", "", "names of the image, separated by commas")
	entrypoint := fs.String("entrypoint", "[]", "JSON list")
	cmd := fs.String("cmd", "[]", "JSON list")
	root := fs.String("root", "", "folder that becomes the image's root")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *out == "" || *tags == "" {
		return errors.New("-o and -tag are needed")
	}

	layer, err := os.CreateTemp(filepath.Dir(*out), ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), *root, fs.Args()); err != nil {
		return err
	}
	diffID := hex.EncodeToString(sum.Sum(nil))

	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"Entrypoint": json.RawMessage(*entrypoint),
			"Cmd":        json.RawMessage(*cmd),
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diffID}},
		"history": []map[string]string{{"created_by": "daemonset/local/image"}},
	})
	if err != nil {
		return err
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": strings.Split(*tags, ","), "Layers": []string{diffID + "/layer.tar"},
	}})
	if err != nil {
		return err
	}

	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		size int64
		data io.Reader
	}{
		{configName, int64(len(config)), bytes.NewReader(config)},
		{diffID + "/layer.tar", size, layer},
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
	} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size}); err != nil {
			return err
		}
		if _, err := io.Copy(w, part.data); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Close())
}

// writeLayer writes the folder, then the single files, owned by root.
func writeLayer(to io.Writer, root string, files []string) error {
	w := tar.NewWriter(to)
	made := map[string]bool{"/": true}
	if root != "" {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == root {
				return err
			}
			name, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			made["/"+name] = d.IsDir()
			return writeEntry(w, p, name)
		})
		if err != nil {
			return err
		}
	}
	for _, f := range files {
		source, name, ok := strings.Cut(f, "=")
		if !ok || !path.IsAbs(name) {
			return fmt.Errorf("file %q is not of the form SOURCE=/PATH", f)
		}
		for dir := path.Dir(name); !made[dir]; dir = path.Dir(dir) {
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		if err := writeEntry(w, source, name[1:]); err != nil {
			return err
		}
	}
	return w.Close()
}

func writeEntry(w *tar.Writer, source, name string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	var link string
	if info.Mode()&os.ModeSymlink != 0 {
		if link, err = os.Readlink(source); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("describe %s: %w", source, err)
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	}
	if info.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
