package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestImports keeps the promise of design.md: imports point one way, im knows no MQTT and no driver, and what knows mochi
// is in hooks and broker, or listens for it.
func TestImports(t *testing.T) {
	const module = "github.com/mqim/mqim/"
	forbidden := []struct{ in, imports string }{
		{"store", module + "(im|hooks|transport|broker|cmd|users)"},
		{"store/(storetest|wire|dump)?$", module + "store/(pebble|mysql)|cockroachdb|go-sql-driver|pressly"},
		{"store/mysql", module + "store/pebble|cockroachdb"},
		{"store/pebble", module + "store/mysql|go-sql-driver|database/sql|pressly"},
		{"im", module + "(store/[^w]|hooks|transport|broker|cmd|users)|mochi-mqtt|cockroachdb|database/sql|net/http|gorilla"},
		{"bus", module + "[^b]|redis"},
		{"cluster", module + "(im|store|hooks|transport|broker|cmd|users)|mochi-mqtt"},
		{"(im|hooks)", module + "cluster|redis"},
		{"transport", module + "(im|store|hooks|broker|cmd|users)|cockroachdb"},
		{"users", module + "."},
		{"hooks", module + "(store/.|broker|cmd)|cockroachdb"},
		{"hooks/link", module + "(im|hooks)"},
		{"broker", module + "cmd"},
		{"(bench|examples)", module + "(broker|cmd)"},
	}
	seen := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, _ := filepath.Rel("..", filepath.Dir(path))
		seen++
		for _, rule := range forbidden {
			if !regexp.MustCompile("^" + rule.in + "(/|$)").MatchString(filepath.ToSlash(dir)) {
				continue
			}
			for _, imp := range file.Imports {
				name, _ := strconv.Unquote(imp.Path.Value)
				if regexp.MustCompile(rule.imports).MatchString(name) {
					t.Errorf("%s imports %s", path, name)
				}
			}
		}
		return nil
	})
	if err != nil || seen < 30 {
		t.Fatalf("read %d files: %v", seen, err)
	}
}

// TestLinks follows the links between the pages.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, page := range []string{"../README.md", "protocol.md", "operations.md", "design.md", "cluster.md", "scale.md", "../CONTRIBUTING.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
			}
		}
	}
}

// TestMetrics looks for every metric that operations.md names in the code that registers them.
func TestMetrics(t *testing.T) {
	text, err := os.ReadFile("operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var code []byte
	for _, file := range []string{"metrics.go", "cluster.go"} {
		more, err := os.ReadFile("../broker/" + file)
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, more...)
	}
	names := regexp.MustCompile("`mqim_([a-z_]+)").FindAllStringSubmatch(string(text), -1)
	if len(names) < 8 {
		t.Fatalf("operations.md names %d metrics, want 8 or more", len(names))
	}
	for _, n := range names {
		short := strings.TrimPrefix(strings.TrimPrefix(n[1], "store_"), "cluster_")
		if !strings.Contains(string(code), `"`+short+`"`) && !strings.Contains(string(code), `"mqim_`+n[1]+`"`) {
			t.Errorf("operations.md names mqim_%s, which is not registered", n[1])
		}
	}
}
