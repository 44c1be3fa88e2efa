package mqtest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Main builds the server, calls start, which starts what all tests of a package share, and runs the tests. It returns the
// exit code: that of a failure, too, if the shared servers have logged what they must not.
func Main(m *testing.M, start func(TB)) (code int) {
	remove, err := Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	t := &mainTB{}
	defer func() {
		if t.end(); t.failed {
			code = 1
		}
	}()
	start(t)
	return m.Run()
}

// mainTB stands in for a test where a server outlives each of them.
type mainTB struct {
	failed   bool
	cleanups []func()
}

func (*mainTB) Helper()            {}
func (t *mainTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }
func (t *mainTB) Failed() bool     { return t.failed }
func (t *mainTB) TempDir() string {
	dir, err := os.MkdirTemp("", "mqim-shared")
	if err != nil {
		panic(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
func (t *mainTB) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (t *mainTB) Errorf(format string, args ...any) {
	t.failed = true
	t.Logf("shared server: "+format, args...)
}
func (t *mainTB) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic("shared server")
}
func (t *mainTB) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}

// Inputs looks at every file that the server and the scripts are made of, below root, so that go test runs the tests
// again when one has changed: it knows of no other way that the result depends on them.
func Inputs(t *testing.T, root string) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "node_modules" || name == "data" || name == "bin"):
			return filepath.SkipDir
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"), strings.HasSuffix(name, ".mjs"), name == "go.sum":
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
